"""Encoded images to uint8 pixels, inside tf.data."""

from __future__ import annotations

import io

import numpy as np
import tensorflow as tf
from PIL import Image

# Images that `decode_all` writes out one by one. Each makes the graph larger and slower to build.
_MOST_UNROLLED = 128


def decode_all(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """Encoded images -> uint8 [n, size, size, 3]. See `decode`.

    Args:
      encoded: string [n], n known when the graph is built.
      size: side of the results in pixels.
    """
    # One call of tf.data for many images: its own work for each element costs more than a tenth of
    # the decoding of a small JPEG. Where all are JPEGs of the size, nothing is asked of each and
    # nothing loops, which saves 7% more.
    files = tf.unstack(encoded)

    def have_the_size() -> tf.Tensor:
        shapes = tf.stack([tf.io.extract_jpeg_shape(file) for file in files])
        return tf.reduce_all(shapes[:, :2] == size)

    def one_by_one() -> tf.Tensor:
        return tf.stack([tf.ensure_shape(_decode_jpeg(f), (size, size, 3)) for f in files])

    def in_a_loop() -> tf.Tensor:
        return tf.map_fn(
            lambda image: decode(image, size),
            encoded,
            fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
            parallel_iterations=1,
        )

    if len(files) > _MOST_UNROLLED:
        return in_a_loop()
    all_jpeg = tf.reduce_all(tf.io.is_jpeg(encoded))
    alike = tf.cond(all_jpeg, have_the_size, lambda: tf.constant(False))
    return tf.cond(alike, one_by_one, in_a_loop)


def decode(encoded: tf.Tensor, size: int) -> tf.Tensor:
    """JPEG, PNG, GIF (first frame), BMP or WebP bytes -> uint8 [size, size, 3].

    Grey images become RGB, transparency is dropped. An image that has the size already is not
    resampled; another is resized, its aspect ratio not kept, with antialiasing. JPEG gives the
    pixels that Pillow gives, with which policies are served.

    Args:
      encoded: string scalar.
      size: side of the result in pixels.
    """
    image = tf.cond(
        tf.io.is_jpeg(encoded), lambda: _decode_jpeg(encoded), lambda: _decode_other(encoded)
    )
    shape = tf.shape(image)
    same = tf.logical_and(shape[0] == size, shape[1] == size)
    image = tf.cond(same, lambda: image, lambda: _resize(image, size))
    return tf.ensure_shape(image, (size, size, 3))


def can_decode(encoded: bytes) -> bool:
    """Whether `decode` and `decode_all` can."""
    try:
        if tf.io.is_jpeg(encoded):
            tf.io.extract_jpeg_shape(encoded)
            _decode_jpeg(encoded)
        else:
            _decode_other(encoded)
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
    """A black image, encoded; JPEG, so that `decode_all` can go the short way."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def hide_accelerators() -> None:
    """Keeps TensorFlow off GPUs and TPUs, which belong to JAX.

    Raises RuntimeError if TensorFlow has taken a device already.
    """
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _decode_jpeg(encoded: tf.Tensor | bytes) -> tf.Tensor:
    # TensorFlow's default transform is less exact and here no faster: up to 15 of 255 apart.
    return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")


def _decode_other(encoded: tf.Tensor | bytes) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    resized = tf.image.resize(tf.cast(image, tf.float32), (size, size), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
