"""Notices when the train step is compiled again, and says what changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vla_jax.tree import flatten


class CompileOnce:
    """Compares a jitted step's compilations with the one that its first call needs.

    Args:
      step: made by `jax.jit`.
    """

    def __init__(self, step: Callable[..., Any]):
        # JAX has no public count; without it nothing is noticed.
        self._count: Callable[[], int] | None = getattr(step, "_cache_size", None)
        self._compiled = 0
        self._first: dict[str, str] = {}

    def check(self, batch: dict[str, jax.Array]) -> str | None:
        """What changed, if the last call, with this batch, compiled the step once more.

        The first call after construction is the one that may.
        """
        count = 1 if self._count is None else self._count()
        if count <= self._compiled:
            return None
        now = _signature(batch)
        before, self._first = self._first, self._first or now
        self._compiled = count
        if not before:
            return None
        changed = [
            f"{name} is {now.get(name, 'gone')}, was {before.get(name, 'not there')}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        what = "; ".join(changed) or "no array of the batch: the state or a setting of JAX"
        return f"the train step was compiled again ({count} times now). Changed: {what}"


def _signature(batch: dict[str, jax.Array]) -> dict[str, str]:
    return {
        name: f"{leaf.dtype}{list(leaf.shape)} {leaf.sharding}"
        for name, leaf in flatten(batch).items()
    }
