from __future__ import annotations

import math

import numpy as np
import pytest

from vla_jax.evaluation.statistics import Sums, share_of, wilson_interval


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I,
        # method 3 (score, without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(count, n, low, high):
    found = wilson_interval(count, n)
    assert found == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_solves_the_score_equation():
    # The ends are where |count/n - p| = z sqrt(p (1 - p) / n): the definition, not the closed form.
    for count, n in ((1, 10), (25, 50), (47, 50)):
        for p in wilson_interval(count, n):
            assert abs(count / n - p) == pytest.approx(1.959963985 * math.sqrt(p * (1 - p) / n))


def test_wilson_interval_at_the_ends():
    assert wilson_interval(0, 50)[0] == 0.0
    assert wilson_interval(50, 50)[1] == 1.0
    assert wilson_interval(0, 0) == (0.0, 1.0)
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("count", "n"), [(-1, 5), (6, 5)])
def test_wilson_interval_refuses(count, n):
    with pytest.raises(ValueError, match="is no share"):
        wilson_interval(count, n)


def test_sums_divide_once():
    parts = [(np.array([1.0, 2.0, 3.0]), np.array([True] * 3)), (np.array([10.0]), True)]
    whole, halves = Sums(), [Sums(), Sums()]
    for half, (values, valid) in zip(halves, parts):
        half.add("x", values, valid)
        whole.add("x", values, valid)
    halves[0].merge(halves[1])
    # (1 + 2 + 3 + 10) / 4, not the mean of the means 2 and 10.
    assert whole.mean("x") == halves[0].mean("x") == 4.0


def test_sums_ignore_what_is_not_valid():
    sums = Sums()
    sums.add("x", np.array([1.0, np.nan, 5.0]), np.array([True, False, True]))
    sums.add("empty", np.array([1.0]), np.array([False]))
    assert dict(sums.means()) == {"x": 3.0}
    assert sums.mean("empty") is None
    assert sums.mean("never added") is None


def test_share_of():
    assert share_of(np.int64(1), 4) == {
        "count": 1,
        "n": 4,
        "share": 0.25,
        "low": pytest.approx(0.0456, abs=1e-4),
        "high": pytest.approx(0.6994, abs=1e-4),
    }
    assert share_of(0, 0)["share"] is None
