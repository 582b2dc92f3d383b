"""Several processes that ask one model, which is split over the devices of all.

Each call of such a model must be made by all processes. They have different samples, or episodes of
different lengths, so before a call all say what they ask for and how many rows they bring; one that
is finished takes part with none until all are. A single process has nobody to agree with.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

_FINISHED = -1
T = TypeVar("T")


class FailedElsewhereError(RuntimeError):
    """Another process of the job has failed at what all do together."""


def agree(asked: int | None, rows: int) -> tuple[int | None, np.ndarray]:
    """What the next call is. Every process calls this alike.

    Args:
      asked: number of the decoder that this process asks; None: it is finished.
      rows: that it brings.

    Returns:
      The decoder's number, None if all are finished; and int [processes], the rows of each.

    Raises RuntimeError if processes ask different decoders.
    """
    mine = np.asarray([_FINISHED if asked is None else asked, rows], np.int32)
    everybody = mine[None]
    if jax.process_count() > 1:
        everybody = np.asarray(multihost_utils.process_allgather(mine))
    wanted = {int(number) for number in everybody[:, 0]} - {_FINISHED}
    if len(wanted) > 1:
        raise RuntimeError(f"processes ask different decoders of one policy: {sorted(wanted)}")
    return wanted.pop() if wanted else None, everybody[:, 1]


def join_rows(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Columns [n, ...], n the same everywhere -> [processes * n, ...], process 0's rows first."""
    if jax.process_count() == 1:
        return list(columns)
    return [np.asarray(c) for c in multihost_utils.process_allgather(list(columns), tiled=True)]


def gather(item: T) -> list[T]:
    """What each process has, in their order. Every process calls this alike."""
    if jax.process_count() == 1:
        return [item]
    data = np.frombuffer(pickle.dumps(item), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.asarray([len(data)], np.int32)))[:, 0]
    padded = np.pad(data, (0, int(sizes.max()) - len(data)))
    found: Any = np.asarray(multihost_utils.process_allgather(padded))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(found, sizes)]
