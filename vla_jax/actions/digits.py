"""Actions as plain text: integers 0 .. 255 written in digits (VLA-0, arXiv 2510.13054).

No token gets a new meaning: `0 128 91 241 ...` is what a language model already writes. It costs up
to four tokens a number where a bin token costs one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_jax.actions.bins import NUM_BINS
from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import Automaton, accepts
from vla_jax.actions.uniform import UniformTokenizer


class DigitTokenizer:
    """Uniform bins whose numbers are written digit by digit, each followed by a space.

    Args:
      spec: the action's dimensions and bounds.
      digit_ids: int [10], vocabulary ids of the digits 0 to 9.
      space_id: id of what ends a number.
      chunk: C.

    Raises:
      ValueError: the eleven ids are not different.
    """

    kind = "digits"

    def __init__(self, spec: ActionSpec, digit_ids: np.ndarray, space_id: int, chunk: int = 1):
        ids = np.asarray([*np.asarray(digit_ids).tolist(), space_id], np.int32)
        if ids.shape != (11,) or len(np.unique(ids)) != 11:
            raise ValueError("digits need 10 different ids and one more for the space")
        self.spec, self.chunk = spec, chunk
        self.token_ids = ids
        self._bins = UniformTokenizer(spec, np.arange(NUM_BINS), chunk)
        self.automaton = self._make_automaton()

    @property
    def fitted(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    @property
    def max_tokens(self) -> int:
        """Three digits and a space for each of C x A numbers."""
        return 4 * self._bins.max_tokens

    def encode(self, action: np.ndarray) -> np.ndarray:
        """float [C, A] -> int32 ids [K]; see `ActionTokenizer`."""
        text = "".join(f"{b} " for b in self._bins.encode(action))
        return self.token_ids[["0123456789 ".index(c) for c in text]]

    def encode_batch(self, actions: np.ndarray) -> list[np.ndarray]:
        """float [n, C, A] -> n arrays of int32 ids; see `ActionTokenizer`."""
        return [self.encode(action) for action in actions]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """int ids [K], padding allowed -> float32 [C, A]; see `ActionTokenizer`."""
        count = accepts(self.automaton, ids)
        return self._bins.decode(np.asarray([int(n) for n in self.text(ids[:count]).split()]))

    def tokens_valid(self, ids: np.ndarray, action_valid: np.ndarray) -> np.ndarray:
        """Of the digits and the space of each number."""
        ends = np.asarray(ids) == self.token_ids[10]
        return np.asarray(action_valid).reshape(-1)[np.cumsum(ends) - ends]

    def _make_automaton(self) -> Automaton:
        """A state per number and what of it was written: nothing, or a prefix of 0 .. 255."""
        levels = np.asarray([d.levels or NUM_BINS for d in self.spec.dimensions] * self.chunk)
        written = ["", *(str(n) for n in range(NUM_BINS))]  # no leading zeros: 0, 10, 255
        place = {text: i for i, text in enumerate(written)}
        states = len(levels) * len(written)
        legal = np.zeros((states, 11), bool)
        after = np.zeros((states, 11), np.int32)
        for number, count in enumerate(levels.tolist()):
            base = number * len(written)
            for i, text in enumerate(written):
                for digit in range(10):
                    more = text + str(digit)
                    if more in place and int(more) < count and str(int(more)) == more:
                        legal[base + i, digit] = True
                        after[base + i, digit] = base + place[more]
                legal[base + i, 10] = bool(text)
                after[base + i, 10] = min(base + len(written), states)
        return Automaton(self.token_ids, legal, after, np.ones(states, bool), self.max_tokens)

    def text(self, ids: np.ndarray) -> str:
        """The string itself."""
        column = {int(i): c for i, c in zip(self.token_ids, "0123456789 ")}
        return "".join(column.get(i, "?") for i in np.asarray(ids).tolist()).strip()
