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
    """Compares how long updates wait with a threshold.

    Args:
      threshold: share of the time, 0 to 1, above which there is an alarm.
      stage_seconds: of the loader; see `Loader.stage_seconds`.
      least_s: windows are taken together until they are so long.
    """

    def __init__(
        self,
        threshold: float,
        stage_seconds: Callable[[], Mapping[str, float]],
        least_s: float = 5.0,
    ):
        self._threshold, self._stage_seconds, self._least_s = threshold, stage_seconds, least_s
        self._told = ""
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._before = self._stages()
        self._sums: np.ndarray | None = None

    def check(self, waited_s: float, transfer_s: float, elapsed_s: float) -> str | None:
        """The alarm, if there is one in the windows up to this one.

        Every process of a job calls it at the same step, as they all tell how long they waited: on
        a pod all wait for the one that is slowest. An alarm that goes on is told once.

        Args:
          waited_s: for batches in the window.
          transfer_s: of giving them to the devices.
          elapsed_s: length of the window.
        """
        now = self._stages()
        stages = np.maximum(now - self._before, 0)  # another loader may have begun anew
        mine = np.asarray([elapsed_s, waited_s, *stages, transfer_s])
        self._before = now
        rows = mine[None]
        if jax.process_count() > 1:
            rows = np.asarray(multihost_utils.process_allgather(mine))
        self._sums = rows if self._sums is None else self._sums + rows
        if self._sums[:, 0].max() < self._least_s:
            return None
        rows, self._sums = self._sums, None
        return self._of_slowest(rows)

    def _of_slowest(self, rows: np.ndarray) -> str | None:
        """Of float64 [processes, 2 + stages]: seconds in all, of waiting, and of each stage."""
        shares = (rows[:, 1] + rows[:, -1]) / rows[:, 0]
        process = int(shares.argmax())
        _, waited, *stages = rows[process]
        if shares[process] <= self._threshold:
            self._told = ""
            return None
        names = list(_REMEDIES)
        slowest = names[int(np.argmax(stages[:-1]))] if waited > stages[-1] else names[-1]
        if slowest == self._told:
            return None
        self._told = slowest
        seconds = ", ".join(f"{name} {s:.2g}" for name, s in zip(names, stages))
        where = f" on process {process}" if len(rows) > 1 else ""
        return (
            f"updates wait {shares[process]:.0%} of the time{where}; {slowest} is the slow stage "
            f"(of {rows[process, 0]:.1f} s: {seconds}): {_REMEDIES[slowest]}"
        )

    def _stages(self) -> np.ndarray:
        """float64 [stages but transfer]."""
        seconds = self._stage_seconds()
        return np.asarray([seconds[name] for name in list(_REMEDIES)[:-1]])
