"""RT-2's action tokens against independent arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.actions.spec import ActionSpec, end_effector_spec
from vla_jax.actions.uniform import NUM_BINS, UniformTokenizer

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
    assert tokenizer.text(tokenizer.encode(action)) == "0 255 0 128 255 0 192 255"
    assert tokenizer.encode(action).tolist() == IDS[bins].tolist()
    assert tokenizer.num_tokens == 8


def test_round_trip_is_at_most_half_a_bin(tokenizer):
    rng = np.random.default_rng(0)
    action = rng.uniform(SPEC.low, SPEC.high, (5000, 8)).astype(np.float32)
    action[:, 0] = rng.integers(0, 2, 5000)
    error = np.abs(tokenizer.decode(tokenizer.encode(action)) - action).max(axis=0)
    half_bin = (SPEC.high - SPEC.low) / 512
    assert error[0] == 0
    assert np.all(error[1:] <= half_bin[1:] * (1 + 1e-3))
    assert half_bin[1] == pytest.approx(0.1 / 256)  # 0.39 mm


def test_all_256_values_differ_and_are_fixed_points(tokenizer):
    ids = np.tile(tokenizer.token_ids[:, None], 8)
    ids[:, 0] = tokenizer.token_ids[0]
    values = tokenizer.decode(ids)
    assert all(len(np.unique(values[:, a])) == NUM_BINS for a in range(1, 8))
    assert np.array_equal(tokenizer.encode(values), ids)


def test_out_of_bounds_is_clipped(tokenizer):
    assert tokenizer.bins(np.full(8, 9.0)).tolist() == [1] + [255] * 7
    assert tokenizer.bins(np.full(8, -9.0)).tolist() == [0] * 8


def test_terminate_has_two_legal_bins(tokenizer):
    assert tokenizer.legal().sum(axis=1).tolist() == [2] + [256] * 7


@pytest.mark.parametrize("stray", [0, 5, 999, 1256, 10**6, -1])
def test_stray_token_is_refused(tokenizer, stray):
    ids = tokenizer.encode(np.zeros(8))
    ids[3] = stray
    with pytest.raises(ValueError, match=r"not an action token at position 3 \(position_z\)"):
        tokenizer.decode(ids)


def test_terminate_token_above_one_is_refused(tokenizer):
    ids = tokenizer.encode(np.zeros(8))
    ids[0] = tokenizer.token_ids[2]
    with pytest.raises(ValueError, match="position 0"):
        tokenizer.decode(ids)


def test_nan_and_wrong_size_are_refused(tokenizer):
    action = np.zeros(8)
    action[2] = np.nan
    with pytest.raises(ValueError, match="position_y"):
        tokenizer.encode(action)
    with pytest.raises(ValueError, match="8 dimensions"):
        tokenizer.encode(np.zeros(7))


def test_report_counts_bins_and_entropy(tokenizer):
    actions = np.zeros((4, 8), np.float32)
    actions[:2, 1] = 0.05
    actions[3, 2] = 0.2
    rows = {r["name"]: r for r in tokenizer.report(actions)}
    assert rows["position_x"]["entropy_bits"] == pytest.approx(1.0)
    assert rows["position_x"]["bins_used"] == 2
    assert rows["position_y"]["clipped"] == 0.25
    assert rows["rotation_x"]["entropy_bits"] == 0.0


def test_spec_json_round_trip_and_digest():
    again = ActionSpec.from_json(SPEC.to_json())
    assert again == SPEC and again.digest == SPEC.digest
    other = end_effector_spec("test", max_position_m=0.1, max_rotation_rad=0.5, control_hz=5)
    assert other.digest != SPEC.digest
    with pytest.raises(ValueError, match=r"control_hz: the data has 3, the checkpoint has 5"):
        SPEC.require_same(other, here="the data", there="the checkpoint")
    with pytest.raises(ValueError, match="not an ActionSpec"):
        ActionSpec.from_json('{"name": 3}')
