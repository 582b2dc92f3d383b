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

import functools
from collections.abc import Sequence

import numpy as np

from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.types import Example


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
        # Robot instructions come again and again.
        self._prompt_ids = functools.lru_cache(maxsize=4096)(self._encode_prompt)

    def build(self, example: Example) -> dict[str, np.ndarray]:
        """One row of `build_rows`: tokens int32 [T]; attend_causal, in_loss, valid bool [T]."""
        return {key: rows[0] for key, rows in self.build_rows([example]).items()}

    def build_rows(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        """Returns tokens int32 [B, T] and attend_causal, in_loss, valid bool [B, T].

        A text answer that is too long is cut (and then has no EOS); a prompt that leaves no room
        for its answer is an error.

        Raises:
          ValueError: empty prompt, prompt too long, action without tokenizer, bad action.
        """
        tokens = np.full((len(examples), self.max_tokens), self.vocabulary.pad_id, np.int32)
        prompt_end = np.zeros((len(examples), 1), np.int32)
        answer_end = np.zeros((len(examples), 1), np.int32)
        no_loss = np.zeros((len(examples), self.max_tokens), bool)
        for row, example in enumerate(examples):
            prompt = self._prompt_ids(example.prompt)
            answer = self._answer_ids(example)
            room = self.max_tokens - len(prompt)
            if room < min(len(answer), self.max_answer_tokens):
                raise ValueError(
                    f"prompt of {len(prompt)} tokens leaves {max(room, 0)} of {self.max_tokens} "
                    f"for an answer of {len(answer)}: raise max_tokens or shorten "
                    f"{example.prompt!r}"
                )
            answer = answer[: self.max_answer_tokens]
            n, end = len(prompt), len(prompt) + len(answer)
            tokens[row, :n], tokens[row, n:end] = prompt, answer
            prompt_end[row], answer_end[row] = n, end
            if example.action_valid is not None:
                no_loss[row, n : end - 1] = ~self._action_tokens_valid(example, answer[:-1])
        position = np.arange(self.max_tokens)
        is_answer = (position >= prompt_end) & (position < answer_end)
        return {
            "tokens": tokens,
            "attend_causal": is_answer,
            "in_loss": is_answer & ~no_loss,
            "valid": position < answer_end,
        }

    def prompts(self, prompts: list[str]) -> dict[str, np.ndarray]:
        """Prompts alone, for decoding: tokens int32 [B, T'], valid bool [B, T'].

        T' is max_tokens - max_answer_tokens, fixed, so that decoding compiles once.
        """
        length = self.max_tokens - self.max_answer_tokens
        tokens = np.full((len(prompts), length), self.vocabulary.pad_id, np.int32)
        valid = np.zeros((len(prompts), length), bool)
        for row, text in enumerate(prompts):
            ids = self._prompt_ids(text)
            if len(ids) > length:
                raise ValueError(
                    f"prompt of {len(ids)} tokens is longer than the {length} that the model was "
                    f"trained with: shorten {text!r}"
                )
            tokens[row, : len(ids)] = ids
            valid[row, : len(ids)] = True
        return {"tokens": tokens, "valid": valid}

    def _encode_prompt(self, prompt: str) -> tuple[int, ...]:
        if not prompt.strip():
            raise ValueError("empty prompt")
        return self.vocabulary.bos_id, *self.vocabulary.encode(prompt)

    def _answer_ids(self, example: Example) -> list[int]:
        if example.action is None:
            if not example.answer:
                raise ValueError(f"example with neither action nor answer: {example.prompt!r}")
            return [*self.vocabulary.encode(example.answer), self.vocabulary.eos_id]
        if self.action_tokenizer is None:
            raise ValueError("a robot example needs an action tokenizer, and none is configured")
        ids = self.action_tokenizer.encode(example.action)
        return [*ids.tolist(), self.vocabulary.eos_id]

    def _action_tokens_valid(self, example: Example, ids: list[int]) -> np.ndarray:
        if self.action_tokenizer is None or example.action is None or example.action_valid is None:
            raise ValueError(f"action_valid without an action: {example.prompt!r}")
        valid = np.asarray(example.action_valid, bool)
        if valid.shape != np.shape(example.action):
            raise ValueError(
                f"action_valid is {valid.shape} for an action of {np.shape(example.action)}"
            )
        return self.action_tokenizer.tokens_valid(np.asarray(ids), valid)
