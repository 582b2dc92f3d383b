"""Images of data sets as uint8 pixels of one size."""

from __future__ import annotations

import numpy as np
import simplejpeg
import tensorflow as tf


def decode(image: bytes | np.ndarray, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """-> uint8 [size, size, 3].

    Grey images become RGB, transparency is dropped. An image that has the size already is not
    resampled; another is resized, its aspect ratio not kept, with antialiasing.

    JPEG gives the pixels that Pillow gives, which policies see when they are served, in two thirds
    of the time of TensorFlow's decoder. Other Python threads run meanwhile.

    Args:
      image: a JPEG, PNG, GIF (first frame) or BMP file, or uint8 [h, w, 3].
      size: side of the result in pixels.
      out: where to put it, contiguous; None: somewhere new.

    Raises:
      ValueError: a file that is damaged or of another format, an array of another form.
    """
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    pixels = _decode_file(image, out) if isinstance(image, bytes) else _require_pixels(image)
    # NumPy sees it when they are in place already.
    out[:] = pixels if pixels.shape == out.shape else _resize(pixels, size)
    return out


def hide_accelerators() -> None:
    """Keeps TensorFlow off GPUs and TPUs, which belong to JAX.

    Raises RuntimeError if TensorFlow has taken a device already.
    """
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)


def _decode_file(encoded: bytes, out: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 3], a JPEG of the size of `out` in its memory."""
    if simplejpeg.is_jpeg(encoded):
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            fits = out.shape == (height, width, 3)
            return simplejpeg.decode_jpeg(encoded, buffer=out if fits else None)
        except ValueError:
            pass  # It takes no oddities, such as bytes between parts: TensorFlow decides.
    try:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.OpError as e:
        raise ValueError(
            "its image is damaged or not PNG, JPEG, GIF or BMP: repair or drop the record"
        ) from e


def _require_pixels(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image of shape {image.shape} and type {image.dtype}; one view is uint8 "
            "[height, width, 3] or encoded PNG/JPEG bytes"
        )
    return image


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    resized = tf.image.resize(tf.cast(image, tf.float32), (size, size), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8).numpy()
