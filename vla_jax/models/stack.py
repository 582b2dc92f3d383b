"""The one place where layers are scanned and rematerialised."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from vla_jax.models.presets import ModelConfig

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def layer_stack(
    block: type[nn.Module], config: ModelConfig, *, length: int, in_axes: tuple[Any, ...] = ()
):
    """`length` copies of `block` in sequence, parameters stacked on a leading L axis.

    Args:
      block: module whose call maps (x, *inputs) to (x, per-layer output).
      in_axes: for each input after x, 0 if it has a leading L axis, else `nn.broadcast`.
    """
    if config.remat != "none":
        block = nn.remat(block, prevent_cse=False, policy=_POLICIES[config.remat])
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,  # pyright: ignore[reportArgumentType]
        length=length,
        unroll=length if config.unroll_layers else 1,
    )
