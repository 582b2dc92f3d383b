"""RT-2's action tokens: 256 uniform bins per dimension, one token each (arXiv 2307.15818, 3.2).

bin = floor((a - low) / (high - low) * 256), with a = high falling into the last bin; decoding
returns the bin's centre. So all 256 bins are equally wide, all 256 values differ (bins are counted,
not edges: 256 edges would give 255 values), and the round-trip error is at most half a bin,
(high - low) / 512. RT-1's published tokenizer truncates over 255 steps instead, which leaves the
top bin to a = high alone and biases every value down by half a bin.
"""

from __future__ import annotations

import numpy as np

from vla_jax.actions.bins import BinTokenizer


class UniformTokenizer(BinTokenizer):
    """256 equally wide bins between each dimension's bounds; see `BinTokenizer`."""

    kind = "uniform"

    def to_unit(self, action: np.ndarray) -> np.ndarray:
        return (action - self.spec.low) / (self.spec.high - self.spec.low)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        return self.spec.low + unit * (self.spec.high - self.spec.low)
