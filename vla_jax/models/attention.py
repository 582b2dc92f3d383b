"""Attention, rotary positions and masks. Axis letters: see `vla_jax.types`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Scaled dot-product attention with grouped queries; softmax in float32.

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H] with N a multiple of K.
      mask: bool [B, T, S], True where T may look at S; None for all.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    b, t, n, h = q.shape
    num_kv = k.shape[2]
    q = q.reshape(b, t, num_kv, n // num_kv, h)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", q, k, preferred_element_type=jnp.float32) * h**-0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", probabilities, v).reshape(b, t, n, h)


def rope(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding (arXiv 2104.09864), halves rotated against each other.

    Args:
      x: [B, T, N, H].
      positions: int [B, T].
    """
    half = x.shape[-1] // 2
    inverse_period = base ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[..., None, None].astype(jnp.float32) * inverse_period  # B T 1 H/2
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def prefix_lm_mask(valid: jax.Array, attend_causal: jax.Array) -> jax.Array:
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

    Returns:
      bool [B, T, T]. A padding row sees the valid positions before it, so no row is empty.
    """
    block = jnp.cumsum(attend_causal, axis=1)
    return (block[:, None, :] <= block[:, :, None]) & valid[:, None, :]
