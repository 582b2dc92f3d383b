"""Where numbers go while training: one JSON line per record, and TensorBoard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Self

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and `tensorboard/` of a run directory.

    A run that resumes appends; records past the step it resumes from are dropped first, so that the
    file holds each step once.

    Args:
      workdir: existing directory.
      start_step: the step that training (re)starts from.
      active: False for all but one process of a job: it writes nothing.
    """

    def __init__(self, workdir: Path, start_step: int, *, active: bool = True):
        self._active = active
        if not active:
            return
        path = workdir / "metrics.jsonl"
        kept = []
        if path.exists():
            kept = [r for r in read_metrics(workdir) if r["step"] <= start_step]
            path.write_text("".join(json.dumps(r) + "\n" for r in kept))
        self._file = path.open("a")
        self._events = EventFileWriter(str(workdir / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        if not self._active:
            return
        self._file.close()
        self._events.close()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records scalars at `step` (updates finished so far)."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        self._file.flush()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._events.add_event(
            Event(step=step, wall_time=time.time(), summary=Summary(value=values))
        )


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """Records of `metrics.jsonl`; a last line cut off by a crash is left out."""
    records = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
