"""Changing pretrained parameters to fit a model; all else stays bit for bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

TABLE, POSITIONS = "llm/embedder/input_embedding", "img/pos_embedding"
VOCABULARY_PADDING = 128
"""Published tables are padded by less than this, each publisher in its own way."""


@dataclasses.dataclass(frozen=True)
class Change:
    """What became of one parameter, or of one tensor of the file."""

    name: str
    status: Literal["loaded", "resized", "fresh", "left out"]
    note: str = ""


def resize_positions(positions: np.ndarray, patches: int) -> np.ndarray:
    """Position embeddings [1, P, D] of a square grid of patches, for another: bilinear.

    Raises ValueError if either number of patches is not a square.
    """
    _, old, width = positions.shape
    sides = [math.isqrt(n) for n in (old, patches)]
    if [s * s for s in sides] != [old, patches]:
        raise ValueError(f"position embeddings of {old} patches do not resize to {patches}: both "
                         "must be square grids")  # fmt: skip
    if old == patches:
        return positions
    grid = jnp.asarray(positions, jnp.float32).reshape(1, sides[0], sides[0], width)
    grid = jax.image.resize(grid, (1, sides[1], sides[1], width), "bilinear", antialias=False)
    return np.asarray(grid.reshape(1, patches, width)).astype(positions.dtype)


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


def fit(
    found: Mapping[str, np.ndarray], fresh: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[Change]]:
    """Pretrained parameters for a model that has `fresh` ones, and what was done to each.

    They get the dtype of the fresh ones: a file is often float16 or bfloat16, master weights are
    float32.

    Args:
      found: parameters of a file, by name.
      fresh: those the model starts with where the file has none.

    Raises:
      ValueError: a size differs that surgery does not change.
    """
    fitted, changes = {}, []
    for name, start in fresh.items():
        shape = tuple(start.shape)
        if name not in found:
            fitted[name] = np.asarray(start)
            changes.append(Change(name, "fresh", str(shape)))
            continue
        x = np.asarray(found[name]).astype(start.dtype, copy=False)
        if x.shape == shape:
            fitted[name] = x
            changes.append(Change(name, "loaded", str(shape)))
            continue
        if name == POSITIONS and x.shape[2] == shape[2]:
            fitted[name] = resize_positions(x, shape[1])
        elif name == TABLE and x.shape[1] == shape[1] and len(x) < shape[0]:
            fitted[name] = extend_vocabulary(x, shape[0])
        elif name == TABLE and x.shape[1] == shape[1] and len(x) - shape[0] < VOCABULARY_PADDING:
            fitted[name] = x[: shape[0]]
        else:
            raise ValueError(f"{name} is {x.shape} in the file, the model has {shape}")
        changes.append(Change(name, "resized", f"{x.shape} -> {shape}"))
    return fitted, changes
