"""Which record is sample i of a run: a pure function of (seed, i), in constant time.

Source of sample i. The run is a row of stages with constant shares. A stage begins where weights
change or a source is used up, which is known before the run; inside of it `schedule.Schedule` says
whose turn it is, so that each source is within one sample of its share in every window of 1,000.

Record of sample i. The n-th sample of a source is record permute(n mod size) of epoch n // size;
each epoch has its own keyed permutation, so every record comes exactly once an epoch. n counts on
from stage to stage.

So resuming needs one integer, and processes that share the work only need to agree on it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from vla_jax.data.config import WeightChange
from vla_jax.data.schedule import Schedule
from vla_jax.data.shares import (
    Weights,
    exact_shares,
    exact_weights,
    nested_shares,
    weights_over_time,
)

_ROUNDS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """Samples with constant shares.

    Attributes:
      start: the first one.
      configured: float64 [sources], the share that is asked for: of the samples or, if weights are
        in loss tokens, of those.
      shares: each source's share of the samples.
      before: int64 [sources], samples of each source before `start`.
      schedule: who has the n-th sample of the stage.
    """

    start: int
    configured: np.ndarray
    shares: tuple[Fraction, ...]
    before: np.ndarray
    schedule: Schedule


class Mixture:
    """Sample number -> (source, record).

    Args:
      weights: source name -> weight >= 0; only ratios matter.
      sizes: source name -> number of records.
      seed: another seed is another order.
      groups: group -> weight; weights of sources are then relative to the others of their group.
      group_of: source name -> group.
      changes: of weights, in order; names that are not here are passed over.
      epochs: source name -> how often each record comes; 0 or missing: without end. A source that
        is used up leaves its share to the others of its group, the last one of a group to the other
        groups, in proportion to their weights.
      loss_tokens: source name -> mean tokens in the loss of a sample, > 0. Weights are then shares
        of the loss tokens. None: of the samples.

    Attributes:
      names: of the sources.
      members: group -> int64, its sources.
      sizes: int64 [sources].
      stages: in order.
      length: samples until all is used up; None: without end.
      loss_tokens: as given.

    Raises:
      ValueError: no source, a negative, non-finite or negligible (< 1/10,000) weight, all weights
        zero, names that differ, or a source with a weight and no records.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        sizes: Mapping[str, int],
        seed: int,
        *,
        groups: Mapping[str, float] | None = None,
        group_of: Mapping[str, str] | None = None,
        changes: Sequence[WeightChange] = (),
        epochs: Mapping[str, int] | None = None,
        loss_tokens: Mapping[str, float] | None = None,
    ):
        if list(weights) != list(sizes):
            raise ValueError(f"weights name {list(weights)}, sizes name {list(sizes)}")
        self.names = tuple(weights)
        self.sizes = np.asarray([sizes[n] for n in self.names], np.int64)
        self.seed = seed
        self._group_of = dict(group_of or {})
        self.loss_tokens = loss_tokens
        self.members = {
            group: np.flatnonzero([self._group_of[name] == group for name in self.names])
            for group in groups or {}
        }
        self._quota = [(epochs or {}).get(name, 0) * sizes[name] for name in self.names]
        start = Weights(exact_weights(weights, "source"), exact_weights(groups or {}, "group"))
        self.stages, self.length = self._plan(weights_over_time(start, changes))
        self._starts = np.asarray([stage.start for stage in self.stages], np.int64)
        used = np.any([[share > 0 for share in stage.shares] for stage in self.stages], axis=0)
        for k in np.flatnonzero(used & (self.sizes < 1)):
            raise ValueError(
                f"source {self.names[k]!r} has weight {weights[self.names[k]]} and no records: "
                "check its path and split, or set its weight to 0"
            )

    def locate(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers int64 [n], >= 0 -> source int32 [n], record int64 [n].

        Raises ValueError for a number below 0 or past the end.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and indices.min() < 0:
            raise ValueError(f"sample numbers are >= 0, got {indices.min()}")
        if self.length is not None and indices.size and indices.max() >= self.length:
            raise ValueError(
                f"sample {indices.max()} of a mixture that is used up after {self.length}: train "
                "for fewer steps, or give a source more epochs, or 0 for no end"
            )
        number = np.searchsorted(self._starts, indices, side="right") - 1
        source = np.zeros(indices.shape, np.int32)
        occurrence = np.zeros(indices.shape, np.int64)
        for n in np.unique(number):
            here, stage = number == n, self.stages[n]
            source[here], occurrence[here] = stage.schedule.locate(indices[here] - stage.start)
            occurrence[here] += stage.before[source[here]]
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
        stage = self.stage(index)
        passed = np.asarray([index - stage.start], np.int64)
        return stage.before + stage.schedule.counts(passed)[0]

    def stage(self, index: int) -> Stage:
        """The stage that sample `index` is in."""
        return self.stages[int(np.searchsorted(self._starts, index, side="right")) - 1]

    def _plan(self, pieces: Sequence[tuple[int, Weights]]) -> tuple[tuple[Stage, ...], int | None]:
        """The stages and the length, from (first sample, weights)."""
        stages, position = [], 0
        before = np.zeros(len(self.names), np.int64)
        stops = [start for start, _ in pieces[1:]]
        for (_, weights), stop in itertools.zip_longest(pieces, stops):
            while stop is None or position < stop:
                stage = self._stage(position, weights, before)
                if stage is None:
                    return tuple(stages), position
                stages.append(stage)
                ends = [] if stop is None else [stop]
                for k, quota in enumerate(self._quota):
                    if quota and stage.shares[k]:
                        left = quota - int(before[k])
                        ends.append(position + stage.schedule.first_with(k, left))
                if not ends:
                    return tuple(stages), None
                passed = np.asarray([min(ends) - position], np.int64)
                before = before + stage.schedule.counts(passed)[0]
                position = min(ends)
        raise AssertionError("the last weights hold until all is used up, or without end")

    def _stage(self, start: int, weights: Weights, before: np.ndarray) -> Stage | None:
        """None if what is left has no weight."""
        out = {n for n, quota, b in zip(self.names, self._quota, before) if quota and b >= quota}
        configured = nested_shares(weights, self._group_of, out)
        if out and not any(configured.values()):
            return None
        samples = configured
        if self.loss_tokens is not None:
            samples = {
                name: share / Fraction(str(self.loss_tokens[name]))
                for name, share in configured.items()
            }
        shares = exact_shares(samples, self._group_of)
        order = [k for members in self.members.values() for k in members.tolist()]
        return Stage(
            start,
            np.asarray([float(share) for share in configured.values()]),
            shares,
            before,
            Schedule(shares, order or None),
        )


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
