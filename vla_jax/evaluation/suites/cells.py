"""The cells of RT-2's two tables of generalisation, and a control, on the table-top world.

Published success rates in percent, for orientation only: another robot, other objects. Tables 4 and
5 of arXiv 2307.15818; Table 6 has the same six columns of unseen things as Table 4.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.tabletop.config import TabletopConfig
from vla_jax.envs.tabletop.layout import Layout
from vla_jax.evaluation.rollout import Plan
from vla_jax.evaluation.suites import questions, surroundings
from vla_jax.evaluation.suites.episode import Episode, Question, draw_asked, draw_seen

Suite = Literal["seen", "unseen", "emergent", "control"]
Concepts = Literal["robot", "web", "nowhere"]

PAPER_MODELS = ("RT-2-PaLI-X-55B", "RT-2-PaLM-E-12B", "RT-1")

Draw = Callable[[random.Random, PictureBank, TabletopConfig], Episode]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
      group: cells of one group are averaged first.
      name: unique; seeds and files are named after it.
      title: for people.
      concepts: what the instructions are about. "robot": things of robot episodes; "web": web-only
        and background concepts, which only the picture corpus has; "nowhere": in no data.
      paper: published percentages of `PAPER_MODELS`; None: there are none.
      draw: one episode.
    """

    suite: Suite
    group: str
    name: str
    title: str
    concepts: Concepts
    paper: tuple[int, int, int] | None
    draw: Draw

    @property
    def published(self) -> dict[str, int]:
        """Model -> percent."""
        return dict(zip(PAPER_MODELS, self.paper, strict=True)) if self.paper else {}


def _about(ask: Callable[[random.Random, PictureBank], Question]) -> Draw:
    return lambda rng, bank, config: draw_asked(rng, bank, config, ask(rng, bank))


def _seen_in(surround: Callable[[random.Random, Layout], Layout], most: bool = False) -> Draw:
    """Tasks of training elsewhere; `most`: with as many blocks as the world has at most."""

    def draw(rng: random.Random, bank: PictureBank, config: TabletopConfig) -> Episode:
        if most:
            config = dataclasses.replace(config, min_blocks=config.max_blocks)
        episode = draw_seen(rng, bank, config)
        return dataclasses.replace(episode, layout=surround(rng, episode.layout))

    return draw


def _unseen(
    group: str, level: str, concepts: Concepts, paper: tuple[int, int, int], draw: Draw
) -> Cell:
    return Cell(
        "unseen", group, f"{group}_{level}", f"Unseen {group}, {level}", concepts, paper, draw
    )


def _emergent(
    group: str,
    kind: str,
    title: str,
    paper: tuple[int, int, int],
    ask: Callable[[random.Random, PictureBank], Question],
) -> Cell:
    return Cell("emergent", group, f"{group}_{kind}", title, "web", paper, _about(ask))


CELLS: tuple[Cell, ...] = (
    Cell("seen", "seen", "seen", "Seen tasks", "robot", (91, 93, 92), draw_seen),
    _unseen("objects", "easy", "web", (70, 84, 31), _about(questions.simple_object)),
    _unseen("objects", "hard", "web", (62, 76, 43), _about(questions.similar_object)),
    _unseen("backgrounds", "easy", "robot", (96, 75, 71), _seen_in(surroundings.other_table)),
    _unseen("backgrounds", "hard", "robot", (48, 71, 9), _seen_in(surroundings.loud_table)),
    _unseen("environments", "easy", "robot", (63, 36, 26), _seen_in(surroundings.other_room)),
    _unseen(
        *("environments", "hard", "robot", (35, 33, 14)),
        _seen_in(surroundings.other_office, most=True),
    ),
    _emergent("symbols", "symbol", "Symbols 1: a symbol", (93, 67, 27), questions.symbol),
    _emergent("symbols", "picture", "Symbols 2: a picture", (60, 20, 20), questions.picture),
    _emergent(
        *("symbols", "relation", "Symbols 3: a symbol and a relation", (93, 20, 0)),
        questions.symbol_and_relation,
    ),
    _emergent("reasoning", "math", "Math", (25, 35, 5), questions.arithmetic),
    _emergent(
        *("reasoning", "category", "Logos: categories and signs", (52, 56, 0)),
        questions.category_or_sign,
    ),
    _emergent("reasoning", "nutrition", "Nutrition", (48, 44, 32), questions.nutrition),
    _emergent(
        *("reasoning", "languages", "Colours and five languages", (58, 35, 28)),
        questions.color_or_language,
    ),
    _emergent(
        *("people", "professions", "People: professions", (53, 33, 20)), questions.profession
    ),
    _emergent("people", "faces", "People: faces", (53, 53, 20), questions.face),
    Cell(
        *("control", "control", "control", "Control: in no data", "nowhere", None),
        _about(questions.never_shown),
    ),
)


def cells_of(suites: Sequence[str]) -> tuple[Cell, ...]:
    """The cells of these suites, in the tables' order."""
    return tuple(cell for cell in CELLS if cell.suite in suites)


def episode_seed(seed: int, cell: str, number: int) -> int:
    """Of episode `number` of a cell: follows from these three and nothing else."""
    key = f"{seed}/{cell}/{number}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest())


def draw_episode(
    cell: Cell, seed: int, number: int, config: TabletopConfig, bank: PictureBank, styles: int = 1
) -> Episode:
    """Episode `number` of a cell.

    Args:
      styles: pictures of things that no robot episode shows are drawn in one of so many styles,
        unless the instruction speaks of their colours.
    """
    rng = random.Random(episode_seed(seed, cell.name, number))
    episode = cell.draw(rng, bank, config)
    if episode.says_colors:
        return episode
    blocks = tuple(
        block
        if bank.concept(block.name).split == "robot"
        else dataclasses.replace(block, style=rng.randrange(styles))
        for block in episode.layout.blocks
    )
    return dataclasses.replace(episode, layout=dataclasses.replace(episode.layout, blocks=blocks))


def make_plans(
    cells: Sequence[Cell], count: int, seed: int, config: TabletopConfig, styles: int = 1
) -> tuple[list[Plan], Mapping[int, Cell]]:
    """`count` episodes of each cell to run, and the cell of each plan's number."""
    bank = PictureBank()
    plans: list[Plan] = []
    cell_of: dict[int, Cell] = {}
    # The first episodes of all cells come first: an early look at the progress sees all of them.
    for number in range(count):
        for cell in cells:
            episode = draw_episode(cell, seed, number, config, bank, styles)
            cell_of[len(plans)] = cell
            options = {"task": episode.task, "layout": episode.layout}
            plans.append(Plan(len(plans), episode_seed(seed, cell.name, number), options))
    return plans, cell_of
