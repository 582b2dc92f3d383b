"""Pixels to encoded images. Imports no TensorFlow."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image

ImageFormat = Literal["png", "jpeg"]


def encode_image(image: np.ndarray, image_format: ImageFormat, quality: int = 95) -> bytes:
    """uint8 [h, w, 3] -> PNG (fast rather than small) or JPEG (1 to 95, full colour)."""
    buffer = io.BytesIO()
    if image_format == "png":
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    else:
        Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
