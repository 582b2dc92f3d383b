"""Several examples in one row, so that less of it is padding.

    [BOS prompt answer EOS][BOS prompt answer EOS] ... [padding]
     segment 1              segment 2                   0

The model treats each as if it stood alone, see `models.vla`. Their images go in slots, each with
the segment of its example; the slots of texts about one picture are that picture, segment 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_TOKEN_COLUMNS = ("tokens", "attend_causal", "in_loss", "valid")


def pack_rows(
    columns: Mapping[str, np.ndarray], examples: int, *, length: int, max_loss_tokens: int
) -> dict[str, np.ndarray]:
    """Packs each `examples` rows that follow each other into one, in order, as long as they fit.

    An example that does not fit is left out and keeps its number: no other takes its segment.

    Args:
      columns: of `SequenceBuilder.build_rows`, n rows.
      examples: k, in a row.
      length: L, tokens in a row.
      max_loss_tokens: most tokens with loss in a row.

    Returns:
      The token columns, [n / k, L]; segment int32 [n / k, L]; left_out bool [n / k, k]; and the
      other columns, [n / k, k, ...].

    Raises:
      ValueError: n is no multiple of k, or a row is left without any example.
    """
    valid = columns["valid"]
    if examples < 1 or len(valid) % examples:
        raise ValueError(f"{len(valid)} examples do not make rows of {examples}")
    sizes = valid.sum(1).reshape(-1, examples)
    losses = columns["in_loss"].sum(1).reshape(-1, examples)
    starts, fits = np.zeros_like(sizes), np.zeros(sizes.shape, bool)
    used, lost = np.zeros(len(sizes), int), np.zeros(len(sizes), int)
    for n in range(examples):
        fits[:, n] = (used + sizes[:, n] <= length) & (lost + losses[:, n] <= max_loss_tokens)
        starts[:, n] = used
        used = used + np.where(fits[:, n], sizes[:, n], 0)
        lost = lost + np.where(fits[:, n], losses[:, n], 0)
    if not fits.any(axis=1).all():
        raise ValueError(f"no example fits into {length} tokens, {max_loss_tokens} of them answer")
    example, position = np.nonzero(valid & fits.reshape(-1, 1))
    row, place = example // examples, starts.reshape(-1)[example] + position
    packed = {
        key: column.reshape(-1, examples, *column.shape[1:])
        for key, column in columns.items()
        if key not in _TOKEN_COLUMNS
    }
    for key in _TOKEN_COLUMNS:
        packed[key] = np.zeros((len(sizes), length), columns[key].dtype)  # PAD is 0
        packed[key][row, place] = columns[key][example, position]
    packed["segment"] = np.zeros((len(sizes), length), np.int32)
    packed["segment"][row, place] = example % examples + 1
    return {**packed, "left_out": ~fits}


def image_segments(rows: int, examples: int, views: int) -> np.ndarray:
    """int32 [rows, examples * views]: which example each image slot belongs to, from 1."""
    slots = np.repeat(np.arange(1, examples + 1, dtype=np.int32), views)
    return np.tile(slots, (rows, 1))
