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
    rows, columns = (_weights(length, size) for length in image.shape[:2])
    values = np.einsum("yh,hwc->ywc", rows, image.astype(np.float32), optimize=True)
    values = np.einsum("xw,ywc->yxc", columns, values, optimize=True)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _weights(length: int, size: int) -> np.ndarray:
    """float32 [size, length]: each output pixel is a mean under a triangle.

    Its half width is that of an output pixel, seen in the input, and at least one input pixel.
    """
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale - 0.5
    distance = np.abs(centres[:, None] - np.arange(length)) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
