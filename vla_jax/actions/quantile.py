"""256 bins of equal mass per dimension: narrow where actions are common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from vla_jax.actions.bins import NUM_BINS, BinTokenizer
from vla_jax.actions.spec import ActionSpec

LEAST_WIDTH = 2.0**-20
"""Of a bin, as a share of the dimension's range: so many equal values leave no bin empty-handed."""


class QuantileTokenizer(BinTokenizer):
    """Bins between the quantiles of a data set; see `BinTokenizer`.

    Args:
      edges: float [A, 257], rising from each dimension's low to its high; `fit` makes them.

    Raises:
      ValueError: edges of another shape, not rising, or not from low to high.
    """

    kind = "quantile"

    def __init__(self, spec: ActionSpec, token_ids: np.ndarray, edges: np.ndarray, chunk: int = 1):
        super().__init__(spec, token_ids, chunk)
        edges = np.asarray(edges, np.float64)
        if edges.shape != (len(spec.dimensions), NUM_BINS + 1):
            raise ValueError(f"expected edges of shape {(len(spec.dimensions), NUM_BINS + 1)}, "
                             f"got {edges.shape}")  # fmt: skip
        ends = np.stack([spec.low, spec.high], axis=1)
        if not (np.diff(edges) > 0).all() or not np.allclose(edges[:, [0, -1]], ends):
            raise ValueError("edges must rise from each dimension's low to its high")
        self.edges = edges

    @classmethod
    def fit(
        cls,
        spec: ActionSpec,
        actions: Iterable[np.ndarray],
        *,
        token_ids: np.ndarray,
        chunk: int = 1,
    ) -> QuantileTokenizer:
        """Edges at the quantiles of actions [n, A], given in parts. Raises ValueError for none."""
        parts = [spec.validate(part, where="fit") for part in actions]
        if not sum(len(part) for part in parts):
            raise ValueError("quantile bins need actions to fit")
        clipped = np.clip(np.concatenate(parts), spec.low, spec.high)
        inner = np.quantile(clipped, np.linspace(0, 1, NUM_BINS + 1)[1:-1], axis=0).T
        low, high = (x.astype(np.float64)[:, None] for x in (spec.low, spec.high))
        # A share of an even spread keeps edges apart where many values are the same.
        even = np.linspace(0, 1, NUM_BINS + 1)
        edges = (np.concatenate([low, inner, high], axis=1) - low) / (high - low)
        share = LEAST_WIDTH * NUM_BINS
        edges = low + ((1 - share) * edges + share * even) * (high - low)
        return cls(spec, token_ids, edges, chunk)

    @property
    def fitted(self) -> dict[str, Any]:
        """The edges."""
        return {"edges": self.edges.tolist()}

    def to_unit(self, action: np.ndarray) -> np.ndarray:
        even = np.linspace(0, 1, NUM_BINS + 1)
        columns = [np.interp(action[..., a], row, even) for a, row in enumerate(self.edges)]
        return np.stack(columns, axis=-1)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        even = np.linspace(0, 1, NUM_BINS + 1)
        columns = [np.interp(unit[..., a], even, row) for a, row in enumerate(self.edges)]
        return np.stack(columns, axis=-1)
