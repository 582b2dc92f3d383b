"""An update is applied only where the loss and the gradient are finite; all on the accelerator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

State = dict[str, Any]
Step = Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, Any]]]


def guarded(step: Step) -> Step:
    """A step that counts on, but leaves the rest of the state as it is if anything is not finite.

    Its metrics have "finite", bool []: whether "loss" and "grad_norm" are, and the update was
    applied. A batch may have "stop", bool [B]: rows of processes that were told to stop. The
    metrics then have "stop", bool []: whether there is any. It is the same on all processes, so
    they act on it after the same step.

    Args:
      step: (state, batch) -> (state, metrics); the state has "step".
    """

    @functools.wraps(step)
    def run(state: State, batch: dict[str, jax.Array]) -> tuple[State, dict[str, Any]]:
        stop = batch.get("stop")
        new, metrics = step(state, {k: v for k, v in batch.items() if k != "stop"})
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        kept = {
            key: jax.tree.map(lambda after, before: jnp.where(finite, after, before), *pair)
            for key, pair in ((k, (new[k], state[k])) for k in new if k != "step")
        }
        metrics = {**metrics, "finite": finite}
        if stop is not None:
            metrics["stop"] = jnp.any(stop)
        return {**kept, "step": new["step"]}, metrics

    return run
