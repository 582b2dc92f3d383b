"""Changes of images against Pillow, and that they belong to the sample."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vla_jax.training.augment import AugmentConfig, Changes, apply_changes, draw_changes

ALL = AugmentConfig(crop=0.5, brightness=0.2, contrast=0.3, saturation=0.4)


def smooth(count: int, height: int, width: int) -> np.ndarray:
    """Pictures without hard edges, [count, 1, h, w, 3]."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 6, 6, 3), np.uint8)
    large = [Image.fromarray(s).resize((width, height), Image.Resampling.BICUBIC) for s in small]
    return np.stack([np.asarray(image) for image in large])[:, None]


def changes(side=1.0, corner=(0.0, 0.0), factors=(1.0, 1.0, 1.0)) -> Changes:
    return Changes(jnp.asarray([side]), jnp.asarray([corner]), jnp.asarray([factors]))


@pytest.mark.parametrize("size", [48, 64, 100])
@pytest.mark.parametrize(("side", "corner"), [(1.0, (0, 0)), (0.75, (0.1, 0.25)), (0.5, (0.5, 0))])
def test_a_crop_is_pillows(size, side, corner):
    [image] = smooth(1, 64, 80)
    got = apply_changes(image[None], changes(side, corner), AugmentConfig(crop=0.25), size)
    top, left = corner[0] * 64, corner[1] * 80
    box = (left, top, left + side * 80, top + side * 64)
    expected = Image.fromarray(image[0]).resize((size, size), Image.Resampling.BILINEAR, box)
    # Pillow sees the pixels beyond the box, we do not; both round differently.
    inner = np.s_[2:-2, 2:-2]
    difference = np.abs(np.asarray(got)[0, 0][inner] - np.asarray(expected, float)[inner])
    assert difference.max() < 1.5


def test_colours_are_pillows():
    [image] = smooth(1, 32, 32)
    factors = (1.15, 0.8, 1.3)
    got = apply_changes(image[None], changes(factors=factors), ALL, 32)
    expected = Image.fromarray(image[0])
    for enhance, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors
    ):
        expected = enhance(expected).enhance(factor)
    # Pillow rounds after every change.
    assert np.abs(np.asarray(got)[0, 0] - np.asarray(expected, float)).max() < 3


def test_draws_belong_to_the_sample():
    number = jnp.arange(40, dtype=jnp.uint32)
    robot = np.arange(40) % 4 != 0
    drawn = draw_changes(ALL, number, jnp.asarray(robot), seed=3)
    order = np.random.default_rng(0).permutation(40)
    again = draw_changes(ALL, number[order], jnp.asarray(robot[order]), seed=3)
    other = draw_changes(ALL, number, jnp.asarray(robot), seed=4)
    for a, b, c in zip(drawn, again, other):
        np.testing.assert_array_equal(np.asarray(a)[order], b)
        assert (np.asarray(a) != np.asarray(c))[robot].any(axis=tuple(range(1, a.ndim))).all()
    # A text sample keeps its image.
    np.testing.assert_array_equal(drawn.side[~robot], 1)
    np.testing.assert_array_equal(drawn.corner[~robot], 0)
    np.testing.assert_array_equal(drawn.factors[~robot], 1)


def test_draws_fill_their_ranges():
    drawn = draw_changes(ALL, jnp.arange(4000, dtype=jnp.uint32), jnp.ones(4000, bool), seed=0)
    area, factors = np.asarray(drawn.side) ** 2, np.asarray(drawn.factors)
    assert 0.5 <= area.min() < 0.51 and 0.99 < area.max() <= 1
    np.testing.assert_allclose(area.mean(), 0.75, atol=0.01)
    inside = np.asarray(drawn.corner) + np.asarray(drawn.side)[:, None]
    assert (np.asarray(drawn.corner) >= 0).all() and (inside <= 1 + 1e-6).all()
    for i, most in enumerate((0.2, 0.3, 0.4)):
        assert 1 - most <= factors[:, i].min() < 1 - 0.98 * most
        assert 1 + 0.98 * most < factors[:, i].max() <= 1 + most


def test_views_are_changed_alike_and_text_samples_not_at_all():
    images = smooth(2, 32, 32).repeat(3, axis=1)
    drawn = draw_changes(ALL, jnp.asarray([7, 8], jnp.uint32), jnp.asarray([True, False]), seed=0)
    got = np.asarray(jax.jit(apply_changes, static_argnums=(2, 3))(images, drawn, ALL, 32))
    np.testing.assert_array_equal(got[:, 0], got[:, 1])
    np.testing.assert_array_equal(got[:, 0], got[:, 2])
    assert np.abs(got[0] - images[0]).mean() > 5
    np.testing.assert_allclose(got[1], images[1], atol=1e-3)


def test_nothing_to_do_changes_nothing():
    images = smooth(2, 32, 32)
    drawn = draw_changes(AugmentConfig(), jnp.arange(2, dtype=jnp.uint32), jnp.ones(2, bool), 0)
    np.testing.assert_array_equal(apply_changes(images, drawn, AugmentConfig(), 32), images)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"crop": 0.0}, "augment.crop is a share"),
        ({"crop": 1.5}, "augment.crop is a share"),
        ({"contrast": 1.0}, r"augment.contrast must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_amounts_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**bad)
