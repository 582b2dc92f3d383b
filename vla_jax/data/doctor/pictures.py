"""Checks of a sample of the pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from vla_jax.data.doctor.findings import Finding
from vla_jax.data.sources.base import Source
from vla_jax.types import chosen

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # that the loader decodes
_BLANK = 2.0  # standard deviation of a picture's 0..255
_THUMBNAIL_PX = 160
# (blue - red) / (red + blue) and the share of pictures with more blue than red, the least that say
# something: beside other data sets, and alone.
_BLUISH, _BLUISH_ALONE = (0.04, 0.75), (0.08, 0.9)


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A small JPEG, and what it shows."""

    jpeg: bytes
    caption: str


class Pictures:
    """Reads records, decodes their pictures and looks at them.

    Args:
      name: the data set's name in the mixture.
      source: to read.
      groups: records; those of one group are of one episode.
      thumbnails: kept, of the first record of each group or of its middle.

    Attributes:
      thumbnails: of the first view.
      colours: one per view, float64 [pictures, 3], mean red, green and blue, 0 to 255.
      read: records that could be read.
    """

    def __init__(
        self, name: str, source: Source, groups: Sequence[Sequence[int]], *, thumbnails: int
    ):
        self._name, self._groups = name, groups
        self.thumbnails: list[Thumbnail] = []
        self._means: list[list[np.ndarray]] = []
        self._unreadable: list[str] = []
        self._broken: list[str] = []
        self._blank: list[str] = []
        self._frozen: list[str] = []
        self._owners: dict[bytes, set[int]] = {}
        self.read = self._shown = 0
        wanted = set(np.linspace(0, len(groups) - 1, thumbnails).round().astype(int).tolist())
        for number, group in enumerate(groups):
            self._look(source, number, group, keep=number in wanted)

    @property
    def colours(self) -> list[np.ndarray]:
        return [np.array(means) for means in self._means]

    def _look(self, source: Source, number: int, group: Sequence[int], *, keep: bool) -> None:
        digests: list[list[bytes]] = []
        for place, index in enumerate(group):
            try:
                example = source.read(index)
            except (ValueError, OSError) as e:
                self._unreadable.append(str(e))
                continue
            self.read += 1
            digests.append([])
            for view, image in enumerate(example.images):
                where = f"record {index}" + (f" view {view}" if view else "")
                data = image if isinstance(image, bytes) else image.tobytes()
                digests[-1].append(hashlib.sha256(data).digest())
                self._owners.setdefault(digests[-1][-1], set()).add(number)
                self._shown += 1
                try:
                    pixels = _decode(image)
                except ValueError as e:
                    self._broken.append(f"{where}: {e}")
                    continue
                while len(self._means) <= view:
                    self._means.append([])
                self._means[view].append(pixels.mean((0, 1)))
                if pixels.std() < _BLANK:
                    self._blank.append(where)
                if keep and not view and place == len(group) // 2:
                    text = " ".join(part for part in chosen(example) if part)
                    self.thumbnails.append(Thumbnail(_shrink(pixels), f"{where}: {text}"))
        if len(digests) >= 3:
            for view, same in enumerate(zip(*digests)):
                if len(set(same)) == 1:
                    self._frozen.append(f"view {view} of records {group[0]} to {group[-1]}")

    def findings(self) -> Iterator[Finding]:
        tried = self.read + len(self._unreadable)
        if self._unreadable:
            yield Finding(
                "error", self._name, "unreadable record", self._unreadable[0],
                f"{len(self._unreadable)} of {tried} sampled records cannot be read",
                "Repair or drop them: the loader stops there.",
            )  # fmt: skip
        if self._broken:
            yield Finding(
                "error", self._name, "undecodable picture", self._broken[0],
                f"{len(self._broken)} of {self._shown} sampled pictures cannot be decoded",
                "Write them again, as JPEG or PNG: the loader stops there.",
            )  # fmt: skip
        if self._blank:
            yield Finding(
                "warning", self._name, "blank picture", f"e.g. {self._blank[0]}",
                f"{len(self._blank)} of {self._shown} sampled pictures have one colour",
                "Check the camera, and how pictures were written.",
            )  # fmt: skip
        if self._frozen:
            yield Finding(
                "warning", self._name, "frozen camera", f"e.g. {self._frozen[0]}",
                f"in {len(self._frozen)} of {len(self._groups)} sampled episodes a view shows the "
                "very same picture throughout",
                "Drop these episodes, or the view.", "likely",
            )  # fmt: skip
        copies = sum(len(owners) - 1 for owners in self._owners.values())
        if copies:
            robot = any(len(group) > 1 for group in self._groups)
            yield Finding(
                "warning" if robot and copies > 0.05 * self._shown else "note",
                self._name, "identical pictures", "",
                f"{copies} of {self._shown} sampled pictures are copies of one in another "
                f"{'episode' if robot else 'record'}",
                "Look for episodes that were written twice."
                if robot
                else "Usual where a picture has several questions; else drop the copies.",
            )  # fmt: skip


def colour_findings(colours: Mapping[tuple[str, int], np.ndarray]) -> Iterator[Finding]:
    """Views whose red and blue may be exchanged.

    No test can tell: a blue room looks the same. Pictures of rooms and things mostly have more red
    than blue, and the data sets of a mixture mostly have the same tint.

    Args:
      colours: (data set, view) -> float64 [pictures, 3], see `Pictures`.
    """
    tints = {
        key: (means[:, 0] - means[:, 2]) / (means[:, 0] + means[:, 2] + 1)
        for key, means in colours.items()
        if len(means)
    }
    for (name, view), tint in tints.items():
        own = float(np.median(tint))
        others = [float(np.median(t)) for (other, _), t in tints.items() if other != name]
        bluish = float((tint < 0).mean())
        least, share = _BLUISH if others else _BLUISH_ALONE
        if own > -least or bluish < share:
            continue
        seen = (
            f"view {view}: blue is above red in {bluish:.0%} of the sampled pictures, by {-own:.0%}"
        )
        if others:
            rest = float(np.median(others))
            if abs(-own - rest) > 0.5 * abs(own - rest):
                continue  # exchanged, it would be no nearer to the other data sets
            seen += f"; in the other data sets red is above blue by {rest:.0%}"
        yield Finding(
            "warning", name, "red and blue exchanged?", "", seen,
            "Look at the pictures: if skin or wood is blue, they were written as BGR (OpenCV's "
            "order). A blue scene looks like this too.",
            "unsure",
        )  # fmt: skip


def _decode(image: bytes | np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3]. Raises ValueError if the loader could not decode it."""
    if not isinstance(image, bytes):
        return image
    try:
        opened = Image.open(io.BytesIO(image), formats=_FORMATS)
        return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f"{len(image)} bytes starting {image[:4]!r}: {e}") from e


def _shrink(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return buffer.getvalue()
