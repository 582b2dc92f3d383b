"""Painter: from a `Scene` to pixels. Pillow does the work on small patches."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vla_jax.corpus.pictures import COLORS, PictureBank
from vla_jax.corpus.scenes import Gripper, Mat, Placed, Scene, View, corners

Color = tuple[int, int, int]

_LEVELS = (16, 20, 26, 34, 46, 72)  # pictures are kept at these sizes, warped from the next
_TEXTURES = 72
_DOTS: tuple[Color, ...] = ((255, 60, 60), (90, 255, 90), (250, 250, 250))
_SPARE_PX = 48  # a texture is this much larger than the image; a random part of it is used
_WOODS: tuple[tuple[Color, Color], ...] = (
    ((205, 170, 125), (160, 120, 80)),
    ((222, 196, 160), (190, 158, 118)),
    ((150, 105, 68), (110, 72, 45)),
    ((235, 220, 195), (212, 190, 160)),
    ((120, 90, 70), (85, 60, 45)),
)


class Painter:
    """Paints scenes. Holds sprites and textures; makes them on first use."""

    def __init__(self, bank: PictureBank):
        self._bank = bank

    def paint(self, scene: Scene, rng: random.Random) -> np.ndarray:
        """uint8 [size, size, 3]. `rng` decides background, light, noise and clutter."""
        size, flatten = scene.view.size, scene.view.flatten
        canvas = _background(scene.view, rng)
        draw = ImageDraw.Draw(canvas)
        if scene.view.table and rng.random() < 0.3:
            _table_edge(canvas, draw, rng, scene)
        if rng.random() < 0.25:
            _rod(draw, rng, size, _any_color(rng))
        light = rng.uniform(-1.0, 1.0)
        shadows = rng.random() < 0.6
        for mat in scene.mats:
            _draw_mat(draw, mat, flatten, _vary(rng, COLORS[mat.color]))
        gripper = scene.gripper
        its_rng = random.Random(rng.getrandbits(32))  # all else is painted as without one
        if gripper is not None and (gripper.holds or its_rng.random() < 0.6):
            _shade(canvas, gripper, flatten, its_rng)
        held = gripper.holds if gripper is not None else ""
        # From back to front, and what is held over all.
        for placed in sorted(scene.objects, key=lambda o: (o.key == held, o.anchor[0])):
            if shadows and placed.key != held and (placed.height_px or not placed.tile):
                _shadow(canvas, placed, flatten, light)
            if placed.tile:
                _draw_tile(draw, placed, flatten, rng)
            if self._bank.category(placed.key) != "block":
                self._paste_picture(canvas, placed, flatten)
        if gripper is not None:
            _draw_gripper(draw, gripper, scene.view, its_rng)
        return _finish(canvas, rng)

    def _paste_picture(self, canvas: Image.Image, placed: Placed, flatten: float) -> None:
        side = placed.side_px * (0.9 if placed.tile else 1.0)
        level = next((s for s in _LEVELS if s >= side * 0.92), _LEVELS[-1])
        source = self._bank.premultiplied(placed.key, level, placed.style)
        c, s = math.cos(placed.angle), math.sin(placed.angle)
        reach_x = side / 2 * (abs(c) + abs(s))
        reach_y = reach_x * flatten
        y, x = placed.anchor
        left, top = math.floor(x - reach_x), math.floor(y - reach_y)
        width = math.ceil(x + reach_x) - left
        height = math.ceil(y + reach_y) - top
        # Output pixel -> source pixel: undo place, flattening, rotation and scale.
        k = level / side
        a, b, d, e = k * c, k * s / flatten, -k * s, k * c / flatten
        dx, dy = left - x, top - y
        matrix = (a, b, a * dx + b * dy + level / 2, d, e, d * dx + e * dy + level / 2)
        # Bilinear keeps colour <= alpha, which pasting premultiplied pixels needs.
        sprite = source.transform(
            (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
        canvas.paste(sprite, (left, top), sprite)


def _vary(rng: random.Random, color: Color, amount: int = 14) -> Color:
    shift = rng.randint(-amount, amount)
    return _clip(color[0] + shift, color[1] + shift, color[2] + shift)


def _clip(r: float, g: float, b: float) -> Color:
    return (
        min(255, max(0, int(r))),
        min(255, max(0, int(g))),
        min(255, max(0, int(b))),
    )


def _scaled(color: Color, factor: float) -> Color:
    return _clip(color[0] * factor, color[1] * factor, color[2] * factor)


def _any_color(rng: random.Random) -> Color:
    if rng.random() < 0.4:
        grey = rng.randrange(256)
        return (grey, grey, grey)
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def _background(view: View, rng: random.Random) -> Image.Image:
    size = view.size
    kind = rng.random()
    if kind < (0.5 if view.table else 0.2):
        first, second = rng.choice(_WOODS)
        first, second = _vary(rng, first, 25), _vary(rng, second, 25)
    elif kind < 0.65:  # quiet: a table cloth, a wall
        first = _any_color(rng)
        second = _vary(rng, first, 30)
    else:
        first, second = _any_color(rng), _any_color(rng)
    if rng.random() < 0.2:
        return Image.new("RGB", (size, size), first)
    mask = _textures(size)[rng.randrange(_TEXTURES)]
    left, top = rng.randint(0, _SPARE_PX), rng.randint(0, _SPARE_PX)
    mask = mask.crop((left, top, left + size, top + size))
    return Image.composite(
        Image.new("RGB", (size, size), first), Image.new("RGB", (size, size), second), mask
    )


@functools.lru_cache(maxsize=4)
def _textures(size: int) -> tuple[Image.Image, ...]:
    """Masks that blend two colours: gradients, wood grain, clouds, checks, stripes."""
    rng = np.random.default_rng(20230728)
    n = size + _SPARE_PX
    y, x = np.mgrid[0:n, 0:n] / n
    made = []
    for i in range(_TEXTURES):
        angle = rng.uniform(0, np.pi)
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        kind = i % 6
        if kind == 0:
            mask = along
        elif kind in (1, 2):  # wood: stretched noise and rings, with planks
            grain = _smooth_noise(rng, n, 3 + 2 * kind, 40)
            turn = np.rot90(grain) if i % 12 < 6 else grain
            mask = turn + 0.35 * np.sin(40 * turn)
            planks = np.floor((y if i % 12 < 6 else x) * rng.integers(3, 7))
            mask = mask + 0.25 * ((planks * 0.618) % 1.0)
        elif kind == 3:
            mask = _smooth_noise(rng, n, 6, 6) + 0.5 * _smooth_noise(rng, n, 20, 20)
        elif kind == 4:  # checks or stripes
            f = rng.integers(3, 12)
            mask = np.floor(along * f) % 2
            if rng.random() < 0.5:
                mask = (mask + np.floor(across * f)) % 2
        else:  # fine cloth or sand
            mask = 0.5 + 0.2 * rng.standard_normal((n, n)) + 0.3 * _smooth_noise(rng, n, 4, 4)
        low, high = mask.min(), mask.max()
        made.append(Image.fromarray((255 * (mask - low) / (high - low)).astype(np.uint8)))
    return tuple(made)


def _smooth_noise(rng: np.random.Generator, n: int, rows: int, columns: int) -> np.ndarray:
    """float [n, n] about 0..1, with `rows` x `columns` bumps."""
    coarse = Image.fromarray(rng.random((rows, columns), np.float32))
    return np.asarray(coarse.resize((n, n), Image.Resampling.BICUBIC))


def _table_edge(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, rng: random.Random, scene: Scene
) -> None:
    """The floor behind the table, above everything that stands on it."""
    top = min([o.box[0] for o in scene.objects] + [m.box[0] for m in scene.mats], default=0.0)
    if top < 6:
        return
    y = rng.uniform(2, top - 2)
    slope = rng.gauss(0.0, 2.0) if top > 12 else 0.0
    color = _any_color(rng)
    draw.polygon([(0, 0), (canvas.width, 0), (canvas.width, y + slope), (0, y)], fill=color)


def _draw_mat(draw: ImageDraw.ImageDraw, mat: Mat, flatten: float, color: Color) -> None:
    if mat.round:
        y0, x0, y1, x1 = mat.box
        draw.ellipse((x0, y0, x1, y1), fill=color)
    else:
        draw.polygon(corners(mat.center, mat.side_px, mat.angle, flatten), fill=color)


def _draw_tile(
    draw: ImageDraw.ImageDraw, placed: Placed, flatten: float, rng: random.Random
) -> None:
    color = _vary(rng, COLORS[placed.tile], 10)
    face = corners(placed.anchor, placed.side_px, placed.angle, flatten)
    if placed.height_px:
        side = COLORS[placed.side_color]
        first = rng.uniform(0.5, 0.95)
        for i in range(4):
            (xa, ya), (xb, yb) = face[i], face[(i + 1) % 4]
            if xb < xa:  # corners run clockwise: a side that runs left faces the camera
                steep = abs(yb - ya) / (abs(xb - xa) + abs(yb - ya) + 1e-6)
                shade = _scaled(side, first - 0.25 * steep * (1 if yb > ya else -1))
                low = placed.height_px
                draw.polygon([(xa, ya), (xb, yb), (xb, yb + low), (xa, ya + low)], fill=shade)
    draw.polygon(face, fill=color)


@functools.lru_cache(maxsize=512)
def _blob(width: int, height: int, strength: int) -> Image.Image:
    """A soft ellipse as a mask."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    fade = np.clip(1.35 - 1.35 * (x**2 + y**2), 0, 1)
    return Image.fromarray((strength * fade).astype(np.uint8))


def _shadow(canvas: Image.Image, placed: Placed, flatten: float, light: float) -> None:
    side = placed.side_px * 1.3
    width, height = max(4, int(side) // 2 * 2), max(4, int(side * flatten) // 2 * 2)
    y = placed.anchor[0] + placed.height_px + placed.side_px * 0.1
    x = placed.anchor[1] + light * (placed.side_px * 0.25 + placed.height_px * 0.4)
    mask = _blob(width, height, 150)
    canvas.paste((10, 10, 14), (int(x - width / 2), int(y - height / 2)), mask)


def _rod(draw: ImageDraw.ImageDraw, rng: random.Random, size: int, color: Color) -> None:
    ends = (rng.uniform(-9, size + 9), rng.uniform(-9, size), rng.uniform(-9, size + 9), size * 1.1)
    draw.line(ends, fill=color, width=rng.randint(1, max(2, size // 16)))


def _shade(canvas: Image.Image, gripper: Gripper, flatten: float, rng: random.Random) -> None:
    """What a gripper keeps the light from, straight below it."""
    width = int(rng.uniform(16, 24) * canvas.width / 112)
    height = max(4, int(width * flatten))
    y, x = gripper.dot
    box = (int(x - width / 2), int(y - height / 2))
    if rng.random() < 0.5:
        canvas.paste((10, 10, 14), box, _blob(width, height, 150))
    else:
        mask = Image.new("L", (width, height), 0)
        ImageDraw.Draw(mask).ellipse((0, 0, width - 1, height - 1), fill=rng.randint(70, 170))
        canvas.paste((10, 10, 14), box, mask)


def _draw_gripper(
    draw: ImageDraw.ImageDraw, gripper: Gripper, view: View, rng: random.Random
) -> None:
    """Two fingers, a palm with a wrist above them, and the dot below."""
    k = view.size / 112
    y, x = gripper.dot
    half, thick = gripper.half_px, rng.uniform(2.0, 4.5) * k
    tip = y - gripper.lift_px
    finger, palm = rng.uniform(6.0, 11.0) * k, rng.uniform(2.5, 5.5) * k
    color = _vary(rng, (225, 25, 180) if rng.random() < 0.6 else _any_color(rng), 25)
    dark = _scaled(color, rng.uniform(0.55, 0.85))
    bright = _vary(rng, (40, 250, 240) if rng.random() < 0.7 else rng.choice(_DOTS), 10)
    r = rng.uniform(1.2, 2.3) * k
    low = tip if gripper.holds else y  # the light falls on what is held
    draw.ellipse((x - r, low - r * view.flatten, x + r, low + r * view.flatten), fill=bright)
    top = tip - finger
    if rng.random() < 0.5:  # a bar from finger to finger
        draw.rectangle((x - half, top - palm / 2, x + half, top), fill=dark)
    for edge in (x - half - thick / 2, x + half - thick / 2):
        draw.rectangle((edge, top, edge + thick, tip), fill=color)
        draw.rectangle((edge, tip - 2.0 * k, edge + thick, tip), fill=dark)
    draw.rectangle((x - palm, top - palm, x + palm, top + palm * 0.7), fill=color)
    wrist = rng.uniform(1.2, 2.5) * k
    above = top - palm - rng.uniform(3.0, 9.0) * k
    draw.rectangle((x - wrist, above, x + wrist, top), fill=dark)


_NOISES = 16


@functools.lru_cache(maxsize=8)
def _noises(size: int, deviation: int) -> tuple[np.ndarray, np.ndarray]:
    """What noise adds and what it takes away: two uint8 [16, size, size, 3]."""
    rng = np.random.default_rng(7)
    noise = np.rint(deviation * rng.standard_normal((_NOISES, size, size, 3)))
    return np.clip(noise, 0, 255).astype(np.uint8), np.clip(-noise, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=256)
def _tone(brightness: int, contrast: int) -> bytes:
    """A lookup table: contrast in percent around 128, then brightness."""
    values = np.arange(256.0)
    toned = (values - 128) * contrast / 100 + 128 + brightness
    return np.clip(toned, 0, 255).astype(np.uint8).tobytes()


def _finish(canvas: Image.Image, rng: random.Random) -> np.ndarray:
    if rng.random() < 0.12:
        canvas = canvas.filter(ImageFilter.BoxBlur(rng.choice((0.4, 0.7))))
    raw = bytearray(canvas.tobytes())
    if rng.random() < 0.7:
        raw = raw.translate(_tone(rng.randint(-10, 6) * 4, rng.randint(14, 23) * 5))
    pixels = np.frombuffer(raw, np.uint8).reshape(canvas.height, canvas.width, 3)
    if rng.random() < 0.25:
        more, less = _noises(canvas.width, rng.choice((4, 4, 8)))
        which = rng.randrange(_NOISES)
        pixels -= np.minimum(pixels, less[which])
        pixels += np.minimum(~pixels, more[which])  # ~p is 255 - p: no overflow
    return pixels
