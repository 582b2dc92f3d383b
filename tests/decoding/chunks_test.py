"""Execution of chunks against plain loops over everything that was predicted."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.actions.spec import end_effector_spec
from vla_jax.decoding.chunks import ChunkExecutor

SPEC = end_effector_spec("arm", max_position_m=0.1, max_rotation_rad=0.5, control_hz=3.0)
STEPS, CHUNK = 23, 5
SWITCHES = [0, 7]  # terminate, gripper


@pytest.fixture(scope="module")
def predictions() -> np.ndarray:
    """float32 [steps, C, A]: what the policy would say in each step."""
    rng = np.random.default_rng(0)
    said = rng.uniform(SPEC.low, SPEC.high, (STEPS, CHUNK, 8)).astype(np.float32)
    said[..., SWITCHES] = rng.integers(0, 2, (STEPS, CHUNK, 2))
    return said


def run(predictions: np.ndarray, **options) -> tuple[np.ndarray, list[int]]:
    """What is done [steps, A], and the steps in which the policy was asked."""
    executor, done, asked = ChunkExecutor(SPEC, CHUNK, **options), [], []
    for step, chunk in enumerate(predictions):
        if executor.due:
            asked.append(step)
            executor.add(chunk)
        done.append(executor.next())
    assert all(action.dtype == np.float32 for action in done)
    return np.stack(done), asked


@pytest.mark.parametrize("execute_steps", range(1, CHUNK + 1))
def test_the_first_steps_of_each_chunk_are_done(predictions, execute_steps):
    done, asked = run(predictions, execute_steps=execute_steps)
    assert asked == list(range(0, STEPS, execute_steps))
    wanted = [predictions[t - t % execute_steps, t % execute_steps] for t in range(STEPS)]
    np.testing.assert_array_equal(done, wanted)


@pytest.mark.parametrize("execute_steps", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.1, 2.0])
def test_ensembling_is_a_weighted_mean_of_all_that_was_said(predictions, execute_steps, decay):
    done, asked = run(predictions, execute_steps=execute_steps, ensemble_decay=decay)
    assert asked == list(range(0, STEPS, execute_steps))
    for t in range(STEPS):
        # As in ACT: over all steps that said something of t, the oldest first.
        about = [predictions[s][t - s] for s in asked if s <= t < s + CHUNK]
        weights = [np.exp(-decay * i) for i in range(len(about))]
        mean = sum(w * a.astype(np.float64) for w, a in zip(weights, about)) / sum(weights)
        mean[SWITCHES] = about[-1][SWITCHES]
        np.testing.assert_allclose(done[t], mean, rtol=0, atol=1e-7)


def test_old_predictions_outweigh_new_ones(predictions):
    """ACT's order: with a strong decay the first thing said about a step is what is done."""
    done, _ = run(predictions, ensemble_decay=50.0)
    oldest = np.stack([predictions[max(0, t - CHUNK + 1)][min(t, CHUNK - 1)] for t in range(STEPS)])
    np.testing.assert_allclose(done[:, 1:7], oldest[:, 1:7], rtol=0, atol=1e-7)
    np.testing.assert_array_equal(done[:, SWITCHES], predictions[:, 0][:, SWITCHES])


def test_equal_predictions_are_done_as_they_are():
    plan = np.random.default_rng(1).uniform(SPEC.low, SPEC.high, (STEPS + CHUNK, 8))
    said = np.stack([plan[t : t + CHUNK] for t in range(STEPS)]).astype(np.float32)
    done, _ = run(said, ensemble_decay=0.3)
    np.testing.assert_allclose(done, plan[:STEPS], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execute_steps": 6}, "execute_steps 6 is more than the policy's chunk of 5"),
        ({"execute_steps": 0}, "execute_steps must be at least 1, got 0"),
        ({"ensemble_decay": -0.1}, "ensemble_decay must be at least 0, got -0.1"),
        ({"ensemble_decay": float("nan")}, "ensemble_decay must be at least 0, got nan"),
        ({"execute_steps": 5, "ensemble_decay": 0.1}, "chunks of 5 actions never overlap"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ChunkExecutor(SPEC, CHUNK, **options)


def test_a_chunk_of_another_shape_and_an_action_before_a_chunk_are_refused(predictions):
    executor = ChunkExecutor(SPEC, CHUNK, execute_steps=2)
    with pytest.raises(RuntimeError, match="a prediction is due"):
        executor.next()
    with pytest.raises(ValueError, match=r"a chunk of shape \[4, 8\], not \[5, 8\]"):
        executor.add(predictions[0][:4])
    executor.add(predictions[0])
    executor.next(), executor.next()
    with pytest.raises(RuntimeError, match="a prediction is due"):
        executor.next()
