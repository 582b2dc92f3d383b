"""Floating-point operations of a training step, and what the device can do at most."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from vla_jax.models.presets import DecoderConfig, ModelConfig, VitConfig


def train_flops_per_sample(
    config: ModelConfig, text_tokens: int, loss_tokens: int, *, samples: int = 1
) -> float:
    """Model FLOPs of forward and backward for one sample: matrix products only, 2 per
    multiply-add, backward twice the forward, nothing for recomputation (arXiv 2204.02311, B).

    Args:
      text_tokens: T, the row's length.
      loss_tokens: positions of a row whose logits are computed.
      samples: in a row.
    """
    views = config.num_views * samples
    vit = views * _vit(config.vit, config)
    total = views * config.num_patches + text_tokens
    decoder = _decoder(config.decoder, total)
    logits = 2 * loss_tokens * config.decoder.width * config.decoder.vocab_size
    return 3.0 * (vit + decoder + logits) / samples


def _vit(vit: VitConfig, config: ModelConfig) -> float:
    p, d = config.num_patches, vit.width
    block = 2 * p * (4 * d * d + 2 * d * vit.mlp_dim) + 4 * p * p * d
    embed, channels, side = 0.0, 3, config.image_size
    for i, (features, blocks) in enumerate((*vit.stem, (d, 0))):
        stride = (4 if i == 0 else 2) if vit.stem else vit.patch_size
        kernel = stride if i == 0 else 3
        side //= stride
        inputs = kernel * kernel * channels + blocks * 9 * features
        embed += 2 * side * side * inputs * features
        channels = features
    return embed + vit.depth * block + 2 * p * d * config.decoder.width


def _decoder(d: DecoderConfig, tokens: int) -> float:
    query, keys = d.num_heads * d.head_dim, d.num_kv_heads * d.head_dim
    weights = d.width * (2 * query + 2 * keys + 3 * d.mlp_dim)
    return d.depth * (2 * tokens * weights + 4 * tokens * tokens * query)


def matmul_flops_per_s(dtype: str, size: int = 2048, repeats: int = 8) -> float:
    """What one device reaches on a plain `size`^3 matrix product: the best of `repeats`."""
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        multiply(x, x).block_until_ready()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
