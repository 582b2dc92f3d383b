"""Decoding with a KV cache: text from the full vocabulary, actions that cannot be malformed.

An action tokenizer describes its legal token sequences as an automaton. Each row of a batch carries
the automaton's state through the loop and chooses only among what is legal in it, so a malformed
action cannot come out, whatever the logits. A batch of actions multiplies only the embedding rows
of the action tokens (256 of them for bins, not the whole vocabulary).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from vla_jax.actions.tokenizer import Automaton
from vla_jax.models.decoder import KVCache
from vla_jax.models.presets import ModelConfig
from vla_jax.models.vla import Vla, run_model
from vla_jax.types import Params

DecodeFn = Callable[..., jax.Array]
"""(params, images [B, views, h, w, 3], tokens [B, T], valid [B, T], temperature float32 [B], seed
int32 [B], and, for a decoder of both kinds, is_action bool [B]) -> ids int32 [B, K], padded."""

Kind = Literal["text", "action", "both"]


class _Loop(NamedTuple):
    step: jax.Array  # int32 [], tokens so far
    ids: jax.Array  # int32 [B, K]
    cache: KVCache
    seen: jax.Array  # bool [B, S]
    state: jax.Array  # int32 [B], the automaton's
    done: jax.Array  # bool [B]


def make_decoder(
    config: ModelConfig,
    kind: Kind,
    *,
    eos_id: int,
    pad_id: int,
    max_answer_tokens: int = 0,
    automaton: Automaton | None = None,
    top_k: int = 0,
) -> DecodeFn:
    """A compiled decoder for prompts of one kind, or of both in one batch.

    Each row stops by itself, text at its EOS, an action when it is complete, and is padded after
    it. A token is drawn from the model's distribution sharpened by the row's temperature; 0 takes
    the likeliest. What a row draws follows from its seed alone, whatever else is in the batch.

    Args:
      max_answer_tokens: most tokens of a text answer.
      automaton: of the action tokenizer.
      top_k: draw among so many likeliest tokens only; 0: among all.

    Raises:
      ValueError: no automaton for actions, no room for answers, or a state without a legal token.
    """
    if kind != "action" and max_answer_tokens < 1:
        raise ValueError("decoding text needs max_answer_tokens >= 1")
    if kind != "text":
        if automaton is None:
            raise ValueError("decoding actions needs an action tokenizer")
        if not automaton.legal.any(axis=1).all():
            raise ValueError("a state of the action tokenizer has no legal token")
    model = Vla(config)
    length = max(
        max_answer_tokens if kind != "action" else 0,
        automaton.max_tokens if automaton is not None and kind != "text" else 0,
    )

    def draw(logits: jax.Array, temperature: jax.Array, seed: jax.Array, step: jax.Array):
        """The argmax of logits plus Gumbel noise is a sample of their softmax."""
        if top_k:
            least = jax.lax.top_k(logits, min(top_k, logits.shape[1]))[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), step))(seed)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.argmax(logits + temperature[:, None] * noise, axis=-1)

    def text(logits: jax.Array, step: jax.Array, temperature, seed):
        token = draw(logits, temperature, seed, step).astype(jnp.int32)
        return token, (token == eos_id) | (step + 1 >= max_answer_tokens)

    def action(logits: jax.Array, step: jax.Array, state: jax.Array, temperature, seed):
        assert automaton is not None
        states = len(automaton.legal)
        state = jnp.minimum(state, states - 1)
        # Not -inf alone: a model whose logits are NaN or -inf still emits a legal token.
        logits = jnp.nan_to_num(logits, neginf=-1e30)
        logits = jnp.where(jnp.asarray(automaton.legal)[state], logits, -jnp.inf)
        temperature = temperature * jnp.asarray(automaton.sampled)[state]
        choice = draw(logits, temperature, seed, step)
        after = jnp.asarray(automaton.next_state)[state, choice]
        return jnp.asarray(automaton.token_ids)[choice], after, after == states

    def pick(params: Params, hidden, step, state, temperature, seed, is_action=None):
        """Next token [B], the automaton's state after it, and whether the row is complete."""
        if kind == "action":
            assert automaton is not None
            rows = jnp.asarray(automaton.token_ids)
            logits = run_model(model, params, hidden, rows, method="logits")
            return action(logits, step, state, temperature, seed)
        logits = run_model(model, params, hidden, method="logits")
        word, ended = text(logits, step, temperature, seed)
        if kind == "text":
            return word, state, ended
        assert automaton is not None and is_action is not None
        among = logits[:, jnp.asarray(automaton.token_ids)]
        token, after, complete = action(among, step, state, temperature, seed)
        return (
            jnp.where(is_action, token, word),
            jnp.where(is_action, after, state),
            jnp.where(is_action, complete, ended),
        )

    @jax.jit
    def decode(
        params: Params, images: jax.Array, tokens: jax.Array, valid: jax.Array, *options: jax.Array
    ) -> jax.Array:
        hidden, cache, seen = run_model(
            model, params, images, tokens, valid, max_new_tokens=length, method="prefill"
        )
        batch, prefix = hidden.shape[0], seen.shape[1] - length

        def append(loop: _Loop, hidden: jax.Array) -> _Loop:
            token, state, complete = pick(params, hidden, loop.step, loop.state, *options)
            token = jnp.where(loop.done, pad_id, token)
            return loop._replace(
                step=loop.step + 1,
                ids=loop.ids.at[:, loop.step].set(token),
                state=jnp.where(loop.done, loop.state, state),
                done=loop.done | complete,
            )

        def body(loop: _Loop) -> _Loop:
            newest = loop.ids[:, loop.step - 1]
            place = prefix + loop.step - 1
            hidden, cache, seen = run_model(
                model, params, newest, loop.cache, loop.seen, place, method="decode_step"
            )
            return append(loop._replace(cache=cache, seen=seen), hidden)

        nothing = _Loop(
            jnp.int32(0),
            jnp.full((batch, length), pad_id, jnp.int32),
            cache,
            seen,
            jnp.zeros(batch, jnp.int32),
            jnp.zeros(batch, bool),
        )
        running = lambda loop: (loop.step < length) & ~jnp.all(loop.done)  # noqa: E731
        return jax.lax.while_loop(running, body, append(nothing, hidden)).ids

    return decode
