"""What a policy computes, as StableHLO that runs without this project, on CPU, CUDA and TPU.

Two functions, each of any batch size B, lowered for all platforms at once without a device of them:

    act(parameters, images uint8 [B, views, h, w, 3], tokens int32 [B, T], valid bool [B, T],
        temperature float32 [B], seeds int32 [B] (, state float32 [B, S], state_valid bool [B]))
        -> int32 [B, K]
    answer(likewise) -> int32 [B, K]

Parameters are an argument, a mapping with the names, shapes and dtypes of the bundle's safetensors
files: as constants, those of a model of 3 B would be 12 GB of text inside of a file, once for each
function, and a protocol buffer holds 2 GB. int8 is turned into numbers inside.

Ids are padded; one of -1 says that the logits were not finite and that nothing is to be done. A
policy that plans says the plan, "Action:" and then the action. Layouts and custom kernels differ
by platform, so the attention is the plain one, which all have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from vla_jax.decoding.policy import Policy
from vla_jax.models.vla import State, init_params
from vla_jax.serving import parameters
from vla_jax.serving.bundle import Bundle
from vla_jax.tree import unflatten

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"


def exported(bundle: Bundle, tensors: Mapping[str, np.ndarray]) -> dict[str, export.Exported]:
    """Name -> function, for those that the bundle's model has."""
    settings = bundle.settings
    model = dataclasses.replace(settings.model, attention="xla")
    builder = bundle.builder
    policy = Policy(
        jax.eval_shape(lambda: init_params(model, jax.random.key(0))),
        dataclasses.replace(model, unroll_layers=False),
        builder,
        batch_size=1,
        plans=settings.plans,
        flag_broken=True,
    )
    length = settings.max_tokens - settings.max_answer_tokens
    batch = export.symbolic_shape("batch")[0]
    columns: list[tuple[tuple[int, ...], Any]] = [
        ((settings.views, model.image_size, model.image_size, 3), np.uint8),
        ((length,), np.int32),
        ((length,), np.bool_),
        ((), np.float32),
        ((), np.int32),
    ]
    if model.state_size:
        columns += [((model.state_size,), np.float32), ((), np.bool_)]
    inputs = [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in columns]
    names = {"answer": ""} | ({} if bundle.tokenizer is None else {"act": bundle.spec.name})
    return {
        name: export.export(
            jax.jit(_function(policy.decoder(robot), model.compute_dtype, name)),
            platforms=PLATFORMS,
        )(parameters.shapes_of(tensors), *inputs)
        for name, robot in names.items()
    }


def _function(decode: Callable[..., jax.Array], compute_dtype: str, name: str):
    def run(tensors: Mapping[str, jax.Array], *inputs: jax.Array) -> jax.Array:
        params = unflatten(parameters.usable(tensors, compute_dtype))
        state = State(*inputs[5:]) if inputs[5:] else None
        return decode(params, *inputs[:5], state=state)

    run.__name__ = name
    return run


def write(directory: Path, functions: Mapping[str, export.Exported]) -> None:
    """Writes `NAME.stablehlo`, which `jax.export.deserialize` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, function in functions.items():
        (directory / f"{name}{SUFFIX}").write_bytes(function.serialize())
