"""Changes of training images, on the accelerator: cropped, resized, other light and colours.

The loader sends uint8; what happens here is compiled into the train step. A sample's changes are a
function of the seed and its number in the run, so they are the same after a resume, on any number
of processes and wherever in a batch it stands. All images of a sample, its views and earlier
frames, are changed alike.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How much images of robot samples are changed; the default leaves them as they are.

    Those of text samples are never changed: their answers may be places and colours.

    Attributes:
      crop: least share of the area that a random crop keeps; 1: no crop.
      brightness: each value is multiplied by 1 - brightness .. 1 + brightness.
      contrast: so is its difference from the image's mean grey.
      saturation: so is its difference from the pixel's grey.
    """

    crop: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    def __post_init__(self):
        if not 0 < self.crop <= 1:
            raise ValueError(f"augment.crop is a share of the area, not {self.crop}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"augment.{name} must be in [0, 1), got {getattr(self, name)}")

    @property
    def changes_colours(self) -> bool:
        return any((self.brightness, self.contrast, self.saturation))


class Changes(NamedTuple):
    """What is done to the images of each sample.

    Attributes:
      side: float32 [B], side of the crop as a share of the image's.
      corner: float32 [B, 2], its upper left corner (y, x) as a share of the image's sides.
      factors: float32 [B, 3], of brightness, contrast and saturation.
    """

    side: jax.Array
    corner: jax.Array
    factors: jax.Array


def draw_changes(
    config: AugmentConfig, sample: jax.Array, is_robot: jax.Array, seed: int
) -> Changes:
    """Random changes for samples uint32 [B]; none where `is_robot` bool [B] is False."""

    def one(number: jax.Array, robot: jax.Array) -> Changes:
        area, corner, colour = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), 3)
        side = jnp.sqrt(jax.random.uniform(area, minval=config.crop, maxval=1.0))
        side = jnp.where(robot, side, 1.0)
        most = jnp.asarray([config.brightness, config.contrast, config.saturation]) * robot
        return Changes(
            side,
            jax.random.uniform(corner, (2,)) * (1 - side),
            1 + most * jax.random.uniform(colour, (3,), minval=-1.0, maxval=1.0),
        )

    return jax.vmap(one)(sample, is_robot)


def apply_changes(
    images: jax.Array, changes: Changes, config: AugmentConfig, size: int
) -> jax.Array:
    """Images uint8 [B, views, h, w, 3] -> float32 [B, views, size, size, 3], 0 .. 255.

    Resized by linear interpolation with antialiasing, unless they have the size and no crop.
    """
    x = images.astype(jnp.float32)
    if config.crop < 1 or x.shape[2:4] != (size, size):
        crop = functools.partial(_crop, size=size)
        x = jax.vmap(crop)(x, changes.side, changes.corner)
    if not config.changes_colours:
        return x
    brightness, contrast, saturation = (
        changes.factors[:, i, None, None, None, None] for i in range(3)
    )
    x = jnp.clip(x * brightness, 0, 255)
    mean = _grey(x).mean((2, 3), keepdims=True)[..., None]
    x = jnp.clip(mean + (x - mean) * contrast, 0, 255)
    grey = _grey(x)[..., None]
    return jnp.clip(grey + (x - grey) * saturation, 0, 255)


def _crop(images: jax.Array, side: jax.Array, corner: jax.Array, size: int) -> jax.Array:
    """[views, h, w, 3] -> [views, size, size, 3]: the crop fills the result."""
    views, height, width, channels = images.shape
    sides = jnp.asarray([height, width], jnp.float32)
    scale = size / (side * sides)
    return jax.image.scale_and_translate(
        images,
        (views, size, size, channels),
        (1, 2),
        scale,
        -corner * sides * scale,
        method="linear",
    )


def _grey(x: jax.Array) -> jax.Array:
    return x @ jnp.asarray(_GREY, x.dtype)
