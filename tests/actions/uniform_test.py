"""RT-2's action tokens against independent arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.actions.bins import NUM_BINS
from vla_jax.actions.spec import ActionSpec, end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer

SPEC = end_effector_spec("test", max_position_m=0.1, max_rotation_rad=0.5, control_hz=3)
IDS = np.arange(1000, 1000 + NUM_BINS)[::-1]


@pytest.fixture
def tokenizer() -> UniformTokenizer:
    return UniformTokenizer(SPEC, IDS)


def test_eight_numbers_in_rt2s_order(tokenizer):
    action = np.array([0, 0.1, -0.1, 0.0, 0.5, -0.5, 0.25, 1.0], np.float32)
    bins = tokenizer.bins(action)
    # floor((a - low) / (high - low) * 256), the top value in the last bin.
    assert bins.tolist() == [0, 255, 0, 128, 255, 0, 192, 255]
    assert tokenizer.text(tokenizer.encode(action[None])) == "0 255 0 128 255 0 192 255"
    assert tokenizer.encode(action[None]).tolist() == IDS[bins].tolist()
    assert tokenizer.max_tokens == 8


def test_round_trip_is_at_most_half_a_bin(tokenizer):
    rng = np.random.default_rng(0)
    action = rng.uniform(SPEC.low, SPEC.high, (5000, 8)).astype(np.float32)
    action[:, 0] = rng.integers(0, 2, 5000)
    error = np.abs(tokenizer.values(tokenizer.bins(action)) - action).max(axis=0)
    half_bin = (SPEC.high - SPEC.low) / 512
    assert error[0] == 0
    assert np.all(error[1:] <= half_bin[1:] * (1 + 1e-3))
    assert half_bin[1] == pytest.approx(0.1 / 256)  # 0.39 mm


def test_out_of_bounds_is_clipped(tokenizer):
    assert tokenizer.bins(np.full(8, 9.0)).tolist() == [1] + [255] * 7
    assert tokenizer.bins(np.full(8, -9.0)).tolist() == [0] * 8


def test_terminate_has_two_legal_bins(tokenizer):
    assert tokenizer.automaton.legal.sum(axis=1).tolist() == [2] + [256] * 7


def test_nan_and_wrong_size_are_refused(tokenizer):
    action = np.zeros(8)
    action[2] = np.nan
    with pytest.raises(ValueError, match="position_y"):
        tokenizer.encode(action[None])
    with pytest.raises(ValueError, match="8 dimensions"):
        tokenizer.encode(np.zeros((1, 7)))


def test_spec_json_round_trip_and_digest():
    again = ActionSpec.from_json(SPEC.to_json())
    assert again == SPEC and again.digest == SPEC.digest
    other = end_effector_spec("test", max_position_m=0.1, max_rotation_rad=0.5, control_hz=5)
    assert other.digest != SPEC.digest
    with pytest.raises(ValueError, match=r"control_hz: the data has 3, the checkpoint has 5"):
        SPEC.require_same(other, here="the data", there="the checkpoint")
    with pytest.raises(ValueError, match="not an ActionSpec"):
        ActionSpec.from_json('{"name": 3}')
