"""Action tokens that are bins: 256 per dimension, one token each, always as many as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import Automaton, accepts

NUM_BINS = 256


class BinTokenizer:
    """What bin tokenizers share. A subclass says how values in units map to 0 .. 1 and back.

    Bin i is what maps to [i / 256, (i + 1) / 256); decoding returns what (i + 0.5) / 256 maps back
    to. A discrete dimension of n levels uses bins 0 .. n - 1 and no others.

    Args:
      spec: the action's dimensions and bounds.
      token_ids: int [256], the vocabulary id that stands for bin i.
      chunk: C, actions that are tokenized together, one after the other.

    Raises:
      ValueError: `token_ids` is not 256 different ids.
    """

    kind: str

    def __init__(self, spec: ActionSpec, token_ids: np.ndarray, chunk: int = 1):
        token_ids = np.asarray(token_ids, np.int32)
        if token_ids.shape != (NUM_BINS,) or len(np.unique(token_ids)) != NUM_BINS:
            raise ValueError(
                f"need {NUM_BINS} different token ids for the action bins, got shape "
                f"{token_ids.shape} with {len(np.unique(token_ids))} different values"
            )
        self.spec, self.chunk = spec, chunk
        self.token_ids = token_ids
        self._levels = np.asarray([d.levels or NUM_BINS for d in spec.dimensions])
        self._discrete = np.asarray([d.levels is not None for d in spec.dimensions])
        self._bin_of_id = np.full(token_ids.max() + 1, -1, np.int32)
        self._bin_of_id[token_ids] = np.arange(NUM_BINS)
        self.automaton = self._make_automaton()

    def to_unit(self, action: np.ndarray) -> np.ndarray:
        """Actions [..., A] within the bounds -> 0 .. 1, rising."""
        raise NotImplementedError

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """The inverse."""
        raise NotImplementedError

    @property
    def fitted(self) -> dict[str, Any]:
        """See `ActionTokenizer`."""
        return {}

    @property
    def max_tokens(self) -> int:
        """C x A, always."""
        return self.chunk * len(self.spec.dimensions)

    def bins(self, action: np.ndarray) -> np.ndarray:
        """Actions [..., A] -> int32 bins [..., A]. Out-of-range values are clipped.

        Raises ValueError for a wrong size or non-finite values.
        """
        action = self.spec.validate(action, where="encode")
        low, high = self.spec.low, self.spec.high
        clipped = np.clip(action, low, high)
        level = np.rint((clipped - low) / (high - low) * (self._levels - 1))
        bins = np.where(self._discrete, level, np.floor(self.to_unit(clipped) * NUM_BINS))
        return np.minimum(bins, self._levels - 1).astype(np.int32)

    def values(self, bins: np.ndarray) -> np.ndarray:
        """int bins [..., A] -> float32 actions [..., A] at the bins' centres."""
        low, high = self.spec.low, self.spec.high
        level = low + bins / np.maximum(self._levels - 1, 1) * (high - low)
        centre = self.from_unit((bins + 0.5) / NUM_BINS)
        return np.where(self._discrete, level, centre).astype(np.float32)

    def encode(self, action: np.ndarray) -> np.ndarray:
        """float [C, A] -> int32 ids [C * A]; see `ActionTokenizer`."""
        return self.encode_batch(np.asarray(action)[None])[0]

    def encode_batch(self, actions: np.ndarray) -> list[np.ndarray]:
        """float [n, C, A] -> n arrays of int32 ids [C * A], by one pass over all numbers."""
        actions = np.asarray(actions)
        if actions.shape[1:-1] != (self.chunk,):
            raise ValueError(
                f"expected a chunk of shape {(self.chunk, len(self.spec.dimensions))}, got "
                f"{actions.shape[1:]}"
            )
        return list(self.token_ids[self.bins(actions)].reshape(len(actions), -1))

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """int ids [C * A] -> float32 [C, A]; see `ActionTokenizer`."""
        count = accepts(self.automaton, ids)
        return self.values(self._bin_of_id[np.asarray(ids)[:count]].reshape(self.chunk, -1))

    def tokens_valid(self, ids: np.ndarray, action_valid: np.ndarray) -> np.ndarray:
        """A token for each number: bool [C * A]."""
        return np.asarray(action_valid).reshape(-1)

    def _make_automaton(self) -> Automaton:
        """One state per position; a discrete dimension allows its levels alone."""
        levels = np.tile(self._levels, self.chunk)
        states = len(levels)
        after = np.broadcast_to(np.arange(1, states + 1, dtype=np.int32)[:, None], (states, 256))
        legal = np.arange(NUM_BINS) < levels[:, None]
        return Automaton(self.token_ids, legal, after, np.asarray(legal.all(axis=1)), states)

    def text(self, ids: np.ndarray) -> str:
        """RT-2's action string, for people: `0 128 91 241 5 101 127 217`."""
        return " ".join(str(b) for b in self._bin_of_id[np.asarray(ids)])
