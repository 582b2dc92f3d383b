"""Parameter name -> logical axes -> mesh axes, by one table.

A parameter that no rule names, two logical axes on one mesh axis, or a dimension that its mesh axis
does not divide is an error naming the parameter: sharding is never guessed.
"""

from __future__ import annotations

import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Which mesh axis splits each logical axis. Everything else is replicated.
MESH_AXIS = {"D": "fsdp", "F": "tensor", "N": "tensor", "V": "tensor"}

# (name pattern, logical axes). "." is an axis that is never split; norms and biases are too small
# to be worth a collective and stay whole.
_RULES: tuple[tuple[str, str], ...] = (
    (r"img/(embedding|stem\w*_\d)/kernel", "...D"),
    (r"img/pos_embedding", "..D"),
    (
        r"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/(query|key|value)/kernel",
        ".DN.",
    ),
    (r"img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel", ".N.D"),
    (r"img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel", ".DF"),
    (r"img/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel", ".FD"),
    (r"img/head/kernel", "D."),
    (r"state/kernel", ".D"),
    (r"llm/embedder/input_embedding", "VD"),
    (r"llm/layers/attn/q_einsum/w", ".ND."),
    (r"llm/layers/attn/kv_einsum/w", "...D."),
    (r"llm/layers/attn/attn_vec_einsum/w", ".N.D"),
    (r"llm/layers/mlp/gating_einsum", "..DF"),
    (r"llm/layers/mlp/linear", ".FD"),
    (r".*/(bias|scale)", ""),
    (r".*_lora/[ab]", ""),
)


def param_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The PartitionSpec of one parameter, e.g. of "llm/layers/mlp/linear".

    Raises:
      ValueError: no rule, wrong rank, collision or indivisible dimension.
    """
    axes = next((axes for pattern, axes in _RULES if re.fullmatch(pattern, name)), None)
    if axes is None:
        raise ValueError(f"no sharding rule for parameter {name!r} {shape}: add one to {__name__}")
    if not axes:
        return PartitionSpec()
    if len(axes) != len(shape):
        raise ValueError(f"parameter {name!r} has shape {shape}, its rule has axes {axes!r}")
    spec = [MESH_AXIS.get(axis) for axis in axes]
    used = [axis for axis in spec if axis is not None]
    if len(set(used)) != len(used):
        raise ValueError(f"parameter {name!r}: two of its axes {axes!r} fall on one mesh axis")
    for size, axis in zip(shape, spec, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise ValueError(
                f"parameter {name!r} {shape}: {size} does not divide over mesh axis {axis!r} of "
                f"size {mesh.shape[axis]}; choose another mesh"
            )
    return PartitionSpec(*spec)


def param_shardings(params, mesh: Mesh):
    """Tree of arrays or shapes -> the same tree of NamedShardings."""

    def one(path, leaf):
        name = "/".join(str(key.key) for key in path)
        return NamedSharding(mesh, param_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, params)
