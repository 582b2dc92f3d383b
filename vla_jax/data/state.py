"""Proprioception: what a robot measures of itself, as the model gets it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 256


class StateInput:
    """Scales states by given bounds, for a vector, or cuts them into 256 bins, for tokens.

    Args:
      low, high: [S], bounds in the state's units; values outside are clipped.
      token_ids: int [256], the vocabulary id that stands for bin i: the state is written into the
        prompt. None: it is a vector beside it.

    Raises:
      ValueError: bounds of different or no length, not finite, or not low < high; `token_ids` that
        are not 256 different ids.
    """

    def __init__(
        self,
        low: Sequence[float] | np.ndarray,
        high: Sequence[float] | np.ndarray,
        token_ids: np.ndarray | None = None,
    ):
        self.low, self.high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        if self.low.ndim != 1 or not len(self.low) or self.low.shape != self.high.shape:
            raise ValueError(
                f"the state needs a low and a high bound for each of its numbers, not "
                f"{self.low.shape} and {self.high.shape} of them"
            )
        fine = np.isfinite(self.low) & np.isfinite(self.high) & (self.low < self.high)
        if not fine.all():
            first = int(np.argmin(fine))
            raise ValueError(
                f"number {first} of the state has bounds [{self.low[first]}, {self.high[first]}]: "
                "they must be finite and low < high"
            )
        if token_ids is not None and len(np.unique(token_ids)) != BINS:
            raise ValueError(f"state tokens need {BINS} different ids")
        self.token_ids = None if token_ids is None else np.asarray(token_ids, np.int32)

    @property
    def size(self) -> int:
        """S."""
        return len(self.low)

    def scaled(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """n states [S] -> float32 [n, S], -1 at the low bounds and 1 at the high ones.

        Raises ValueError for a wrong size, NaN or infinity.
        """
        wrong = {np.shape(state) for state in states} - {(self.size,)}
        if wrong:
            raise ValueError(
                f"state of shape {min(wrong)}, but bounds are given for {self.size} numbers"
            )
        values = np.asarray(states, np.float32).reshape(len(states), self.size)
        if not np.isfinite(values).all():
            first = values[~np.isfinite(values).all(axis=1)][0]
            raise ValueError(f"state is NaN or infinite: {first.tolist()}")
        return 2 * (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low) - 1

    def tokens(self, states: Sequence[np.ndarray]) -> np.ndarray:
        """n states [S] -> int32 [n, S] vocabulary ids; raises as `scaled`."""
        assert self.token_ids is not None, "a state that is a vector has no tokens"
        bins = np.floor((self.scaled(states) + 1) / 2 * BINS).astype(np.int32)
        return self.token_ids[np.minimum(bins, BINS - 1)]
