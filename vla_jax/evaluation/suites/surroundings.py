"""Tables and rooms that no training episode shows."""

from __future__ import annotations

import dataclasses
import math
import random

from vla_jax.corpus.pictures import COLORS
from vla_jax.envs.tabletop.layout import Clutter, Layout, Pattern
from vla_jax.evaluation.suites.words import BACKDROPS

RGB = tuple[int, int, int]

TABLES: tuple[RGB, ...] = (
    *((96, 125, 168), (126, 155, 88), (205, 140, 150), (70, 72, 82)),
    *((214, 186, 84), (146, 116, 172), (70, 150, 150)),
)
"""Each is further from every training colour than training varies it."""

_STRONG: tuple[Pattern, ...] = ("checks", "dots", "waves")
_FLOORS = ((0.55, 0.35, 0.2), (0.2, 0.35, 0.25), (0.75, 0.72, 0.65), (0.15, 0.2, 0.4))
_CLUTTER_COLORS: tuple[RGB, ...] = (
    *((60, 62, 66), (120, 118, 112), (184, 178, 160), (88, 98, 76), (92, 112, 120)),
    *((150, 128, 100),),
)
"""Muted, so that nothing is taken for a block."""


def other_table(rng: random.Random, layout: Layout) -> Layout:
    """Another colour, at most a soft pattern."""
    color = rng.choice(TABLES)
    lighter = tuple(min(255, c + 26) for c in color)
    return dataclasses.replace(
        layout,
        table=rng.choice(("plain", "wood", "speckle", "checks", "dots")),
        table_color=color,
        pattern_color=lighter,
    )


def loud_table(rng: random.Random, layout: Layout) -> Layout:
    """A strong pattern of two colours, or a picture printed over the whole table."""
    if rng.random() < 0.4:
        return dataclasses.replace(
            layout,
            table="picture",
            table_color=rng.choice(TABLES),
            table_picture=rng.choice(BACKDROPS),
        )
    taken = {name.split()[0] for block in layout.blocks for name in (block.name, block.tile)}
    free = [name for name in COLORS if name not in taken | {m.color for m in layout.mats}]
    first, second = rng.sample(free, 2)
    return dataclasses.replace(
        layout,
        table=rng.choice(_STRONG),
        table_color=COLORS[first],
        pattern_color=COLORS[second],
    )


def other_room(rng: random.Random, layout: Layout) -> Layout:
    """The camera moved, other light and floor, a smaller table, a few things on its rim."""
    return dataclasses.replace(
        layout,
        camera_shift_m=(_either(rng, 0.025, 0.035), _either(rng, 0.025, 0.035), 0.0),
        camera_turn_rad=(math.radians(_either(rng, 5, 9)), math.radians(rng.uniform(-4, 4))),
        camera_distance=rng.uniform(1.12, 1.2),
        light=rng.choice((rng.uniform(0.45, 0.6), rng.uniform(1.4, 1.55))),
        floor_rgb=rng.choice(_FLOORS),
        table_half_m=rng.uniform(0.205, 0.23),
        clutter=_clutter(rng, 3),
    )


def other_office(rng: random.Random, layout: Layout) -> Layout:
    """More of it, all together, and low coloured sun; the table has another colour, too."""
    low = rng.uniform(-1, 1)
    return dataclasses.replace(
        other_table(rng, layout),
        camera_shift_m=(_either(rng, 0.02, 0.03), _either(rng, 0.02, 0.03), 0.0),
        camera_turn_rad=(math.radians(_either(rng, 14, 20)), math.radians(rng.uniform(-12, 6))),
        camera_distance=rng.uniform(1.25, 1.35),
        light=rng.choice((rng.uniform(0.1, 0.3), rng.uniform(1.6, 1.8))),
        sun=(low, math.sqrt(1 - low * low), -0.5),
        sun_rgb=rng.choice(((0.55, 0.4, 0.2), (0.25, 0.35, 0.6), (0.5, 0.5, 0.5))),
        floor_rgb=rng.choice(_FLOORS),
        table_half_m=rng.uniform(0.205, 0.22),
        clutter=_clutter(rng, 8),
    )


def _clutter(rng: random.Random, count: int) -> tuple[Clutter, ...]:
    """Things round the table, beyond where blocks and gripper go; the highest at the back."""
    spots = [(x, 0.255) for x in (-0.2, -0.07, 0.07, 0.2)]
    spots += [(side * 0.25, y) for side in (-1, 1) for y in (-0.12, 0.02, 0.15)]
    things = []
    for x, y in rng.sample(spots, count):
        at_back = y > 0.2
        wide = rng.uniform(0.02, 0.055 if at_back else 0.03)
        deep = rng.uniform(0.012, 0.03)
        high = rng.uniform(0.02, 0.09) if at_back else rng.uniform(0.01, 0.035)
        half_m = (wide, deep, high) if at_back else (deep, wide, high)
        can = rng.random() < 0.4
        if can:
            half_m = (deep, deep, high)
        things.append(Clutter(x, y, half_m, rng.choice(_CLUTTER_COLORS), can))
    return tuple(things)


def _either(rng: random.Random, low: float, high: float) -> float:
    """Of this size, to either side."""
    return rng.choice((-1, 1)) * rng.uniform(low, high)
