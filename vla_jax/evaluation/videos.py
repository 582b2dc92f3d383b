"""Which rollouts are kept as videos."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_jax.evaluation.media import Frame, save_rollout
from vla_jax.evaluation.rollout import Outcome


class Videos:
    """Saves the first few successes and failures of each family.

    Args:
      media: directory; files are named after `label`.
      per_outcome: how many of each.
      by_family: count each family by itself, not all of them together.
      step_ms: how long a step is shown.
      saved: those there are already.
    """

    def __init__(
        self,
        media: Path,
        label: str,
        per_outcome: int,
        *,
        by_family: bool = True,
        step_ms: float = 400,
        saved: Sequence[dict[str, Any]] = (),
    ):
        self._media, self._label, self._per_outcome = media, label, per_outcome
        self._by_family, self._step_ms = by_family, step_ms
        self.saved: list[dict[str, Any]] = list(saved)
        self._counts = collections.Counter(self._key(c["family"], c["success"]) for c in saved)

    def _key(self, family: str, success: bool) -> tuple[str, bool]:
        return family if self._by_family else "", success

    def offer(self, outcome: Outcome, frames: list[Frame]) -> None:
        key = self._key(outcome.family, outcome.success)
        if self._counts[key] >= self._per_outcome:
            return
        self._counts[key] += 1
        result = "success" if outcome.success else "failure"
        path = self._media / f"{self._label}_{outcome.family}_{result}_{outcome.number}.gif"
        save_rollout(
            path,
            frames,
            instruction=outcome.instruction,
            outcome=f"{result} after {outcome.steps} steps ({outcome.ended})",
            success=outcome.success,
            step_ms=self._step_ms,
        )
        self.saved.append(
            {
                "path": f"{self._media.name}/{path.name}",
                "pool": self._label,
                "family": outcome.family,
                "success": outcome.success,
                "instruction": outcome.instruction,
                "steps": outcome.steps,
                "seed": outcome.seed,
            }
        )
