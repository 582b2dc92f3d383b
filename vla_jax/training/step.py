"""Train state and the one update function.

Parameters are float32, or bfloat16 if asked for: then memory and traffic halve, and each update is
computed in float32 and rounded up or down at random, with its expectation kept. Rounding to nearest
would lose it: a step of 1e-3 of a weight is less than half of bfloat16's spacing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import init_params
from vla_jax.sharding.mesh import BATCH_AXES, batch_sharding, batch_shards, replicated
from vla_jax.sharding.rules import param_shardings
from vla_jax.training.guard import guarded
from vla_jax.training.losses import source_of_tokens
from vla_jax.tree import flatten
from vla_jax.types import Params

TrainState = dict[str, Any]
"""{"step": int32 [], "params": ..., "opt": ...}: plain nested dicts of arrays. And "ema", float32
like the parameters, if a mean of them is kept."""

Metrics = dict[str, Any]

LossFn = Callable[[Params, dict[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]]
"""(params, batch) -> (loss, sums by source), the loss a mean over the sums' "tokens"; see
`losses.answer_loss`."""


def new_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    *,
    params_dtype: str = "float32",
    ema: bool = False,
) -> TrainState:
    """The state before the first update.

    Args:
      params: float32.
      params_dtype: what the state keeps them in.
      ema: keep a running mean of them, which starts here.
    """
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": _cast(params, params_dtype),
        "opt": optimizer.init(params),
    }
    return state | {"ema": params} if ema else state


def make_init(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    params_dtype: str = "float32",
    ema: bool = False,
) -> Callable[[], TrainState]:
    """A function without arguments that makes the fresh state; trace it for its shapes."""

    def init() -> TrainState:
        params = init_params(config, jax.random.key(seed))
        return new_state(params, optimizer, params_dtype=params_dtype, ema=ema)

    return init


def state_shardings(abstract: TrainState, mesh: Mesh) -> TrainState:
    """NamedShardings for a state of these shapes.

    Moments and the mean are placed like their parameters; a factored moment, which lacks one axis
    of its parameter, like the rest of it.
    """
    params = param_shardings(abstract["params"], mesh)
    whole = replicated(mesh)
    shapes = {k: v.shape for k, v in flatten(abstract["params"]).items()}
    by_name = flatten(params)

    def one(path, leaf) -> NamedSharding:
        # A moment lies under its parameter's name, somewhere inside the optimizer's own structure.
        keys = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        names = ("/".join(keys[i:]) for i in range(len(keys)))
        name = next((n for n in names if n in shapes), None)
        if name is None:
            return whole
        shape, sharding = shapes[name], by_name[name]
        if shape == leaf.shape:
            return sharding
        spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
        lacks = [i for i in range(len(shape)) if shape[:i] + shape[i + 1 :] == leaf.shape]
        if not lacks:
            return whole
        # Of two equally long axes, rows lack the later one.
        axis = lacks[-1] if jax.tree_util.GetAttrKey("v_row") in path else lacks[0]
        return NamedSharding(mesh, PartitionSpec(*spec[:axis], *spec[axis + 1 :]))

    placed = {"step": whole, "params": params}
    for key in abstract.keys() - placed.keys():
        placed[key] = jax.tree_util.tree_map_with_path(one, abstract[key])
    return placed


def make_train_step(
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    mesh: Mesh,
    loss_fn: LossFn,
    *,
    micro_batches: int = 1,
    ema_decay: float = 0.0,
    seed: int = 0,
    compiler_options: dict[str, str] | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The jitted update: (state, batch) -> (state, metrics). The old state is donated.

    Metrics: "loss" (what is minimised), "grad_norm" before clipping, "by_source", the sums that
    `loss_fn` returns, and those of `guard.guarded`, which leaves out an update that is not finite.

    Args:
      micro_batches: the batch is gone through in so many parts, one after the other; the update is
        that of the whole batch.
      ema_decay: state["ema"] becomes decay * ema + (1 - decay) * params; 0: there is none.
      seed: of the rounding of bfloat16 parameters.
      compiler_options: XLA's, for this program.
    """

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        of_batch = _loss_and_gradients(loss_fn, shardings["params"], mesh, micro_batches)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            loss, by_source, grads = of_batch(state["params"], batch)
        # Moments and small steps need float32, whatever the parameters are kept in.
        params = _cast(state["params"], "float32")
        updates, opt = optimizer.update(_cast(grads, "float32"), state["opt"], params)
        params = optax.apply_updates(params, updates)
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        new = {
            "step": state["step"] + 1,
            "params": _rounded_like(state["params"], params, key),
            "opt": opt,
        }
        if ema_decay:
            new["ema"] = optax.incremental_update(
                _cast(new["params"], "float32"), state["ema"], 1 - ema_decay
            )
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "by_source": by_source}
        return new, metrics

    return jax.jit(
        guarded(step),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options,
    )


def make_source_gradient_norms(
    shardings: TrainState, mesh: Mesh, loss_fn: LossFn, num_sources: int, *, micro_batches: int = 1
) -> Callable[[Params, dict[str, jax.Array]], jax.Array]:
    """A jitted function: (params, batch) -> float32 [num_sources], norms of the gradient's parts.

    The gradient of the loss, a mean over all tokens, is the sum of one part for each source: that
    of its own tokens' share of the mean. Costs a backward pass per source, so call it now and then.
    """

    def norms(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        of_batch = _loss_and_gradients(loss_fn, shardings["params"], mesh, micro_batches)
        source = source_of_tokens(batch)

        def one(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            alone = {**batch, "in_loss": batch["in_loss"] & (source == number)}
            _, sums, grads = of_batch(params, alone)
            return optax.tree.norm(_cast(grads, "float32")), jnp.sum(sums["tokens"])

        norm, tokens = jax.lax.map(one, jnp.arange(num_sources))
        return norm * tokens / jnp.maximum(jnp.sum(tokens), 1.0)

    return jax.jit(
        norms,
        in_shardings=(shardings["params"], batch_sharding(mesh)),
        out_shardings=replicated(mesh),
    )


def _loss_and_gradients(
    loss_fn: LossFn, shardings: Params, mesh: Mesh, micro_batches: int
) -> Callable[[Params, dict[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array], Params]]:
    """(params, batch) -> loss, sums by source and gradients of the whole batch."""
    of_rows = jax.value_and_grad(loss_fn, has_aux=True)

    def of_batch(params: Params, batch: dict[str, jax.Array]):
        if micro_batches == 1:
            (loss, by_source), grads = of_rows(params, batch)
            return loss, by_source, grads

        def one(totals, rows: dict[str, jax.Array]):
            (loss, sums), grads = of_rows(params, rows)
            tokens = jnp.sum(sums["tokens"])  # a mean of means would count parts, not tokens
            totals = jax.tree.map(
                lambda t, x: t + tokens * x, totals, (loss, _cast(grads, "float32"))
            )
            return jax.lax.with_sharding_constraint(totals, (replicated(mesh), shardings)), sums

        zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), (0.0, params))
        totals, sums = jax.lax.scan(one, zeros, _split(batch, mesh, micro_batches))
        by_source = {k: jnp.sum(v, axis=0) for k, v in sums.items()}
        by_source["used"] /= micro_batches  # a share of the rows, not a sum
        tokens = jnp.maximum(jnp.sum(by_source["tokens"]), 1.0)
        loss, grads = jax.tree.map(lambda x: x / tokens, totals)
        return loss, by_source, grads

    return of_batch


def _split(batch: dict[str, jax.Array], mesh: Mesh, parts: int) -> dict[str, jax.Array]:
    """[B, ...] -> [parts, B / parts, ...]; every device's rows stay on it, some in each part.

    Raises:
      ValueError: the parts do not divide over the devices.
    """
    spread = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    devices = batch_shards(mesh)

    def one(x: jax.Array) -> jax.Array:
        if len(x) % (parts * devices):
            raise ValueError(
                f"train.batch_size {len(x)} does not divide into train.micro_batches {parts} times "
                f"{devices} devices (mesh data x fsdp)"
            )
        # Row i goes to part i modulo `parts`: a device holds rows that follow each other.
        split = x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(split, spread)

    return jax.tree.map(one, batch)


def _cast(tree: Params, dtype: str) -> Params:
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _rounded_like(like: Params, params: Any, key: jax.Array) -> Params:
    """float32 parameters in the dtypes of `like`, bfloat16 at random (unbiased)."""
    leaves, tree = jax.tree.flatten(params)
    rounded = [
        round_at_random(x, jax.random.fold_in(key, i)) if old.dtype == jnp.bfloat16 else x
        for i, (old, x) in enumerate(zip(jax.tree.leaves(like), leaves, strict=True))
    ]
    return tree.unflatten(rounded)


def round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, one of the two neighbours; the expectation is x.

    What is a bfloat16 stays as it is, infinities and NaN included.
    """
    # bfloat16 is float32 without its last 16 bits: they say how likely the upper neighbour is.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits += jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
