"""Which thing each image patch shows: labels for aligning patches with words."""

from __future__ import annotations

import numpy as np

from vla_jax.corpus.pictures import PictureBank
from vla_jax.corpus.scenes import Box, Scene

NOTHING = ""


def patch_names(scene: Scene, bank: PictureBank, size: int, patch: int) -> list[str]:
    """English name of what covers most of each patch, row by row; `NOTHING` for background.

    A picture counts from a quarter of the patch on, a mat ("red mat") from half of it; pictures lie
    on top of mats.

    Args:
      size, patch: side of the image and of a patch, pixels.
    """
    side = size // patch
    best = np.full((side, side), 0.0)
    names = np.full((side, side), NOTHING, dtype=object)
    things = [(f"{m.color} mat", m.box, 0.5) for m in scene.mats]
    for name, box, least in things:
        _cover(names, best, name, _overlap(box, side, patch), least)
    best[:] = 0
    for thing in scene.objects:
        _cover(names, best, bank.name(thing.key), _overlap(thing.box, side, patch), 0.25)
    return [str(n) for n in names.reshape(-1)]


def _cover(names: np.ndarray, best: np.ndarray, name: str, share: np.ndarray, least: float) -> None:
    wins = (share >= least) & (share > best)
    names[wins] = name
    best[wins] = share[wins]


def _overlap(box: Box, side: int, patch: int) -> np.ndarray:
    """Share of each patch [side, side] that the box covers."""
    edges = np.arange(side) * patch
    y0, x0, y1, x1 = box

    def along(low: float, high: float) -> np.ndarray:
        return np.clip(np.minimum(edges + patch, high) - np.maximum(edges, low), 0, None) / patch

    return along(y0, y1)[:, None] * along(x0, x1)[None, :]
