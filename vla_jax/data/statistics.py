"""What a data set's numbers are like: moments, extremes and quantiles per dimension, in one pass.

No image is decoded. Parts measured apart, by other processes or of other shards, merge into what
one pass over all of them gives: counts, extremes and quantiles exactly, moments to rounding.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore

from vla_jax.data.sources import index_files
from vla_jax.data.sources.base import EpisodicSource
from vla_jax.data.storage import FileFacts

RELATIVE_ACCURACY = 1e-3
"""Of a quantile, as a share of its value: an eighth of one of 256 bins between symmetric bounds. Of
a number that is far from 0 for its range it says less."""

LEAST_RANGE = 1e-4
"""Of a dimension that bounds may be taken from: 0.1 mm, 0.006 degrees."""

# A range that is rounding, not motion.
_CONSTANT = 1e-6
_PROGRESS_SECONDS = 10


class Statistics:
    """Statistics of numbers [n, D], one column each.

    NaN and infinite values are counted, and left out of everything else.

    Args:
      names: of the D columns, for messages.

    Attributes:
      names: as given.
      count: int64 [D], finite values.
      nan, infinite: int64 [D], values that are not.
      mean: float64 [D]; NaN where `count` is 0, as all that follows.
      low, high: float64 [D], the least and the greatest value.
    """

    def __init__(self, names: Sequence[str]):
        size = len(names)
        self.names = tuple(names)
        self.count = np.zeros(size, np.int64)
        self.nan, self.infinite = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.low, self.high = np.full(size, np.nan), np.full(size, np.nan)
        self._mean, self._squares = np.zeros(size), np.zeros(size)  # sum of (x - mean)^2
        self._sketches = [_Sketch() for _ in names]

    @property
    def mean(self) -> np.ndarray:
        return np.where(self.count > 0, self._mean, np.nan)

    @property
    def std(self) -> np.ndarray:
        """float64 [D], of the values themselves (divided by n, not n - 1)."""
        variance = self._squares / np.maximum(self.count, 1)
        return np.where(self.count > 0, np.sqrt(variance), np.nan)

    def quantile(self, share: float) -> np.ndarray:
        """float64 [D], as `np.quantile` interpolates it.

        Each of the two values it lies between is off by at most `RELATIVE_ACCURACY` of itself.
        """
        found = np.array([sketch.quantile(share) for sketch in self._sketches])
        return np.clip(found, self.low, self.high)

    def spread(self) -> np.ndarray:
        """float64 [D], the most that q99 - q01 can be, given the accuracy of both."""
        q01, q99 = self.quantile(0.01), self.quantile(0.99)
        unsure = RELATIVE_ACCURACY / (1 - RELATIVE_ACCURACY) * (np.abs(q01) + np.abs(q99))
        return np.minimum(q99 - q01 + unsure, self.high - self.low)

    def add(self, values: np.ndarray) -> None:
        """Adds rows [n, D]. Raises ValueError for another D."""
        values = np.asarray(values, np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise ValueError(f"values of shape {values.shape}, need [n, {len(self.names)}]")
        finite = np.isfinite(values)
        self.nan += np.isnan(values).sum(0)
        self.infinite += np.isinf(values).sum(0)
        count = finite.sum(0)
        mean = np.where(finite, values, 0).sum(0) / np.maximum(count, 1)
        squares = np.square(np.where(finite, values - mean, 0)).sum(0)
        self._add_moments(count, mean, squares)
        if len(values):
            self.low = np.fmin(self.low, np.where(finite, values, np.inf).min(0, initial=np.inf))
            self.high = np.fmax(self.high, np.where(finite, values, -np.inf).max(0))
            self.low[self.count == 0] = self.high[self.count == 0] = np.nan
        for sketch, column, kept in zip(self._sketches, values.T, finite.T):
            sketch.add(column[kept])

    def merge(self, other: Statistics) -> None:
        """Adds what `other` has seen. Raises ValueError if its columns have other names."""
        if self.names != other.names:
            raise ValueError(f"statistics of {self.names} and of {other.names} do not merge")
        self.nan += other.nan
        self.infinite += other.infinite
        self._add_moments(other.count, other._mean, other._squares)
        self.low, self.high = np.fmin(self.low, other.low), np.fmax(self.high, other.high)
        for mine, theirs in zip(self._sketches, other._sketches):
            mine.merge(theirs)

    def summary(self) -> dict[str, dict[str, float | None]]:
        """The figures of each dimension, by name, for people; None where nothing is finite."""
        columns = {
            "count": self.count,
            "nan": self.nan,
            "infinite": self.infinite,
            "mean": self.mean,
            "std": self.std,
            "min": self.low,
            "q01": self.quantile(0.01),
            "median": self.quantile(0.5),
            "q99": self.quantile(0.99),
            "max": self.high,
        }
        return {
            name: {
                key: None if np.isnan(column[i]) else column[i].item()
                for key, column in columns.items()
            }
            for i, name in enumerate(self.names)
        }

    def to_json(self) -> str:
        """All of it, as `from_json` takes it; `summary` is for people."""
        arrays = ("count", "nan", "infinite", "low", "high", "_mean", "_squares")
        state: dict[str, Any] = {key: getattr(self, key).tolist() for key in arrays}
        state["sketches"] = [sketch.to_plain() for sketch in self._sketches]
        return json.dumps({"names": self.names, "accuracy": RELATIVE_ACCURACY, **state})

    @classmethod
    def from_json(cls, text: str) -> Statistics:
        """Raises ValueError for what `to_json` did not write, or with another accuracy."""
        try:
            state = json.loads(text)
            if state.pop("accuracy") != RELATIVE_ACCURACY:
                raise ValueError("quantiles of another accuracy: measure again")
            result = cls(state.pop("names"))
            result._sketches = [_Sketch.from_plain(plain) for plain in state.pop("sketches")]
            for key, values in state.items():
                setattr(result, key, np.array(values, getattr(result, key).dtype))
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as e:
            raise ValueError(f"not statistics: {e}") from e
        return result

    def _add_moments(self, count: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> None:
        """Chan, Golub and LeVeque 1979."""
        total = self.count + count
        share = count / np.maximum(total, 1)
        apart = mean - self._mean
        self._mean = self._mean + apart * share
        self._squares = self._squares + squares + np.square(apart) * self.count * share
        self.count = total


class EpisodeStatistics(NamedTuple):
    """Of the steps of episodes.

    Attributes:
      episodes: how many.
      actions: in the units of the source's ActionSpec.
      state: what the robot measured; None if the source does not read it.
    """

    episodes: int
    actions: Statistics
    state: Statistics | None


def measure_episodes(
    source: EpisodicSource, numbers: Iterable[int] | None = None
) -> EpisodeStatistics:
    """One pass over episodes, without their images, with progress.

    Args:
      source: robot data.
      numbers: its episodes; None: all. A process of several takes `range(p, n, processes)`, and the
        results are merged.

    Raises ValueError, naming the episode, for one that cannot be read.
    """
    assert source.action_spec is not None, source.name
    actions, state, told = Statistics(source.action_spec.names), None, time.monotonic()
    numbers = range(source.num_episodes) if numbers is None else list(numbers)
    for done, number in enumerate(numbers):
        track = source.track(number)
        actions.add(track.actions)
        if track.state is not None:
            state = state or Statistics([f"state_{i}" for i in range(track.state.shape[1])])
            state.add(track.state)
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"{source.name}: measured {done} of {len(numbers)} episodes", file=sys.stderr)
    return EpisodeStatistics(len(numbers), actions, state)


class FiledSource(EpisodicSource, Protocol):
    """A source that knows the files it reads."""

    @property
    def files(self) -> list[FileFacts]: ...


def load_or_measure(source: FiledSource, what: str) -> EpisodeStatistics:
    """`measure_episodes` of all episodes, from disk if the same files were measured before.

    Args:
      source: robot data.
      what: its actions and state are: whatever else than its files decides the numbers.

    Kept as `index_files` keeps tables. Raises as `measure_episodes` does.
    """

    def build() -> np.ndarray:
        episodes, actions, state = measure_episodes(source)
        parts = [episodes, actions.to_json(), state and state.to_json()]
        return np.frombuffer(json.dumps(parts).encode(), np.uint8)

    what = f"statistics, accuracy {RELATIVE_ACCURACY}: {what}"
    kept = index_files.load_or_build(source.files, what, build)
    episodes, actions, state = json.loads(kept.tobytes())
    return EpisodeStatistics(
        episodes,
        Statistics.from_json(actions),
        None if state is None else Statistics.from_json(state),
    )


def require_ranges(
    statistics: Statistics,
    names: Iterable[str] | None = None,
    *,
    where: str,
    remedy: str,
    floor: float | Sequence[float] = LEAST_RANGE,
    constant: bool = False,
) -> None:
    """Refuses to take bounds from numbers that hardly move: noise would become whole bins.

    Args:
      statistics: of the numbers.
      names: of those that bounds are taken from; None: all.
      where: the data set, for the message.
      remedy: what to do about it, for the message.
      floor: least q99 - q01, in the number's own unit; one for all or one for each of `names`.
      constant: a number that is the same everywhere may pass: it is not used.

    Raises ValueError, naming every dimension that has values that are not finite, or a range below
    its floor, with the range.
    """
    chosen = list(statistics.names if names is None else names)
    floors = np.broadcast_to(np.asarray(floor, np.float64), len(chosen))
    spread, wrong = statistics.spread(), []
    for name, least in zip(chosen, floors):
        i = statistics.names.index(name)
        bad, low, high = (
            x[i] for x in (statistics.nan + statistics.infinite, statistics.low, statistics.high)
        )
        if bad or not statistics.count[i]:
            wrong.append(f"{name} has {bad} values that are NaN or infinite")
        elif spread[i] < least and not (constant and high - low <= _CONSTANT):
            wrong.append(
                f"{name} has a range of {spread[i]:.3g} between its 1st and 99th percentile, less "
                f"than {least:g} (all its values: {low:.6g} to {high:.6g})"
            )
    if wrong:
        raise ValueError(f"{where}: no bounds can be taken from {'; '.join(wrong)}: {remedy}")


class _Sketch:
    """Quantiles of a stream: a DDSketch, whose stores we can see, to write them down.

    It draws no random numbers and forgets no order: the same values give the same sketch on every
    machine. Bounds are taken from it, and they are part of an ActionSpec, which must agree.
    """

    def __init__(self, zeros: float = 0.0, signs: Sequence[Sequence[Sequence[float]]] = ((), ())):
        self._stores = DenseStore(), DenseStore()
        for store, bins in zip(self._stores, signs):
            for key, weight in bins:
                store.add(int(key), weight)
        self._inside = BaseDDSketch(LogarithmicMapping(RELATIVE_ACCURACY), *self._stores, zeros)

    def add(self, values: np.ndarray) -> None:
        for value in values.tolist():
            self._inside.add(value)

    def merge(self, other: _Sketch) -> None:
        self._inside.merge(other._inside)

    def quantile(self, share: float) -> float:
        """Interpolated between the values of the two nearest ranks; NaN if there is none."""
        last = int(self._inside.count) - 1
        if last < 0:
            return np.nan
        below = int(np.floor(share * last))
        low, high = self._value(below, last), self._value(min(below + 1, last), last)
        return low + (high - low) * (share * last - below)

    def _value(self, rank: int, last: int) -> float:
        # Half a rank more: the library cuts it off, and rounding cannot cut off one too many.
        share = 1.0 if rank == last else (rank + 0.5) / last
        value = self._inside.get_quantile_value(share)
        assert value is not None
        return float(value)

    @property
    def _zeros(self) -> float:
        return self._inside.count - sum(store.count for store in self._stores)

    def to_plain(self) -> list[Any]:
        """[zeros, [[key, count], ...] of positive values, the same of negative ones]."""
        return [self._zeros, *(_bins(store) for store in self._stores)]

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> _Sketch:
        return cls(plain[0], plain[1:])


def _bins(store: DenseStore) -> list[list[float]]:
    return [[i + store.offset, weight] for i, weight in enumerate(store.bins) if weight]
