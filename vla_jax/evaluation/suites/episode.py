"""One episode of a suite: a task and the table it is about, drawn without a simulator."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from vla_jax.corpus.coordinates import RELATIONS
from vla_jax.corpus.pictures import MAT_COLORS, PictureBank
from vla_jax.envs.tabletop.config import TabletopConfig
from vla_jax.envs.tabletop.layout import Block, Layout, arrange, draw_layout, draw_task, has_room
from vla_jax.envs.tabletop.tasks import DIRECTIONS, Family, Task, make_task

_MAX_DRAWS = 20_000
_SEEN_HEIGHT = 0.91  # of a distance to the back in the picture, against one to the side
_DIAGONAL, _CLOSE_M = 1.6, 0.03  # a little stricter than `corpus.coordinates.relation`


@dataclasses.dataclass(frozen=True)
class Episode:
    """What a reset of the world needs.

    Attributes:
      about: the concept that the instruction tests: its target, or for "near" its reference.
      says_colors: the words speak of colours in pictures, which must then be as usual.
    """

    task: Task
    layout: Layout
    about: str
    says_colors: bool = False


@dataclasses.dataclass(frozen=True)
class Question:
    """What an instruction is about, and what lies beside it.

    Attributes:
      about: concept.
      words: how the instruction calls it, without "the".
      company: concepts of the other blocks, the most wanted first; at least three.
      mover: concept from the robot's episodes that "near" moves to it.
      fits: whether a layout shows what the words say.
      phrase: makes the instruction in other words than the standard ones.
      directions: of "push".
      says_colors: see `Episode`.
    """

    about: str
    words: str
    company: Sequence[str]
    mover: str
    fits: Callable[[Layout], bool] = lambda layout: True
    phrase: Callable[[Task], str] | None = None
    directions: Sequence[str] = tuple(DIRECTIONS)
    says_colors: bool = False


def draw_seen(rng: random.Random, bank: PictureBank, config: TabletopConfig) -> Episode:
    """A task and a table as in training."""
    for _ in range(_MAX_DRAWS):
        layout = draw_layout(rng, config, bank, bank.concepts("robot"))
        task = draw_task(rng, layout, config.families)
        if has_room(task, layout):
            return Episode(task, layout, task.reference if task.family == "near" else task.target)
    raise ValueError(f"no table found for one of {config.families}")


def draw_asked(
    rng: random.Random, bank: PictureBank, config: TabletopConfig, question: Question
) -> Episode:
    """A task about `question.about`, with as many blocks as training has at most.

    Raises ValueError if no layout fits.
    """
    family: Family = rng.choice(config.families)  # pyright: ignore[reportAssignmentType]
    task = _make(rng, family, question)
    beside = [*([question.mover] if family == "near" else []), *question.company]
    names = [question.about, *beside[: config.max_blocks - 1]]
    colors = rng.sample(
        MAT_COLORS, rng.choice((1, 1, 2) if "put" in config.families else (0, 1, 2))
    )
    if family == "put":
        colors[0] = task.reference.removesuffix(" mat")
        colors = list(dict.fromkeys(colors))
    for _ in range(_MAX_DRAWS):
        layout = arrange(rng, config, bank, rng.sample(names, len(names)), colors)
        layout = _with_clear_tiles(layout, bank)
        if has_room(task, layout) and question.fits(layout):
            return Episode(task, layout, question.about, question.says_colors)
    raise ValueError(f"no table found for {task.instruction!r} with {names}")


def _make(rng: random.Random, family: Family, question: Question) -> Task:
    phrasing = rng.randrange(12)
    mat = f"{rng.choice(MAT_COLORS)} mat"
    direction = rng.choice(question.directions) if family == "push" else ""
    target, reference = question.about, mat if family == "put" else ""
    words = question.words, reference
    if family == "near":
        target, reference = question.mover, question.about
        words = question.mover, question.words
    task = make_task(family, words[0], words[1], direction, phrasing)
    task = dataclasses.replace(task, target=target, reference=reference)
    if question.phrase is not None:
        task = dataclasses.replace(task, instruction=question.phrase(task))
    return task


def _with_clear_tiles(layout: Layout, bank: PictureBank) -> Layout:
    """No yellow faces on yellow: drawing the tiles knows of no colour for them."""
    blocks = tuple(
        dataclasses.replace(block, tile="white")
        if block.tile == "yellow" and bank.category(block.name) in ("face", "person")
        else block
        for block in layout.blocks
    )
    return dataclasses.replace(layout, blocks=blocks)


def side_of(anchor: Block, block: Block) -> str | None:
    """Where `block` is, seen from `anchor`, as the web data use the words: one of `RELATIONS`.

    None where the picture shows a diagonal, for which the web data have no word.
    """
    right, up = block.x - anchor.x, _SEEN_HEIGHT * (block.y - anchor.y)
    if max(abs(right), abs(up)) < _CLOSE_M:
        return None
    if abs(right) > _DIAGONAL * abs(up):
        return "left of" if right < 0 else "right of"
    if abs(up) > _DIAGONAL * abs(right):
        return "above" if up > 0 else "below"
    return None


def only_one(about: str, relation: str, anchor: str) -> Callable[[Layout], bool]:
    """Whether `about` is in this relation to `anchor` and all others are clearly in another."""
    if relation not in RELATIONS:
        raise ValueError(f"no relation {relation!r}; there are {RELATIONS}")

    def fits(layout: Layout) -> bool:
        blocks = {block.name: block for block in layout.blocks}
        origin = blocks.pop(anchor)
        sides = {name: side_of(origin, block) for name, block in blocks.items()}
        mine = sides.pop(about)
        return mine == relation and relation not in sides.values() and None not in sides.values()

    return fits
