"""Decoding with a KV cache and a legality mask: greedy text, greedy or sampled actions.

An action decode multiplies only the embedding rows of the action tokens (256 of them, not the
whole vocabulary), masked per position to what is legal there: a malformed action cannot come out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.models.decoder import KVCache
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import Vla, run_model
from vla_jax.types import Params

DecodeFn = Callable[..., jax.Array]
"""(params, images [B, views, h, w, 3], tokens [B, T], valid [B, T]) -> ids int32 [B, K]. An action
decoder takes two more: temperature float32 [B] and seed int32 [B]."""


class _Loop(NamedTuple):
    step: jax.Array  # int32 []
    ids: jax.Array  # int32 [B, K]
    hidden: jax.Array  # [B, D], of the newest token
    cache: KVCache
    seen: jax.Array  # bool [B, S]
    done: jax.Array  # bool [B]


def make_text_decoder(
    config: ModelConfig, *, max_new_tokens: int, eos_id: int, pad_id: int
) -> DecodeFn:
    """Full vocabulary; each row stops at its own EOS and is padded after it."""
    model = Vla(config)

    def pick(params: Params, hidden: jax.Array, step: jax.Array) -> jax.Array:
        logits = run_model(model, params, hidden, method="logits")
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return _make_decoder(model, pick, max_new_tokens=max_new_tokens, eos_id=eos_id, pad_id=pad_id)


def make_action_decoder(
    config: ModelConfig, *, token_ids: np.ndarray, legal: np.ndarray
) -> DecodeFn:
    """Exactly one action's tokens.

    Each is drawn from the model's distribution over the legal ones, sharpened by the row's
    temperature; 0 takes the likeliest, and so does a discrete dimension always: drawing "terminate"
    at each step would end an episode sooner or later. What a row draws follows from its seed alone,
    whatever else is in the batch.

    Args:
      token_ids: int [R], the vocabulary ids of the bins.
      legal: bool [K, R], which bins may stand at each of the K positions.
    """
    model = Vla(config)
    if not legal.any(axis=1).all():
        raise ValueError("a position has no legal action token")

    def noise(seed: jax.Array, step: jax.Array) -> jax.Array:
        """Gumbel: the argmax of logits and this is a sample of their softmax."""
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), step))(seed)
        return jax.vmap(lambda key: jax.random.gumbel(key, (legal.shape[1],)))(keys)

    def pick(params: Params, hidden: jax.Array, step: jax.Array, temperature, seed) -> jax.Array:
        rows = jnp.asarray(token_ids)
        logits = run_model(model, params, hidden, rows, method="logits")
        allowed = jnp.asarray(legal)[step]
        # Not -inf alone: a model whose logits are NaN or -inf still emits a legal token.
        logits = jnp.nan_to_num(logits, neginf=-1e30)
        scale = temperature * jnp.asarray(legal.all(axis=1))[step]
        logits += scale[:, None] * noise(seed, step)
        logits = jnp.where(allowed, logits, -jnp.inf)
        return rows[jnp.argmax(logits, axis=-1)]

    return _make_decoder(model, pick, max_new_tokens=len(legal), eos_id=None, pad_id=0)


def _make_decoder(model: Vla, pick, *, max_new_tokens: int, eos_id: int | None, pad_id: int):
    @jax.jit
    def decode(
        params: Params, images: jax.Array, tokens: jax.Array, valid: jax.Array, *options: jax.Array
    ) -> jax.Array:
        hidden, cache, seen = run_model(
            model, params, images, tokens, valid, max_new_tokens=max_new_tokens, method="prefill"
        )
        batch, prefix = hidden.shape[0], seen.shape[1] - max_new_tokens

        def body(state: _Loop) -> _Loop:
            token = pick(params, state.hidden, state.step, *options)
            token = jnp.where(state.done, pad_id, token)
            ids = state.ids.at[:, state.step].set(token)
            done = state.done if eos_id is None else state.done | (token == eos_id)
            hidden, cache, seen = run_model(
                model,
                params,
                token,
                state.cache,
                state.seen,
                prefix + state.step,
                method="decode_step",
            )
            return _Loop(state.step + 1, ids, hidden, cache, seen, done)

        start = _Loop(
            jnp.int32(0),
            jnp.full((batch, max_new_tokens), pad_id, jnp.int32),
            hidden,
            cache,
            seen,
            jnp.zeros(batch, bool),
        )
        end = jax.lax.while_loop(
            lambda s: (s.step < max_new_tokens) & ~jnp.all(s.done), body, start
        )
        return end.ids

    return decode
