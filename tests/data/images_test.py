"""Images of data sets as pixels, beside Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.data.examples import SIZE, encoded, pixels
from vla_jax.data import images
from vla_jax.serving.pictures import read_picture


def jpeg(mode: str = "RGB", size: int = SIZE, **options) -> bytes:
    """Smooth with some noise: decoders differ most where there are edges and colours."""
    y, x = np.mgrid[0:size, 0:size] * 255 // size
    noise = np.random.default_rng(3).integers(0, 60, (size, size))
    array = np.stack([x, y, (255 - x) // 2 + noise], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@tf.function
def in_graph(files: tf.Tensor) -> tf.Tensor:
    return images.decode_all(files, SIZE)


def decoded(*files: bytes) -> np.ndarray:
    """uint8 [n, SIZE, SIZE, 3], as in the loader."""
    return in_graph(tf.constant(files)).numpy()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 95},
        {"quality": 60, "progressive": True},
        {"quality": 80, "subsampling": 0},
        {"quality": 90, "subsampling": 1, "optimize": True},
    ],
)
def test_jpeg_gives_the_pixels_of_pillow_and_so_of_serving(mode, options):
    image = jpeg(mode, **options)
    served = read_picture(image, camera="image", max_side=SIZE)
    np.testing.assert_array_equal(served, pixels(image))
    # Alone; beside one that makes the group go the long way.
    np.testing.assert_array_equal(decoded(image, image)[1], served)
    np.testing.assert_array_equal(decoded(image, encoded(1))[0], served)


def test_every_image_of_a_group_is_what_it_is_alone():
    files = [jpeg(), jpeg("L"), encoded(1), jpeg(size=2 * SIZE), encoded(2, "BMP", SIZE + 3)]
    alone = np.concatenate([decoded(file) for file in files])
    for number, file in enumerate(files[:3]):
        np.testing.assert_array_equal(alone[number], pixels(file))
    np.testing.assert_array_equal(decoded(*files), alone)
    both = decoded(files[0], files[3])  # JPEG, of two sizes
    np.testing.assert_array_equal(both, alone[[0, 3]])
    many = decoded(*files[:2] * (images._MOST_UNROLLED // 2 + 1))
    np.testing.assert_array_equal(many, np.concatenate([alone[:2]] * (len(many) // 2)))


def test_jpegs_of_the_size_take_the_short_way(monkeypatch):
    looped = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda *a: looped.append(1) or decode(*a))
    eagerly = images.decode_all(tf.constant([jpeg(), jpeg("L"), images.blank(SIZE)]), SIZE)
    assert not looped and not eagerly[2].numpy().any()
    images.decode_all(tf.constant([jpeg(), jpeg(size=SIZE + 1)]), SIZE)
    assert len(looped) == 2


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF", "WEBP"])
def test_other_formats_keep_their_pixels(image_format):
    image = encoded(4, image_format)
    np.testing.assert_array_equal(decoded(image)[0], pixels(image))
    array = pixels(image)
    np.testing.assert_array_equal(decoded(images.to_bytes(array, where="here"))[0], array)


def test_transparency_is_dropped():
    array = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 4), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    np.testing.assert_array_equal(decoded(buffer.getvalue())[0], array[..., :3])


def test_an_image_of_the_right_size_is_not_resampled(monkeypatch):
    monkeypatch.setattr(images, "_resize", lambda *_: 1 / 0)
    for view in (encoded(9), jpeg()):
        images.decode(tf.constant(view), SIZE)
        with pytest.raises(ZeroDivisionError):
            images.decode(tf.constant(view), SIZE + 1)


@pytest.mark.parametrize(
    "image", [b"", b"not an image", jpeg()[:300], jpeg()[:-100], jpeg()[:3], encoded(2)[:300]]
)
def test_what_is_no_image_is_told(image):
    assert not images.can_decode(image)
    for others in ((), (jpeg(),)):
        with pytest.raises(tf.errors.OpError):
            decoded(*others, image)
    assert images.can_decode(jpeg()) and images.can_decode(encoded(2))
