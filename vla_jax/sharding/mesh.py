"""The device mesh, and how a batch is split over it.

    data    rows of the batch; parameters are copies
    fsdp    rows of the batch, and a part of every parameter (gathered where it is used)
    tensor  parts of a layer: MLP columns, heads, vocabulary

With several slices each axis has a part inside a slice, over its fast interconnect (ICI), and one
between slices, over the data centre's network (DCN), the outer one. `data` over DCN and `fsdp`
inside is what networks are built for.

The mesh has fsdp as two axes, `FSDP`, as near to each other in size as can be: a parameter of which
no dimension divides by all of fsdp can then be split along two of its dimensions.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

FSDP = ("fsdp_major", "fsdp_minor")
AXES = ("data", *FSDP, "tensor")

BATCH_AXES = ("data", *FSDP)
"""Batches are split over every axis that does not split a layer."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Size of each mesh axis.

    Attributes:
      data, fsdp, tensor: inside a slice; at most one may be -1, "whatever devices are left".
      dcn_data, dcn_fsdp: of the same axes between slices; their product is the number of slices. On
        devices that are not in slices, their outermost split.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    dcn_data: int = 1
    dcn_fsdp: int = 1

    def __post_init__(self):
        inside = (self.data, self.fsdp, self.tensor)
        if inside.count(-1) > 1 or any(s == 0 or s < -1 for s in inside):
            raise ValueError(f"{self}: axis sizes are positive, and at most one is -1")
        if self.dcn_data < 1 or self.dcn_fsdp < 1:
            raise ValueError(f"{self}: dcn_data and dcn_fsdp are at least 1")


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh over `devices`: real ones (by default all of all hosts) or a topology's.

    On TPUs, neighbours on an axis are neighbours in the torus.

    Raises:
      ValueError: the axis sizes do not multiply to the number of devices, or the DCN sizes not to
        the number of slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    outer = (config.dcn_data, config.dcn_fsdp, 1)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and math.prod(outer) != slices:
        raise ValueError(
            f"{config}: the devices are in {slices} slices; mesh.dcn_data * mesh.dcn_fsdp must be "
            "that"
        )
    inner = _inner_sizes(config, len(devices))
    if devices[0].platform == "tpu":
        if slices > 1:
            grid = mesh_utils.create_hybrid_device_mesh(
                inner, outer, devices, allow_split_physical_axes=True
            )
        else:
            sizes = [o * i for o, i in zip(outer, inner)]
            grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(*outer, *inner).transpose(0, 3, 1, 4, 2, 5)
    data, fsdp, tensor = (o * i for o, i in zip(outer, inner))
    return Mesh(grid.reshape(data, *_two_factors(fsdp), tensor), AXES)


def abstract_mesh(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    """A mesh of these sizes without devices, for asking how things would be split."""
    return AbstractMesh((data, *_two_factors(fsdp), tensor), AXES)


def _inner_sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor) inside a slice, with -1 filled in."""
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(s for s in sizes if s != -1) * config.dcn_data * config.dcn_fsdp
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) * config.dcn_data * config.dcn_fsdp != devices:
        raise ValueError(
            f"{config} needs {known} devices (or a multiple, with -1), but there are {devices}"
        )
    return sizes[0], sizes[1], sizes[2]


def _two_factors(size: int) -> tuple[int, int]:
    """(a, b), a * b = size, a >= b, as near to each other as can be: 256 -> 16, 16."""
    minor = next(b for b in range(math.isqrt(size), 0, -1) if size % b == 0)
    return size // minor, minor


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is B."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """int64 [n], ascending: the rows of a batch that this process must read.

    Those that its devices hold. Processes that split a layer between them hold the same rows.

    Raises ValueError if the batch does not divide over the mesh.
    """
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise ValueError(
            f"train.batch_size {batch_size} does not divide over {shards} devices (mesh data x "
            "fsdp)"
        )
    held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in held.values() if index is not None]
    return np.unique(np.concatenate(rows))


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """This process's rows of a batch, `local_rows`, -> arrays of all rows, split over the mesh."""
    sharding, rows = batch_sharding(mesh), local_rows(mesh, batch_size)

    def one(value: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            first, last, _ = index[0].indices(batch_size)
            begin = int(np.searchsorted(rows, first))
            return value[begin : begin + last - first]

        return jax.make_array_from_callback((batch_size, *value.shape[1:]), sharding, shard)

    return {key: one(value) for key, value in batch.items()}
