"""A program small enough to count by hand, which the dumps in `dumps/` are of.

Three layers x + relu(x W1) W2, scanned and rematerialised, and a step of gradient descent. Per
layer a step has seven matrix products: two forward, one again (the last is not needed again), four
backward. Both weights are gathered forward and backward, and their gradients scattered.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from vla_jax.planning.program import Program
from vla_jax.sharding.mesh import BATCH_AXES, FSDP, MeshConfig, batch_sharding, make_mesh

LAYERS, LENGTH = 3, 128


def toy_program(settings: dict[str, Any], devices: list[Any]) -> Program:
    """settings: {"mesh": of `MeshConfig`, "width", "inner", "rows"}."""
    mesh = make_mesh(MeshConfig(**settings["mesh"]), devices)
    width, inner = settings["width"], settings["inner"]

    def layer(x: jax.Array, weights: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
        first, second = (w.astype(jnp.bfloat16) for w in weights)
        return x + jax.nn.relu(x @ first) @ second, None

    def loss(weights: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
        y, _ = jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, weights)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

    def step(weights, x):
        value, gradients = jax.value_and_grad(loss)(weights, x)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradients), value

    split = NamedSharding(mesh, PartitionSpec(None, FSDP))
    weights = tuple(
        jax.ShapeDtypeStruct((LAYERS, *shape), jnp.float32, sharding=split)
        for shape in ((width, inner), (inner, width))
    )
    x = jax.ShapeDtypeStruct(
        (settings["rows"], LENGTH, width), jnp.bfloat16, sharding=batch_sharding(mesh)
    )
    whole = NamedSharding(mesh, PartitionSpec())
    function = jax.jit(step, donate_argnums=0, out_shardings=((split, split), whole))
    return Program("step", function, {"parameters": weights, "batch": x}, mesh, (weights, x))
