from __future__ import annotations

import math

import numpy as np
import pytest

from vla_jax.evaluation.statistics import Sums, combine, mean_of, share_of, wilson_interval


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


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        # Newcombe 1998, "Interval estimation for the difference between independent proportions:
        # comparison of eleven methods", table II, method 10.
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0000),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_difference_of_shares_as_published(first, second, low, high):
    found = combine((1, -1), (share_of(*first), share_of(*second)))
    assert found["share"] == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=5e-5)


def test_interval_of_a_mean_of_shares():
    parts = [share_of(k, 20) for k in (3, 10, 20)]
    found = mean_of(parts)
    assert found["share"] == pytest.approx(33 / 60)
    down = math.sqrt(sum((p["share"] - p["low"]) ** 2 for p in parts)) / 3
    up = math.sqrt(sum((p["high"] - p["share"]) ** 2 for p in parts)) / 3
    assert (found["low"], found["high"]) == pytest.approx((33 / 60 - down, 33 / 60 + up))
    # One part is itself; a mean over a part that was not measured is none.
    assert mean_of(parts[:1]) == pytest.approx({k: parts[0][k] for k in ("share", "low", "high")})
    assert mean_of([*parts, share_of(0, 0)])["share"] is None


def test_interval_of_a_mean_covers_the_truth():
    rng = np.random.default_rng(0)
    truth, n, hits = (0.1, 0.5, 0.85), 20, 0
    for counts in rng.binomial(n, truth, (2000, 3)):
        found = mean_of([share_of(int(k), n) for k in counts])
        hits += found["low"] <= float(np.mean(truth)) <= found["high"]
    assert 0.93 <= hits / 2000 <= 0.98


def test_combine_refuses():
    with pytest.raises(ValueError, match="nothing was measured"):
        combine((1, -1), (share_of(1, 2), share_of(0, 0)))
    with pytest.raises(ValueError, match="2 weights for 1"):
        combine((1, -1), (share_of(1, 2),))
