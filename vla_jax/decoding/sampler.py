"""Decoding with a KV cache: text from the full vocabulary, actions that cannot be malformed.

An action tokenizer describes its legal token sequences as an automaton. Each row of a batch carries
the automaton's state through the loop and chooses only among what is legal in it, so a malformed
action cannot come out, whatever the logits. A batch of actions multiplies only the embedding rows
of the action tokens (256 of them for bins, not the whole vocabulary).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from vla_jax.actions.tokenizer import Automaton
from vla_jax.models.decoder import Caches
from vla_jax.models.presets import ModelConfig
from vla_jax.models.stack import unstack_layers
from vla_jax.models.vla import Vla, run_model
from vla_jax.types import Params

DecodeFn = Callable[..., jax.Array]
"""(params, images [B, views, h, w, 3], tokens [B, T], valid [B, T], temperature float32 [B], seed
int32 [B], and, for a decoder of both kinds, is_action bool [B]) -> ids int32 [B, K], padded."""

Kind = Literal["text", "action", "both"]


class _Loop(NamedTuple):
    step: jax.Array  # int32 [], tokens so far
    ids: jax.Array  # int32 [B, K]
    caches: Caches
    seen: jax.Array  # bool [B, S]
    state: jax.Array  # int32 [B], the automaton's
    done: jax.Array  # bool [B]


@dataclasses.dataclass(frozen=True)
class _Picker:
    """Chooses each row's next token."""

    model: Vla
    kind: Kind
    eos_id: int
    max_answer_tokens: int
    automaton: Automaton | None
    top_k: int
    num_words: int | None

    @property
    def length(self) -> int:
        """Most tokens of a row."""
        actions = self.automaton.max_tokens if self.automaton and self.kind != "text" else 0
        return max(actions, self.max_answer_tokens if self.kind != "action" else 0)

    def __call__(
        self, params: Params, hidden, step, state, temperature, seed, is_action=None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Next token [B], the automaton's state after it, and whether the row is complete."""
        rows = jnp.asarray(self.automaton.token_ids) if self.automaton else None
        if self.kind == "action":
            logits = run_model(self.model, params, hidden, rows, method="logits")
            return self._action(logits, step, state, temperature, seed)
        logits = run_model(self.model, params, hidden, method="logits")
        words = logits[:, : self.num_words]
        word = self._draw(words, temperature, seed, step).astype(jnp.int32)
        ended = (word == self.eos_id) | (step + 1 >= self.max_answer_tokens)
        if self.kind == "text":
            return word, state, ended
        assert is_action is not None
        token, after, complete = self._action(logits[:, rows], step, state, temperature, seed)
        return (
            jnp.where(is_action, token, word),
            jnp.where(is_action, after, state),
            jnp.where(is_action, complete, ended),
        )

    def _action(self, logits: jax.Array, step, state, temperature, seed):
        assert self.automaton is not None
        ids, legal, next_state, sampled, _ = (jnp.asarray(x) for x in self.automaton)
        state = jnp.minimum(state, len(legal) - 1)  # a complete row stays where it is
        # Not -inf alone: a model whose logits are NaN or -inf still emits a legal token.
        logits = jnp.nan_to_num(logits, neginf=-1e30)
        logits = jnp.where(legal[state], logits, -jnp.inf)
        choice = self._draw(logits, temperature * sampled[state], seed, step)
        after = next_state[state, choice]
        return ids[choice], after, after == len(legal)

    def _draw(self, logits: jax.Array, temperature, seed, step) -> jax.Array:
        """The argmax of logits plus Gumbel noise is a sample of their softmax."""
        if self.top_k:
            least = jax.lax.top_k(logits, min(self.top_k, logits.shape[1]))[0][:, -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(s), step))(seed)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        return jnp.argmax(logits + temperature[:, None] * noise, axis=-1)


def make_decoder(
    config: ModelConfig,
    kind: Kind,
    *,
    eos_id: int,
    pad_id: int,
    max_answer_tokens: int = 0,
    automaton: Automaton | None = None,
    top_k: int = 0,
    num_words: int | None = None,
) -> DecodeFn:
    """A compiled decoder for prompts of one kind, or of both in one batch.

    Each row stops by itself, text at its EOS, an action when it is complete, and is padded after
    it. A token is drawn from the model's distribution sharpened by the row's temperature; 0 takes
    the likeliest. What a row draws follows from its seed alone, whatever else is in the batch.

    Args:
      max_answer_tokens: most tokens of a text answer.
      automaton: of the action tokenizer.
      top_k: draw among so many likeliest tokens only; 0: among all.
      num_words: the vocabulary's size. Published embedding tables are padded with spare rows; those
        stand for nothing and do not come out as text. None: all rows are words.

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
    pick = _Picker(model, kind, eos_id, max_answer_tokens, automaton, top_k, num_words)
    length = pick.length

    @jax.jit
    def decode(
        params: Params, images: jax.Array, tokens: jax.Array, valid: jax.Array, *options: jax.Array
    ) -> jax.Array:
        params = unstack_layers(params, config)
        hidden, caches, seen = run_model(
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
            hidden, caches, seen = run_model(
                model, params, newest, loop.caches, loop.seen, place, method="decode_step"
            )
            return append(loop._replace(caches=caches, seen=seen), hidden)

        nothing = _Loop(
            jnp.int32(0),
            jnp.full((batch, length), pad_id, jnp.int32),
            caches,
            seen,
            jnp.zeros(batch, jnp.int32),
            jnp.zeros(batch, bool),
        )
        running = lambda loop: (loop.step < length) & ~jnp.all(loop.done)  # noqa: E731
        return jax.lax.while_loop(running, body, append(nothing, hidden)).ids

    return decode
