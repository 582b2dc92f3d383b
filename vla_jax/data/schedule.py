"""Which source has slot i, at constant shares: in constant time, and even in every window.

The run is cut into blocks of 1,000 slots. Source k owns floor(1000 share_k) slots of a block, the
same ones in every block and evenly spread. The F slots left over are "free": they pass around among
the sources that have a fractional part, so that each gets its share over a cycle of blocks, and so
that any F successive free slots belong to different sources. A window of 1,000 slots holds every
owned slot once and F successive free slots, hence floor(1000 share_k) slots of source k or one
more, wherever it starts.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

BLOCK = 1000


class Schedule:
    """The source of every slot, and how often it came before.

    Args:
      shares: of each source; they sum to 1.
      order: the sources, those of one group together: then a group, too, is within two slots of its
        share in every window of 1,000. As they are numbered if not given.
    """

    def __init__(self, shares: Sequence[Fraction], order: Sequence[int] | None = None):
        sources = len(shares)
        owned = np.asarray([math.floor(BLOCK * s) for s in shares], np.int64)
        free = BLOCK - int(owned.sum())
        denominator = math.lcm(*(s.denominator for s in shares))
        blocks = denominator // math.gcd(denominator, BLOCK)
        extra = np.asarray(
            [int(blocks * (BLOCK * s - math.floor(BLOCK * s))) for s in shares], np.int64
        )
        # One block: the source of each slot, or `sources` for a free slot.
        word = spread([*owned.tolist(), free])
        one_hot = word[:, None] == np.arange(sources + 1)
        before = np.cumsum(one_hot, 0) - one_hot
        # Free slots, by (block of the cycle, number in the block). Writing each source's slots one
        # after the other down the columns keeps its occurrences a block or more apart.
        ordered = np.arange(sources) if order is None else np.asarray(order)
        holder = np.repeat(ordered, extra[ordered]).reshape(free, blocks).T
        per_block = (holder[:, :, None] == np.arange(sources)).sum(1)
        self._sources, self._blocks = sources, blocks
        self._owned, self._per_cycle = owned, blocks * owned + extra
        self._word, self._before, self._free_before = word, before[:, :-1], before[:, -1]
        self._holder = holder
        self._extra_before = np.cumsum(per_block, 0) - per_block

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] -> source int32 [n], number of earlier slots of that source int64 [n]."""
        block, slot = np.divmod(indices, BLOCK)
        source = self._word[slot]
        is_free = source == self._sources
        source[is_free] = self._holder[
            block[is_free] % self._blocks, self._free_before[slot[is_free]]
        ]
        rows = np.arange(len(indices))
        return source.astype(np.int32), self.counts(indices)[rows, source]

    def counts(self, indices: np.ndarray) -> np.ndarray:
        """int64 [n] -> int64 [n, sources]: slots of each source before each index."""
        block, slot = np.divmod(indices, BLOCK)
        cycle, block = np.divmod(block, self._blocks)
        count = cycle[:, None] * self._per_cycle + block[:, None] * self._owned
        count += self._extra_before[block] + self._before[slot]
        passed = np.arange(self._holder.shape[1]) < self._free_before[slot][:, None]
        holder = np.where(passed, self._holder[block], -1)
        return count + (holder[:, :, None] == np.arange(self._sources)).sum(1)

    def first_with(self, source: int, count: int) -> int:
        """The first index before which `source`, whose share is not 0, has `count` >= 1 slots."""
        cycle = (count - 1) // int(self._per_cycle[source])
        low = cycle * self._blocks * BLOCK

        def slots(index: int) -> int:
            return int(self.counts(np.asarray([low + index], np.int64))[0, source])

        return low + bisect.bisect_left(range(self._blocks * BLOCK + 1), count, key=slots)


def spread(quotas: Sequence[int]) -> np.ndarray:
    """int64 [sum of quotas]: letter k quotas[k] times, spread evenly.

    Before every position, letter k came within one of position * quotas[k] / total times.
    (Tijdeman, The chairman assignment problem, 1980: among the letters that may come now, take the
    one that must come first.)
    """
    quota = np.asarray(quotas, np.float64)
    total = int(quota.sum())
    letters = np.flatnonzero(quota)
    if len(letters) == 1:
        return np.full(total, letters[0])
    rate = quota[letters] / total
    slack = 1 / (2 * len(letters) - 2)
    count = np.zeros(len(letters))
    word = np.zeros(total, np.int64)
    for position in range(total):
        may_come = rate * (position + 1) - count >= slack - 1e-9
        deadline = np.where(may_come, (count + 1 - slack) / rate, np.inf)
        chosen = int(np.argmin(deadline))
        count[chosen] += 1
        word[position] = letters[chosen]
    return word
