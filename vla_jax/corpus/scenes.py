"""Random compositions of pictures: where things are (`compose`) and what it looks like (`Painter`).

Two kinds of view: *flat*, pictures anywhere at any size, bare or on tiles; *table*, small blocks
and mats that carry a picture on the top face, seen by a camera that looks down steeply.

`compose` decides all geometry with a `random.Random`, so questions can be asked without painting.
An object is a square of side `side_px`, turned by `angle`, then flattened vertically by the view's
`flatten` (the cosine of the camera's tilt); a block's sides reach `height_px` further down.
Coordinates are pixels, y first, the origin in the top left corner.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

from vla_jax.corpus.pictures import COLORS, MAT_COLORS, NUMBER_STYLES, PictureBank

LEAST_PX = 13.0
"""Side of the smallest pictures in an image of 112 pixels."""

Box = tuple[float, float, float, float]
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """How a scene is seen. `flatten` 1 is straight from above, 0.6 is 53 degrees tilted."""

    size: int
    table: bool
    flatten: float


@dataclasses.dataclass(frozen=True, slots=True)
class Placed:
    """A picture in a scene.

    Attributes:
      key: concept.
      center: (y, x) of the middle of what is visible of the picture.
      box: (y0, x0, y1, x1) around the picture, or around its tile's face if it has one.
      anchor: (y, x) of the middle of the square the picture is drawn in.
      side_px, angle: side and rotation (radians, clockwise) of that square.
      style: see `PictureBank.picture`.
      tile: colour of the square it is printed on, "" if the picture is bare.
      side_color, height_px: colour and visible height of the block's sides; 0: flat.
      mat: colour of the mat under it, "" if there is none.
    """

    key: str
    center: Point
    box: Box
    anchor: Point
    side_px: float
    angle: float
    style: int = 0
    tile: str = ""
    side_color: str = ""
    height_px: float = 0.0
    mat: str = ""

    @property
    def is_mat(self) -> bool:
        """A flat tile: a mat that carries a picture."""
        return bool(self.tile) and self.height_px == 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Mat:
    """A plain coloured mat. `under` is the index of the object that lies on it, or None."""

    color: str
    center: Point
    box: Box
    side_px: float
    angle: float
    round: bool
    under: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Gripper:
    """A robot's gripper over a table, with a light dot on what is straight below it.

    Attributes:
      dot: (y, x) of the table below it, where its shadow is. Its "place" in questions.
      lift_px: how much higher in the image the fingertips are.
      half_px: from the middle to each finger.
      open: whether they are apart.
      holds: key of the block between them, "" for none.
    """

    dot: Point
    lift_px: float
    half_px: float
    open: bool
    holds: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """What is where. Everything a question can ask about."""

    view: View
    objects: tuple[Placed, ...]
    mats: tuple[Mat, ...]
    gripper: Gripper | None = None

    def index_of(self, key: str) -> int:
        """Raises ValueError unless exactly one object shows the concept."""
        found = [i for i, o in enumerate(self.objects) if o.key == key]
        if len(found) != 1:
            raise ValueError(f"{len(found)} objects show {key!r}, not one")
        return found[0]


def corners(center: Point, side: float, angle: float, flatten: float) -> list[Point]:
    """(x, y) of the four corners of a turned and flattened square, in order around it."""
    c, s = math.cos(angle) * side / 2, math.sin(angle) * side / 2
    y, x = center
    return [
        (x - c + s, y - (s + c) * flatten),
        (x + c + s, y + (s - c) * flatten),
        (x + c - s, y + (s + c) * flatten),
        (x - c - s, y + (c - s) * flatten),
    ]


def _box(points: Sequence[Point]) -> Box:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return (min(ys), min(xs), max(ys), max(xs))


def compose(
    rng: random.Random,
    keys: Sequence[str],
    bank: PictureBank,
    *,
    size: int,
    least_px: float = LEAST_PX,
    table: bool | None = None,
    empty_mats: int | None = None,
    crowd: bool = False,
    gripper: bool | None = None,
    styles: int = 1,
) -> Scene:
    """Places `keys` without overlap.

    Args:
      least_px: side of the smallest pictures, give or take a fifth, where an image has 112 pixels;
        they are smaller still if there is no room.
      table: force one of the two views; None: either.
      empty_mats: number of plain mats with nothing on them; None: sometimes one or two. Fewer are
        placed if there is no room.
      crowd: leave out what does not fit, rather than make everything smaller.
      gripper: whether a robot's gripper is in the picture; None: over most of the tables.
      styles: emoji are drawn in one of so many of `pictures.ART_STYLES`.
    """
    if table is None:
        table = rng.random() < 0.55
    for attempt in range(12):
        shrink = 0.93**attempt
        scene = _try_compose(
            rng, keys, bank, size, least_px, table, empty_mats, crowd, shrink, styles
        )
        if scene is not None:
            if gripper or (gripper is None and table and rng.random() < 0.6):
                scene = _with_gripper(rng, scene)
            return scene
    raise ValueError(
        f"{len(keys)} pictures do not fit into {size} px: ask for fewer or more pixels"
    )


def _try_compose(
    rng: random.Random,
    keys: Sequence[str],
    bank: PictureBank,
    size: int,
    least_px: float,
    table: bool,
    empty_mats: int | None,
    crowd: bool,
    shrink: float,
    styles: int,
) -> Scene | None:
    k = size / 112 * shrink
    n = max(1, len(keys))
    if table:
        view = View(size, True, rng.uniform(0.55, 0.97))
        base = rng.uniform(least_px, least_px + 9.0) * k
    else:
        view = View(size, False, 1.0 if rng.random() < 0.7 else rng.uniform(0.6, 1.0))
        largest = max(least_px, min(70.0, 96.0 / math.sqrt(n)))
        base = math.exp(rng.uniform(math.log(least_px), math.log(largest))) * k
    free = rng.random() < 0.2  # any rotation
    tile_share = 0.95 if table else rng.choice((0.0, 0.0, 0.5, 1.0))
    mat_share = rng.choice((0.0, 0.15, 0.5)) if table else rng.choice((0.0, 0.0, 0.4))
    taken: list[tuple[float, float, float]] = []  # y, x, radius
    objects: list[Placed] = []
    mats: list[Mat] = []
    mat_colors = _shuffled(rng, MAT_COLORS if rng.random() < 0.8 else tuple(COLORS))
    for key in keys:
        made = _dress(rng, bank, key, base, view, tile_share, free, styles)
        has_mat = mat_colors and not made.is_mat and rng.random() < mat_share
        mat_side = made.side_px * rng.uniform(1.35, 2.1) if has_mat else 0.0
        reach = max(made.side_px, mat_side) * 0.56
        spot = _find_spot(rng, taken, reach, view, made.height_px)
        if spot is None and crowd and objects:
            continue
        if spot is None:
            return None
        taken.append((*spot, reach))
        if has_mat:
            mats.append(_mat(rng, mat_colors.pop(), spot, mat_side, view, len(objects)))
        objects.append(_put(made, spot, mats[-1].color if has_mat else "", view, bank))
    if empty_mats is None:
        empty_mats = rng.choice((0, 0, 1, 2)) if table else rng.choice((0, 0, 0, 1))
    for _ in range(min(empty_mats, len(mat_colors))):
        side = rng.uniform(15.0, 36.0) * k
        spot = _find_spot(rng, taken, side * 0.56, view, 0.0)
        if spot is not None:
            taken.append((*spot, side * 0.56))
            mats.append(_mat(rng, mat_colors.pop(), spot, side, view, None))
    return Scene(view, tuple(objects), tuple(mats))


def _with_gripper(rng: random.Random, scene: Scene) -> Scene:
    """Anywhere, holding a block, or just above a thing; never so low above one that it hides it."""
    size = scene.view.size
    k = size / 112
    low, high = 0.08 * size, 0.92 * size
    dot = rng.uniform(0.2 * size, high), rng.uniform(low, high)
    blocks = [o for o in scene.objects if o.height_px]
    if blocks and rng.random() < 0.3:
        block = rng.choice(blocks)
        lift = rng.uniform(0.0, 14.0) * k
        gripper = Gripper(
            dot, lift, block.side_px * rng.uniform(0.52, 0.62), open=False, holds=block.key
        )
        held = _moved(block, (dot[0] - lift, dot[1]))
        others = (o for o in scene.objects if o is not block)
        # It left its mat, and the others moved up in the order.
        number = scene.objects.index(block)
        mats = tuple(dataclasses.replace(m, under=_after(number, m.under)) for m in scene.mats)
        return Scene(scene.view, (*others, held), mats, gripper)
    over = scene.objects and rng.random() < 0.4
    if over:
        thing = rng.choice(scene.objects)
        dot = tuple(
            min(0.97 * size, max(0.03 * size, v + rng.gauss(0.0, 4.0 * k))) for v in thing.anchor
        )
    near = min((math.dist(dot, o.anchor) - o.side_px for o in scene.objects), default=size)
    lift = rng.uniform(9.0 * k if near < 4.0 * k else 0.0, 15.0 * k)
    is_open = rng.random() < 0.5
    half = rng.uniform(12.0, 17.0) if is_open else rng.uniform(5.0, 9.5)
    gripper = Gripper(dot, lift, half * k, is_open)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(scene, gripper=gripper)


def _after(gone: int, index: int | None) -> int | None:
    """What an index becomes when number `gone` is taken out."""
    if index is None or index == gone:
        return None
    return index - (index > gone)


def _moved(placed: Placed, anchor: Point) -> Placed:
    """The same object elsewhere, on no mat."""
    dy, dx = anchor[0] - placed.anchor[0], anchor[1] - placed.anchor[1]
    y, x = placed.center
    y0, x0, y1, x1 = placed.box
    box = (y0 + dy, x0 + dx, y1 + dy, x1 + dx)
    return dataclasses.replace(placed, center=(y + dy, x + dx), box=box, anchor=anchor, mat="")


def _dress(
    rng: random.Random,
    bank: PictureBank,
    key: str,
    base: float,
    view: View,
    tile_share: float,
    free: bool,
    styles: int,
) -> Placed:
    """Size, rotation, tile and block of one object; it has no place yet."""
    side = base * rng.uniform(0.85, 1.2)
    tile, side_color, height = "", "", 0.0
    color, is_number = bank.color(key), bank.value(key) is not None
    if bank.category(key) == "block":
        tile, raised = color, True  # flat, it could not be told from a mat
    elif rng.random() < tile_share:
        others = [c for c in COLORS if c != color]
        tile = "white" if rng.random() < 0.5 and color != "white" else rng.choice(others)
        tile = "white" if is_number else tile  # as its plate
        raised = rng.random() < (0.75 if view.table else 0.3)
    else:
        raised = False
    if view.table and tile and not raised:
        side *= rng.uniform(1.2, 1.9)  # a mat that carries a picture
    if raised:
        tilt = math.sqrt(1.0 - view.flatten**2) if view.flatten < 0.98 else 0.2
        height = max(1.0, side * tilt * rng.uniform(0.5, 1.0))
        side_color = tile if rng.random() < 0.75 else rng.choice((*COLORS,))
    # A number lies as one reads it, or 6 were 9.
    angle = rng.uniform(-math.pi, math.pi) if free and not is_number else rng.gauss(0.0, 0.16)
    style = rng.randrange(NUMBER_STYLES) if is_number else 0
    if styles > 1 and not is_number:
        style = rng.randrange(styles)
    nowhere = (0.0, 0.0)
    return Placed(
        key, nowhere, (*nowhere, *nowhere), nowhere, side, angle, style, tile, side_color, height
    )


def _put(made: Placed, spot: Point, mat: str, view: View, bank: PictureBank) -> Placed:
    """The object at its place, with the box of what is visible."""
    if made.tile:
        points = corners(spot, made.side_px, made.angle, view.flatten)
        center = spot
    else:
        y0, x0, y1, x1 = bank.extent(made.key)
        c, s = math.cos(made.angle) * made.side_px, math.sin(made.angle) * made.side_px
        points = [
            (
                spot[1] + c * (u - 0.5) - s * (v - 0.5),
                spot[0] + view.flatten * (s * (u - 0.5) + c * (v - 0.5)),
            )
            for u, v in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        ]
        center = (sum(p[1] for p in points) / 4, sum(p[0] for p in points) / 4)
    return Placed(
        made.key,
        center,
        _box(points),
        spot,
        made.side_px,
        made.angle,
        made.style,
        made.tile,
        made.side_color,
        made.height_px,
        mat,
    )


def _mat(
    rng: random.Random, color: str, spot: Point, side: float, view: View, under: int | None
) -> Mat:
    is_round = rng.random() < 0.25
    angle = 0.0 if is_round else rng.gauss(0.0, 0.12)
    return Mat(
        color,
        spot,
        _box(corners(spot, side, angle, view.flatten)),
        side,
        angle,
        is_round,
        under,
    )


def _find_spot(
    rng: random.Random,
    taken: list[tuple[float, float, float]],
    reach: float,
    view: View,
    height: float,
) -> Point | None:
    """A centre at which a disc of radius `reach` (flattened) is inside and touches nothing."""
    margin_x = reach * 1.05
    margin_y = reach * view.flatten * 1.05
    low_y, high_y = margin_y, view.size - margin_y - height
    low_x, high_x = margin_x, view.size - margin_x
    if low_y >= high_y or low_x >= high_x:
        return None
    for _ in range(14):
        y, x = rng.uniform(low_y, high_y), rng.uniform(low_x, high_x)
        if all(
            math.hypot((y - ty) / view.flatten, x - tx) > reach + tr + height
            for ty, tx, tr in taken
        ):
            return y, x
    return None


def _shuffled(rng: random.Random, values: Sequence[str]) -> list[str]:
    shuffled = list(values)
    rng.shuffle(shuffled)
    return shuffled
