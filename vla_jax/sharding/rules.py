"""Parameter name -> logical axes -> mesh axes, by one table.

`tensor` splits the axes of `TENSOR_AXES`. `fsdp` splits one dimension: the vocabulary's (see
`sharding.vocabulary`), else the model's width, if it divides, else the largest that does. Where
none divides by all of it (SigLIP So400m is 1,152 wide and its MLP 4,304, over 256 devices) it
splits two. What is small and cannot be split stays whole. A parameter that no rule names, or a
large one that cannot be split, is an error naming it: sharding is never guessed.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vla_jax.sharding.mesh import FSDP

TENSOR_AXES = "FNV"

# (name pattern, logical axes); the letters are those of `vla_jax.types`, "E" the width of what is
# written, if that is not the width of what is read. "." is an axis that is never split; norms,
# biases and adapters are too small to be worth a collective and stay whole.
_RULES: tuple[tuple[str, str], ...] = (
    (r"img/(embedding|stem\w*_\d)/kernel", "...D"),
    (r"img/pos_embedding", "..D"),
    (
        r"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/(query|key|value)/kernel",
        ".DNH",
    ),
    (r"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel", ".NHD"),
    (r"img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel", ".DF"),
    (r"img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel", ".FD"),
    (r"img/head/kernel", "DE"),
    (r"state/kernel", ".D"),
    (r"llm/embedder/input_embedding", "VD"),
    (r"llm/layers/attn/q_einsum/w", ".NDH"),
    (r"llm/layers/attn/kv_einsum/w", "..KDH"),
    (r"llm/layers/attn/attn_vec_einsum/w", ".NHD"),
    (r"llm/layers/mlp/gating_einsum", "..DF"),
    (r"llm/layers/mlp/linear", ".FD"),
    (r".*/(bias|scale|cls)", ""),
    (r".*_lora/[ab]", ""),
)

_SMALL = 2**20
"""Numbers in a parameter below which it may stay whole: 4 MiB on each device at most."""


def param_spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The PartitionSpec of one parameter, e.g. of "llm/layers/mlp/linear".

    Raises:
      ValueError: no rule, wrong rank, or no way to split it over the mesh.
    """
    axes = next((axes for pattern, axes in _RULES if re.fullmatch(pattern, name)), None)
    if axes is None:
        raise ValueError(f"no sharding rule for parameter {name!r} {shape}: add one to {__name__}")
    if not axes:
        return PartitionSpec()
    if len(axes) != len(shape):
        raise ValueError(f"parameter {name!r} has shape {shape}, its rule has axes {axes!r}")
    tensor, small = mesh.shape["tensor"], math.prod(shape) < _SMALL
    spec: list[tuple[str, ...]] = [
        ("tensor",) if tensor > 1 and axis in TENSOR_AXES else () for axis in axes
    ]
    sizes = [size // tensor if split else size for size, split in zip(shape, spec)]
    for size, split in zip(shape, spec):
        if split and size % tensor:
            raise ValueError(
                f"parameter {name!r} {shape}: {size} does not divide over mesh axis 'tensor' of "
                f"size {tensor}; choose another mesh"
            )
    fsdp = tuple(mesh.shape[axis] for axis in FSDP)
    places = next(_fsdp_places(axes, sizes, fsdp), None)
    if places is None:
        if small:
            return _partition_spec(spec)
        raise ValueError(
            f"parameter {name!r} {shape}: neither one nor two of its dimensions divide over mesh "
            f"axis 'fsdp' of size {math.prod(fsdp)} (as {' x '.join(map(str, fsdp))}); choose "
            "another mesh"
        )
    for place, axis in zip(places, FSDP):
        spec[place] = (*spec[place], axis)
    return _partition_spec(spec)


def _fsdp_places(axes: str, sizes: list[int], fsdp: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Which dimension each of the two fsdp axes may split, best first."""
    able = [i for i, axis in enumerate(axes) if axis != "."]
    able.sort(key=lambda i: (axes[i] != "V", axes[i] != "D", -sizes[i]))
    yield from ((i, i) for i in able if sizes[i] % math.prod(fsdp) == 0)
    for i, j in itertools.permutations(able, 2):
        if sizes[i] % fsdp[0] == 0 and sizes[j] % fsdp[1] == 0:
            yield i, j


def _partition_spec(spec: list[tuple[str, ...]]) -> PartitionSpec:
    return PartitionSpec(
        *(None if not axes else axes[0] if len(axes) == 1 else axes for axes in spec)
    )


def param_shardings(params, mesh: Mesh | AbstractMesh):
    """Tree of arrays or shapes -> the same tree of NamedShardings."""

    def one(path, leaf):
        name = "/".join(str(key.key) for key in path)
        return NamedSharding(mesh, param_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, params)
