"""What the model costs, and what this machine can do: for the speed table."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp

from vla_jax.evaluation.base import Result
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import Vla, init_params


def training_flops(config: ModelConfig, *, max_tokens: int, max_answer_tokens: int) -> int:
    """Floating-point operations of one sample in one update: matrix products and convolutions.

    Three times the forward's, the usual count for a forward and a backward pass; recomputation
    (`remat`), element-wise work and the optimizer do not count.
    """
    model = Vla(config)
    params = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    size = config.image_size
    images = jax.ShapeDtypeStruct((1, config.num_views, size, size, 3), jnp.uint8)
    tokens = jax.ShapeDtypeStruct((1, max_tokens), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, max_tokens), jnp.bool_)

    def forward(params, images, tokens, causal, valid):
        hidden = jnp.asarray(model.apply({"params": params}, images, tokens, causal, valid))
        answer = hidden[:, :max_answer_tokens]
        return model.apply({"params": params}, answer, method="logits")

    return 3 * matmul_flops(jax.make_jaxpr(forward)(params, images, tokens, mask, mask).jaxpr)


def matmul_flops(jaxpr: Any) -> int:
    """2 m n k of every matrix product and convolution in a jaxpr, loops unrolled."""
    total = 0
    for eqn in jaxpr.eqns:
        out = eqn.outvars[0].aval
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * math.prod(out.shape) * math.prod(shape[i] for i in contracted)
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(out.shape) * math.prod(kernel) // features
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for inner in _inner(eqn.params.values()):
            total += times * matmul_flops(inner)
    return total


def _inner(params: Any):
    """The jaxprs among an equation's parameters."""
    for value in params:
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def dot_ceiling(dtype: str, *, size: int = 1024, seconds: float = 1.0) -> float:
    """FLOP/s of a plain square `jnp.dot` on the first device: the best of the runs in `seconds`."""
    a = jnp.ones((size, size), dtype)
    dot = jax.jit(jnp.dot)
    dot(a, a).block_until_ready()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        dot(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def measure_speed(config: ModelConfig, *, max_tokens: int, max_answer_tokens: int) -> Result:
    """For `speed.json`; how fast training ran stands in the run's own metrics."""
    return {
        "flops_per_sample": training_flops(
            config, max_tokens=max_tokens, max_answer_tokens=max_answer_tokens
        ),
        "ceiling_flops_per_s": dot_ceiling(config.compute_dtype),
        "dtype": config.compute_dtype,
    }
