"""Optimizer and learning-rate schedule from the config."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax


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
    """

    learning_rate: float
    warmup_steps: int
    decay: Literal["cosine", "rsqrt", "constant"] = "cosine"
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0


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
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )


def _decayed(params):
    """True for matrices in blocks; by name, as stacked layers make even a bias a matrix."""

    def one(path, _):
        return path[-1].key not in ("bias", "scale", "pos_embedding", "input_embedding")

    return jax.tree_util.tree_map_with_path(one, params)
