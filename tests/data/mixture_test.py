from __future__ import annotations

import subprocess
import sys
import time
from fractions import Fraction

import numpy as np
import pytest

from vla_jax.data.mixture import Mixture, permute
from vla_jax.data.schedule import BLOCK, spread
from vla_jax.data.shares import exact_shares

WEIGHTS = [
    {"robot": 1, "web": 1},
    {"robot": 1},
    {"a": 0.31, "b": 0.29, "c": 0.4},
    {"a": 1, "b": 2, "c": 4},
    {"a": 1, "b": 1, "c": 1},
    {"a": 3, "b": 2499, "c": 7497},
    {"a": 0.5, "b": 0.0, "c": 0.5},
    {"a": 2**0.5, "b": 3**0.5, "c": np.pi, "d": 0.002, "e": 1.0},
    dict(zip("abcdefghijkl", np.random.default_rng(1).random(12).tolist())),
]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("start", [0, 10**12 + 12_345])
def test_every_window_of_1000_holds_the_ratio_within_one_sample(weights, start):
    mixture = Mixture(weights, dict.fromkeys(weights, 10), seed=0)
    source, _ = mixture.locate(np.arange(start, start + 101_000))
    one_hot = source[:, None] == np.arange(len(weights))
    before = np.concatenate([np.zeros((1, len(weights))), np.cumsum(one_hot, 0)])
    windows = before[BLOCK:] - before[:-BLOCK]
    configured = np.asarray(list(weights.values())) / sum(weights.values())
    assert np.abs(windows - BLOCK * configured).max() < 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_counts_are_those_of_the_schedule(weights):
    mixture = Mixture(weights, dict.fromkeys(weights, 10), seed=0)
    source, _ = mixture.locate(np.arange(23_000))
    for index in (0, 1, 999, 1000, 1001, 12_345, 22_999):
        expected = np.bincount(source[:index], minlength=len(weights))
        np.testing.assert_array_equal(mixture.counts(index), expected)


def test_rational_weights_are_exact_and_others_are_rounded_to_a_ten_thousandth():
    assert exact_shares({"a": 1, "b": 2, "c": 4}) == tuple(Fraction(k, 7) for k in (1, 2, 4))
    assert exact_shares({"a": 0.1, "b": 0.3}) == (Fraction(1, 4), Fraction(3, 4))
    shares = exact_shares({"a": 2**0.5, "b": 1.0, "c": 0.5})
    assert sum(shares) == 1
    exact = np.asarray([2**0.5, 1, 0.5]) / (2**0.5 + 1.5)
    assert np.abs(np.asarray([float(s) for s in shares]) - exact).max() < 1e-4
    # Over one cycle of 7 blocks the shares are met to the sample.
    mixture = Mixture({"a": 1, "b": 2, "c": 4}, {"a": 1, "b": 1, "c": 1}, seed=0)
    assert mixture.counts(7 * BLOCK).tolist() == [1000, 2000, 4000]


def test_sources_are_spread_evenly_inside_a_block():
    for quotas in ([500, 500], [1, 999], [333, 333, 334], [700, 200, 90, 10]):
        word = spread(quotas)
        np.testing.assert_array_equal(np.bincount(word), quotas)
        before = np.cumsum(word[:, None] == np.arange(len(quotas)), 0)
        ideal = np.arange(1, 1001)[:, None] * np.asarray(quotas) / 1000
        assert np.abs(before - ideal).max() < 1


@pytest.mark.parametrize("sizes", [(1, 2), (3, 7), (37, 101), (1000, 777)])
def test_every_record_comes_once_an_epoch(sizes):
    mixture = Mixture({"a": 2, "b": 3}, {"a": sizes[0], "b": sizes[1]}, seed=5)
    source, record = mixture.locate(np.arange(20_000))
    for k, size in enumerate(sizes):
        mine = record[source == k]
        epochs = mine[: len(mine) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(
            np.sort(epochs, 1), np.tile(np.arange(size), (len(epochs), 1))
        )
        if size > 30:  # another order each epoch
            assert len(np.unique(epochs, axis=0)) == len(epochs)


def test_permutations_look_random():
    size, keys = 1009, 64
    position = np.tile(np.arange(size), keys)
    key = np.repeat(np.arange(keys, dtype=np.uint64), size)
    table = permute(position, np.full(len(position), size), key).reshape(keys, size)
    correlation = np.corrcoef(np.concatenate([table, np.arange(size)[None]]))
    off_diagonal = correlation[~np.eye(keys + 1, dtype=bool)]
    # Independent permutations: standard deviation 1/sqrt(size), none of 2080 pairs beyond 5 of it.
    assert abs(off_diagonal.std() * size**0.5 - 1) < 0.1
    assert np.abs(off_diagonal).max() * size**0.5 < 5
    steps = np.diff(table, axis=1) % size  # neighbours stay neighbours as often as by chance
    counts = np.bincount(steps.ravel(), minlength=size)[1:]
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / (size - 2)
    assert 0.8 < chi2 < 1.2


def test_seed_decides_records_and_not_sources():
    sizes = {"a": 500, "b": 500}
    first, second = (
        Mixture({"a": 1, "b": 1}, sizes, seed=s).locate(np.arange(200)) for s in (0, 1)
    )
    np.testing.assert_array_equal(first[0], second[0])
    assert (first[1] != second[1]).mean() > 0.9
    again = Mixture({"a": 1, "b": 1}, sizes, seed=0).locate(np.arange(200))
    np.testing.assert_array_equal(first[1], again[1])


def test_far_samples_cost_no_more_than_near_ones():
    mixture = Mixture({"a": 1, "b": 2, "c": 4}, {"a": 1000, "b": 50, "c": 10**9}, seed=0)

    def fastest(start: int) -> float:
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            mixture.locate(np.arange(start, start + 64))
            times.append(time.perf_counter() - begin)
        return min(times)

    assert fastest(10**12) < 5 * fastest(0)


@pytest.mark.parametrize("start", [0, 10**12])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_one_list_of_samples(start, processes):
    mixture = Mixture({"a": 1, "b": 2}, {"a": 100, "b": 37}, seed=3)
    whole = mixture.locate(np.arange(start, start + 64))
    local = 64 // processes
    parts = [mixture.locate(start + p * local + np.arange(local)) for p in range(processes)]
    for axis in range(2):
        np.testing.assert_array_equal(whole[axis], np.concatenate([p[axis] for p in parts]))


@pytest.mark.parametrize(
    ("weights", "sizes", "message"),
    [
        ({}, {}, "at least one source"),
        ({"robot": -1, "web": 2}, {"robot": 5, "web": 5}, "'robot' has weight -1"),
        ({"robot": float("nan")}, {"robot": 5}, "'robot' has weight nan"),
        ({"robot": 0, "web": 0.0}, {"robot": 5, "web": 5}, "robot, web are all 0"),
        ({"robot": 1, "web": 1}, {"robot": 0, "web": 5}, "'robot' has weight 1 and no records"),
        ({"robot": 1e-6, "web": 1}, {"robot": 5, "web": 5}, "'robot' has 1e-06 of all samples"),
        ({"robot": 1}, {"web": 5}, "weights name"),
    ],
)
def test_bad_weights_are_named(weights, sizes, message):
    with pytest.raises(ValueError, match=message):
        Mixture(weights, sizes, seed=0)


def test_negative_sample_numbers_are_refused():
    with pytest.raises(ValueError, match="-1"):
        Mixture({"a": 1}, {"a": 1}, seed=0).locate(np.asarray([-1]))


def test_mixture_and_generation_need_no_tensorflow():
    code = (
        "import sys, vla_jax.data.mixture, vla_jax.data.generate, vla_jax.data.write;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_draws_are_spread_and_another_record_number_has_others():
    mixture = Mixture({"a": 1}, {"a": 10}, seed=3)
    numbers = np.arange(30_000)
    draws = mixture.draws(numbers)
    assert draws.dtype == np.int64 and draws.min() >= 0
    np.testing.assert_array_equal(draws[17:20], mixture.draws(np.arange(17, 20)))
    for count in (2, 3, 10):
        share = np.bincount(draws % count) / len(draws)
        np.testing.assert_allclose(share, 1 / count, atol=0.01)
    # The same record gets each of three answers within a few epochs.
    record = mixture.locate(numbers)[1]
    assert {*(draws[record == 4] % 3)[:20].tolist()} == {0, 1, 2}
    other = Mixture({"a": 1}, {"a": 10}, seed=4).draws(numbers)
    assert np.mean(other % 10 == draws % 10) < 0.12
