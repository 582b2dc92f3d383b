"""Images of data sets as pixels, beside Pillow's."""

from __future__ import annotations

import io

import numpy as np
import pytest
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
    got = images.decode(image, SIZE)
    np.testing.assert_array_equal(got, pixels(image))
    np.testing.assert_array_equal(got, read_picture(image, camera="image", max_side=SIZE))


def test_jpeg_in_print_colours_and_files_without_transparency():
    image = jpeg("CMYK")
    # Products of two bytes over 255, which Pillow rounds and the decoder cuts.
    assert np.abs(images.decode(image, SIZE).astype(int) - pixels(image)).max() <= 1
    array = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 4), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    np.testing.assert_array_equal(images.decode(buffer.getvalue(), SIZE), array[..., :3])


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "GIF"])
def test_other_formats_and_arrays_keep_their_pixels(image_format):
    image = encoded(4, image_format)
    np.testing.assert_array_equal(images.decode(image, SIZE), pixels(image))
    np.testing.assert_array_equal(images.decode(pixels(image), SIZE), pixels(image))


def test_a_view_is_written_where_it_belongs():
    batch = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    for view in (jpeg(), encoded(1), jpeg(size=2 * SIZE), pixels(encoded(2))):
        batch[:] = 0
        images.decode(view, SIZE, batch[1])
        np.testing.assert_array_equal(batch[1], images.decode(view, SIZE))
        assert batch[1].any() and not batch[[0, 2]].any()


def test_an_image_of_the_right_size_is_not_resampled(monkeypatch):
    views = [encoded(9), jpeg(), pixels(encoded(9))]
    monkeypatch.setattr(images, "_resize", lambda *_: 1 / 0)
    for view in views:
        images.decode(view, SIZE)
        with pytest.raises(ZeroDivisionError):
            images.decode(view, SIZE + 1)


def test_an_odd_jpeg_is_decoded_all_the_same():
    # Two stray bytes before a segment, as careless writers leave: what is shown is not harmed.
    image = jpeg()
    at = image.index(b"\xff\xdb")
    odd = image[:at] + b"\x12\x34" + image[at:]
    got = images.decode(odd, SIZE).astype(int)
    assert np.abs(got - pixels(image)).max() <= 12  # TensorFlow's transforms are less exact


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "damaged or not PNG, JPEG, GIF or BMP"),
        (b"not an image", "damaged or not PNG, JPEG, GIF or BMP"),
        (jpeg()[:300], "damaged or not"),
        (jpeg()[:-100], "damaged or not"),
        (encoded(2)[:300], "damaged or not"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "type float32"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        images.decode(image, SIZE)
