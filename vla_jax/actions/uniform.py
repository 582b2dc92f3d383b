"""RT-2's action tokens: 256 uniform bins per dimension, one token each.

bin = floor((a - low) / (high - low) * 256), with a = high falling into the last bin; decoding
returns the bin's centre. So all 256 bins are equally wide, all 256 values differ (bins are counted,
not edges: 256 edges would give 255 values), and the round-trip error is at most half a bin,
(high - low) / 512. RT-1's published tokenizer truncates over 255 steps instead, which leaves the
top bin to a = high alone and biases every value down by half a bin. A discrete dimension of n
levels uses bins 0..n-1 and no others.
"""

from __future__ import annotations

import numpy as np

from vla_jax.actions.spec import ActionSpec

NUM_BINS = 256


class UniformTokenizer:
    """Actions [A] in physical units <-> A token ids. Ids never pass through text.

    Args:
      spec: the action's dimensions and bounds.
      token_ids: int [256], the vocabulary id that stands for bin i.

    Raises:
      ValueError: `token_ids` is not 256 different ids.
    """

    def __init__(self, spec: ActionSpec, token_ids: np.ndarray):
        token_ids = np.asarray(token_ids, np.int32)
        if token_ids.shape != (NUM_BINS,) or len(np.unique(token_ids)) != NUM_BINS:
            raise ValueError(
                f"need {NUM_BINS} different token ids for the action bins, got shape "
                f"{token_ids.shape} with {len(np.unique(token_ids))} different values"
            )
        self.spec = spec
        self.token_ids = token_ids
        self._levels = np.asarray([d.levels or NUM_BINS for d in spec.dimensions])
        self._discrete = np.asarray([d.levels is not None for d in spec.dimensions])
        self._bin_of_id = np.full(token_ids.max() + 1, -1, np.int32)
        self._bin_of_id[token_ids] = np.arange(NUM_BINS)

    @property
    def num_tokens(self) -> int:
        """Tokens per action: A."""
        return len(self.spec.dimensions)

    def bins(self, action: np.ndarray) -> np.ndarray:
        """Actions [..., A] -> int32 bins [..., A]. Out-of-range values are clipped.

        Raises ValueError for a wrong size or non-finite values.
        """
        action = self.spec.validate(action, where="encode")
        low, high = self.spec.low, self.spec.high
        unit = (np.clip(action, low, high) - low) / (high - low)
        bins = np.where(
            self._discrete, np.rint(unit * (self._levels - 1)), np.floor(unit * NUM_BINS)
        )
        return np.minimum(bins, self._levels - 1).astype(np.int32)

    def encode(self, action: np.ndarray) -> np.ndarray:
        """Actions [..., A] -> int32 token ids [..., A]."""
        return self.token_ids[self.bins(action)]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """Token ids [..., A] -> float32 actions [..., A].

        Raises ValueError if any id is not legal at its position: a stray token is refused, never
        turned into an extreme action.
        """
        ids = np.asarray(ids)
        if ids.shape[-1:] != (self.num_tokens,):
            raise ValueError(f"expected {self.num_tokens} action tokens, got shape {ids.shape}")
        known = (ids >= 0) & (ids < len(self._bin_of_id))
        bins = np.where(known, self._bin_of_id[np.where(known, ids, 0)], -1)
        legal = (bins >= 0) & (bins < self._levels)
        if not legal.all():
            where = np.argwhere(~legal)[0]
            raise ValueError(
                f"token id {int(ids[tuple(where)])} is not an action token at position "
                f"{int(where[-1])} ({self.spec.names[where[-1]]})"
            )
        low, high = self.spec.low, self.spec.high
        unit = np.where(
            self._discrete, bins / np.maximum(self._levels - 1, 1), (bins + 0.5) / NUM_BINS
        )
        return (low + unit * (high - low)).astype(np.float32)

    def legal(self) -> np.ndarray:
        """bool [A, 256]: which bins may stand at each position."""
        return np.arange(NUM_BINS) < self._levels[:, None]

    def text(self, ids: np.ndarray) -> str:
        """RT-2's action string, for people: `0 128 91 241 5 101 127 217`."""
        return " ".join(str(b) for b in self._bin_of_id[np.asarray(ids)])

    def report(self, actions: np.ndarray) -> list[dict[str, float | str]]:
        """Round-trip error and bin use over actions [n, A], one row per dimension.

        Rows: name, unit, half_bin and max_error in the dimension's unit, clipped (share of values
        outside the bounds), bins_used, entropy_bits of the bin distribution.
        """
        actions = self.spec.validate(actions, where="report")
        bins = self.bins(actions)
        error = np.abs(self.decode(self.token_ids[bins]) - actions)
        rows: list[dict[str, float | str]] = []
        for a, dim in enumerate(self.spec.dimensions):
            inside = (actions[:, a] >= dim.low) & (actions[:, a] <= dim.high)
            share = np.bincount(bins[:, a], minlength=NUM_BINS) / len(bins)
            used = share[share > 0]
            rows.append(
                {
                    "name": dim.name,
                    "unit": dim.unit,
                    "half_bin": 0.0 if dim.levels else (dim.high - dim.low) / (2 * NUM_BINS),
                    "max_error": float(error[inside, a].max(initial=0.0)),
                    "clipped": float(1 - inside.mean()),
                    "bins_used": float(len(used)),
                    "entropy_bits": float(-(used * np.log2(used)).sum()),
                }
            )
        return rows
