"""Curves of a run of any length in a bounded number of points."""

from __future__ import annotations

import array
import math

_POINTS = 300


class Curve:
    """Values over steps; once there are twice `points`, each two neighbours become their mean."""

    def __init__(self, points: int = _POINTS):
        self._limit = 2 * points
        self._x, self._y = array.array("d"), array.array("d")
        self._each = 1  # values that a point is the mean of
        self._waiting = (0, 0.0, 0.0)  # of the next point: values, sums of x and y

    def add(self, step: float, value: float) -> None:
        """Steps come in order. A value that is not finite is left out."""
        if not math.isfinite(value):
            return
        count, x, y = self._waiting
        self._waiting = count, x, y = count + 1, x + step, y + value
        if count < self._each:
            return
        self._waiting = (0, 0.0, 0.0)
        self._x.append(x / count)
        self._y.append(y / count)
        if len(self._x) == self._limit:
            self._x, self._y = _halved(self._x), _halved(self._y)
            self._each *= 2

    def points(self) -> tuple[list[float], list[float]]:
        """Steps and values; the last point may be the mean of fewer values than the others."""
        count, x, y = self._waiting
        last = ([x / count], [y / count]) if count else ([], [])
        return self._x.tolist() + last[0], self._y.tolist() + last[1]


def _halved(values: array.array) -> array.array:
    return array.array("d", ((a + b) / 2 for a, b in zip(values[::2], values[1::2])))
