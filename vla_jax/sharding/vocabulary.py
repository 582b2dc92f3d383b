"""An embedding table of which each device holds some rows: looked up and multiplied where it lies.

Gathering the table would move and hold all of it, forward and backward, in every step. Where the
positions of a batch are fewer than the words, as with short texts and a loss on answers alone, what
belongs to positions is smaller, and that is moved instead.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vla_jax.sharding.mesh import BATCH_AXES, FSDP
from vla_jax.sharding.rules import param_spec


def vocabulary_axes(name: str, shape: tuple[int, ...], positions: int) -> tuple[str, ...]:
    """Mesh axes over which a table [V, D] is split by rows, in the mesh that is in use.

    Empty where no mesh is in use, where this table is split otherwise, and where moving it is less.

    Args:
      positions: of the whole batch, that ask for a row each or are multiplied with all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or math.prod(mesh.shape[axis] for axis in ("tensor", *FSDP)) == 1:
        return ()
    spec = param_spec(name, shape, mesh)
    axes = spec[0] if isinstance(spec[0], tuple) else (spec[0],)
    by_rows = axes in (FSDP, ("tensor", *FSDP)) and not any(tuple(spec)[1:])
    return axes if by_rows and positions < shape[0] * mesh.shape["data"] else ()


def look_up(
    table: jax.Array, tokens: jax.Array, axes: tuple[str, ...], dtype: jnp.dtype
) -> jax.Array:
    """Rows of a table split over `axes`, int [B, T] -> [B, T, D] in `dtype`.

    Each device finds those of its rows that anybody along the axes asks for; as all others have 0
    there, adding up hands them over, and nothing is rounded.
    """

    def of_part(part: jax.Array, tokens: jax.Array) -> jax.Array:
        asked = jax.lax.all_gather(tokens, FSDP, axis=0, tiled=True)
        place = asked - jax.lax.axis_index(axes) * part.shape[0]
        here = (place >= 0) & (place < part.shape[0])
        found = jnp.take(part, jnp.clip(place, 0, part.shape[0] - 1), axis=0).astype(dtype)
        found = jnp.where(here[..., None], found, 0)
        if "tensor" in axes:
            found = jax.lax.psum(found, "tensor")
        return jax.lax.psum_scatter(found, FSDP, scatter_dimension=0, tiled=True)

    rows = PartitionSpec(BATCH_AXES)
    return jax.shard_map(of_part, in_specs=(PartitionSpec(axes), rows), out_specs=rows)(
        table, tokens
    )


def multiply(x: jax.Array, table: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """[R, D] x [V, D] -> float32 [R, V], the words split over `axes`, the rows over data alone."""
    x = jax.lax.with_sharding_constraint(x, PartitionSpec("data"))
    table = jax.lax.with_sharding_constraint(table.astype(x.dtype), PartitionSpec(axes))
    y = jnp.einsum("RD,VD->RV", x, table, preferred_element_type=jnp.float32)
    return jax.lax.with_sharding_constraint(y, PartitionSpec("data", axes))
