"""The one place where layers are scanned, unrolled and rematerialised.

The parameters of a stack are kept with a leading L axis. A loop over them (`nn.scan`) compiles once
for all layers, which is what deep models need. Unrolled, each layer is compiled by itself: XLA then
plans across layers, and the last one need not compute what nobody asks for.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from vla_jax.models.presets import ModelConfig
from vla_jax.types import Params

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run_layers(
    parent: nn.Module,
    block: type[nn.Module],
    name: str,
    length: int,
    x: jax.Array,
    *,
    per_layer: tuple[Any, ...] = (),
    shared: tuple[Any, ...] = (),
    last_shared: tuple[Any, ...] | None = None,
) -> tuple[jax.Array, Any]:
    """Runs `length` blocks one after the other, from a compact method of `parent`.

    Args:
      parent: has a `config`; its child `name` holds the parameters.
      block: a module, made with the config, whose call maps (x, *per_layer, *shared) to
        (x, output).
      per_layer: what each layer gets its own of: a leading L axis on every array or, unrolled, a
        sequence of length L; None for nothing.
      shared: what all layers get.
      last_shared: what the last layer gets instead, if layers are unrolled.

    Returns:
      x after the last layer, and the outputs: stacked on a leading L axis or, unrolled, as a tuple.
    """
    config: ModelConfig = parent.config  # pyright: ignore[reportAttributeAccessIssue]
    if config.unroll_layers and not parent.is_initializing():
        layers = parent.get_variable("params", name)
        call = _remat(config, _call(block(config, parent=None)))
        outputs = []
        for i in range(length):
            own = [None if inputs is None else inputs[i] for inputs in per_layer]
            common = last_shared if last_shared is not None and i == length - 1 else shared
            x, output = call(_layer(layers, i), x, *own, *common)
            outputs.append(output)
        return x, tuple(outputs)
    if config.remat != "none":
        block = nn.remat(block, prevent_cse=False, policy=_POLICIES[config.remat])
    scanned = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(*[0] * len(per_layer), *[nn.broadcast] * len(shared)),  # pyright: ignore
        length=length,
    )
    return scanned(config, name=name)(x, *per_layer, *shared)


def unstack_layers(params: Params, config: ModelConfig) -> Params:
    """Parameters as an unrolled model reads them without copying: each stack a tuple of layers.

    A stacked tree works too, but its layers are cut out anew wherever they are used, in a decoding
    loop at every token. For a model whose layers are not unrolled this changes nothing.
    """
    if not config.unroll_layers:
        return params
    vit, llm = params["img"], params["llm"]
    encoder = dict(vit["Transformer"])
    encoder["encoderblock"] = _unstacked(encoder["encoderblock"], config.vit.depth)
    layers = _unstacked(llm["layers"], config.decoder.depth)
    return {"img": {**vit, "Transformer": encoder}, "llm": {**llm, "layers": layers}}


def _unstacked(stacked: Params | tuple[Params, ...], length: int) -> tuple[Params, ...]:
    return tuple(_layer(stacked, i) for i in range(length))


def _layer(layers: Params | tuple[Params, ...], i: int) -> Params:
    return layers[i] if isinstance(layers, tuple) else jax.tree.map(lambda w: w[i], layers)


def _call(block: nn.Module):
    return lambda params, *inputs: block.apply({"params": params}, *inputs)


def _remat(config: ModelConfig, call):
    return call if config.remat == "none" else jax.checkpoint(call, policy=_POLICIES[config.remat])
