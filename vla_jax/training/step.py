"""Train state and the one update function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import init_params
from vla_jax.sharding.mesh import batch_sharding, replicated
from vla_jax.sharding.rules import param_shardings
from vla_jax.tree import flatten
from vla_jax.types import Params

TrainState = dict[str, Any]
"""{"step": int32 [], "params": ..., "opt": ...}: plain nested dicts of arrays."""

Metrics = dict[str, Any]

LossFn = Callable[[Params, dict[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]]
"""(params, batch) -> (loss, sums by source); see `losses.answer_loss`."""


def make_init(
    config: ModelConfig, optimizer: optax.GradientTransformation, seed: int
) -> Callable[[], TrainState]:
    """A function without arguments that makes the fresh state; trace it for its shapes."""

    def init() -> TrainState:
        params = init_params(config, jax.random.key(seed))
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt": optimizer.init(params)}

    return init


def state_shardings(abstract: TrainState, mesh: Mesh) -> TrainState:
    """NamedShardings for a state of these shapes; moments are placed like their parameters."""
    params = param_shardings(abstract["params"], mesh)
    whole = replicated(mesh)
    shapes = {k: v.shape for k, v in flatten(abstract["params"]).items()}
    by_name = flatten(params)

    def one(path, leaf) -> NamedSharding:
        # A moment lies under its parameter's name, somewhere inside the optimizer's own structure.
        keys = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        names = ("/".join(keys[i:]) for i in range(len(keys)))
        name = next((n for n in names if shapes.get(n) == leaf.shape), None)
        return whole if name is None else by_name[name]

    opt = jax.tree_util.tree_map_with_path(one, abstract["opt"])
    return {"step": whole, "params": params, "opt": opt}


def make_train_step(
    optimizer: optax.GradientTransformation, shardings: TrainState, mesh: Mesh, loss_fn: LossFn
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The jitted update: (state, batch) -> (state, metrics). The old state is donated.

    Metrics: "loss" (what is minimised), "grad_norm" before clipping, and "by_source", the sums that
    `loss_fn` returns.
    """

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        def of_params(params: Params) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss_fn(params, batch)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            (loss, by_source), grads = jax.value_and_grad(of_params, has_aux=True)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        new = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "opt": opt,
        }
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "by_source": by_source}
        return new, metrics

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
