"""Optimizer and learning-rate schedule from the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from vla_jax.training.groups import factors
from vla_jax.types import Params


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a warm-up.

    Attributes:
      learning_rate: the peak.
      warmup_steps: linear from 0.
      decay: after warm-up: "cosine" to 0 at the last step, "rsqrt" (peak * sqrt(warmup / step), as
        PaLI and PaLM), or "constant".
      weight_decay: of matrices; norms, biases and embeddings have none.
      clip_norm: global gradient norm above which the gradient is scaled down.
      groups: other learning rates for parts of the model, see `training.groups`: the rate times a
        factor, 0 to freeze (no moments are kept). E.g. (("img/.*", 0.1), ("llm/embedder/.*", 0.0)).
    """

    learning_rate: float
    warmup_steps: int
    decay: Literal["cosine", "rsqrt", "constant"] = "cosine"
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    groups: tuple[tuple[str, float], ...] = ()


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Step -> learning rate. Raises ValueError if warm-up is not shorter than training."""
    if not 0 < config.warmup_steps < total_steps:
        raise ValueError(
            f"optimizer.warmup_steps {config.warmup_steps} must be between 1 and train.steps "
            f"{total_steps} - 1"
        )
    peak, warmup = config.learning_rate, config.warmup_steps
    rise = optax.linear_schedule(0.0, peak, warmup)
    if config.decay == "cosine":
        fall = optax.cosine_decay_schedule(peak, total_steps - warmup)
    elif config.decay == "rsqrt":
        fall = lambda step: peak * (warmup / jnp.maximum(step + warmup, 1)) ** 0.5  # noqa: E731
    else:
        fall = optax.constant_schedule(peak)
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """AdamW, clipped by global norm."""
    adamw = optax.adamw(
        make_schedule(config, total_steps),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=_decayed,
    )
    clip = optax.clip_by_global_norm(config.clip_norm)
    if not config.groups:
        return optax.chain(clip, adamw)

    def labels(params: Params) -> Params:
        return jax.tree.map(str, factors(params, config.groups))

    kinds = {str(factor): factor for factor in (1.0, *(f for _, f in config.groups))}
    parts: dict[Hashable, optax.GradientTransformation] = {
        label: optax.chain(adamw, optax.scale(factor)) if factor else optax.set_to_zero()
        for label, factor in kinds.items()
    }
    return optax.chain(clip, optax.partition(parts, labels))


def _decayed(params):
    """True for matrices in blocks; by name, as stacked layers make even a bias a matrix."""

    def one(path, _):
        return path[-1].key not in ("bias", "scale", "pos_embedding", "input_embedding")

    return jax.tree_util.tree_map_with_path(one, params)
