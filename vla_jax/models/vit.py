"""Vision transformer with big_vision's parameter names (`img/...`)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax.models.attention import attend
from vla_jax.models.presets import ModelConfig
from vla_jax.models.stack import layer_stack


class PatchEmbedding(nn.Module):
    """Linear map of each patch: a strided convolution, written as one matrix product."""

    width: int
    patch_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, h, w, 3] -> [B, P, D], patches in row order."""
        p = self.patch_size
        shape = (p, p, 3, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        b, h, w, c = images.shape
        patches = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, -1, p * p * c)
        return patches @ kernel.reshape(p * p * c, -1).astype(self.dtype) + bias.astype(self.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention with biases."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        heads = (self.num_heads, width // self.num_heads)
        q = nn.DenseGeneral(heads, dtype=self.dtype, name="query")(x)
        k = nn.DenseGeneral(heads, dtype=self.dtype, name="key")(x)
        v = nn.DenseGeneral(heads, dtype=self.dtype, name="value")(x)
        out = attend(q, k, v, None)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="out")(out)


class MlpBlock(nn.Module):
    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.gelu(nn.Dense(self.mlp_dim, dtype=self.dtype)(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class EncoderBlock(nn.Module):
    num_heads: int
    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        y = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
        x = x + SelfAttention(
            self.num_heads, self.dtype, name="MultiHeadDotProductAttention_0"
        )(y)
        y = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_1")(x)
        return x + MlpBlock(self.mlp_dim, self.dtype, name="MlpBlock_0")(y), None


class Encoder(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        vit, dtype = self.config.vit, jnp.dtype(self.config.compute_dtype)
        block = layer_stack(EncoderBlock, self.config, length=vit.depth)
        x, _ = block(vit.num_heads, vit.mlp_dim, dtype, name="encoderblock")(x)
        return nn.LayerNorm(dtype=dtype, name="encoder_norm")(x)


class Vit(nn.Module):
    """Images -> tokens in the decoder's width (the projector is `head`)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, h, w, 3] in [-1, 1] -> [B, P, D of the decoder]."""
        config, vit = self.config, self.config.vit
        dtype = jnp.dtype(config.compute_dtype)
        x = PatchEmbedding(vit.width, vit.patch_size, dtype, name="embedding")(images.astype(dtype))
        position = self.param(
            "pos_embedding",
            nn.initializers.normal(vit.width**-0.5),
            (1, config.num_patches, vit.width),
        )
        x = Encoder(config, name="Transformer")(x + position.astype(dtype))
        return nn.Dense(config.decoder.width, dtype=dtype, name="head")(x)
