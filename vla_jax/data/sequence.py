"""Examples become token rows: `[BOS][prompt][answer][EOS][padding]`.

    position        0    1 .. n        n+1 .. n+k   n+k+1   rest
    token           BOS  prompt        answer       EOS     PAD
    attend_causal   0    0             1            1       0
    in_loss         0    0             1            1       0
    valid           1    1             1            1       0

Action tokens of padded dimensions or steps are not in the loss.

An action needs no end token in decoding (its length is known), but trains with one, so that every
answer of the mixture ends the same way.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Sequence

import numpy as np

from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.types import Example

_KNOWN_PROMPTS = 4096  # kept encoded


class SequenceBuilder:
    """Builds fixed-length token rows.

    Args:
      vocabulary: text to ids.
      action_tokenizer: for robot examples; None if the mixture has none.
      max_tokens: T, the row length.
      max_answer_tokens: most answer tokens in a row, EOS included; the loss gathers that many.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        action_tokenizer: ActionTokenizer | None,
        *,
        max_tokens: int,
        max_answer_tokens: int,
    ):
        if not 0 < max_answer_tokens < max_tokens:
            raise ValueError(
                f"max_answer_tokens {max_answer_tokens} must be between 1 and "
                f"max_tokens {max_tokens} - 1"
            )
        longest = 0 if action_tokenizer is None else action_tokenizer.max_tokens
        if longest >= max_answer_tokens:
            raise ValueError(
                f"an action is up to {longest} tokens and an EOS: max_answer_tokens "
                f"{max_answer_tokens} must be at least {longest + 1}"
            )
        self.vocabulary = vocabulary
        self.action_tokenizer = action_tokenizer
        self.max_tokens = max_tokens
        self.max_answer_tokens = max_answer_tokens
        self._bos = np.asarray([vocabulary.bos_id], np.int32)
        self._eos = np.asarray([vocabulary.eos_id], np.int32)
        self._known: collections.OrderedDict[str, np.ndarray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def build(self, example: Example) -> dict[str, np.ndarray]:
        """One row of `build_rows`."""
        return {key: rows[0] for key, rows in self.build_rows([example]).items()}

    def build_rows(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        """Returns tokens int32 [B, T], attend_causal, in_loss, valid bool [B, T], truncated bool [B].

        A text answer that is too long is cut (and then has no EOS), which `truncated` says; a
        prompt that leaves no room for its answer is an error.

        Raises:
          ValueError: empty prompt, prompt too long, action without tokenizer, bad action.
        """
        prompts, answers = self._encode(examples)
        prompt_end = np.asarray([[1 + len(ids)] for ids in prompts], np.int32)
        answer_size = np.asarray([[1 + len(ids)] for ids in answers], np.int32)
        answer_end = prompt_end + np.minimum(answer_size, self.max_answer_tokens)
        if (answer_end > self.max_tokens).any():
            row = int(np.argmax(answer_end > self.max_tokens))
            used, size = int(prompt_end[row, 0]), int(answer_size[row, 0])
            raise ValueError(
                f"prompt of {used} tokens leaves {max(self.max_tokens - used, 0)} of "
                f"{self.max_tokens} for an answer of {size}: raise max_tokens or shorten "
                f"{examples[row].prompt!r}"
            )
        position = np.arange(self.max_tokens)
        valid = position < answer_end
        is_answer = valid & (position >= prompt_end)
        tokens = np.full(valid.shape, self.vocabulary.pad_id, np.int32)
        pieces = [
            piece
            for prompt, answer in zip(prompts, answers)
            for piece in (self._bos, prompt, answer[: self.max_answer_tokens], self._eos)
        ]
        truncated = answer_size[:, 0] > self.max_answer_tokens
        for row in np.flatnonzero(truncated).tolist():
            pieces[4 * row + 3] = self._eos[:0]
        tokens[valid] = np.concatenate(pieces) if pieces else []
        in_loss = is_answer.copy()
        for row, example in enumerate(examples):
            if example.action_valid is not None:
                start, end = prompt_end[row, 0], answer_end[row, 0] - 1
                in_loss[row, start:end] = self._action_tokens_valid(example, answers[row])
        return {
            "tokens": tokens,
            "attend_causal": is_answer,
            "in_loss": in_loss,
            "valid": valid,
            "truncated": truncated,
        }

    def prompts(self, prompts: list[str]) -> dict[str, np.ndarray]:
        """Prompts alone, for decoding: tokens int32 [B, T'], valid bool [B, T'].

        T' is max_tokens - max_answer_tokens, fixed, so that decoding compiles once.
        """
        length = self.max_tokens - self.max_answer_tokens
        tokens = np.full((len(prompts), length), self.vocabulary.pad_id, np.int32)
        encoded, _ = self._encode_texts(prompts)
        for row, ids in enumerate(encoded):
            count = 1 + len(ids)
            if count > length:
                raise ValueError(
                    f"prompt of {count} tokens is longer than the {length} that the model was "
                    f"trained with: shorten {prompts[row]!r}"
                )
            tokens[row, :count] = np.concatenate([self._bos, ids])
        counts = np.asarray([[1 + len(ids)] for ids in encoded], np.int32).reshape(-1, 1)
        return {"tokens": tokens, "valid": np.arange(length) < counts}

    def _encode(self, examples: Sequence[Example]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids of each prompt and of each answer, without BOS and EOS."""
        acting = [row for row, example in enumerate(examples) if example.action is not None]
        saying = [row for row, example in enumerate(examples) if example.action is None]
        for row in saying:
            if not examples[row].answer:
                raise ValueError(
                    f"example with neither action nor answer: {examples[row].prompt!r}"
                )
        prompts, said = self._encode_texts(
            [example.prompt for example in examples],
            [examples[row].answer or "" for row in saying],
        )
        answers = prompts.copy()  # of the right length; every entry is replaced
        for row, ids in zip(saying, said):
            answers[row] = np.asarray(ids, np.int32)
        for row, ids in zip(acting, self._encode_actions([examples[row] for row in acting])):
            answers[row] = ids
        return prompts, answers

    def _encode_texts(
        self, prompts: Sequence[str], answers: Sequence[str] = ()
    ) -> tuple[list[np.ndarray], list[list[int]]]:
        """Ids of prompts, which come again and again, and of answers; one call for all new ones."""
        if not all(prompt.strip() for prompt in prompts):
            raise ValueError("empty prompt")
        with self._lock:
            known = {text: self._known.get(text) for text in prompts}
        missing = [text for text, ids in known.items() if ids is None]
        encoded = self.vocabulary.encode_batch([*missing, *answers])
        known |= {text: np.asarray(ids, np.int32) for text, ids in zip(missing, encoded)}
        with self._lock:
            for text, ids in known.items():
                self._known[text] = ids
                self._known.move_to_end(text)
            while len(self._known) > _KNOWN_PROMPTS:
                self._known.popitem(last=False)
        return [known[text] for text in prompts], encoded[len(missing) :]

    def _encode_actions(self, examples: Sequence[Example]) -> Sequence[np.ndarray]:
        """Ids of each action, all in one call of the tokenizer."""
        if not examples:
            return ()
        if self.action_tokenizer is None:
            raise ValueError("a robot example needs an action tokenizer, and none is configured")
        shape = (self.action_tokenizer.chunk, len(self.action_tokenizer.spec.dimensions))
        for example in examples:
            if np.shape(example.action) != shape:
                raise ValueError(
                    f"action of shape {np.shape(example.action)}, not {shape}, for "
                    f"{example.prompt!r}"
                )
        return self.action_tokenizer.encode_batch(np.stack([e.action for e in examples]))

    def _action_tokens_valid(self, example: Example, ids: np.ndarray) -> np.ndarray:
        if self.action_tokenizer is None or example.action is None or example.action_valid is None:
            raise ValueError(f"action_valid without an action: {example.prompt!r}")
        valid = np.asarray(example.action_valid, bool)
        if valid.shape != np.shape(example.action):
            raise ValueError(
                f"action_valid is {valid.shape} for an action of {np.shape(example.action)}"
            )
        return self.action_tokenizer.tokens_valid(ids, valid)
