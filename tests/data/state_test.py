"""States: scaled, in bins, and refused."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.data.state import StateInput

IDS = np.arange(1000, 1256)


def test_scaled_and_bins_equal_their_definitions():
    low, high = [-1.0, 0.0, 10.0], [1.0, 0.5, 30.0]
    state = StateInput(low, high, IDS)
    values = np.random.default_rng(0).uniform(-2, 40, (200, 3)).astype(np.float32)
    share = (np.clip(values, low, high) - low) / np.subtract(high, low)
    np.testing.assert_allclose(state.scaled(list(values)), 2 * share - 1, atol=1e-6)
    bins = state.tokens(list(values)) - 1000
    exact = np.minimum(np.floor(share * 256), 255)
    assert (np.abs(bins - exact) <= 1).all() and (bins == exact).mean() > 0.99
    # The bounds, the middle and the bin below it.
    edges = state.tokens([np.asarray(low), np.asarray(high), np.asarray([0, 0.25, 19.99])]) - 1000
    assert edges.tolist() == [[0, 0, 0], [255, 255, 255], [128, 128, 127]]
    assert state.scaled([]).shape == state.tokens([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([], [], "a low and a high bound for each"),
        ([0, 1], [1], "a low and a high bound for each"),
        ([0, 1], [1, 1], r"number 1 of the state has bounds \[1.0, 1.0\]"),
        ([0, -np.inf], [1, 1], "number 1 of the state has bounds"),
    ],
)
def test_bad_bounds_are_refused(low, high, message):
    with pytest.raises(ValueError, match=message):
        StateInput(low, high)


def test_bad_states_and_ids_are_refused():
    state = StateInput([0, 0], [1, 1])
    with pytest.raises(ValueError, match=r"state of shape \(3,\)"):
        state.scaled([np.zeros(2), np.zeros(3)])
    with pytest.raises(ValueError, match=r"NaN or infinite: \[0.0, nan\]"):
        state.scaled([np.ones(2), np.asarray([0, np.nan])])
    with pytest.raises(ValueError, match="256 different ids"):
        StateInput([0], [1], np.zeros(256, int))
