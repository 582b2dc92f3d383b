"""Reads what a report shows: plain JSON files, any of which may be missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_jax.evaluation.base import read_lines, read_result


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run.

    Attributes:
      title: e.g. "Co-fine-tuning".
      workdir: where it was written.
      config: `config.json`; empty if missing.
      metrics: records of `metrics.jsonl`, by step.
      speed: `speed.json`; None if missing.
    """

    title: str
    workdir: Path
    config: dict[str, Any]
    metrics: list[dict[str, float]]
    speed: dict[str, Any] | None

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one scalar."""
        found = [(r["step"], r[name]) for r in self.metrics if name in r]
        return [step for step, _ in found], [value for _, value in found]

    def sources(self) -> list[str]:
        """Names of the data sets that were trained on, without their groups."""
        last = self.metrics[-1] if self.metrics else {}
        suffix = "/share_configured"
        names = [name.removesuffix(suffix) for name in last if name.endswith(suffix)]
        return [name for name in names if not name.startswith("group/")]

    def value(self, *keys: str) -> Any:
        """A value of the config, None if it is not there."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


@dataclasses.dataclass(frozen=True)
class ReportInputs:
    """Everything the page is made of.

    Attributes:
      title: of the page.
      stages: training runs in order; the last one is the one that was evaluated.
      evaluation: the directory with the results; paths in them are relative to it.
      run: `run.json`: device, code, seeds, times; None if missing, as the others below.
      vqa, actions: one per data set, as (data set, result).
      pointing, rollouts: on the table-top.
      metaworld: tasks of Meta-World.
      start: the card of the parameter file that the last stage started from.
    """

    title: str
    stages: tuple[Stage, ...]
    evaluation: Path
    run: dict[str, Any] | None
    vqa: list[tuple[str, dict[str, Any]]]
    actions: list[tuple[str, dict[str, Any]]]
    pointing: dict[str, Any] | None
    rollouts: dict[str, Any] | None
    metaworld: dict[str, Any] | None
    start: dict[str, Any] | None

    @property
    def main(self) -> Stage:
        """The stage that was evaluated."""
        return self.stages[-1]


def read_inputs(
    workdir: str | Path, *, before: Sequence[tuple[str, str | Path]] = (), title: str = "Report"
) -> ReportInputs:
    """Collects a report's files.

    Args:
      workdir: of the run that was evaluated.
      before: (title, workdir) of the stages before it.

    Raises:
      FileNotFoundError: a workdir is not there.
      ValueError: a file is there and is not JSON; names it.
    """
    own = "Co-fine-tuning" if before else "Training"
    stages = tuple(read_stage(name, Path(path)) for name, path in (*before, (own, workdir)))
    evaluation = Path(workdir) / "evaluation"
    return ReportInputs(
        title=title,
        stages=stages,
        evaluation=evaluation,
        run=_read(evaluation / "run.json"),
        vqa=_read_all(evaluation, "vqa_"),
        actions=_read_all(evaluation, "actions_"),
        pointing=_read(evaluation / "pointing.json"),
        rollouts=_read(evaluation / "rollouts.json"),
        metaworld=_read(evaluation / "metaworld.json"),
        start=_start_card(stages[-1]),
    )


def read_stage(title: str, workdir: Path) -> Stage:
    if not workdir.is_dir():
        raise FileNotFoundError(f"no run directory {workdir} ({title}): train it first")
    return Stage(
        title=title,
        workdir=workdir,
        config=_read(workdir / "config.json") or {},
        metrics=[
            record
            for record in read_lines(workdir / "metrics.jsonl")
            if not any(name.startswith("val/") for name in record)  # of evaluations in between
        ],
        speed=_read(workdir / "speed.json"),
    )


def _read(path: Path) -> Any:
    return read_result(path, "delete it and evaluate again")


def _read_all(directory: Path, prefix: str) -> list[tuple[str, Any]]:
    paths = sorted(directory.glob(f"{prefix}*.json"))
    return [(path.stem.removeprefix(prefix), _read(path)) for path in paths]


def _start_card(stage: Stage) -> dict[str, Any] | None:
    start = stage.value("train", "init_from")
    if not start or not start.endswith(".npz"):
        return None
    return _read(Path(start).with_suffix(".json"))
