"""How activations are split: over the rows of the batch, never along the model's width."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec

LAYER_AXES = ("tensor",)
"""Mesh axes that split a layer; all others split the batch."""


def split_rows(x: jax.Array) -> jax.Array:
    """Asks the compiler to keep [B, ...] split over the batch axes of the mesh in use.

    Parameters are split along the model's width over the same devices. Left alone, the compiler may
    follow them: it then splits activations along the width, reduces every norm over the network
    and holds whole batches. Where no mesh is in use, or the rows do not divide, nothing is asked.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in mesh.axis_names if axis not in LAYER_AXES)
    shards = 1
    for axis in axes:
        shards *= mesh.shape[axis]
    if shards == 1 or x.shape[0] % shards:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))
