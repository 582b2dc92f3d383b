"""Vision transformer with big_vision's parameter names (`img/...`)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from vla_jax.models.attention import attend
from vla_jax.models.linear import Dense, LayerNorm, project
from vla_jax.models.presets import ModelConfig
from vla_jax.models.stack import run_layers
from vla_jax.sharding.activations import split_rows


class PatchEmbedding(nn.Module):
    """Linear map of each patch: a strided convolution, written as one matrix product."""

    width: int
    patch_size: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, h, w, 3] -> [B, P, D], patches in row order."""
        p = self.patch_size
        shape = (p, p, 3, self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        b, h, w, c = images.shape
        patches = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
        patches = patches.reshape(b, -1, p, p, c)
        return project(patches, kernel, num_in=3) + bias.astype(images.dtype)


class Convolution(nn.Module):
    """Convolution with bias: 4 x 4 / 4 on pixels, 3 x 3 / 1 or 2 (padded by 1) after it."""

    features: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, c] -> [B, h / stride, w / stride, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(in_axis=(0, 1, 2)), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        pad = 0 if self.size == self.stride else 1
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention among all tokens."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        vit = self.config.vit
        heads = (vit.num_heads, vit.width // vit.num_heads)
        q, k, v = (Dense(heads, bias=vit.biases, name=n)(x) for n in ("query", "key", "value"))
        if vit.qk_norm:
            q = LayerNorm(bias=vit.biases, name="query_ln")(q)
            k = LayerNorm(bias=vit.biases, name="key_ln")(k)
        y = attend(q, k, v, None, backend=self.config.attention)
        return Dense((vit.width,), num_in=2, name="out")(y)


class MlpBlock(nn.Module):
    mlp_dim: int
    exact_gelu: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The backward pass keeps what enters the activation and computes the rest again.
        gelu = functools.partial(nn.gelu, approximate=not self.exact_gelu)
        y = jax.checkpoint(gelu)(Dense((self.mlp_dim,), name="Dense_0")(x))
        return Dense((x.shape[-1],), name="Dense_1")(y)


class EncoderBlock(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        vit, x = self.config.vit, split_rows(x)
        attention = SelfAttention(self.config, name="MultiHeadDotProductAttention_0")
        mlp = MlpBlock(vit.mlp_dim, vit.exact_gelu, name="MlpBlock_0")
        y = LayerNorm(bias=vit.biases, name="LayerNorm_0")(x)
        if vit.parallel_blocks:
            return x + attention(y) + mlp(y), None
        x = x + attention(y)
        return x + mlp(LayerNorm(bias=vit.biases, name="LayerNorm_1")(x)), None


class Encoder(nn.Module):
    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        vit = self.config.vit
        x, _ = run_layers(self, EncoderBlock, "encoderblock", vit.depth, x)
        return LayerNorm(bias=vit.biases, name="encoder_norm")(x)


def position_curves(patches: int, width: int, base: float) -> jax.Array:
    """Sines and cosines of row and column (arXiv 2205.01580), float32 [1, P, D].

    Wavelengths go from 2 pi patches to `base` times that.
    """
    side = round(patches**0.5)
    y, x = jnp.mgrid[:side, :side].astype(jnp.float32).reshape(2, -1)
    quarter = width // 4
    omega = base ** -(jnp.arange(quarter) / quarter)
    curves = [f(v[:, None] * omega) for v in (y, x) for f in (jnp.sin, jnp.cos)]
    return jnp.concatenate(curves, axis=1)[None]


class Vit(nn.Module):
    """Images -> tokens in the decoder's width (the projector is `head`)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, h, w, 3] in [-1, 1] -> [B, P, D of the decoder]."""
        config, vit = self.config, self.config.vit
        dtype = jnp.dtype(config.compute_dtype)
        x = self._embed(images.astype(dtype))
        position = self.param(
            "pos_embedding",
            lambda _: position_curves(config.num_patches, vit.width, 10_000.0),
        )
        x = x + position.astype(dtype)
        if vit.class_token:
            token = self.param("cls", nn.initializers.zeros, (1, 1, vit.width)).astype(dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, vit.width)), x], axis=1)
        x = Encoder(config, name="Transformer")(x)
        if vit.class_token:
            x = x[:, 1:]
        return Dense((config.decoder.width,), name="head")(x)

    def _embed(self, x: jax.Array) -> jax.Array:
        vit = self.config.vit
        if not vit.stem:
            return PatchEmbedding(vit.width, vit.patch_size, name="embedding")(x)
        for i, (features, blocks) in enumerate(vit.stem):
            size, stride = (4, 4) if i == 0 else (3, 2)
            x = Convolution(features, size, stride, name=f"stem_{i}")(x)
            x = nn.gelu(LayerNorm(name=f"stem_norm_{i}")(x))
            for j in range(blocks):
                y = nn.gelu(LayerNorm(name=f"stem_block_{i}_{j}_norm")(x))
                x = x + Convolution(features, 3, 1, name=f"stem_block_{i}_{j}")(y)
        x = Convolution(vit.width, 3, 2, name="embedding")(x)
        return x.reshape(x.shape[0], -1, vit.width)
