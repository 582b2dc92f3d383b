"""Images of any size at the model's, with the numbers of training's TensorFlow, but without it."""

from __future__ import annotations

import functools

import numpy as np

RESIZE = "bilinear, antialiased, aspect ratio not kept, rounded"
"""What `resized` does, in words, as bundles state it."""


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [size, size, 3], as `data.images.decode` resizes.

    An image that has the size already is not resampled.
    """
    if image.shape[:2] == (size, size):
        return image
    values = _along_rows(image.astype(np.float32), size)
    values = _along_rows(values.swapaxes(0, 1), size).swapaxes(0, 1)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _along_rows(values: np.ndarray, size: int) -> np.ndarray:
    """float32 [h, ...] -> [size, ...].

    Added up one by one, as TensorFlow does: numbers that end with a half are common, and which way
    they are rounded depends on the order.
    """
    places, weights = _taps(len(values), size)
    out = np.zeros((size, *values.shape[1:]), np.float32)
    for place, weight in zip(places.T, weights.T):
        out += weight[:, None, None] * values[place]
    return out


@functools.lru_cache(maxsize=32)
def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which inputs each of the outputs is a mean of: int [size, taps], float32 weights alike.

    The weights are a triangle around the output pixel, with its width and at least one input pixel.
    """
    one, half = np.float32(1), np.float32(0.5)
    inverse = one / (np.float32(size) / np.float32(length))
    width = max(inverse, one)
    centre = (np.arange(size, dtype=np.float32) + half) * inverse
    first = np.clip(np.ceil(centre - width - half).astype(int), 0, length - 1)
    last = np.clip(np.floor(centre + width - half).astype(int), 0, length - 1)
    taps = first[:, None] + np.arange(int((last - first).max()) + 1)
    inside = taps <= last[:, None]
    taps = np.minimum(taps, length - 1)
    distance = np.abs(taps.astype(np.float32) + half - centre[:, None]) / width
    weights = np.where(inside, np.maximum(np.float32(0), one - distance), np.float32(0))
    total = np.zeros(size, np.float32)
    for weight in weights.T:
        total += weight
    return taps, weights * (one / total)[:, None]
