"""What each image patch shows, and where it is: labels for aligning patches with words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vla_jax.corpus.coordinates import point_bins
from vla_jax.corpus.pictures import PictureBank
from vla_jax.corpus.scenes import Box, Gripper, Placed, Scene

GRIPPER, OPEN = "gripper", "open"


class PatchLabels(NamedTuple):
    """One picture's patches, row by row.

    Attributes:
      words: of each patch, () for background: the English name of the thing, of a number the digit
        alone, which is all that it differs in; the colour of its tile; `GRIPPER` where one is or
        points to; `OPEN` where it is and is.
      places: int32 [P, 2], (y, x) bins 0..255 of the whole thing's centre; -1 for background.
    """

    words: list[tuple[str, ...]]
    places: np.ndarray


def patch_labels(scene: Scene, bank: PictureBank, size: int, patch: int) -> PatchLabels:
    """Labels each patch with the thing that covers most of it.

    A picture counts from a quarter of the patch on, a mat ("red mat") from half of it; pictures lie
    on top of mats. A gripper counts where its palm is, where its dot is, and between its fingers;
    if there is a picture, that picture is over which it is, or which it holds.

    Args:
      size, patch: side of the image and of a patch, pixels.
    """
    side = size // patch
    best = np.zeros((side, side))
    which = np.full((side, side), -1)
    things: list[tuple[str, ...]] = [(f"{mat.color} mat",) for mat in scene.mats]
    things += [_words(thing, bank) for thing in scene.objects]
    centers = [thing.center for thing in (*scene.mats, *scene.objects)]
    for number, mat in enumerate(scene.mats):
        _cover(which, best, number, _overlap(mat.box, side, patch), 0.5)
    best[:] = 0
    for number, thing in enumerate(scene.objects, len(scene.mats)):
        _cover(which, best, number, _overlap(thing.box, side, patch), 0.25)
    numbers = which.reshape(-1)
    words = [things[n] if n >= 0 else () for n in numbers]
    places = [point_bins(centers[n], size) if n >= 0 else (-1, -1) for n in numbers]
    if scene.gripper is not None:
        its_words = (GRIPPER, OPEN) if scene.gripper.open else (GRIPPER,)
        for spot in _gripper_patches(scene.gripper, size, patch):
            if numbers[spot] >= len(scene.mats):
                words[spot] = (*words[spot], GRIPPER)
            else:
                words[spot], places[spot] = its_words, point_bins(scene.gripper.dot, size)
    return PatchLabels(words, np.asarray(places, np.int32))


def _words(thing: Placed, bank: PictureBank) -> tuple[str, ...]:
    value = bank.value(thing.key)
    name = bank.name(thing.key) if value is None else str(value)
    is_block = bank.category(thing.key) == "block"
    return (name, thing.tile) if thing.tile and not is_block else (name,)


def _gripper_patches(gripper: Gripper, size: int, patch: int) -> set[int]:
    """Of its dot, of what is between its fingers, and of its palm."""
    y, x = gripper.dot
    tip = y - gripper.lift_px
    side = size // patch
    found = set()
    for row, column in ((y, x), (tip - 0.03 * size, x), (tip - 0.08 * size, x)):
        if row >= 0:
            i, j = (min(side - 1, max(0, int(v // patch))) for v in (row, column))
            found.add(i * side + j)
    return found


def _cover(
    which: np.ndarray, best: np.ndarray, number: int, share: np.ndarray, least: float
) -> None:
    wins = (share >= least) & (share > best)
    which[wins] = number
    best[wins] = share[wins]


def _overlap(box: Box, side: int, patch: int) -> np.ndarray:
    """Share of each patch [side, side] that the box covers."""
    edges = np.arange(side) * patch
    y0, x0, y1, x1 = box

    def along(low: float, high: float) -> np.ndarray:
        return np.clip(np.minimum(edges + patch, high) - np.maximum(edges, low), 0, None) / patch

    return along(y0, y1)[:, None] * along(x0, x1)[None, :]
