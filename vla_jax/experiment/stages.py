"""An experiment as stages: commands that a user could type, in order, each with its result."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_jax import config as config_lib
from vla_jax import schema
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.evaluation.suites.cells import cells_of
from vla_jax.experiment.description import Cell, Episodes, Experiment, Pictures, Preparation

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
    """All stages in order: data, VLMs, preparations, then training and evaluation of each cell.

    Args:
      out: directory of the experiment.
      only: names of cells; empty: all. With a cell comes the training that it evaluates.

    Raises:
      ValueError: an unknown cell, or a setting that the config refuses.
      FileNotFoundError: no config file, or the file of a VLM is not there.
    """
    cells = [experiment.cell(name) for name in only] or list(experiment.cells)
    stages = [_data_stage(experiment, out, name) for name in experiment.data]
    started = dict.fromkeys(cell.size for cell in cells if cell.start == "vlm")
    stages += [_vlm_stage(experiment, out, s) for s in started if experiment.sizes[s].recipe]
    stages += [_preparation_stage(experiment, out, p) for p in experiment.preparations]
    trained = set()
    for cell in cells:
        trainer = experiment.trainer(cell)
        if trainer.name not in trained:
            stages.append(_train_stage(experiment, out, trainer))
            trained.add(trainer.name)
        stages.append(_evaluate_stage(experiment, out, cell))
    return _without_idle_preparations(stages)


def _without_idle_preparations(stages: Sequence[Stage]) -> list[Stage]:
    kept: list[Stage] = []
    needed: set[str] = set()
    for stage in reversed(stages):
        if stage.name in needed or not stage.name.startswith("prepare/"):
            kept.append(stage)
            needed.update(stage.needs)
    return kept[::-1]


def cell_directory(out: Path, cell: Cell) -> Path:
    """Of a cell: the run, if it has a training of its own, and the evaluation."""
    return out / "cells" / cell.name


def _places(experiment: Experiment, out: Path) -> dict[str, tuple[str, Path]]:
    """`{name}` -> (stage, directory) of what commands may name."""
    places = {f"{{{name}}}": (f"data/{name}", out / "data" / name) for name in experiment.data}
    for p in experiment.preparations:
        places[f"{{{p.name}}}"] = (f"prepare/{p.name}", out / "prepared" / p.name)
    return places


def _filled_in(text: str, places: Mapping[str, tuple[str, Path]]) -> str:
    for name, (_, directory) in places.items():
        text = text.replace(name, str(directory))
    return text


def _named_in(texts: Iterable[str], places: Mapping[str, tuple[str, Path]]) -> list[str]:
    """Stages whose directories the texts name."""
    texts = list(texts)
    return [stage for name, (stage, _) in places.items() if any(name in text for text in texts)]


def _preparation_stage(experiment: Experiment, out: Path, made: Preparation) -> Stage:
    places = _places(experiment, out)
    name, directory = places[f"{{{made.name}}}"]
    words = tuple(_filled_in(word, places) for word in made.words)
    return Stage(
        name=name,
        title=made.title,
        commands=(Command(words),),
        directory=directory,
        result=directory / made.makes,
        settings={"words": list(made.words)},
        needs=tuple(stage for stage in _named_in(made.words, places) if stage != name),
        seconds=made.seconds,
    )


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
        result=Path(vlm_file(experiment, out, key)),
        settings={"preset": size.preset, "recipe": schema.to_plain(size.recipe)},
        seconds=len(commands) * experiment.pace.start_s
        + samples / experiment.pace.vlm_samples_per_s,
    )


def vlm_file(experiment: Experiment, out: Path, key: str) -> str:
    """Parameters of a size's web-trained VLM, as for `train.init_from`."""
    size = experiment.sizes[key]
    if size.vlm:
        return _filled_in(size.vlm, _places(experiment, out))
    return str(out / "vlm" / key / size.recipe[-1].name / "vlm.npz")


def _train_stage(experiment: Experiment, out: Path, cell: Cell) -> Stage:
    size, places = experiment.sizes[cell.size], _places(experiment, out)
    start = vlm_file(experiment, out, cell.size) if cell.start == "vlm" else ""
    shipped = bool(start) and start == size.vlm
    if shipped and not Path(start).is_file():
        raise FileNotFoundError(
            f"cell {cell.name!r} starts from {start}, which is not there: train it with "
            "tools/train_vlm.py, or run without this cell, see --only"
        )
    overrides = [
        f"model.preset={size.preset}",
        f"train.steps={experiment.updates}",
        f"train.batch_size={experiment.batch_size(cell)}",
        f"train.init_from={start}",
    ]
    sources = experiment.sources(cell)
    for name, source in sources.items():
        overrides.append(f"data.sources.{source}.path={out / 'data' / name}")
        overrides.append(f"data.sources.{source}.weight={cell.shares.get(name, 0.0)!r}")
    overrides += [*experiment.overrides, *cell.overrides]
    config = config_lib.parse(config_lib.load_config(experiment.config, overrides))
    # What the paths hold counts, not where they are: so the experiment can be moved.
    settings = schema.to_plain(config)
    for name, source in sources.items():
        settings["data"]["sources"][source]["path"] = f"data/{name}"
    needs = [f"data/{name}" for name in sources]
    if shipped:
        settings["train"]["init_from"] = (
            f"sha256 {hashlib.sha256(Path(start).read_bytes()).hexdigest()}"
        )
    elif start:
        settings["train"]["init_from"] = size.vlm or f"vlm/{cell.size}"
        needs += [] if size.vlm else [f"vlm/{cell.size}"]
    needs += _named_in([*overrides, size.vlm if start else ""], places)
    directory = cell_directory(out, cell)
    words = (
        *("-m", "vla_jax.train", f"--config={experiment.config}"),
        *(f"--config.{_filled_in(override, places)}" for override in overrides),
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
    directory, trainer = cell_directory(out, cell), experiment.trainer(cell)
    settings = evaluation_settings(experiment, cell)
    elsewhere = (f"--out={directory / 'evaluation'}",) if cell.trained_by else ()
    words = (
        *("-m", "vla_jax.evaluate", f"--workdir={cell_directory(out, trainer)}", *elsewhere),
        *(f"--evaluation.{key}={value}" for key, value in settings.items()),
    )
    return Stage(
        name=f"evaluate/{cell.name}",
        title=f"evaluating {cell.name}" + (f", trained as {trainer.name}" * bool(elsewhere)),
        commands=(Command(words),),
        directory=directory / "evaluation",
        result=directory / "evaluation" / "run.json",
        settings=settings,
        needs=(f"train/{trainer.name}",),
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

    suites = settings["suites"].split(",") if "suites" in settings else usual.suites
    rollouts = len(cells_of(suites)) * count("suite_rollouts")
    rollouts += len(usual.pools) * count("rollout_episodes")
    data = [experiment.data[name] for name in experiment.sources(cell)]
    pictures = sum(isinstance(d, Pictures) for d in data)
    answers = pictures * count("vqa_examples")
    answers += (len(data) - pictures) * count("action_steps")
    answers += len(usual.pools) * 3 * count("pointing_views")
    size, pace = experiment.sizes[cell.size], experiment.pace
    return pace.start_s + rollouts / size.rollouts_per_s + answers / pace.answers_per_s
