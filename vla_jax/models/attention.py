"""Attention, rotary positions and masks. Axis letters: see `vla_jax.types`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from vla_jax.models.presets import AttentionBackend
from vla_jax.sharding.activations import on_own_rows


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    backend: AttentionBackend = "xla",
) -> jax.Array:
    """Scaled dot-product attention with grouped queries; softmax in float32.

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H] with N a multiple of K.
      mask: bool [B, T, S], True where T may look at S; None for all.
      scale: of the products; None: H ** -0.5.
      softcap: products become softcap * tanh(product / softcap).

    Returns:
      [B, T, N, H] in q's dtype.
    """
    b, t, n, h = q.shape
    times: float = h**-0.5 if scale is None else scale
    if backend != "xla" and t > 1:  # one query at a time has nothing to save
        return _FUSED[backend](q, k, v, mask, times, softcap)
    num_kv = k.shape[2]
    q = q.reshape(b, t, num_kv, n // num_kv, h)
    # T before G: with the queries of a group side by side, both products are plain matrix products
    # for each (b, k), and nothing is transposed.
    logits = jnp.einsum("BTKGH,BSKH->BKTGS", q, k, preferred_element_type=jnp.float32) * times
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if mask is not None:
        logits = jnp.where(mask[:, None, :, None], logits, jnp.finfo(jnp.float32).min)
    # The softmax is divided by its sum after the product with v: H numbers a query, not S.
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = jnp.sum(weights, axis=-1).swapaxes(1, 2)  # B T K G
    out = jnp.einsum(
        "BKTGS,BSKH->BTKGH", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (out / total[..., None]).astype(v.dtype).reshape(b, t, n, h)


def _cudnn(q, k, v, mask, scale: float, softcap: float | None) -> jax.Array:
    assert softcap is None, "ModelConfig refuses it"
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation="cudnn")


_SPLASH_BLOCK = 128


def _splash(q, k, v, mask, scale: float, softcap: float | None) -> jax.Array:
    """Pallas' kernel skips what is masked block by block; rows are padded to whole blocks."""
    b, t, n, _ = q.shape
    mask = jnp.ones((b, t, k.shape[1]), bool) if mask is None else mask

    def padded(x: jax.Array, *axes: int) -> jax.Array:
        pad = [(0, -x.shape[i] % _SPLASH_BLOCK if i in axes else 0) for i in range(x.ndim)]
        return jnp.pad(x, pad)

    def row(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, *, interpret: bool):
        """One row of the batch; axes N T H, K S H and T S."""
        kernel = splash_attention.make_splash_mha_single_device(
            jnp.broadcast_to(mask, (n, *mask.shape)),
            attn_logits_soft_cap=softcap,
            interpret=interpret,
        )
        # Under jit this flag of a mask made of arrays is one too, and the kernel branches on it.
        for info in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
            if (made := getattr(kernel, info)) is not None:
                setattr(kernel, info, made._replace(is_dynamic_mask=True))
        return kernel(q * scale, k, v)

    def rows(*arrays: jax.Array) -> jax.Array:
        # By what is compiled for, which need not be what runs the compiler.
        compiled, interpreted = (
            jax.vmap(functools.partial(row, interpret=interpret)) for interpret in (False, True)
        )
        out: Any = jax.lax.platform_dependent(*arrays, tpu=compiled, default=interpreted)
        return out

    q, k, v = (padded(x.swapaxes(1, 2), 2) for x in (q, k, v))
    out = on_own_rows(rows, q, k, v, padded(mask, 1, 2))
    return out[:, :, :t].swapaxes(1, 2)


_FUSED = {"cudnn": _cudnn, "splash": _splash}


def rope_frequencies(head_dim: int, base: float) -> jax.Array:
    """Radians per position, float32 [H / 2]."""
    half = head_dim // 2
    return base ** -(jnp.arange(half, dtype=jnp.float32) / half)


def rope(x: jax.Array, positions: jax.Array, frequencies: jax.Array) -> jax.Array:
    """Rotary position embedding (arXiv 2104.09864), halves rotated against each other.

    Args:
      x: [B, T, N, H].
      positions: int [B, T].
      frequencies: see `rope_frequencies`.
    """
    angle = positions[..., None, None].astype(jnp.float32) * frequencies  # B T 1 H/2
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def count_together(x: jax.Array, together: jax.Array | None) -> jax.Array:
    """bool [B, T] -> int [B, T]: how many are True up to each position, of those with it.

    Args:
      together: bool [B, T, S]; None: all are.
    """
    if together is None:
        return jnp.cumsum(x, axis=1)
    place = jnp.arange(x.shape[1])
    return jnp.sum(together & (place <= place[:, None]) & x[:, None], axis=-1)


def prefix_lm_mask(
    valid: jax.Array,
    attend_causal: jax.Array,
    is_later: jax.Array | bool = False,
    together: jax.Array | None = None,
) -> jax.Array:
    """Who sees whom: the prefix both ways, each causal position only what came before it.

    With 2 image tokens, 2 prompt tokens and 3 answer tokens (rows look at columns):

        i i p p a a a
        1 1 1 1 . . .   i
        1 1 1 1 . . .   i
        1 1 1 1 . . .   p
        1 1 1 1 . . .   p
        1 1 1 1 1 . .   a
        1 1 1 1 1 1 .   a
        1 1 1 1 1 1 1   a

    Args:
      valid: bool [B, T], False for padding, which nobody sees.
      attend_causal: bool [B, T].
      is_later: bool [T], not seen by those that are not, such as the text by the images.
      together: bool [B, T, T], who may see whom at all, in packed rows; None: everybody.

    Returns:
      bool [B, T, T]. A padding row sees the valid positions before it, so no row is empty.
    """
    block = is_later + count_together(attend_causal, together)
    mask = (block[:, None, :] <= block[:, :, None]) & valid[:, None, :]
    return mask if together is None else mask & together
