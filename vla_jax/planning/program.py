"""The programs that a plan compiles: the train step and the decoder, without data or devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vla_jax import schema
from vla_jax.build_step import abstract_batch, abstract_state, build_update
from vla_jax.config import Config
from vla_jax.decoding.sampler import make_decoder
from vla_jax.models.lora import merge_lora
from vla_jax.models.vla import State, init_params
from vla_jax.sharding.mesh import batch_sharding, batch_shards, make_mesh
from vla_jax.sharding.rules import param_shardings

# Sources whose samples are a robot's; of a source in a file of somebody's own nothing is known.
ROBOT_KINDS = ("episodes", "lerobot", "array_record")


@dataclasses.dataclass(frozen=True)
class Program:
    """Something to compile.

    Attributes:
      name: of the function that is compiled; XLA calls the module `jit_NAME`.
      function: jitted.
      parts: name -> ShapeDtypeStructs with shardings; its positional arguments are their values.
    """

    name: str
    function: Callable[..., Any]
    parts: dict[str, Any]
    mesh: Mesh
    arguments: tuple[Any, ...]


def train_program(settings: dict[str, Any], devices: list[Any]) -> Program:
    """The train step of a config, as `python -m vla_jax.train` would run it.

    Args:
      settings: {"config": the plain form of a `Config`}.
    """
    config = schema.from_dict(Config, settings["config"])
    update = build_update(config, devices)
    robots = [source.kind in ROBOT_KINDS for source in config.data.sources.values()]
    step = update.make_step(update.make_loss(robots, 0))
    state, batch = abstract_state(update), abstract_batch(config, update.mesh)
    parts = {
        "parameters": state["params"],
        "optimizer state": {k: v for k, v in state.items() if k != "params"},
        "batch": batch,
    }
    return Program("step", step, parts, update.mesh, (state, batch))


def serving_program(settings: dict[str, Any], devices: list[Any]) -> Program:
    """Prefill and decoding of answers in words, over the mesh's rows.

    Args:
      settings: {"config": as for training, "rows": prompts at a time; 0 is one on each part of the
        mesh that holds rows}.
    """
    config = schema.from_dict(Config, settings["config"])
    mesh = make_mesh(config.mesh, devices)
    rows = settings.get("rows") or batch_shards(mesh)
    text, answer = config.data.row_lengths
    model = dataclasses.replace(config.model, lora_rank=0, remat="none")
    fresh = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    params = jax.eval_shape(lambda p: merge_lora(p, config.model), fresh)
    # Serving needs no float32 copy.
    params = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(model.compute_dtype), sharding=sharding
        ),
        params,
        param_shardings(params, mesh),
    )
    of_rows = batch_sharding(mesh)

    def array(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=of_rows)

    size = model.image_size
    inputs = (
        array(model.num_views, size, size, 3, dtype=jnp.uint8),
        array(text - answer, dtype=jnp.int32),
        array(text - answer, dtype=jnp.bool_),
        array(dtype=jnp.float32),
        array(dtype=jnp.int32),
    )
    decode = make_decoder(model, "text", eos_id=1, pad_id=0, max_answer_tokens=answer)
    if model.state_size:
        measured = array(model.state_size, dtype=jnp.float32), array(dtype=jnp.bool_)

        def of_state(params: Any, values: jax.Array, valid: jax.Array, *rest: jax.Array):
            return decode(params, *rest, state=State(values, valid))

        name, function, arguments = "of_state", jax.jit(of_state), (params, *measured, *inputs)
    else:
        name, function, arguments = "decode", decode, (params, *inputs)
    parts = {"parameters": params, "batch": arguments[1:]}
    return Program(name, function, parts, mesh, arguments)


def bytes_per_device(tree: Any) -> int:
    """Bytes of a tree of ShapeDtypeStructs on the device that holds most."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        size = leaf.dtype.itemsize
        for dimension in shape:
            size *= dimension
        total += size
    return total
