"""What each image patch shows, and where it is: labels for aligning patches with words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vla_jax.corpus.coordinates import point_bins
from vla_jax.corpus.pictures import PictureBank
from vla_jax.corpus.scenes import Box, Gripper, Scene

NOTHING = ""
GRIPPER = "gripper"


class PatchLabels(NamedTuple):
    """One picture's patches, row by row.

    Attributes:
      names: English name of the thing, or `NOTHING` for background.
      places: int32 [P, 2], (y, x) bins 0..255 of the whole thing's centre; -1 for background.
    """

    names: list[str]
    places: np.ndarray


def patch_labels(scene: Scene, bank: PictureBank, size: int, patch: int) -> PatchLabels:
    """Labels each patch with the thing that covers most of it.

    A picture counts from a quarter of the patch on, a mat ("red mat") from half of it; pictures lie
    on top of mats. A gripper counts where its palm is, where its dot is, and between its fingers,
    unless there is a picture.

    Args:
      size, patch: side of the image and of a patch, pixels.
    """
    side = size // patch
    best = np.zeros((side, side))
    which = np.full((side, side), -1)
    things = [(f"{mat.color} mat", mat.center) for mat in scene.mats]
    things += [(bank.name(thing.key), thing.center) for thing in scene.objects]
    if scene.gripper is not None:
        things.append((GRIPPER, scene.gripper.dot))
    for number, mat in enumerate(scene.mats):
        _cover(which, best, number, _overlap(mat.box, side, patch), 0.5)
    best[:] = 0
    for number, thing in enumerate(scene.objects, len(scene.mats)):
        _cover(which, best, number, _overlap(thing.box, side, patch), 0.25)
    if scene.gripper is not None:
        _mark_gripper(which, scene.gripper, len(things) - 1, size, patch)
    numbers = which.reshape(-1)
    names = [things[n][0] if n >= 0 else NOTHING for n in numbers]
    places = [point_bins(things[n][1], size) if n >= 0 else (-1, -1) for n in numbers]
    return PatchLabels(names, np.asarray(places, np.int32))


def _mark_gripper(which: np.ndarray, gripper: Gripper, number: int, size: int, patch: int) -> None:
    y, x = gripper.dot
    tip = y - gripper.lift_px
    pictures = which >= 0
    for row, column in ((y, x), (tip - 0.03 * size, x), (tip - 0.08 * size, x)):
        place = tuple(min(len(which) - 1, max(0, int(v // patch))) for v in (row, column))
        if row >= 0 and not pictures[place]:
            which[place] = number


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
