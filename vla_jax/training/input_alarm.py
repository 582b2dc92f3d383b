"""Says which stage of the input is slow when updates wait for their batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

# Stage -> what helps. The first three are `Loader.stage_seconds`.
_REMEDIES = {
    "reading": "raise data.readers, or move the data to faster storage",
    "tokenizing": "shorten the texts, or spread the job over more hosts",
    "decoding": "raise data.threads, or store smaller pictures",
    "transfer": "lower data.image_size",
}


class InputAlarm:
    """Compares the wait of each window with a threshold.

    Args:
      threshold: share of the time, 0 to 1, above which there is an alarm.
      stage_seconds: of the loader; see `Loader.stage_seconds`.
    """

    def __init__(self, threshold: float, stage_seconds: Callable[[], Mapping[str, float]]):
        self._threshold, self._stage_seconds = threshold, stage_seconds
        self._before = np.zeros(len(_REMEDIES))
        self._told = ""

    def forget(self) -> None:
        """Begins a new window."""
        self._before = self._now(0.0)

    def check(self, waited_s: float, transfer_s: float, elapsed_s: float) -> str | None:
        """The alarm, if the window that ends here is above the threshold, and begins a new one.

        Every process of a job calls it at the same step, as they all tell how long they waited: on
        a pod all wait for the one that is slowest. An alarm that goes on is told once.

        Args:
          waited_s: for batches in the window.
          transfer_s: of giving them to the devices.
          elapsed_s: length of the window.
        """
        now = self._now(0.0)
        stages = now - self._before
        self._before = now
        stages[-1] = transfer_s
        mine = np.asarray([(waited_s + transfer_s) / elapsed_s, transfer_s > waited_s, *stages])
        rows = mine[None]
        if jax.process_count() > 1:
            rows = np.asarray(multihost_utils.process_allgather(mine))
        return self._of_slowest(rows)

    def _of_slowest(self, rows: np.ndarray) -> str | None:
        """Of [processes, 2 + stages]: share of the time, whether transfer took most of it, seconds
        of each stage."""
        process = int(rows[:, 0].argmax())
        share, in_transfer, stages = rows[process, 0], rows[process, 1], rows[process, 2:]
        if share <= self._threshold:
            self._told = ""
            return None
        names = list(_REMEDIES)
        slowest = names[-1 if in_transfer else int(stages[:-1].argmax())]
        what = f"{process} {slowest}"
        if what == self._told:
            return None
        self._told = what
        seconds = ", ".join(f"{name} {s:.2g}" for name, s in zip(names, stages))
        where = f" on process {process}" if len(rows) > 1 else ""
        return (
            f"input wait {share:.0%}{where}: {slowest} is the slow stage (seconds: {seconds}): "
            f"{_REMEDIES[slowest]}"
        )

    def _now(self, transfer_s: float) -> np.ndarray:
        seconds = {**self._stage_seconds(), "transfer": transfer_s}
        return np.asarray([seconds[name] for name in _REMEDIES])
