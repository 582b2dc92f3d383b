"""Low-rank adapters (LoRA, arXiv 2106.09685) on the decoder's projections.

With `model.lora_rank` each projection y = x W becomes y = x W + alpha / rank * x A B. Fresh B are
0, so nothing changes at first. `optimizer.groups` freezes the rest:

    "groups": ((r".*_lora/[ab]", 1.0), (r".*", 0.0))

`merge_lora` adds the products to the weights, for export and for serving.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax.models.presets import ModelConfig
from vla_jax.types import Params


class _LowRank(nn.Module):
    rank: int
    outputs: tuple[int, ...]
    num_in: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, inputs = x.shape[: x.ndim - self.num_in], x.shape[x.ndim - self.num_in :]
        size = math.prod(inputs)
        normal = nn.initializers.normal(size**-0.5)
        a = self.param("a", normal, (size, self.rank)).astype(x.dtype)
        b = self.param("b", nn.initializers.zeros, (self.rank, math.prod(self.outputs)))
        y = x.reshape(-1, size) @ a @ b.astype(x.dtype)
        return y.reshape(*batch, *self.outputs)


def adapt(config: ModelConfig, name: str, x: jax.Array, y: jax.Array, num_in: int = 1) -> jax.Array:
    """What a projection of x to y becomes with its adapter, made in the calling module.

    Args:
      x: [..., *inputs], the last `num_in` axes are projected.
      y: [..., *outputs].
    """
    if not config.lora_rank:
        return y
    outputs = y.shape[x.ndim - num_in :]
    adapter = _LowRank(config.lora_rank, outputs, num_in, name=f"{name}_lora")
    return y + config.lora_alpha / config.lora_rank * adapter(x)


def merge_lora(params: Params, config: ModelConfig) -> Params:
    """The same model without adapters: their products are added to the weights, in float32."""
    if not config.lora_rank:
        return params
    layers = params["llm"]["layers"]
    attention, mlp = dict(layers["attn"]), dict(layers["mlp"])

    def product(block: Params, name: str) -> jax.Array:
        """float32 [L, inputs, outputs]."""
        adapter = block.pop(f"{name}_lora")
        scale = config.lora_alpha / config.lora_rank
        a, b = (adapter[key].astype(jnp.float32) for key in ("a", "b"))
        return scale * jnp.einsum("Lir,Lro->Lio", a, b, precision="highest")

    def added(weight: jax.Array, delta: jax.Array) -> jax.Array:
        return weight.astype(jnp.float32) + delta

    d = config.decoder
    heads = (d.depth, d.width, -1, d.head_dim)
    q = product(attention, "q").reshape(heads).swapaxes(1, 2)
    kv = [product(attention, n).reshape(heads).swapaxes(1, 2) for n in ("k", "v")]
    out = product(attention, "out").reshape(d.depth, d.num_heads, d.head_dim, d.width)
    attention["q_einsum"] = {"w": added(attention["q_einsum"]["w"], q)}
    attention["kv_einsum"] = {"w": added(attention["kv_einsum"]["w"], jnp.stack(kv, axis=1))}
    attention["attn_vec_einsum"] = {"w": added(attention["attn_vec_einsum"]["w"], out)}
    gating = jnp.stack([product(mlp, n) for n in ("gate", "up")], axis=1)
    mlp["gating_einsum"] = added(mlp["gating_einsum"], gating)
    mlp["linear"] = added(mlp["linear"], product(mlp, "down"))
    layers = {**layers, "attn": attention, "mlp": mlp}
    return {**params, "llm": {**params["llm"], "layers": layers}}
