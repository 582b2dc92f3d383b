"""How activations are split: over the rows of the batch, never along the model's width."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from vla_jax.sharding.mesh import BATCH_AXES, batch_shards


def split_rows(x: jax.Array) -> jax.Array:
    """Asks the compiler to keep [B, ...] split over the batch axes of the mesh in use.

    Parameters are split along the model's width over the same devices. Left alone, the compiler may
    follow them: it then splits activations along the width, reduces every norm over the network
    and holds whole batches. Where no mesh is in use, or the rows do not divide, nothing is asked.
    """
    spec = _rows(x)
    return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def on_own_rows(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """function(*arrays), each device with its rows of [B, ...]: of a kernel the compiler knows
    nothing, and would gather all rows on every device. A device that only splits layers computes
    the same rows as its neighbours."""
    spec = _rows(arrays[0])
    if spec is None:
        return function(*arrays)
    specs = tuple(spec for _ in arrays)
    return jax.shard_map(function, in_specs=specs, out_specs=spec, check_vma=False)(*arrays)


def _rows(x: jax.Array) -> PartitionSpec | None:
    """How rows are split over the mesh in use; None if they are not."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or batch_shards(mesh) == 1 or x.shape[0] % batch_shards(mesh):
        return None
    return PartitionSpec(BATCH_AXES)
