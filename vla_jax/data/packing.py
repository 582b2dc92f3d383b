"""Several examples in one row, so that less of it is padding.

    [BOS prompt answer EOS][BOS prompt answer EOS] ... [padding]
     segment 1              segment 2                   0

The model treats each as if it stood alone, see `models.vla`. Their images go in slots, each with
the segment of its example; the slots of texts about one picture are that picture, segment 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

_TOKEN_COLUMNS = ("tokens", "attend_causal", "in_loss", "valid")


@dataclasses.dataclass(frozen=True)
class Packing:
    """How examples are put into rows.

    Attributes:
      examples: k, in a row.
      length: L, tokens in a row.
      max_loss_tokens: most tokens with loss in a row.
    """

    examples: int
    length: int
    max_loss_tokens: int

    def pack(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Packs each k rows that follow each other into one, in order, as long as they fit.

        An example that does not fit is left out and keeps its number: no other takes its segment.

        Args:
          columns: of `SequenceBuilder.build_rows`, n rows.

        Returns:
          The token columns, [n / k, L]; segment int32 [n / k, L]; left_out bool [n / k, k]; and the
          other columns, [n / k, k, ...].

        Raises:
          ValueError: n is no multiple of k, or a row is left without any example.
        """
        valid, k = columns["valid"], self.examples
        if k < 1 or len(valid) % k:
            raise ValueError(f"{len(valid)} examples do not make rows of {k}")
        rows = len(valid) // k
        sizes = valid.sum(1).reshape(rows, k)
        losses = columns["in_loss"].sum(1).reshape(rows, k)
        starts, fits = np.zeros_like(sizes), np.zeros(sizes.shape, bool)
        used, lost = np.zeros(rows, int), np.zeros(rows, int)
        for n in range(k):
            starts[:, n] = used
            used_then, lost_then = used + sizes[:, n], lost + losses[:, n]
            fits[:, n] = (used_then <= self.length) & (lost_then <= self.max_loss_tokens)
            used, lost = np.where(fits[:, n], (used_then, lost_then), (used, lost))
        if not fits.any(axis=1).all():
            raise ValueError(
                f"no example fits into {self.length} tokens, {self.max_loss_tokens} of them answer"
            )
        example, position = np.nonzero(valid & fits.reshape(-1, 1))
        row, place = example // k, starts.reshape(-1)[example] + position
        packed = {
            key: column.reshape(rows, k, *column.shape[1:])
            for key, column in columns.items()
            if key not in _TOKEN_COLUMNS
        }
        for key in _TOKEN_COLUMNS:
            packed[key] = np.zeros((rows, self.length), columns[key].dtype)  # PAD is 0
            packed[key][row, place] = columns[key][example, position]
        packed["segment"] = np.zeros((rows, self.length), np.int32)
        packed["segment"][row, place] = example % k + 1
        return {**packed, "left_out": ~fits}

    def image_segments(self, rows: int, views: int) -> np.ndarray:
        """int32 [rows, k * views]: which example each image is of, from 1."""
        slots = np.repeat(np.arange(1, self.examples + 1, dtype=np.int32), views)
        return np.tile(slots, (rows, 1))
