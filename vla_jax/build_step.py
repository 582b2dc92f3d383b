"""Config -> the train step: everything that is compiled, and nothing that is read.

Devices may be real or those of a topology that somebody means to rent (`vla_jax.planning`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vla_jax.config import Config
from vla_jax.models.vla import Vla
from vla_jax.sharding.mesh import batch_sharding, batch_shards, make_mesh
from vla_jax.training.augment import apply_changes, draw_changes
from vla_jax.training.groups import freeze
from vla_jax.training.losses import answer_loss
from vla_jax.training.optimizer import make_optimizer
from vla_jax.training.step import (
    LossFn,
    Metrics,
    TrainState,
    make_init,
    make_train_step,
    state_shardings,
)
from vla_jax.types import Params


@dataclasses.dataclass
class Update:
    """What the train step of a config is made from."""

    config: Config
    mesh: Mesh
    optimizer: optax.GradientTransformation
    abstract: TrainState
    shardings: TrainState

    def make_loss(self, is_robot: Sequence[bool], levels: int) -> LossFn:
        """The loss of a batch, its images augmented.

        Args:
          is_robot: of each source, whether its samples are a robot's.
          levels: most levels of a discrete action dimension; integers 0 .. levels - 1 stand for
            them.
        """
        train, groups = self.config.train, self.config.optimizer.groups
        loss = functools.partial(
            answer_loss,
            Vla(self.config.model),
            max_answer_tokens=self.config.data.row_lengths[1],
            num_sources=len(is_robot),
            integer_smoothing=train.integer_smoothing,
            exact_integers=levels,
            label_smoothing=train.label_smoothing,
            z_loss=train.z_loss,
        )

        def of_changed(params: Params, batch: dict[str, jax.Array], **more: Any):
            changed = {**batch, "images": self._change_images(batch, is_robot)}
            return loss(freeze(params, groups), changed, **more)

        return of_changed

    def make_step(
        self, loss_fn: LossFn
    ) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
        """The jitted train step."""
        train = self.config.train
        return make_train_step(
            self.optimizer,
            self.shardings,
            self.mesh,
            loss_fn,
            micro_batches=train.micro_batches,
            ema_decay=train.ema_decay,
            seed=train.seed,
        )

    def _change_images(self, batch: dict[str, jax.Array], is_robot: Sequence[bool]) -> jax.Array:
        """The batch's images [B, views, h, w, 3], augmented and of the model's size."""
        config = self.config.train.augment
        source, images, size = batch["source"], batch["images"], self.config.model.image_size
        robots = jnp.asarray(is_robot)[source.reshape(-1)]
        sample = batch["sample"].reshape(-1)
        changes = draw_changes(config, sample, robots, self.config.data.seed)
        # A packed row holds the views of several samples.
        of_samples = images.reshape(len(sample), -1, *images.shape[2:])
        changed = apply_changes(of_samples, changes, config, size)
        return changed.reshape(*images.shape[:2], size, size, 3)


def build_update(config: Config, devices: Sequence[Any] | None = None) -> Update:
    """The parts of the train step.

    Args:
      devices: of the mesh; None: all of all hosts.

    Raises:
      ValueError: a mesh that the devices, the batch or a parameter do not divide over; an optimizer
        that its section does not fit.
    """
    mesh = make_mesh(config.mesh, devices)
    parts = config.train.micro_batches
    if config.train.batch_size % (batch_shards(mesh) * parts):
        raise ValueError(
            f"train.batch_size {config.train.batch_size} does not divide over "
            f"{batch_shards(mesh)} devices (mesh data x fsdp)"
            + (f" times train.micro_batches {parts}" if parts > 1 else "")
        )
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    init = make_init(config.model, optimizer, config.train.seed, **state_options(config))
    abstract = jax.eval_shape(init)
    return Update(config, mesh, optimizer, abstract, state_shardings(abstract, mesh))


def state_options(config: Config) -> dict[str, Any]:
    """How the train state keeps the parameters; see `training.step.new_state`."""
    return {"params_dtype": config.train.params_dtype, "ema": config.train.ema_decay > 0}


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch as the loader of the config makes it."""
    data, model = config.data, config.model
    rows, k, tokens = config.train.batch_size, data.examples_per_row, data.row_lengths[0]
    one_each = (rows,) if data.packing is None else (rows, k)
    size, views = data.image_size or model.image_size, model.num_views * k
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "images": ((rows, views, size, size, 3), jnp.uint8),
        "tokens": ((rows, tokens), jnp.int32),
        **{name: ((rows, tokens), jnp.bool_) for name in ("attend_causal", "in_loss", "valid")},
        "source": (one_each, jnp.int32),
        "sample": (one_each, jnp.uint32),
        "truncated": (one_each, jnp.bool_),
    }
    if model.state_size:
        shapes["state"] = (*one_each, model.state_size), jnp.float32
        shapes["state_valid"] = one_each, jnp.bool_
    if data.packing is not None:
        shapes["segment"] = (rows, tokens), jnp.int32
        shapes["image_segment"] = (rows, views), jnp.int32
        shapes["left_out"] = one_each, jnp.bool_
    split = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for name, (shape, dtype) in shapes.items()
    }


def abstract_state(update: Update) -> TrainState:
    """Shapes, dtypes and shardings of the train state."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        update.abstract,
        update.shardings,
    )
