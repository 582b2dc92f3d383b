"""Several texts about one picture in one row, so that they share its image tokens.

    [BOS prompt answer EOS][BOS prompt answer EOS] ... [padding]
     segment 1              segment 2                   0

A model with `image_sees_text=False` treats each text as if it stood alone with the picture, so a
row of five questions teaches what five rows would, for little more than the cost of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vla_jax.data.sequence import SequenceBuilder
from vla_jax.types import Example


def pack_row(
    builder: SequenceBuilder, examples: Sequence[Example], *, length: int, max_loss_tokens: int
) -> dict[str, np.ndarray]:
    """Packs examples of one picture, in order, as long as they fit; the rest are left out.

    Args:
      length: tokens in the row.
      max_loss_tokens: most answer tokens in the row.

    Returns:
      The columns of `SequenceBuilder.build`, [length] each, and segment int32 [length].

    Raises:
      ValueError: not even the first example fits.
    """
    row = {
        "tokens": np.full(length, builder.vocabulary.pad_id, np.int32),
        "attend_causal": np.zeros(length, bool),
        "in_loss": np.zeros(length, bool),
        "valid": np.zeros(length, bool),
        "segment": np.zeros(length, np.int32),
    }
    used = loss_tokens = segments = 0
    for example in examples:
        built = builder.build(example)
        size, answer = int(built["valid"].sum()), int(built["in_loss"].sum())
        if used + size > length or loss_tokens + answer > max_loss_tokens:
            continue
        for key, value in built.items():
            row[key][used : used + size] = value[:size]
        segments += 1
        row["segment"][used : used + size] = segments
        used, loss_tokens = used + size, loss_tokens + answer
    if not segments:
        raise ValueError(f"no example fits into {length} tokens, {max_loss_tokens} of them answer")
    return row
