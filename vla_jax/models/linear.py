"""Dense layers as one two-dimensional matrix product.

XLA's CPU backend turns the weight gradient of a [B, T, D] x [D, F] product into a slow general
contraction (3x slower at the demo's sizes); flattened to [B * T, D] it is one plain matrix product
in both directions. On accelerators the two forms compile to the same thing.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def project(x: jax.Array, kernel: jax.Array, num_in: int = 1) -> jax.Array:
    """Contracts the last `num_in` axes of x with the first `num_in` of the kernel, in x's dtype."""
    batch, inputs = x.shape[: x.ndim - num_in], x.shape[x.ndim - num_in :]
    outputs = kernel.shape[num_in:]
    size = math.prod(inputs)
    y = x.reshape(-1, size) @ kernel.reshape(size, -1).astype(x.dtype)
    return y.reshape(*batch, *outputs)


class Dense(nn.Module):
    """Linear layer over the last `num_in` axes; parameters `kernel` and, unless without, `bias`."""

    features: tuple[int, ...]
    num_in: int = 1
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[x.ndim - self.num_in :]
        axes = (
            tuple(range(self.num_in)),
            tuple(range(self.num_in, self.num_in + len(self.features))),
        )
        init = nn.initializers.lecun_normal(*axes)
        kernel = self.param("kernel", init, (*inputs, *self.features))
        y = project(x, kernel, self.num_in)
        if not self.bias:
            return y
        return y + self.param("bias", nn.initializers.zeros, self.features).astype(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation in float32 (epsilon 1e-6); `scale` and, unless without, `bias`."""

    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + 1e-6) * scale
        if self.bias:
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return y.astype(x.dtype)
