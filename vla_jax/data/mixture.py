"""Which record is sample i of a run: a pure function of (seed, i), in constant time.

Source of sample i. The weights become exact fractions, in whole 1/10,000 if they must. The run is
cut into blocks of 1,000 slots. Source k owns floor(1000 w_k) slots of a block, the same ones in
every block and evenly spread. The F slots left over are "free": they pass around among the sources
that have a fractional part, so that each gets its share over a cycle of blocks, and so that any F
successive free slots belong to different sources. A window of 1,000 samples holds every owned slot
once and F successive free slots, hence floor(1000 w_k) samples of source k or one more, wherever it
starts.

Record of sample i. The n-th sample of a source is record permute(n mod size) of epoch n // size;
each epoch has its own keyed permutation, so every record comes exactly once an epoch.

So resuming needs one integer, and processes that share the work only need to agree on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

BLOCK = 1000
MAX_DENOMINATOR = 10_000
_ROUNDS = 3


class Mixture:
    """Sample number -> (source, record).

    Args:
      weights: source name -> weight >= 0; only ratios matter.
      sizes: source name -> number of records.
      seed: another seed is another order.

    Raises:
      ValueError: no source, a negative, non-finite or negligible (< 1/10,000) weight, all weights
        zero, names that differ, or a source with a weight and no records.
    """

    def __init__(self, weights: Mapping[str, float], sizes: Mapping[str, int], seed: int):
        if list(weights) != list(sizes):
            raise ValueError(f"weights name {list(weights)}, sizes name {list(sizes)}")
        self.names = tuple(weights)
        self.shares = exact_shares(weights)
        empty = [n for n, share in zip(self.names, self.shares) if share and sizes[n] < 1]
        if empty:
            raise ValueError(
                f"source {empty[0]!r} has weight {weights[empty[0]]} and no records: "
                "check its path and split, or set its weight to 0"
            )
        self.sizes = np.asarray([sizes[n] for n in self.names], np.int64)
        self.seed = seed
        self._schedule = _Schedule(self.shares)

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers int64 [n], >= 0 -> source int32 [n], record int64 [n]."""
        indices = np.asarray(indices, np.int64)
        if indices.size and indices.min() < 0:
            raise ValueError(f"sample numbers are >= 0, got {indices.min()}")
        source, occurrence = self._schedule.locate(indices)
        size = np.maximum(self.sizes, 1)[source]
        epoch, position = np.divmod(occurrence, size)
        key = np.full(indices.shape, self.seed % 2**64, np.uint64)
        for part in (source, epoch):
            key = _mix(key) + part.astype(np.uint64)
        return source, permute(position, size, key)

    def draws(self, indices: np.ndarray) -> np.ndarray:
        """Sample numbers int64 [n] -> int64 [n], >= 0: random bits of each sample, for choices.

        A record comes at another sample number in each epoch, hence with other bits.
        """
        key = _mix(np.full(np.shape(indices), self.seed % 2**64, np.uint64))
        bits = _mix(key ^ _mix(np.asarray(indices, np.int64).astype(np.uint64)))
        return (bits >> np.uint64(1)).astype(np.int64)

    def counts(self, index: int) -> np.ndarray:
        """int64 [sources]: samples of each source among samples 0 .. index - 1."""
        return self._schedule.counts(np.asarray([index], np.int64))[0]


def exact_shares(weights: Mapping[str, float]) -> tuple[Fraction, ...]:
    """Weights as fractions that sum to 1.

    A weight means what its decimal says (0.1 is 1/10). Shares without a common denominator up to
    10,000 are rounded to 1/10,000, by largest remainder.
    """
    if not weights:
        raise ValueError("a mixture needs at least one source")
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"source {name!r} has weight {weight}: it must be finite and >= 0")
    exact = [Fraction(str(weight)) for weight in weights.values()]
    total = sum(exact)
    if total == 0:
        raise ValueError(
            f"the weights of {', '.join(weights)} are all 0: give one of them a weight"
        )
    shares = [weight / total for weight in exact]
    if math.lcm(*(share.denominator for share in shares)) <= MAX_DENOMINATOR:
        return tuple(shares)
    scaled = [share * MAX_DENOMINATOR for share in shares]
    rounded = [math.floor(s) for s in scaled]
    by_remainder = sorted(range(len(scaled)), key=lambda k: rounded[k] - scaled[k])
    for k in by_remainder[: MAX_DENOMINATOR - sum(rounded)]:
        rounded[k] += 1
    for name, share, units in zip(weights, shares, rounded):
        if share and not units:
            raise ValueError(
                f"source {name!r} has {float(share):.2g} of all samples, less than "
                f"1/{MAX_DENOMINATOR}: raise its weight or set it to 0"
            )
    return tuple(Fraction(units, MAX_DENOMINATOR) for units in rounded)


class _Schedule:
    """The source of every slot, and how often it came before."""

    def __init__(self, shares: Sequence[Fraction]):
        owned = np.asarray([math.floor(BLOCK * s) for s in shares], np.int64)
        free = BLOCK - int(owned.sum())
        denominator = math.lcm(*(s.denominator for s in shares))
        blocks = denominator // math.gcd(denominator, BLOCK)
        extra = np.asarray(
            [int(blocks * (BLOCK * s - math.floor(BLOCK * s))) for s in shares], np.int64
        )
        sources = len(shares)
        # One block: the source of each slot, or `sources` for a free slot.
        word = spread([*owned.tolist(), free])
        one_hot = word[:, None] == np.arange(sources + 1)
        before = np.cumsum(one_hot, 0) - one_hot
        # Free slots, by (block of the cycle, number in the block). Writing each source's slots one
        # after the other down the columns keeps its occurrences a block or more apart.
        holder = np.repeat(np.arange(sources), extra).reshape(free, blocks).T
        per_block = (holder[:, :, None] == np.arange(sources)).sum(1)
        self._sources, self._blocks = sources, blocks
        self._owned, self._per_cycle = owned, blocks * owned + extra
        self._word, self._before, self._free_before = word, before[:, :-1], before[:, -1]
        self._holder = holder
        self._extra_before = np.cumsum(per_block, 0) - per_block

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] -> source int32 [n], number of earlier samples of that source int64 [n]."""
        block, slot = np.divmod(indices, BLOCK)
        source = self._word[slot]
        is_free = source == self._sources
        source[is_free] = self._holder[
            block[is_free] % self._blocks, self._free_before[slot[is_free]]
        ]
        rows = np.arange(len(indices))
        return source.astype(np.int32), self.counts(indices)[rows, source]

    def counts(self, indices: np.ndarray) -> np.ndarray:
        """int64 [n] -> int64 [n, sources]: samples of each source before each index."""
        block, slot = np.divmod(indices, BLOCK)
        cycle, block = np.divmod(block, self._blocks)
        count = cycle[:, None] * self._per_cycle + block[:, None] * self._owned
        count += self._extra_before[block] + self._before[slot]
        passed = np.arange(self._holder.shape[1]) < self._free_before[slot][:, None]
        holder = np.where(passed, self._holder[block], -1)
        return count + (holder[:, :, None] == np.arange(self._sources)).sum(1)


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


def permute(position: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Keyed permutations of 0 .. size - 1, without tables.

    A number is a pair (row, column) of a rectangle that is just large enough. Each round shifts the
    column by a hash of the row, then the row by a hash of the column: a Feistel network, hence
    one-to-one on the rectangle. A result past the end walks on, which keeps it one-to-one.

    Args:
      position: int64 [n], 0 <= position < size.
      size: int64 [n].
      key: uint64 [n]; positions of equal size and key belong to one permutation.

    Returns:
      int64 [n].
    """
    columns = np.ceil(np.sqrt(size)).astype(np.uint64)
    rows = -(-size // columns.astype(np.int64)).astype(np.uint64)
    size = size.astype(np.uint64)
    result = position.astype(np.uint64)
    round_keys = _mix(key[:, None] + np.arange(2 * _ROUNDS, dtype=np.uint64)).T
    walking = np.arange(len(result))
    while len(walking):
        row, column = np.divmod(result[walking], columns[walking])
        keys, r, c = round_keys[:, walking], rows[walking], columns[walking]
        for number in range(0, 2 * _ROUNDS, 2):
            column = (column + _mix(row ^ keys[number]) % c) % c
            row = (row + _mix(column ^ keys[number + 1]) % r) % r
        result[walking] = row * c + column
        walking = walking[result[walking] >= size[walking]]
    return result.astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """A 64-bit hash of uint64 [n] (the finaliser of SplitMix64)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
