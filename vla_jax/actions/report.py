"""What an action tokenizer costs on a data set: round-trip error, tokens per chunk, use of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_jax.actions.tokenizer import ActionTokenizer


def measure(tokenizer: ActionTokenizer, chunks: Sequence[np.ndarray]) -> dict[str, Any]:
    """Encodes and decodes chunks [C, A] in physical units.

    Returns:
      tokens: mean, least and most per chunk; ids_used, of ids_total; bits_per_chunk: entropy of the
      single tokens' distribution times tokens per chunk, what an ideal code without context takes;
      dimensions: for each its name and unit, mean, 95th percentile and largest round-trip error in
      that unit, and the share of values outside the bounds.

    Raises:
      ValueError: no chunks, or one that the tokenizer refuses.
    """
    if not len(chunks):
        raise ValueError("a tokenizer report needs at least one chunk of actions")
    rows = [tokenizer.encode(chunk) for chunk in chunks]
    truth = np.stack(chunks).reshape(-1, len(tokenizer.spec.dimensions))
    again = np.stack([tokenizer.decode(row) for row in rows]).reshape(truth.shape)
    error = np.abs(again - truth)
    lengths = np.asarray([len(row) for row in rows])
    _, counts = np.unique(np.concatenate(rows), return_counts=True)
    share = counts / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    dimensions = []
    for a, dim in enumerate(tokenizer.spec.dimensions):
        outside = (truth[:, a] < dim.low) | (truth[:, a] > dim.high)
        inside = error[~outside, a] if not outside.all() else np.zeros(1)
        dimensions.append(
            {
                "name": dim.name,
                "unit": dim.unit,
                "mean_error": float(inside.mean()),
                "p95_error": float(np.quantile(inside, 0.95)),
                "max_error": float(inside.max()),
                "clipped": float(outside.mean()),
            }
        )
    return {
        "tokens": {
            "mean": float(lengths.mean()),
            "least": int(lengths.min()),
            "most": int(lengths.max()),
        },
        "ids_used": len(counts),
        "ids_total": len(tokenizer.automaton.token_ids),
        "bits_per_chunk": entropy * float(lengths.mean()),
        "dimensions": dimensions,
    }
