"""What a table looks like at the start: the layout, and how one is drawn. Imports no simulator."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from vla_jax.corpus.pictures import MAT_COLORS, PictureBank
from vla_jax.envs.tabletop import scene
from vla_jax.envs.tabletop.config import TabletopConfig
from vla_jax.envs.tabletop.tasks import Task, is_fair, random_task

Pattern = Literal["plain", "wood", "speckle", "stripes", "checks", "dots", "waves", "picture"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
TRAINING_PATTERNS: tuple[Pattern, ...] = ("plain", "wood", "speckle", "stripes")
"""What `draw_layout` draws from; the others are for evaluation."""

TRAINING_TABLE_COLORS = (
    (190, 160, 120),
    (150, 150, 155),
    (205, 200, 190),
    (110, 120, 115),
    (165, 130, 95),
)
TABLE_COLOR_SPREAD = 15
"""`draw_layout` changes each of red, green and blue by up to this much."""

_MIN_APART_M = 0.118
_REACH_M = (0.145, 0.125)  # |x|, |y| of things on the table


@dataclasses.dataclass(frozen=True)
class Block:
    """A block on the table.

    Attributes:
      name: concept of the picture on it.
      x, y: metres.
      yaw: radians.
      tile: colour behind the picture.
      style: how the picture is drawn, see `PictureBank.picture`.
    """

    name: str
    x: float
    y: float
    yaw: float = 0.0
    tile: str = "white"
    style: int = 0


@dataclasses.dataclass(frozen=True)
class Mat:
    """A square mat, 10 cm wide. Its name is "<colour> mat"."""

    color: str
    x: float
    y: float

    @property
    def name(self) -> str:
        return f"{self.color} mat"


@dataclasses.dataclass(frozen=True)
class Clutter:
    """A thing that only stands there: nothing touches it and no instruction is about it.

    Attributes:
      x, y: metres; outside the workspace it is in nobody's way.
      half_m: half its width, depth and height.
      rgb: 0..255.
      round: a cylinder as wide as `half_m[0]`, else a box.
    """

    x: float
    y: float
    half_m: tuple[float, float, float]
    rgb: tuple[int, int, int]
    round: bool = False


@dataclasses.dataclass(frozen=True)
class Layout:
    """Everything that a reset decides, so that it can be repeated or made by hand.

    What `draw_layout` leaves at its default is the same in all training episodes.

    Attributes:
      gripper: metres.
      table: pattern of the table.
      table_color, pattern_color: 0..255. The training patterns are shades of `table_color`; the
        others draw with `pattern_color` on it.
      table_picture: for pattern "picture": concept of the picture printed over the whole table.
      table_half_m: half the table's side.
      camera_shift_m: moves the camera and what it looks at.
      camera_turn_rad: moves the camera round that point: to the right (it then looks more to the
        left), and up.
      camera_distance: 1: as in training; more is further away.
      light: brightness; 1: as in training.
      sun: where the sun's light goes to. Any length.
      sun_rgb, floor_rgb: 0..1.
      texture_seed: of what is random in the table's pattern.
    """

    blocks: tuple[Block, ...]
    mats: tuple[Mat, ...] = ()
    gripper: tuple[float, float, float] = (0.0, 0.0, 0.1)
    table: Pattern = "plain"
    table_color: tuple[int, int, int] = (190, 175, 150)
    camera_shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    light: float = 1.0
    texture_seed: int = 0
    pattern_color: tuple[int, int, int] = (255, 255, 255)
    table_picture: str = ""
    table_half_m: float = scene.TABLE_HALF_M
    camera_turn_rad: tuple[float, float] = (0.0, 0.0)
    camera_distance: float = 1.0
    sun: tuple[float, float, float] = scene.SUN
    sun_rgb: tuple[float, float, float] = scene.SUN_RGB
    floor_rgb: tuple[float, float, float] = scene.FLOOR_RGB
    clutter: tuple[Clutter, ...] = ()


def draw_layout(
    rng: random.Random,
    config: TabletopConfig,
    bank: PictureBank,
    concepts: Sequence[str],
    task: Task | None = None,
) -> Layout:
    """As in training: blocks that show some of `concepts`, and what `task` needs, if given."""
    count = rng.randint(config.min_blocks, config.max_blocks)
    needed = [] if task is None else [task.target]
    if task is not None and task.family == "near":
        needed.append(task.reference)
    others = [c for c in concepts if c not in needed]
    names = needed + rng.sample(others, count - len(needed) if count > len(needed) else 0)
    rng.shuffle(names)
    num_mats = rng.choice((0, 1, 2))
    if task is not None and task.family == "put":
        num_mats = max(1, num_mats)
    elif task is None and "put" in config.families:
        num_mats = rng.choice((1, 1, 2))
    colors = rng.sample(MAT_COLORS, num_mats)
    if task is not None and task.family == "put":
        wanted = task.reference.removesuffix(" mat")
        if wanted not in colors:
            colors[0] = wanted
    return arrange(rng, config, bank, names, colors)


def arrange(
    rng: random.Random,
    config: TabletopConfig,
    bank: PictureBank,
    names: Sequence[str],
    mat_colors: Sequence[str],
) -> Layout:
    """Blocks and mats at places drawn as in training, likewise table, light and camera."""
    spots = _spots(rng, len(names) + len(mat_colors))
    blocks = tuple(
        Block(
            name,
            *spot,
            yaw=rng.uniform(-1, 1) * config.yaw_rad,
            tile=_draw_tile(rng, bank, name),
        )
        for name, spot in zip(names, spots, strict=False)
    )
    mats = tuple(Mat(c, *s) for c, s in zip(mat_colors, spots[len(names) :], strict=True))
    jitter = config.camera_jitter_m
    return Layout(
        blocks,
        mats,
        gripper=(rng.uniform(-0.14, 0.14), rng.uniform(-0.13, 0.13), rng.uniform(0.09, 0.11)),
        table=rng.choice(TRAINING_PATTERNS),
        table_color=_table_color(rng),
        camera_shift_m=(rng.uniform(-jitter, jitter), rng.uniform(-jitter, jitter), 0.0),
        light=1 + rng.uniform(-1, 1) * config.light_jitter,
        texture_seed=rng.randrange(2**31),
    )


def draw_task(rng: random.Random, layout: Layout, families: Sequence[str]) -> Task:
    """About two of the blocks; "put" only where there is a mat, unless nothing else is allowed."""
    allowed = list(families)
    if not layout.mats:
        allowed = [f for f in allowed if f != "put"] or allowed
    chosen = rng.choice(allowed)
    target, other = rng.sample([b.name for b in layout.blocks], 2)
    mat = rng.choice(layout.mats).color if layout.mats else ""
    return random_task(chosen, rng, target, other, mat)  # pyright: ignore[reportArgumentType]


def has_room(task: Task, layout: Layout) -> bool:
    """Whether the task is fair on this table, see `is_fair`."""
    spots = {block.name: np.array([block.x, block.y]) for block in layout.blocks}
    spots |= {mat.name: np.array([mat.x, mat.y]) for mat in layout.mats}
    others = [
        spots[block.name]
        for block in layout.blocks
        if block.name not in (task.target, task.reference)
    ]
    return is_fair(task, spots[task.target], spots.get(task.reference), others)


def _draw_tile(rng: random.Random, bank: PictureBank, name: str) -> str:
    """A colour on which the picture shows; a number's is that of its plate."""
    if bank.category(name) == "number":
        return "white"
    tiles = ("white", "white", "white", "yellow", "pink", "black")
    return rng.choice([tile for tile in tiles if tile != bank.color(name)])


def _spots(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """Places on the table, none too close to another."""
    while True:
        spots: list[tuple[float, float]] = []
        for _ in range(200):
            x, y = (rng.uniform(-r, r) for r in _REACH_M)
            if all((x - a) ** 2 + (y - b) ** 2 > _MIN_APART_M**2 for a, b in spots):
                spots.append((x, y))
            if len(spots) == count:
                return spots


def _table_color(rng: random.Random) -> tuple[int, int, int]:
    base, spread = rng.choice(TRAINING_TABLE_COLORS), TABLE_COLOR_SPREAD
    r, g, b = (min(255, max(0, c + rng.randint(-spread, spread))) for c in base)
    return r, g, b
