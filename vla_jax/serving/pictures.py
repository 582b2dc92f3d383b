"""Pictures as robots send them."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np
from PIL import Image

from vla_jax.serving.safety import HoldError

_LARGE_FILE, _LARGE_ARRAY = 1 << 13, 1 << 16  # bytes or characters that are worth a thread


def is_slow(value: Any, side: int) -> bool:
    """Whether reading a picture and resizing it to `side` would hold up other robots."""
    if isinstance(value, np.ndarray):
        return value.size > _LARGE_ARRAY and value.shape[:2] != (side, side)
    return not isinstance(value, str | bytes) or len(value) > _LARGE_FILE


def read_picture(value: Any, *, camera: str, max_side: int) -> np.ndarray:
    """uint8 [h, w, 3].

    Args:
      value: an array uint8 [h, w, 3] or [3, h, w]; a PNG or JPEG file as bytes or as base64 text;
        nested lists of integers from 0 to 255.

    Raises:
      HoldError: anything else, or a picture with a side of more than `max_side`.
    """
    if isinstance(value, str):
        value = _from_base64(value, camera)
    if isinstance(value, bytes):
        return _from_file(value, camera, max_side)
    if isinstance(value, list):
        value = _from_lists(value, camera)
    if not isinstance(value, np.ndarray):
        raise HoldError("image", f"camera {camera!r}: a {type(value).__name__} is no picture")
    if value.dtype != np.uint8 or value.ndim != 3:
        raise HoldError(
            "image",
            f"camera {camera!r}: {value.dtype} {list(value.shape)}; send uint8 [h, w, 3], not "
            "normalised",
        )
    if value.shape[-1] != 3 and value.shape[0] == 3:
        value = value.transpose(1, 2, 0)
    if value.shape[-1] != 3 or 0 in value.shape:
        raise HoldError("image", f"camera {camera!r}: {list(value.shape)}, not [h, w, 3]")
    _require_side(value.shape[:2], camera, max_side)
    return np.ascontiguousarray(value)


def _require_side(sides: tuple[int, ...], camera: str, max_side: int) -> None:
    if max(sides) > max_side:
        raise HoldError(
            "image", f"camera {camera!r}: {sides[0]} x {sides[1]} pixels, over {max_side} a side"
        )


def _from_base64(text: str, camera: str) -> bytes:
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError) as e:
        raise HoldError("image", f"camera {camera!r}: not base64: {e}") from e


def _from_file(data: bytes, camera: str, max_side: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            # Before it is decoded: a small file can hold a huge picture.
            _require_side((image.height, image.width), camera, max_side)
            return np.asarray(image.convert("RGB"))
    except HoldError:
        raise
    except Exception as e:  # Pillow raises many kinds
        raise HoldError("image", f"camera {camera!r}: not a PNG or JPEG file: {e}") from e


def _from_lists(rows: list, camera: str) -> np.ndarray:
    try:
        array = np.asarray(rows)
    except (ValueError, OverflowError) as e:
        raise HoldError("image", f"camera {camera!r}: rows of different lengths") from e
    if array.dtype.kind not in "iu" or array.size == 0 or array.min() < 0 or array.max() > 255:
        raise HoldError("image", f"camera {camera!r}: not lists of integers from 0 to 255")
    return array.astype(np.uint8)
