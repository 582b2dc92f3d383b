"""Decoding with a KV cache: text from the full vocabulary, actions that cannot be malformed.

An action tokenizer describes its legal token sequences as an automaton. Each row of a batch carries
the automaton's state through the loop and chooses only among what is legal in it, so a malformed
action cannot come out, whatever the logits. A batch of actions multiplies only the embedding rows
of the action tokens (256 of them for bins, not the whole vocabulary).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vla_jax.actions.tokenizer import Automaton
from vla_jax.models.decoder import Caches
from vla_jax.models.presets import ModelConfig
from vla_jax.models.stack import unstack_layers
from vla_jax.models.vla import State, Vla, run_model
from vla_jax.sharding.mesh import replicated
from vla_jax.types import Params

DecodeFn = Callable[..., jax.Array]
"""(params, images [B, views, h, w, 3], tokens [B, T], valid [B, T], temperature float32 [B], seed
int32 [B], and, for a decoder of both kinds, is_action bool [B]) -> ids int32 [B, K], padded. For a
model with a state, also `state`, a `models.vla.State`.

Decoders of plans say a plan, `plan_end`, and then the action's tokens."""

Kind = Literal["text", "action", "both", "plan"]

BROKEN = -1
"""Said by a decoder with `flag_broken` in place of a token where the logits are not finite."""


class _Loop(NamedTuple):
    step: jax.Array  # int32 [], tokens so far
    ids: jax.Array  # int32 [B, K]
    caches: Caches
    seen: jax.Array  # bool [B, S]
    state: jax.Array  # int32 [B], the automaton's; of plans see `_Picker`
    done: jax.Array  # bool [B]


@dataclasses.dataclass(frozen=True)
class _Picker:
    """Chooses each row's next token.

    With plans, states below 0 come before the automaton's. There are m = len(plan_end) where the
    plan is free, -m + j once the first j tokens of `plan_end` were said, and m more where it must
    end, -2m + j: there no other token may follow.
    """

    model: Vla
    kind: Kind
    eos_id: int
    max_answer_tokens: int
    automaton: Automaton | None
    top_k: int
    num_words: int | None
    plan_end: tuple[int, ...] = ()
    flag_broken: bool = False

    def __post_init__(self):
        if self.kind != "action" and self.max_answer_tokens < 1:
            raise ValueError("decoding text needs max_answer_tokens >= 1")
        if self.kind == "plan" and not self.plan_end:
            raise ValueError("decoding plans needs plan_end")
        if self.kind != "text":
            if self.automaton is None:
                raise ValueError("decoding actions needs an action tokenizer")
            if not self.automaton.legal.any(axis=1).all():
                raise ValueError("a state of the action tokenizer has no legal token")

    @property
    def start(self) -> int:
        """The state of a row that has said nothing."""
        return -len(self.plan_end) if self.kind == "plan" else 0

    @property
    def length(self) -> int:
        """Most tokens of a row."""
        if self.kind == "plan":
            assert self.automaton is not None
            return self.max_answer_tokens + len(self.plan_end) + self.automaton.max_tokens
        actions = self.automaton.max_tokens if self.automaton and self.kind != "text" else 0
        return max(actions, self.max_answer_tokens if self.kind != "action" else 0)

    def __call__(
        self, params: Params, hidden, step, state, temperature, seed, is_action=None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Next token [B], the automaton's state after it, and whether the row is complete."""
        rows = jnp.asarray(self.automaton.token_ids) if self.automaton else None
        wanted = rows if self.kind == "action" else None
        logits = run_model(self.model, params, hidden, wanted, method="logits")
        token, after, complete = self._choose(
            logits, rows, step, state, temperature, seed, is_action
        )
        if self.flag_broken:
            broken = ~jnp.isfinite(logits).all(axis=1)
            token, complete = jnp.where(broken, BROKEN, token), complete | broken
        return token, after, complete

    def _choose(
        self, logits: jax.Array, rows: jax.Array | None, step, state, temperature, seed, is_action
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `__call__`; of logits of the action rows alone, or of all."""
        if self.kind == "action":
            return self._action(logits, step, state, temperature, seed)
        words = logits[:, : self.num_words]
        warmth = 0 * temperature if self.kind == "plan" else temperature  # plans are the likeliest
        word = self._draw(words, warmth, seed, step).astype(jnp.int32)
        # A plan's last token is not its end.
        limit = self.max_answer_tokens + (self.kind == "plan")
        ended = (word == self.eos_id) | (step + 1 >= limit)
        if self.kind == "text":
            return word, state, ended
        if self.kind == "plan":
            return self._plan(logits[:, rows], step, state, temperature, seed, word, ended)
        assert is_action is not None
        token, after, complete = self._action(logits[:, rows], step, state, temperature, seed)
        return (
            jnp.where(is_action, token, word),
            jnp.where(is_action, after, state),
            jnp.where(is_action, complete, ended),
        )

    def _plan(self, logits: jax.Array, step, state, temperature, seed, word, ended):
        """A word of the plan, a token of `plan_end` or one of the action, by the state."""
        end = jnp.asarray(self.plan_end, jnp.int32)
        m = len(self.plan_end)
        said = state % m  # of `plan_end`, for states below 0
        must_end = (state < -m) | ended
        token = jnp.where(must_end, end[said], word)
        said = jnp.where(token == end[said], said + 1, jnp.where(token == end[0], 1, 0))
        after = jnp.where(said == m, 0, said - m * jnp.where(must_end, 2, 1))
        acting = state >= 0
        number, next_state, complete = self._action(
            logits, step, jnp.maximum(state, 0), temperature, seed
        )
        return (
            jnp.where(acting, number, token),
            jnp.where(acting, next_state, after),
            acting & complete,
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
    plan_end: Sequence[int] = (),
    flag_broken: bool = False,
    mesh: Mesh | None = None,
) -> DecodeFn:
    """A compiled decoder for prompts of one kind, or of both in one batch.

    Each row stops by itself, text at its EOS, an action when it is complete, and is padded after
    it. A token is drawn from the model's distribution sharpened by the row's temperature; 0 takes
    the likeliest. What a row draws follows from its seed alone, whatever else is in the batch.

    Args:
      max_answer_tokens: most tokens of a text answer, or of a plan without its end.
      automaton: of the action tokenizer.
      top_k: draw among so many likeliest tokens only; 0: among all.
      num_words: the vocabulary's size. Published embedding tables are padded with spare rows; those
        stand for nothing and do not come out as text. None: all rows are words.
      plan_end: the ids that end a plan. A plan that comes to its limit or to EOS before is ended
        with them, so the action always follows.
      flag_broken: a row whose logits are not finite says `BROKEN` and ends there. Without, it goes
        on with whatever is legal.
      mesh: that parameters lie on and rows are split over; ids then come out whole everywhere.
        None: all is on one device.

    Raises:
      ValueError: no automaton for actions, no room for answers, a state without a legal token, or a
        decoder of plans without `plan_end`.
    """
    pick = _Picker(
        Vla(config),
        kind,
        eos_id,
        max_answer_tokens,
        automaton,
        top_k,
        num_words,
        tuple(int(i) for i in plan_end),
        flag_broken,
    )

    def decode(params: Params, *inputs: jax.Array, state: State | None = None) -> jax.Array:
        return _decode(unstack_layers(params, config), pick, pad_id, *inputs, state=state)

    if mesh is None:
        return jax.jit(decode)

    def on_mesh(params: Params, *inputs: jax.Array, state: State | None = None) -> jax.Array:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return decode(params, *inputs, state=state)

    return jax.jit(on_mesh, out_shardings=replicated(mesh))


def _decode(
    params: Params,
    pick: _Picker,
    pad_id: int,
    images: jax.Array,
    tokens: jax.Array,
    valid: jax.Array,
    *options: jax.Array,
    state: State | None,
) -> jax.Array:
    length = pick.length
    hidden, caches, seen = run_model(
        pick.model, params, images, tokens, valid, state, max_new_tokens=length, method="prefill"
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
            pick.model, params, newest, loop.caches, loop.seen, place, method="decode_step"
        )
        return append(loop._replace(caches=caches, seen=seen), hidden)

    nothing = _Loop(
        jnp.int32(0),
        jnp.full((batch, length), pad_id, jnp.int32),
        caches,
        seen,
        jnp.full(batch, pick.start, jnp.int32),
        jnp.zeros(batch, bool),
    )
    running = lambda loop: (loop.step < length) & ~jnp.all(loop.done)  # noqa: E731
    return jax.lax.while_loop(running, body, append(nothing, hidden)).ids
