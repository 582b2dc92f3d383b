"""Floating-point operations of a training step, and what the device can do at most."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp

from vla_jax.models.presets import DecoderConfig, ModelConfig, VitConfig
from vla_jax.sharding.topology import CHIPS

_TPUS = (
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6", "v6e"),
    ("TPU7x", "tpu7x"),
)
# (beginning of a JAX device's kind, its dense bfloat16 FLOP/s), the first that fits; of GPUs from
# NVIDIA's data sheets.
_PEAKS = (
    *((kind, 1e12 * CHIPS[name].peak_tflops) for kind, name in _TPUS),
    ("NVIDIA GB200", 2500e12),
    ("NVIDIA B200", 2250e12),
    ("NVIDIA GH200", 989.4e12),
    ("NVIDIA H200", 989.4e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989.4e12),
    ("NVIDIA A100", 311.9e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L4", 121e12),
)


def peak_flops_per_s(device_kind: str) -> float | None:
    """What a device of this `jax.Device.device_kind` does at most, dense in bfloat16, FLOP/s.

    None if the kind is not known, as for CPUs.
    """
    return next((peak for kind, peak in _PEAKS if device_kind.startswith(kind)), None)


@dataclasses.dataclass(frozen=True)
class StepWork:
    """What an update takes, over all devices.

    Attributes:
      positions: of text and images that the decoder computes, padding included.
      flops: of the model, see `train_flops_per_sample`.
      peak_flops_per_s: of all devices together; None if not known.
    """

    positions: int
    flops: float
    peak_flops_per_s: float | None = None


def step_work(
    config: ModelConfig, row_lengths: tuple[int, int], rows: int, samples_per_row: int
) -> StepWork:
    """The work of an update of `rows` rows on the devices of this job.

    Args:
      row_lengths: tokens of a row, and at most so many of them in the loss.
    """
    per_sample = train_flops_per_sample(config, *row_lengths, samples=samples_per_row)
    images = config.num_views * config.num_patches * samples_per_row
    peak = peak_flops_per_s(jax.devices()[0].device_kind)
    return StepWork(
        positions=rows * (images + row_lengths[0]),
        flops=per_sample * rows * samples_per_row,
        peak_flops_per_s=None if peak is None else peak * jax.device_count(),
    )


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
    n = p + vit.class_token
    block = 2 * n * (4 * d * d + 2 * d * vit.mlp_dim) + 4 * n * n * d
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
