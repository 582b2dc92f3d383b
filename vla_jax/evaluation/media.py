"""Pictures and short videos for the report, made with Pillow."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH = 280  # pixels, of a video
MOST_FRAMES = 48  # of a video
MARK_SCALE = 2  # of pictures with marks on them
_TEXT, _FAINT, _PAPER = (28, 30, 33), (110, 116, 124), (255, 255, 255)
_GOOD, _BAD = (31, 122, 77), (176, 58, 46)
_COLORS = 128  # of a video's palette: small files, and flat surfaces stay flat


Color = tuple[int, int, int]
Point = tuple[float, float]  # (y, x) in pixels of the picture
Box = tuple[float, float, float, float]  # (y0, x0, y1, x1), likewise


@dataclasses.dataclass(frozen=True)
class Frame:
    """One moment of an episode: what the camera saw, and the action that followed.

    Attributes:
      image: uint8 [h, w, 3].
      tokens: the action string, `0 128 91 241 128 128 128 12`; empty for the last picture.
      plan: what was said before it, `pick the apple.`; empty if nothing was.
    """

    image: np.ndarray
    tokens: str
    plan: str = ""


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes uint8 [h, w, 3]."""
    Image.fromarray(image).save(path, optimize=True)


class Marked:
    """A picture, enlarged `MARK_SCALE` times, to draw places on."""

    def __init__(self, image: np.ndarray):
        size = (image.shape[1] * MARK_SCALE, image.shape[0] * MARK_SCALE)
        self.picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
        self._draw = ImageDraw.Draw(self.picture)

    def box(self, box: Box, color: Color) -> None:
        y0, x0, y1, x1 = (MARK_SCALE * v for v in box)
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        self._draw.rectangle(corners, outline=(255, 255, 255), width=3)
        self._draw.rectangle(corners, outline=color)

    def ring(self, point: Point, radius: float, color: Color) -> None:
        """A circle around a point; the radius is in pixels of the original picture."""
        y, x = (MARK_SCALE * v for v in point)
        r = MARK_SCALE * radius
        self._draw.ellipse((x - r - 1, y - r - 1, x + r + 1, y + r + 1), outline=(255, 255, 255))
        self._draw.ellipse((x - r, y - r, x + r, y + r), outline=color, width=2)

    def cross(self, point: Point, color: Color) -> None:
        y, x = (MARK_SCALE * v for v in point)
        for reach, width, paint in ((7, 4, (255, 255, 255)), (6, 2, color)):
            self._draw.line((x - reach, y, x + reach, y), fill=paint, width=width)
            self._draw.line((x, y - reach, x, y + reach), fill=paint, width=width)


def save_rollout(
    path: Path,
    frames: Sequence[Frame],
    *,
    instruction: str,
    outcome: str,
    success: bool,
    step_ms: float = 400,
    last_ms: int = 1600,
) -> None:
    """Writes a GIF that loops: the picture, and under it instruction, step, plan and action tokens.

    Of a long episode every so-manieth step is shown, `MOST_FRAMES` at most.

    Args:
      frames: at least one; the last one, without tokens, shows how it ended.
      outcome: shown with the last frame, e.g. "success after 6 steps".
      step_ms, last_ms: how long a step and the last frame are shown; a frame for 40 ms at least.

    Raises ValueError for no frames.
    """
    if not frames:
        raise ValueError(f"no frames to write to {path}")
    last = len(frames) - 1
    stride = max(1, -(-last // (MOST_FRAMES - 1)))
    plans = [textwrap.wrap(f"Plan: {f.plan}", 44) if f.plan else [] for f in frames]
    room = max(len(lines) for lines in plans)
    drawn = []
    for number in (*range(0, last, stride), last):
        frame = frames[number]
        status, color = f"step {number + 1} of {last}", _FAINT
        if number == last:
            status, color = outcome, _GOOD if success else _BAD
        lines = plans[number] + [""] * (room - len(plans[number]))
        drawn.append(_draw(frame, instruction, status, color, lines))
    images = _with_one_palette(drawn)
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=[max(40, round(step_ms * stride))] * (len(drawn) - 1) + [last_ms],
        loop=0,
        # Each frame whole: a picture that repeats would otherwise be merged into the one before.
        disposal=1,
        optimize=False,
    )


def _draw(
    frame: Frame, instruction: str, status: str, color: Color, plan: Sequence[str]
) -> Image.Image:
    picture = Image.fromarray(frame.image)
    height = round(WIDTH * picture.height / picture.width)
    # The instruction and the plan have as many lines in all frames: so is the height the same.
    title, body, digits = (ImageFont.load_default(size) for size in (15, 12, 12))
    lines = textwrap.wrap(instruction, 36)
    canvas = Image.new("RGB", (WIDTH, height + 19 * len(lines) + 17 * len(plan) + 46), _PAPER)
    canvas.paste(picture.resize((WIDTH, height), Image.Resampling.BICUBIC))
    draw = ImageDraw.Draw(canvas)
    y = height + 6
    for line in lines:
        draw.text((8, y), line, _TEXT, title)
        y += 19
    draw.text((8, y), status, color, body)
    for line in (*plan, frame.tokens):
        y += 17
        draw.text((8, y), line, _TEXT, digits)
    return canvas


def _with_one_palette(frames: list[Image.Image]) -> list[Image.Image]:
    """Quantizes all frames to the same colours, so that still surfaces do not flicker."""
    width, height = frames[0].size
    strip = Image.new("RGB", (width, height * len(frames)))
    for number, frame in enumerate(frames):
        strip.paste(frame, (0, number * height))
    palette = strip.quantize(_COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
