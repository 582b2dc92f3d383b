"""Encoded images to uint8 pixels, inside tf.data."""

from __future__ import annotations

import io

import numpy as np
import tensorflow as tf
from PIL import Image


def decode_all(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Encoded images, one after the other -> uint8 [n, size, size, 3]. See `decode`.

    Args:
      encoded: string [n].
      size: side of the results in pixels.
    """
    # One call of tf.data for many images: its own work for each element costs more than a tenth of
    # the decoding of a small JPEG.
    return tf.map_fn(
        lambda image: decode(image, size),
        encoded,
        fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
        parallel_iterations=1,
    )


def decode(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """PNG, JPEG, GIF (first frame) or BMP bytes -> uint8 [size, size, 3].

    Grey images become RGB, transparency is dropped. An image that has the size already is not
    resampled; another is resized, its aspect ratio not kept, with antialiasing.

    Args:
      encoded: string scalar.
      size: side of the result in pixels.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    shape = tf.shape(image)
    same = tf.logical_and(shape[0] == size, shape[1] == size)
    image = tf.cond(same, lambda: image, lambda: _resize(image, size))
    return tf.ensure_shape(image, (size, size, 3))


def can_decode(encoded: bytes) -> bool:
    """Whether `decode` can."""
    try:
        tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except tf.errors.OpError:
        return False
    return True


def to_bytes(image: bytes | np.ndarray, *, where: str) -> bytes:
    """Makes a view something `decode` takes; encoded bytes stay as they are.

    Args:
      image: encoded bytes, or uint8 [h, w, 3].
      where: the record, for messages.

    Raises:
      ValueError: neither bytes nor uint8 [h, w, 3].
    """
    if isinstance(image, bytes):
        return image
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"{where}: image of shape {image.shape} and type {image.dtype}; one view is uint8 "
            "[height, width, 3] or encoded PNG/JPEG bytes"
        )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "BMP")  # no compression, no loss
    return buffer.getvalue()


def blank(size: int) -> bytes:
    """A black image, encoded, that is quick to decode."""
    return to_bytes(np.zeros((size, size, 3), np.uint8), where="blank image")


def hide_accelerators() -> None:
    """Keeps TensorFlow off GPUs and TPUs, which belong to JAX.

    Raises RuntimeError if TensorFlow has taken a device already.
    """
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    resized = tf.image.resize(tf.cast(image, tf.float32), (size, size), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
