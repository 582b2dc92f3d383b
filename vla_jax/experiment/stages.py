"""An experiment as stages: commands that a user could type, in order, each with its result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vla_jax import config as config_lib
from vla_jax import schema
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.experiment.description import Cell, Episodes, Experiment, Pictures

SUITE_CELLS = 17
"""Of the evaluation's suites; only the plan depends on it."""
_LEAST_PX = 17  # side of the smallest pictures of the corpus: that of a block in the camera's view


@dataclasses.dataclass(frozen=True)
class Command:
    """Words after `python`. If `makes` is there, it has been run: it comes whole."""

    words: tuple[str, ...]
    makes: Path | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """One step of the experiment. Interrupted, its commands are run again and go on.

    Attributes:
      name: such as "train/scratch_small".
      title: in words.
      commands: one after the other.
      directory: what it fills.
      result: what is there when it is done; a file, or a directory, that is compared with what was
        left when the experiment goes on.
      settings: what the result depends on, besides the stages that it needs. JSON.
      needs: names of stages before it.
      seconds: that it takes on the preset's machine, estimated.
      leftovers: removed at the end.
    """

    name: str
    title: str
    commands: tuple[Command, ...]
    directory: Path
    result: Path
    settings: dict[str, Any]
    needs: tuple[str, ...] = ()
    seconds: float = 0.0
    leftovers: tuple[Path, ...] = ()


def stages_of(experiment: Experiment, out: Path, only: Sequence[str] = ()) -> list[Stage]:
    """All stages in order: data, VLMs, then training and evaluation of each cell.

    Args:
      out: directory of the experiment.
      only: names of cells; empty: all.

    Raises:
      ValueError: an unknown cell, or a setting that the config refuses.
      FileNotFoundError: no config file, or the file of a VLM is not there.
    """
    cells = [experiment.cell(name) for name in only] or list(experiment.cells)
    stages = [_data_stage(experiment, out, name) for name in experiment.data]
    started = dict.fromkeys(cell.size for cell in cells if cell.start == "vlm")
    stages += [_vlm_stage(experiment, out, s) for s in started if experiment.sizes[s].recipe]
    for cell in cells:
        stages += [_train_stage(experiment, out, cell), _evaluate_stage(experiment, out, cell)]
    return stages


def cell_directory(out: Path, cell: Cell) -> Path:
    """The run directory of a cell."""
    return out / "cells" / cell.name


def _data_stage(experiment: Experiment, out: Path, name: str) -> Stage:
    data, directory = experiment.data[name], out / "data" / name
    workers = f"--workers={experiment.workers}"
    if isinstance(data, Episodes):
        staged = out / "staged" / name
        make = (
            *("-m", "vla_jax.envs.episodes", f"--config={data.world}"),
            *(f"--episodes={data.episodes}", workers, *data.arguments, f"--out={staged}"),
        )
        write = ("-m", "vla_jax.data.write", "episodes", f"--staged={staged}", f"--out={directory}")
        commands = (Command(make, directory), Command(write, directory))
        leftovers: tuple[Path, ...] = (staged,)
        seconds = data.episodes / experiment.pace.episodes_per_s
        title = f"{data.episodes} robot episodes in the world {data.world!r}"
    else:
        write = (
            *("-m", "vla_jax.data.write", "image_text", f"--train={data.train}"),
            *(f"--test={data.test}", "--background_share=0.05", f"--least_px={_LEAST_PX}"),
            *(workers, *data.arguments, f"--out={directory}"),
        )
        commands, leftovers = (Command(write, directory),), ()
        seconds = (data.train + data.test) / experiment.pace.pictures_per_s
        title = f"{data.train} pictures with captions and questions"
    return Stage(
        name=f"data/{name}",
        title=title,
        commands=commands,
        directory=directory,
        result=directory,
        settings={"made": type(data).__name__, **schema.to_plain(data)},
        seconds=seconds,
        leftovers=leftovers,
    )


def _vlm_stage(experiment: Experiment, out: Path, key: str) -> Stage:
    size, directory = experiment.sizes[key], out / "vlm" / key
    commands, before = [], None
    for stage in size.recipe:
        here = directory / stage.name
        start = () if before is None else (f"--init_from={before / 'vlm.npz'}",)
        words = (
            *("tools/train_vlm.py", f"--preset={size.preset}", *stage.arguments),
            *(f"--workers={experiment.workers}", *start, f"--out={here}"),
        )
        commands.append(Command(words, here / "vlm.json"))
        before = here
    samples = sum(stage.samples for stage in size.recipe)
    return Stage(
        name=f"vlm/{key}",
        title=f"the web-trained VLM of {size.label}",
        commands=tuple(commands),
        directory=directory,
        result=vlm_file(experiment, out, key),
        settings={"preset": size.preset, "recipe": schema.to_plain(size.recipe)},
        seconds=len(commands) * experiment.pace.start_s
        + samples / experiment.pace.vlm_samples_per_s,
    )


def vlm_file(experiment: Experiment, out: Path, key: str) -> Path:
    """Parameters of a size's web-trained VLM."""
    size = experiment.sizes[key]
    return Path(size.vlm) if size.vlm else out / "vlm" / key / size.recipe[-1].name / "vlm.npz"


def _train_stage(experiment: Experiment, out: Path, cell: Cell) -> Stage:
    size = experiment.sizes[cell.size]
    start = vlm_file(experiment, out, cell.size) if cell.start == "vlm" else None
    if start and size.vlm and not start.is_file():
        raise FileNotFoundError(
            f"cell {cell.name!r} starts from {start}, which is not there: train it with "
            "tools/train_vlm.py, or run without this cell, see --only"
        )
    overrides = [
        f"model.preset={size.preset}",
        f"train.steps={experiment.updates}",
        f"train.batch_size={experiment.batch_size(cell)}",
        f"train.init_from={start or ''}",
    ]
    for name in experiment.data:
        overrides.append(f"data.sources.{name}.path={out / 'data' / name}")
        overrides.append(f"data.sources.{name}.weight={cell.shares.get(name, 0.0)!r}")
    overrides += [*experiment.overrides, *cell.overrides]
    config = config_lib.parse(config_lib.load_config(experiment.config, overrides))
    # What the paths hold counts, not where they are: so the experiment can be moved.
    settings = schema.to_plain(config)
    for name in experiment.data:
        settings["data"]["sources"][name]["path"] = f"data/{name}"
    needs = [f"data/{name}" for name in experiment.data]
    if start and size.recipe:
        settings["train"]["init_from"] = f"vlm/{cell.size}"
        needs.append(f"vlm/{cell.size}")
    elif start:
        settings["train"]["init_from"] = f"sha256 {hashlib.sha256(start.read_bytes()).hexdigest()}"
    directory = cell_directory(out, cell)
    words = (
        *("-m", "vla_jax.train", f"--config={experiment.config}"),
        *(f"--config.{override}" for override in overrides),
        f"--workdir={directory}",
    )
    samples = config.train.steps * config.samples_per_step
    return Stage(
        name=f"train/{cell.name}",
        title=f"training {cell.name}: {size.label}, {cell.training}, {samples:,} samples",
        commands=(Command(words),),
        directory=directory,
        result=directory / "config.json",
        settings=settings,
        needs=tuple(needs),
        seconds=experiment.pace.start_s + samples / size.samples_per_s,
    )


def _evaluate_stage(experiment: Experiment, out: Path, cell: Cell) -> Stage:
    directory = cell_directory(out, cell)
    settings = evaluation_settings(experiment, cell)
    words = (
        *("-m", "vla_jax.evaluate", f"--workdir={directory}"),
        *(f"--evaluation.{key}={value}" for key, value in settings.items()),
    )
    return Stage(
        name=f"evaluate/{cell.name}",
        title=f"evaluating {cell.name}",
        commands=(Command(words),),
        directory=directory / "evaluation",
        result=directory / "evaluation" / "run.json",
        settings=settings,
        needs=(f"train/{cell.name}",),
        seconds=_evaluation_seconds(experiment, cell),
    )


def evaluation_settings(experiment: Experiment, cell: Cell) -> dict[str, str]:
    """Key -> value of what a cell's evaluation sets. The cell's own win."""
    settings = {"world": experiment.world}
    for setting in (*experiment.evaluation, *cell.evaluation):
        key, _, value = setting.partition("=")
        settings[key] = value
    return settings


def _evaluation_seconds(experiment: Experiment, cell: Cell) -> float:
    settings, usual = evaluation_settings(experiment, cell), EvaluationConfig()

    def count(name: str) -> int:
        return int(settings.get(name, getattr(usual, name, 0)))

    rollouts = SUITE_CELLS * count("suite_rollouts") + len(usual.pools) * count("rollout_episodes")
    pictures = sum(isinstance(data, Pictures) for data in experiment.data.values())
    answers = pictures * count("vqa_examples")
    answers += (len(experiment.data) - pictures) * count("action_steps")
    answers += len(usual.pools) * 3 * count("pointing_views")
    size, pace = experiment.sizes[cell.size], experiment.pace
    return pace.start_s + rollouts / size.rollouts_per_s + answers / pace.answers_per_s
