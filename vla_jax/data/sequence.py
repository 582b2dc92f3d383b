"""Examples become token rows: `[BOS][prompt][answer][EOS][padding]`.

    position        0    1 .. n        n+1 .. n+k   n+k+1   rest
    token           BOS  prompt        answer       EOS     PAD
    attend_causal   0    0             1            1       0
    in_loss         0    0             1            1       0
    valid           1    1             1            1       0

The answer is a text, an action, or a plan and then an action: `pick rxbar chocolate. Action: ...`.
Action tokens of padded dimensions or steps are not in the loss. A state that is written in tokens
comes first in the prompt: `State: <012><200> Q: what action ...`.

An action needs no end token in decoding (its length is known), but trains with one, so that every
answer of the mixture ends the same way.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence

import numpy as np

from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.data.state import StateInput
from vla_jax.text.prompts import PLAN_END, plan_sentence
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.types import Example, chosen

_KNOWN_TEXTS = 4096  # kept encoded


class SequenceBuilder:
    """Builds fixed-length token rows.

    Args:
      vocabulary: text to ids.
      action_tokenizer: for robot examples; several for robots of different ActionSpecs; None if the
        mixture has none.
      max_tokens: T, the row length.
      max_answer_tokens: most answer tokens in a row, EOS included; the loss gathers that many.
      state: how a robot's state enters the rows; None: it does not.

    Raises:
      ValueError: lengths that do not leave room for a prompt, an action and EOS.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        action_tokenizer: ActionTokenizer | Sequence[ActionTokenizer] | None,
        *,
        max_tokens: int,
        max_answer_tokens: int,
        state: StateInput | None = None,
    ):
        if not 0 < max_answer_tokens < max_tokens:
            raise ValueError(
                f"max_answer_tokens {max_answer_tokens} must be between 1 and "
                f"max_tokens {max_tokens} - 1"
            )
        tokenizers = (
            action_tokenizer if isinstance(action_tokenizer, Sequence) else [action_tokenizer]
        )
        self.action_tokenizers = {t.spec.name: t for t in tokenizers if t is not None}
        """Of each robot, by the name of its ActionSpec."""
        longest = max((t.max_tokens for t in self.action_tokenizers.values()), default=0)
        if longest >= max_answer_tokens:
            raise ValueError(
                f"an action is up to {longest} tokens and an EOS: max_answer_tokens "
                f"{max_answer_tokens} must be at least {longest + 1}"
            )
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.max_answer_tokens = max_answer_tokens
        self.state = state
        self.plan_end = np.asarray(vocabulary.encode(PLAN_END), np.int32)
        """int32 [m]: ids that stand between a plan and its action."""
        self._state_mark = np.asarray(vocabulary.encode("State:"), np.int32)
        self._bos = np.asarray([vocabulary.bos_id], np.int32)
        self._eos = np.asarray([vocabulary.eos_id], np.int32)
        self._known: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    @property
    def action_tokenizer(self) -> ActionTokenizer | None:
        """The only one; None if there is none. Raises ValueError if there are several."""
        if len(self.action_tokenizers) > 1:
            raise ValueError(f"say for which robot: {', '.join(self.action_tokenizers)}")
        return next(iter(self.action_tokenizers.values()), None)

    def tokenizer_of(self, robot: str) -> ActionTokenizer:
        """By the name of the ActionSpec. Raises ValueError, naming those there are, for another."""
        if robot not in self.action_tokenizers:
            known = ", ".join(self.action_tokenizers) or "none"
            raise ValueError(f"there are no action tokens for robot {robot!r}, only for: {known}")
        return self.action_tokenizers[robot]

    def for_robot(self, name: str) -> SequenceBuilder:
        """The same for one robot; raises as `tokenizer_of`."""
        return SequenceBuilder(
            self.vocabulary,
            self.tokenizer_of(name),
            max_tokens=self.max_tokens,
            max_answer_tokens=self.max_answer_tokens,
            state=self.state,
        )

    def build(self, example: Example, draw: int = 0) -> dict[str, np.ndarray]:
        """One row of `build_rows`."""
        return {key: rows[0] for key, rows in self.build_rows([example], [draw]).items()}

    def build_rows(
        self,
        examples: Sequence[Example],
        draws: Sequence[int] | np.ndarray | None = None,
        robots: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """The columns of a batch that come from texts, actions and states.

        A text answer that is too long is cut (and then has no EOS), which `truncated` says; a
        prompt that leaves no room for its answer is an error, and so is a plan that leaves none for
        its action.

        Args:
          draws: random bits of each sample, which choose among its prompts and answers, see
            `types.chosen`; None takes the first ones.
          robots: names of the samples' ActionSpecs, "" for a text; None if there is one robot.

        Returns:
          tokens int32 [B, T]; attend_causal, in_loss, valid bool [B, T]; truncated bool [B]. With a
          state that is a vector, also state float32 [B, S], scaled to -1 .. 1, and state_valid
          bool [B].

        Raises:
          ValueError: empty prompt, prompt too long, action without tokenizer, bad action or state.
        """
        if draws is None:
            draws = [0] * len(examples)
        texts = [chosen(example, int(draw)) for example, draw in zip(examples, draws)]
        if robots is None:
            only = "" if self.action_tokenizer is None else self.action_tokenizer.spec.name
            robots = [only] * len(examples)
        prompts, answers, actions = self._encode(examples, texts, robots)
        vectors = self._add_states(prompts, [example.state for example in examples])
        prompt_end = np.asarray([1 + len(ids) for ids in prompts], np.int32)
        answer_size = np.asarray([1 + len(ids) for ids in answers], np.int32)
        answer_end = prompt_end + np.minimum(answer_size, self.max_answer_tokens)
        self._require_room(texts, prompt_end, answer_size, actions)
        position = np.arange(self.max_tokens)
        valid = position < answer_end[:, None]
        is_answer = valid & (position >= prompt_end[:, None])
        truncated = answer_size > self.max_answer_tokens
        pieces = [
            piece
            for prompt, answer, cut in zip(prompts, answers, truncated.tolist())
            for piece in (
                self._bos,
                prompt,
                answer[: self.max_answer_tokens],
                self._eos[:0] if cut else self._eos,
            )
        ]
        tokens = np.full(valid.shape, self.vocabulary.pad_id, np.int32)
        tokens[valid] = np.concatenate(pieces) if pieces else []
        in_loss = is_answer.copy()
        for row, example in enumerate(examples):
            if example.action_valid is not None:
                trained = self._action_tokens_valid(example, actions.get(row), robots[row])
                end = answer_end[row] - 1
                in_loss[row, end - len(trained) : end] = trained
        return {
            "tokens": tokens,
            "attend_causal": is_answer,
            "in_loss": in_loss,
            "valid": valid,
            "truncated": truncated,
            **vectors,
        }

    def prompts(
        self, prompts: Sequence[str], states: Sequence[np.ndarray | None] | np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Prompts alone, for decoding: tokens int32 [B, T'], valid bool [B, T'].

        T' is max_tokens - max_answer_tokens, fixed, so that decoding compiles once.

        Args:
          states: of each prompt's robot, [S]; None where there is none.

        Returns:
          Also state and state_valid, as `build_rows`.
        """
        length = self.max_tokens - self.max_answer_tokens
        encoded, _ = self._encode_texts(prompts)
        vectors = self._add_states(encoded, [None] * len(prompts) if states is None else states)
        counts = np.asarray([1 + len(ids) for ids in encoded], np.int32)
        if (counts > length).any():
            row = int(np.argmax(counts > length))
            raise ValueError(
                f"prompt of {counts[row]} tokens is longer than the {length} that the model was "
                f"trained with: shorten {prompts[row]!r}"
            )
        valid = np.arange(length) < counts[:, None]
        tokens = np.full(valid.shape, self.vocabulary.pad_id, np.int32)
        pieces = [piece for ids in encoded for piece in (self._bos, ids)]
        tokens[valid] = np.concatenate(pieces) if pieces else []
        return {"tokens": tokens, "valid": valid, **vectors}

    def _encode(
        self,
        examples: Sequence[Example],
        texts: Sequence[tuple[str, str | None]],
        robots: Sequence[str],
    ) -> tuple[list[np.ndarray], list[np.ndarray], dict[int, np.ndarray]]:
        """Ids of each prompt and answer, without BOS and EOS, and row -> ids of its action."""
        done = {row: e.action for row, e in enumerate(examples) if e.action is not None}
        saying = [row for row, example in enumerate(examples) if example.action is None]
        for row in saying:
            if not texts[row][1]:
                raise ValueError(f"example with neither action nor answer: {texts[row][0]!r}")
            if examples[row].plan:
                raise ValueError(f"plan without an action: {texts[row][0]!r}")
        planned = [row for row in done if examples[row].plan]
        known, said = self._encode_texts(
            [prompt for prompt, _ in texts],
            [plan_sentence(examples[row].plan) for row in planned],
            [texts[row][1] or "" for row in saying],
        )
        prompts, plans = known[: len(texts)], known[len(texts) :]
        actions: dict[int, np.ndarray] = {}
        for robot in dict.fromkeys(robots[row] for row in done):
            rows = [row for row in done if robots[row] == robot]
            actions |= zip(rows, self._encode_actions([done[row] for row in rows], robot))
        answers = [actions.get(row, self._bos) for row in range(len(texts))]
        for row, ids in zip(saying, said):
            answers[row] = np.asarray(ids, np.int32)
        for row, ids in zip(planned, plans):
            answers[row] = np.concatenate([ids, self.plan_end, actions[row]])
        return prompts, answers, actions

    def _encode_texts(
        self, prompts: Sequence[str], plans: Sequence[str] = (), answers: Sequence[str] = ()
    ) -> tuple[list[np.ndarray], list[list[int]]]:
        """Ids of prompts and plans, which come again and again, and of answers.

        All that is new is encoded in one call.
        """
        if not all(prompt.strip() for prompt in prompts):
            raise ValueError("empty prompt")
        repeated = [*prompts, *plans]
        with self._lock:
            known = {text: self._known.get(text) for text in repeated}
        missing = [text for text, ids in known.items() if ids is None]
        encoded = self.vocabulary.encode_batch([*missing, *answers])
        found = {text: ids for text, ids in known.items() if ids is not None}
        found |= {text: np.asarray(ids, np.int32) for text, ids in zip(missing, encoded)}
        with self._lock:
            for text, ids in found.items():
                self._known[text] = ids
                self._known.move_to_end(text)
            while len(self._known) > _KNOWN_TEXTS:
                self._known.popitem(last=False)
        return [found[text] for text in repeated], encoded[len(missing) :]

    def _encode_actions(self, actions: list[np.ndarray], robot: str) -> Sequence[np.ndarray]:
        """Ids of each action of one robot, all in one call of its tokenizer."""
        if not self.action_tokenizers:
            raise ValueError("a robot example needs an action tokenizer, and none is configured")
        tokenizer = self.action_tokenizers[robot]
        shape = (tokenizer.chunk, len(tokenizer.spec.dimensions))
        wrong = {np.shape(action) for action in actions} - {shape}
        if wrong:
            raise ValueError(f"action of shape {min(wrong)}, the action tokenizer's is {shape}")
        return tokenizer.encode_batch(np.stack(actions))

    def _add_states(
        self, prompts: list[np.ndarray], states: Sequence[np.ndarray | None] | np.ndarray
    ) -> dict[str, np.ndarray]:
        """Puts states before the prompts' ids, in place, or returns them as columns."""
        if self.state is None:
            return {}
        measured = [row for row, state in enumerate(states) if state is not None]
        given = [state for state in states if state is not None]
        if self.state.token_ids is not None:
            for row, ids in zip(measured, self.state.tokens(given)):
                prompts[row] = np.concatenate([self._state_mark, ids, prompts[row]])
            return {}
        vectors = np.zeros((len(states), self.state.size), np.float32)
        vectors[measured] = self.state.scaled(given)
        return {"state": vectors, "state_valid": np.isin(np.arange(len(states)), measured)}

    def _require_room(
        self,
        texts: Sequence[tuple[str, str | None]],
        prompt_end: np.ndarray,
        answer_size: np.ndarray,
        actions: dict[int, np.ndarray],
    ) -> None:
        answer_end = prompt_end + np.minimum(answer_size, self.max_answer_tokens)
        if (answer_end > self.max_tokens).any():
            row = int(np.argmax(answer_end > self.max_tokens))
            raise ValueError(
                f"prompt of {prompt_end[row]} tokens leaves "
                f"{max(self.max_tokens - int(prompt_end[row]), 0)} of {self.max_tokens} for an "
                f"answer of {answer_size[row]}: raise max_tokens or shorten {texts[row][0]!r}"
            )
        for row in np.flatnonzero(answer_size > self.max_answer_tokens).tolist():
            if row in actions:
                raise ValueError(
                    f"a plan and its action are {answer_size[row]} tokens, more than "
                    f"max_answer_tokens {self.max_answer_tokens}: raise it or shorten the plan of "
                    f"{texts[row][0]!r}"
                )

    def _action_tokens_valid(
        self, example: Example, ids: np.ndarray | None, robot: str
    ) -> np.ndarray:
        if ids is None or example.action is None:
            raise ValueError(f"action_valid without an action: {example.prompt!r}")
        valid = np.asarray(example.action_valid, bool)
        if valid.shape != np.shape(example.action):
            raise ValueError(
                f"action_valid is {valid.shape} for an action of {np.shape(example.action)}"
            )
        return self.action_tokenizers[robot].tokens_valid(ids, valid)
