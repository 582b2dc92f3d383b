"""The table's surface, painted."""

from __future__ import annotations

import numpy as np

from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.tabletop.layout import Layout


def table_texture(layout: Layout, bank: PictureBank, size: int) -> np.ndarray:
    """float32 [size, size, 3], about 0..255. Depends on the layout alone."""
    rng = np.random.default_rng(layout.texture_seed)
    base = np.asarray(layout.table_color, np.float32)
    shade = np.zeros((size, size, 1), np.float32)
    if layout.table == "wood":
        rows = np.cumsum(rng.normal(0, 4, size))
        shade += (6 * np.sin(rows / 3))[:, None, None] + rng.normal(0, 2, (size, 1, 1))
    elif layout.table == "speckle":
        shade += rng.normal(0, 9, (size, size, 1))
    elif layout.table == "stripes":
        width = int(rng.integers(6, 20))
        shade += np.where((np.arange(size) // width) % 2, 8.0, -8.0)[None, :, None]
    elif layout.table == "picture":
        picture = bank.picture(layout.table_picture, size).astype(np.float32)
        alpha = picture[..., 3:] / 255
        return base * (1 - alpha) + picture[..., :3] * alpha
    elif layout.table != "plain":
        painted = _pattern(layout.table, rng, size)[..., None]
        return base + painted * (np.asarray(layout.pattern_color, np.float32) - base)
    return base + shade


def _pattern(kind: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """bool [size, size]: where the pattern's colour is."""
    y, x = np.mgrid[:size, :size]
    pitch = int(rng.integers(8, 17))
    if kind == "checks":
        return (y // pitch + x // pitch) % 2 == 1
    if kind == "dots":
        return (y % pitch - pitch / 2) ** 2 + (x % pitch - pitch / 2) ** 2 < (0.32 * pitch) ** 2
    wave = y + 0.35 * pitch * np.sin(2 * np.pi * x / (1.7 * pitch))
    return (wave // (pitch / 2)) % 2 == 1
