"""What an experiment is: data sets, model sizes and a list of cells. More cells, no more code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from vla_jax.schema import unknown_key


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Robot episodes of the scripted expert.

    Attributes:
      world: as for `vla_jax.envs.episodes --config`.
      episodes: how many; each twentieth is held out.
      arguments: more of `vla_jax.envs.episodes`.
    """

    world: str
    episodes: int
    arguments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The picture/word corpus.

    Attributes:
      train, test: samples.
      arguments: more of `vla_jax.data.write image_text`.
    """

    train: int
    test: int
    arguments: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class VlmStage:
    """A run of `tools/train_vlm.py`; each stage starts from the one before.

    Attributes:
      name: of its directory.
      samples: it sees in all, for the plan.
      arguments: of the tool, without --out and --init_from.
    """

    name: str
    samples: int
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """A tool that is run before the trainings that use what it makes.

    Attributes:
      name: of its directory. `{name}` in a cell's overrides or in the `vlm` of a size is that
        directory, and says that the training needs it.
      title: in words.
      words: after `python`. `{name}` is its own directory, that of a data set or that of a
        preparation before it.
      makes: the file that is there when it is done.
      seconds: that it takes, for the plan.
    """

    name: str
    title: str
    words: tuple[str, ...]
    makes: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """One size of the model.

    Attributes:
      label: in tables, such as "2.2M".
      preset: of the model.
      vlm: parameter files of the web-trained VLM, as for `train.init_from`; "" if `recipe` makes
        it. `{name}` is the directory of a preparation.
      recipe: how the VLM is made.
      samples_per_s: of training, for the plan.
      rollouts_per_s: of evaluation, likewise.
    """

    label: str
    preset: str
    samples_per_s: float
    rollouts_per_s: float
    vlm: str = ""
    recipe: tuple[VlmStage, ...] = ()

    def __post_init__(self):
        if bool(self.vlm) == bool(self.recipe):
            raise ValueError(f"size {self.label!r}: give either the file of its VLM or a recipe")


TableName = Literal["ablation", "emergent", "ratio", "reference"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training and its evaluation, or one more evaluation of a training.

    Attributes:
      name: of its directory; in the experiment unique.
      size: key of `Experiment.sizes`.
      training: in tables: what distinguishes it, such as "co-fine-tuning".
      shares: data set -> share of the samples, 1 in all. Data sets that are left out are evaluated
        on all the same.
      start: the size's web-trained VLM, or fresh parameters.
      overrides: more of the config, "train.seed=1"; `{name}` is the directory of a preparation.
      evaluation: more of the evaluation's settings, "rollout_episodes=100".
      tables: that it enters. "ablation": RT-2's tables 5 and 6; "emergent": table 5; "ratio": the
        curve of the web share; "reference": the start of that curve.
      sources: data set -> source of the config that it is; others are not there. Empty: each data
        set is the source of its name.
      trained_by: name of the cell whose training is evaluated here, with all of its settings but
        `evaluation`; "": its own.
    """

    name: str
    size: str
    training: str
    shares: Mapping[str, float]
    start: Literal["vlm", "nothing"] = "vlm"
    overrides: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    tables: tuple[TableName, ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    trained_by: str = ""

    def __post_init__(self):
        if len(set(self.sources.values())) < len(self.sources):
            raise ValueError(f"cell {self.name!r}: two data sets as one source, {self.sources}")
        if self.sources and (missing := self.shares.keys() - self.sources):
            raise ValueError(f"cell {self.name!r}: {min(missing)} has a share, and is no source")
        if abs(sum(self.shares.values()) - 1) > 1e-9 or min(self.shares.values()) < 0:
            raise ValueError(f"cell {self.name!r}: shares {dict(self.shares)} must sum to 1")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`cell` minus `baseline`, by their names. The first one of an experiment is its headline."""

    cell: str
    baseline: str


@dataclasses.dataclass(frozen=True)
class OwnTable:
    """A table of an experiment: all cells down, what they measured across.

    Attributes:
      measures: names in `results.NAMES` or `results.FIGURES`.
      note: below it.
    """

    title: str
    measures: tuple[str, ...]
    note: str


@dataclasses.dataclass(frozen=True)
class Pace:
    """How quick the machine that a preset is meant for is; only the plan depends on it.

    Attributes:
      machine: in words; and whether the figures were measured.
      start_s: of a training or an evaluation, compilation included.
      episodes_per_s, pictures_per_s: made and written.
      answers_per_s: of the evaluation's questions and robot steps.
      vlm_samples_per_s: of `tools/train_vlm.py`, which paints while it trains.
    """

    machine: str
    start_s: float
    episodes_per_s: float
    pictures_per_s: float
    answers_per_s: float
    vlm_samples_per_s: float = 100.0


COMPARED = ("web_only", "rollouts_web_only", "emergent", "unseen", "seen")
"""Measures of RT-2's ablation."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that is run.

    The robot samples seen are the same in every cell: `robot_rows` in each of `updates` updates.
    So a cell whose robot share is s has batches of `robot_rows` / s rows, and web data comes on
    top, as in RT-2, where it does not take the place of robot data.

    Attributes:
      name: of the preset.
      title: of the page.
      lead: what is compared, in a sentence or two below it.
      config: the config file that all cells share; it has a source for each data set.
      data: name of a source -> data set. The evaluation's world is that of the first robot one.
      sizes: by key.
      cells: in the order in which they are run.
      comparisons: of cells.
      main: the cell whose videos are shown.
      robot_rows: per update.
      updates: of each cell.
      overrides: of the config, for all cells.
      evaluation: settings of the evaluation, for all cells.
      workers: processes that make data.
      preparations: in the order in which they are run.
      compared: measures of the comparisons, names in `results.NAMES`. The first is the headline.
      tables: of its own, first on the page.
      pace: for the plan.

    Raises ValueError for a name that is not there or twice, or a batch that is no whole number.
    """

    name: str
    title: str
    lead: str
    config: str
    data: Mapping[str, Episodes | Pictures]
    sizes: Mapping[str, ModelSize]
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    main: str
    robot_rows: int
    updates: int
    pace: Pace
    overrides: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    workers: int = 2
    preparations: tuple[Preparation, ...] = ()
    compared: tuple[str, ...] = COMPARED
    tables: tuple[OwnTable, ...] = ()

    def __post_init__(self):
        names = [cell.name for cell in self.cells]
        made = [*self.data, *(p.name for p in self.preparations)]
        if len(set(made)) < len(made):
            raise ValueError(f"{self.name}: data sets and preparations of one name: {made}")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{self.name}: cells named twice: {', '.join(sorted(twice))}")
        wanted = [(c.size, self.sizes, f"cell {c.name}") for c in self.cells]
        wanted += [(name, self.data, f"cell {c.name}") for c in self.cells for name in c.shares]
        wanted += [(name, self.data, f"cell {c.name}") for c in self.cells for name in c.sources]
        wanted += [(c.trained_by, names, f"cell {c.name}") for c in self.cells if c.trained_by]
        wanted += [(name, names, "main") for name in [self.main]]
        wanted += [(n, names, "comparison") for c in self.comparisons for n in _of(c)]
        for name, known, where in wanted:
            if name not in known:
                raise ValueError(unknown_key(name, known, where))
        for cell in self.cells:
            self.batch_size(cell)
            trainer = self.trainer(cell)
            wrong = [f for f in _OF_TRAINING if getattr(cell, f) != getattr(trainer, f)]
            if trainer.trained_by:
                wrong = ["trained_by"]
            if wrong:
                raise ValueError(
                    f"cell {cell.name!r} is trained by {trainer.name!r}, which has other "
                    f"{', '.join(wrong)}: make the cell of it by dataclasses.replace"
                )

    def cell(self, name: str) -> Cell:
        """Raises ValueError for an unknown name."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise ValueError(unknown_key(name, [c.name for c in self.cells], "cells"))

    def trainer(self, cell: Cell) -> Cell:
        """The cell whose training is evaluated: most often itself."""
        return self.cell(cell.trained_by) if cell.trained_by else cell

    def sources(self, cell: Cell) -> Mapping[str, str]:
        """Data set -> source of the config."""
        return cell.sources or {name: name for name in self.data}

    def robot_share(self, cell: Cell) -> float:
        """Of the samples, over all robot data sets."""
        return sum(s for n, s in cell.shares.items() if isinstance(self.data[n], Episodes))

    def batch_size(self, cell: Cell) -> int:
        """Rows per update, so that `robot_rows` of them are robot data."""
        share = self.robot_share(cell)
        rows = self.robot_rows / share if share else 0
        if not rows or abs(rows - round(rows)) > 1e-6:
            raise ValueError(
                f"cell {cell.name!r}: {self.robot_rows} robot rows at a robot share of {share:g} "
                f"make a batch of {rows:g} rows, which must be a whole number: change robot_rows"
            )
        return round(rows)

    @property
    def world(self) -> str:
        """Of the evaluation."""
        return next(d.world for d in self.data.values() if isinstance(d, Episodes))


_OF_TRAINING = ("size", "shares", "start", "overrides", "sources")


def _of(comparison: Comparison) -> Iterator[str]:
    yield from (comparison.cell, comparison.baseline)
