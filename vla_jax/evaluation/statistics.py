"""Sums that can be added up over batches and hosts, and intervals of shares."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95% point of the standard normal distribution."""


class Estimate(TypedDict):
    """A share, a mean of shares or a difference of them, with its 95% interval; `share` is None if
    nothing was measured."""

    share: float | None
    low: float
    high: float


class Share(TypedDict):
    """`count` of `n` and the 95% interval of the share; `share` is None if `n` is 0."""

    count: int
    n: int
    share: float | None
    low: float
    high: float


def wilson_interval(count: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share, (low, high) in 0..1; (0, 1) for n = 0.

    Unlike the normal approximation it stays inside 0..1 and is usable at 0 of n and n of n.
    Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises ValueError unless 0 <= count <= n.
    """
    if not 0 <= count <= n:
        raise ValueError(f"{count} of {n} is no share: need 0 <= count <= n")
    if n == 0:
        return 0.0, 1.0
    p = count / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    # At the ends the formula is exactly 0 and 1; rounding must not leave 1e-17.
    return (0.0 if count == 0 else low), (1.0 if count == n else high)


def share_of(count: int, n: int) -> Share:
    """`count` of `n` with its Wilson interval, ready for JSON."""
    low, high = wilson_interval(int(count), int(n))
    share = count / n if n else None
    return Share(count=int(count), n=int(n), share=share, low=low, high=high)


def combine(weights: Sequence[float], parts: Sequence[Estimate | Share]) -> Estimate:
    """The weighted sum of independent estimates, with the interval that follows from theirs.

    With weights (1, -1) and Wilson's intervals this is Newcombe's hybrid score interval for the
    difference of two proportions (Newcombe 1998, "Interval estimation for the difference between
    independent proportions", method 10); other weights follow from the same square-and-add, which
    Zou and Donner 2008 call MOVER. Near 0 and 1 it is usable, as Wilson's is.

    Raises ValueError if a part was not measured, or for other numbers of weights and parts.
    """
    if len(weights) != len(parts) or not parts:
        raise ValueError(f"{len(weights)} weights for {len(parts)} estimates")
    total, below, above = 0.0, 0.0, 0.0
    for weight, part in zip(weights, parts):
        share = part["share"]
        if share is None:
            raise ValueError("an estimate without a value: nothing was measured")
        down, up = weight * (share - part["low"]), weight * (part["high"] - share)
        if weight < 0:
            down, up = up, down
        total += weight * share
        below += down * down
        above += up * up
    return Estimate(share=total, low=total - math.sqrt(below), high=total + math.sqrt(above))


def mean_of(parts: Sequence[Estimate | Share]) -> Estimate:
    """The plain mean of independent estimates, such as the columns of a table; `share` is None if
    that of a part is."""
    if not parts or any(part["share"] is None for part in parts):
        return Estimate(share=None, low=0.0, high=1.0)
    return combine([1 / len(parts)] * len(parts), parts)


class Sums:
    """Named sums of values and of what they are divided by. One division, at the end.

    A mean of means is biased where batches (or hosts) hold different numbers of valid rows; so
    sums are added up and divided once.
    """

    def __init__(self):
        self._value: dict[str, float] = {}
        self._count: dict[str, float] = {}

    def add(self, name: str, values: np.ndarray | float, valid: np.ndarray | bool = True) -> None:
        """Adds every value that is valid.

        Args:
          values: numbers or bools; NaN is allowed where `valid` is False.
          valid: bool, broadcast against `values`.
        """
        values, valid = np.broadcast_arrays(np.asarray(values, np.float64), np.asarray(valid, bool))
        self._value[name] = self._value.get(name, 0.0) + float(values[valid].sum())
        self._count[name] = self._count.get(name, 0.0) + float(valid.sum())

    def merge(self, other: Sums) -> None:
        """Adds another host's (or batch's) sums."""
        for name, value in other._value.items():
            self._value[name] = self._value.get(name, 0.0) + value
            self._count[name] = self._count.get(name, 0.0) + other._count[name]

    def count(self, name: str) -> int:
        """How many valid values were added."""
        return int(self._count.get(name, 0.0))

    def total(self, name: str) -> float:
        return self._value.get(name, 0.0)

    def mean(self, name: str) -> float | None:
        """None if nothing valid was added."""
        count = self._count.get(name, 0.0)
        return self._value[name] / count if count else None

    def means(self) -> Iterator[tuple[str, float]]:
        """(name, mean) of everything that has a valid value, by name."""
        for name in sorted(self._value):
            if self._count[name]:
                yield name, self._value[name] / self._count[name]

    def share(self, name: str) -> Share:
        """For values that are bools."""
        return share_of(round(self.total(name)), self.count(name))
