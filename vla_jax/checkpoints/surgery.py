"""Changing pretrained parameters to fit a model; all else stays bit for bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TABLE, POSITIONS = "llm/embedder/input_embedding", "img/pos_embedding"
VOCABULARY_PADDING = 128
"""Published tables are padded by less than this, each publisher in its own way."""


@dataclasses.dataclass(frozen=True)
class Change:
    """What became of one parameter, or of one tensor of a file."""

    name: str
    status: Literal["loaded", "cast", "resized", "fresh", "left out"]
    note: str = ""
    file: str = ""


def resize_positions(positions: np.ndarray, patches: int) -> np.ndarray:
    """Position embeddings [1, P, D] of a square grid of patches, for another: bilinear.

    Raises ValueError if either number of patches is not a square.
    """
    _, old, width = positions.shape
    sides = _grid_sides(old, patches)
    if old == patches:
        return positions
    grid = jnp.asarray(positions, jnp.float32).reshape(1, sides[0], sides[0], width)
    grid = jax.image.resize(grid, (1, sides[1], sides[1], width), "bilinear", antialias=False)
    return np.asarray(grid.reshape(1, patches, width)).astype(positions.dtype)


def _grid_sides(old: int, new: int) -> list[int]:
    sides = [math.isqrt(n) for n in (old, new)]
    if [s * s for s in sides] != [old, new]:
        raise ValueError(
            f"position embeddings of {old} patches do not resize to {new}: both must be square "
            "grids"
        )
    return sides


def extend_vocabulary(table: np.ndarray, rows: int, seed: int = 0) -> np.ndarray:
    """Embedding [V, D] with new rows up to `rows`: drawn like the old ones, per dimension.

    Old rows stay as they are. Raises ValueError if there are more than `rows`.
    """
    count = rows - len(table)
    if count < 0:
        raise ValueError(f"the table has {len(table)} rows, more than {rows}")
    return np.concatenate([table, _like_rows(table, count, seed)])


def reassign_rows(table: np.ndarray, rows: Sequence[int], seed: int = 0) -> np.ndarray:
    """Embedding [V, D] whose `rows` start anew as a smooth curve, as action bins in order.

    For tokens that get another meaning, like RT-2-PaLM-E's least used ones (arXiv 2307.15818, 3.2).
    Every other row stays as it is. Raises ValueError for an id twice or outside the table.
    """
    ids = np.asarray(rows)
    if len(set(ids.tolist())) < len(ids) or ids.min() < 0 or ids.max() >= len(table):
        raise ValueError(f"action rows must be different ids in 0 .. {len(table) - 1}")
    fresh = _like_rows(table, len(ids), seed).astype(np.float64)
    mean = np.mean(table, axis=0, dtype=np.float64)
    # Neighbours mixed by a Gaussian of a sixteenth of the range.
    apart = np.arange(len(ids))[:, None] - np.arange(len(ids))
    weights = np.exp(-0.5 * (16 * apart / len(ids)) ** 2)
    weights /= np.sqrt(np.sum(weights**2, axis=1, keepdims=True))
    changed = table.copy()
    changed[ids] = mean + weights @ (fresh - mean)
    return changed


def _like_rows(table: np.ndarray, count: int, seed: int) -> np.ndarray:
    sample = np.asarray(table[:: max(1, len(table) // 4096)], np.float32)
    noise = np.random.default_rng(seed).standard_normal((count, table.shape[1]), np.float32)
    return (sample.mean(axis=0) + noise * sample.std(axis=0)).astype(table.dtype)


class Stored(NamedTuple):
    """A parameter that a file has: known by its shape, read when asked."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def fit(name: str, found: Stored, shape: tuple[int, ...]) -> tuple[Stored, Change]:
    """A file's parameter as the model wants it, and what has to be done to it. Reads nothing.

    Raises:
      ValueError: a size differs that surgery does not change.
    """
    if found.shape == shape:
        return found, Change(name, "loaded", str(shape))
    note = f"{found.shape} -> {shape}"
    if name == POSITIONS and found.shape[2] == shape[2]:
        _grid_sides(found.shape[1], shape[1])
        changed = Stored(shape, lambda: resize_positions(found.read(), shape[1]))
        return changed, Change(name, "resized", note)
    if name == TABLE and found.shape[1] == shape[1]:
        more = found.shape[0] - shape[0]
        if more < 0:
            changed = Stored(shape, lambda: extend_vocabulary(found.read(), shape[0]))
            return changed, Change(name, "resized", note)
        if more < VOCABULARY_PADDING:
            changed = Stored(shape, lambda: found.read()[: shape[0]])
            return changed, Change(name, "resized", note)
    raise ValueError(f"{name} is {found.shape} in the file, the model has {shape}")
