"""Published speeds of language models on TPUs, to hold predictions against.

MaxText's README and its v5e-256 configurations (github.com/AI-Hypercomputer/maxtext): decoder-only
models with heads of 128, sequences of 2,048, fully sharded over 256 chips, everything recomputed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.pallas.ops.tpu import splash_attention

from vla_jax.models import attention
from vla_jax.models.decoder import Decoder
from vla_jax.models.presets import PRESETS, VITS, DecoderConfig, ModelConfig
from vla_jax.planning.program import Program
from vla_jax.sharding.activations import on_own_rows
from vla_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh
from vla_jax.training.optimizer import OptimizerConfig, make_optimizer
from vla_jax.training.step import TrainState, make_train_step, state_shardings


@dataclasses.dataclass(frozen=True)
class Published:
    """One published measurement.

    Attributes:
      mfu: measured there, in percent.
      batch: sequences per chip.
    """

    name: str
    decoder: DecoderConfig
    batch: int
    mfu: float
    topology: str = "v5e:16x16"
    sequence: int = 2048


def _decoder(width: int, depth: int) -> DecoderConfig:
    """MaxText's base of 1B with its dimensions doubled in turn: heads and MLP, width, depth."""
    return DecoderConfig(width, depth, 28_672, 64, 64, 128, 32_000, activation="silu")


PUBLISHED = {
    row.name: row
    for row in (
        Published("16B", _decoder(4096, 32), 6, 61.1),
        Published("32B", _decoder(8192, 32), 4, 66.9),
        Published("64B", _decoder(8192, 64), 2, 59.9),
    )
}


def language_program(settings: dict[str, Any], devices: list[Any]) -> Program:
    """The train step of one of `PUBLISHED`: this project's decoder, rules and update.

    Args:
      settings: {"name": of the row, "attention": of `ModelConfig`}.
    """
    row = PUBLISHED[settings["name"]]
    # Of this process only: a preset, whose image encoder is never made, and the kernel that the
    # published runs use, whose mask is known when it is compiled.
    PRESETS[row.name] = (VITS["B/16"], row.decoder)
    attention._FUSED["splash"] = _causal_kernel
    model = ModelConfig(row.name, remat="full", attention=settings["attention"])
    mesh = make_mesh(MeshConfig(data=1, fsdp=len(devices)), devices)
    rows = row.batch * len(devices)
    decoder = Decoder(model)
    optimizer = make_optimizer(OptimizerConfig(1e-4, 100), 1000)

    def init() -> TrainState:
        x = jnp.zeros((1, 2, row.decoder.width), jnp.bfloat16)
        place = jnp.zeros((1, 2), jnp.int32)
        mask = jnp.ones((1, 2, 2), bool)
        plain = Decoder(dataclasses.replace(model, attention="xla"))
        made = _init_decoder(plain, x, place, mask)
        params = {"llm": made}
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": optimizer.init(params)}

    def loss(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        return _loss(decoder, params["llm"], batch["tokens"]), {}

    abstract = jax.eval_shape(init)
    shardings = state_shardings(abstract, mesh)
    state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    tokens = jax.ShapeDtypeStruct(
        (rows, row.sequence + 1), jnp.int32, sharding=batch_sharding(mesh)
    )
    step = make_train_step(optimizer, shardings, mesh, loss)
    batch = {"tokens": tokens}
    parts = {"parameters": state["params"], "optimizer state": state["opt"], "batch": batch}
    return Program("step", step, parts, mesh, (state, batch))


def _causal_kernel(q, k, v, mask, scale: float, softcap: float | None) -> jax.Array:
    """Causal attention [B, T, N, H] by Pallas."""
    del mask, softcap
    length, heads = q.shape[1], q.shape[2]
    causal = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    size = min(length, 1024)
    blocks = splash_attention.BlockSizes(*[size] * 6, block_q_dq=size, block_kv_dq=size)

    def of_rows(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        kernel = splash_attention.make_splash_mha_single_device(causal, block_sizes=blocks)
        q, k, v = (x.swapaxes(1, 2) for x in (q * scale, k, v))
        out: Any = jax.vmap(kernel)(q, k, v)
        return out.swapaxes(1, 2)

    return on_own_rows(of_rows, q, k, v)


def _init_decoder(decoder: Decoder, x: jax.Array, positions: jax.Array, mask: jax.Array) -> Any:
    def both(module: Decoder, x: jax.Array) -> jax.Array:
        hidden, _ = module(x, positions, mask)
        return module.logits(hidden)

    return decoder.init(jax.random.key(0), x, method=both)["params"]


def _loss(decoder: Decoder, params: Any, tokens: jax.Array) -> jax.Array:
    """Mean cross-entropy of each next token, int32 [B, T + 1]."""

    def forward(module: Decoder, tokens: jax.Array) -> jax.Array:
        x = module.embed(tokens[:, :-1])
        length = x.shape[1]
        place = jnp.broadcast_to(jnp.arange(length), x.shape[:2])
        mask = jnp.broadcast_to(jnp.tri(length, dtype=bool), (x.shape[0], length, length))
        hidden, _ = module(x, place, mask)
        return module.logits(hidden)

    logits: Any = decoder.apply({"params": params}, tokens, method=forward)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))


def language_flops(row: Published) -> float:
    """Model FLOPs of a step on one chip, as `training.flops` counts them."""
    d = row.decoder
    inner = d.num_heads * d.head_dim
    weights = d.depth * (4 * d.width * inner + 3 * d.width * d.mlp_dim)
    attention = d.depth * 4 * row.sequence * inner
    per_token = 2 * (weights + d.width * d.vocab_size) + attention
    return 3.0 * per_token * row.sequence * row.batch
