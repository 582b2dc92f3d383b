from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.fakes import SPEC, TOKENIZER, FakePolicy
from vla_jax.evaluation.actions import ActionBatch, ActionEvaluator


def evaluate(truth: np.ndarray, said: np.ndarray, valid=None, media=None, batch=3):
    names = [f"instruction {i}" for i in range(len(truth))]
    valid = np.ones(truth.shape, bool) if valid is None else valid

    def batches():
        for start in range(0, len(truth), batch):
            rows = slice(start, start + batch)
            images = np.zeros((len(truth[rows]), 16, 16, 3), np.uint8)
            yield ActionBatch(images, names[rows], truth[rows][:, None], valid[rows][:, None])

    policy = FakePolicy(act=lambda name: said[names.index(name)])
    return ActionEvaluator(batches).measure(policy, media)  # pyright: ignore[reportArgumentType]


def actions(n: int = 7) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.uniform(SPEC.low, SPEC.high, (n, 8)).astype(np.float32)
    values[:, 0] = np.arange(n) >= n - 2  # terminate
    return values


def test_a_perfect_policy_errs_by_less_than_half_a_bin():
    truth = actions()
    result = evaluate(truth, truth)
    assert result["token_accuracy"]["share"] == 1.0
    assert result["all_tokens"]["count"] == 7
    for row in result["dimensions"]:
        assert row["mean_error"] <= row["half_bin"] + 1e-6, row["name"]
    assert result["flags"]["terminate"]["accuracy"]["share"] == 1.0


def test_errors_are_in_the_dimensions_unit():
    truth = np.zeros((6, 8), np.float32)
    said = truth.copy()
    said[:3, 1] = 0.03  # metres, in half of the steps
    said[:, 6] = -0.2  # radians
    result = evaluate(truth, said)
    rows = {row["name"]: row for row in result["dimensions"]}
    half_bin = 0.1 / 256
    assert rows["position_x"]["unit"] == "m"
    assert rows["position_x"]["mean_error"] == pytest.approx(0.015, abs=2 * half_bin)
    assert rows["position_x"]["token_accuracy"]["count"] == 3
    assert rows["rotation_z"]["unit"] == "rad"
    assert rows["rotation_z"]["mean_error"] == pytest.approx(0.2, abs=0.5 / 256)
    assert result["all_tokens"]["count"] == 0
    assert result["token_accuracy"]["count"] == 6 * 8 - 3 - 6


def test_the_constant_action_stands_beside():
    truth = actions(9)
    result = evaluate(truth, truth)
    constant = np.abs(truth - np.median(truth, axis=0)).mean(axis=0)
    found = [row["constant_error"] for row in result["dimensions"]]
    np.testing.assert_allclose(found, constant, rtol=1e-5)


def test_terminate_is_counted_by_class():
    truth, said = actions(10), actions(10)
    said[-1, 0] = 0.0  # one of two missed
    said[0, 0] = 1.0  # one of eight too early
    flag = evaluate(truth, said)["flags"]["terminate"]
    assert (flag["accuracy"]["count"], flag["accuracy"]["n"]) == (8, 10)
    assert (flag["found"]["count"], flag["found"]["n"]) == (1, 2)
    assert (flag["false_alarms"]["count"], flag["false_alarms"]["n"]) == (1, 8)


def test_padded_dimensions_do_not_count():
    truth = actions()
    said = truth.copy()
    said[:, 6] += 0.3 * np.sign(-said[:, 6])
    valid = np.ones(truth.shape, bool)
    valid[:, 6] = False
    result = evaluate(truth, said, valid)
    assert result["token_accuracy"]["n"] == 7 * 7
    assert result["token_accuracy"]["share"] == 1.0
    assert result["all_tokens"]["share"] == 1.0
    row = result["dimensions"][6]
    assert (row["token_accuracy"]["n"], row["mean_error"]) == (0, None)
    assert "error/rotation_z" not in result["scalars"]


def test_examples_show_the_action_string(tmp_path):
    truth = actions()
    examples = evaluate(truth, truth, media=tmp_path)["examples"]
    assert len(examples) == 3  # one a batch
    assert examples[0]["truth"] == TOKENIZER.text(TOKENIZER.encode(truth[:1]))
    assert len(examples[0]["said"].split()) == 8
    assert (tmp_path.parent / examples[0]["image"]).is_file()
