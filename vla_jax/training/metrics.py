"""Where numbers go while training: JSON lines, TensorBoard, and Weights & Biases if asked for."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tensorboard.compat.proto.event_pb2 import Event as TensorBoardEvent  # pyright: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from vla_jax.training import json_lines


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened to a run: a start, an alarm, a checkpoint ...

    Attributes:
      time: seconds since the epoch.
      step: updates finished.
      kind: a word or two.
      text: a line.
    """

    time: float
    step: int
    kind: str
    text: str


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and `tensorboard/` of a run directory, events to
    `events.jsonl`.

    A run that resumes appends; records past the step it resumes from are dropped first, so that the
    file holds each step once. Events stay: they have happened.

    Args:
      workdir: existing directory.
      start_step: the step that training (re)starts from.
      active: False for all but one process of a job: it writes nothing.
      wandb: project of Weights & Biases to write to as well, "" for none; its own settings, such as
        WANDB_MODE=offline, hold. A run directory is one run there, also when it resumes.
      config: the run's config, plain values, for Weights & Biases.

    Raises ValueError if Weights & Biases is asked for and not installed.
    """

    def __init__(
        self,
        workdir: Path,
        start_step: int,
        *,
        active: bool = True,
        wandb: str = "",
        config: Mapping[str, Any] | None = None,
    ):
        self._active = active
        if not active:
            return
        self._wandb = _wandb_run(workdir, wandb, config or {}) if wandb else None
        path = workdir / "metrics.jsonl"
        kept = []
        if path.exists():
            kept = [r for r in read_metrics(workdir) if r["step"] <= start_step]
            path.write_text("".join(json.dumps(r) + "\n" for r in kept))
        path.touch()
        self._metrics = path
        self._events = workdir / "events.jsonl"
        self._tensorboard = EventFileWriter(str(workdir / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if not self._active:
            return
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Records scalars at `step` (updates finished so far)."""
        if not self._active:
            return
        # Closed each time: a mounted bucket keeps what is not.
        json_lines.append(self._metrics, {"step": step, **scalars})
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._tensorboard.add_event(
            TensorBoardEvent(step=step, wall_time=time.time(), summary=Summary(value=values))
        )
        if self._wandb is not None:
            self._wandb.log({"step": step, **scalars})

    def write_event(self, event: Event) -> None:
        """Records something that happened."""
        if self._active:
            json_lines.append(self._events, dataclasses.asdict(event))


def read_events(workdir: Path) -> list[Event]:
    """Events of a run directory, in the order in which they happened."""
    return [Event(**record) for record in json_lines.read(workdir / "events.jsonl")]


def _wandb_run(workdir: Path, project: str, config: Mapping[str, Any]) -> Any:
    """The run of Weights & Biases that belongs to a run directory."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ValueError(
            f"train.watch.wandb is {project!r}, and Weights & Biases is not installed: pip install "
            f"wandb, or leave it out ({e})"
        ) from e
    known = workdir / "wandb_id"
    if not known.exists():
        known.write_text(uuid.uuid4().hex[:12])
    run = wandb.init(
        project=project,
        dir=str(workdir),
        id=known.read_text(),
        name=workdir.absolute().name,
        resume="allow",
        config=dict(config),
    )
    # Steps that a crash made the run repeat come twice; its own count of steps may not go back.
    run.define_metric("*", step_metric="step")
    return run


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """Records of `metrics.jsonl`; a last line cut off by a crash is left out."""
    records = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
