"""Goodput: the share of a run's wall time that went into updates that count; where the rest went.

Every moment of a process is booked under one reason. `goodput.jsonl` of the run directory holds the
bookings of all processes that the run has had, one after the other, so that the reasons add up to
the time since its first start. It is appended to at each log line: a process that is killed loses
only what came after its last one, which then counts as stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vla_jax.training import json_lines

PRODUCTIVE = "steps"
REPEATED = "repeated steps"
STOPPED = "stopped"
START_UP = "start-up/"
"""Reasons of a process's first minutes begin so: "start-up/imports"."""

_FILE = "goodput.jsonl"


class TimeBook:
    """Books the wall time of a process, and adds up that of the whole run.

    Args:
      began: when the process started, seconds since the epoch; None: now.
      clock: seconds since the epoch.
    """

    def __init__(self, began: float | None = None, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._began = self._last = clock() if began is None else began
        self._pending: dict[str, float] = {}
        self._start_up: dict[str, float] = {}
        self._run = _Account()
        self._path: Path | None = None

    def lap(self, reason: str) -> float:
        """Books the time since the last call under `reason`, and returns it in seconds."""
        now = self._clock()
        seconds, self._last = max(0.0, now - self._last), now
        self._pending[reason] = self._pending.get(reason, 0.0) + seconds
        if reason.startswith(START_UP):
            stage = reason.removeprefix(START_UP)
            self._start_up[stage] = self._start_up.get(stage, 0.0) + seconds
        return seconds

    @property
    def start_up(self) -> dict[str, float]:
        """Seconds of each stage of this process's start, in order."""
        return dict(self._start_up)

    def open(self, workdir: Path, *, active: bool = True) -> None:
        """Reads what earlier processes of the run have booked, and goes on after it.

        Args:
          workdir: existing directory.
          active: False for all but one process of a job: it writes nothing.
        """
        if not active:
            return
        self._path = workdir / _FILE
        for record in json_lines.read(self._path):
            self._run.add(record)
        self._add({"start": self._began})

    def resume(self, step: int) -> None:
        """Updates go on after `step`: the time of recorded ones beyond it was for nothing."""
        self._add({"time": self._last, "resume": step, "seconds": self._taken()})

    def record(self, step: int) -> None:
        """Writes down what was booked since the last record; `step` updates are finished."""
        self._add({"time": self._last, "step": step, "seconds": self._taken()})

    def seconds(self) -> dict[str, float]:
        """Reason -> seconds since the run's first start."""
        total = dict(self._run.seconds)
        for reason, seconds in self._pending.items():
            total[reason] = total.get(reason, 0.0) + seconds
        return total

    def goodput(self) -> float:
        """Share of the time since the run's first start, 0 to 1."""
        seconds = self.seconds()
        return seconds.get(PRODUCTIVE, 0.0) / max(sum(seconds.values()), 1e-9)

    def _taken(self) -> dict[str, float]:
        pending, self._pending = self._pending, {}
        return pending

    def _add(self, record: dict[str, Any]) -> None:
        self._run.add(record)
        if self._path is not None:
            json_lines.append(self._path, record)


def read_goodput(workdir: Path) -> dict[str, float]:
    """Reason -> seconds from the first start of a run to its last record."""
    account = _Account()
    for record in json_lines.read(workdir / _FILE):
        account.add(record)
    return account.seconds


def process_start() -> float:
    """When this process started, in seconds since the epoch."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        age = time.process_time()  # not Linux: nearly the same while there is only importing
    return time.time() - age


class _Account:
    """Adds up records."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        # (first, last, seconds): productive time of updates first + 1 .. last.
        self._spans: list[tuple[int, int, float]] = []
        self._step = 0
        self._end: float | None = None

    def add(self, record: dict[str, Any]) -> None:
        if "start" in record:
            if self._end is not None:
                self._book(STOPPED, max(0.0, record["start"] - self._end))
            self._end = record["start"]
            return
        for reason, seconds in record["seconds"].items():
            self._book(reason, seconds)
        self._end = record["time"]
        if "resume" in record:
            self._rewind(record["resume"])
            return
        productive = record["seconds"].get(PRODUCTIVE, 0.0)
        first, last = self._step, record["step"]
        if last <= first and self._spans:  # the end of updates that are recorded already
            first, last, before = self._spans.pop()
            productive += before
        if last > first:
            self._spans.append((first, last, productive))
            self._step = last

    def _book(self, reason: str, seconds: float) -> None:
        self.seconds[reason] = self.seconds.get(reason, 0.0) + seconds

    def _rewind(self, step: int) -> None:
        while self._spans and self._spans[-1][1] > step:
            first, last, seconds = self._spans.pop()
            lost = seconds * (last - max(first, step)) / (last - first)
            self._book(PRODUCTIVE, -lost)
            self._book(REPEATED, lost)
            if first < step:
                self._spans.append((first, step, seconds - lost))
        self._step = step
