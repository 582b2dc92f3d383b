"""A short fine-tuning that teaches a policy to say its plan (RT-2, section 4.4)."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.data.examples import episodes
from tests.training.conftest import save_fresh
from tests.training.training_test import make_config
from vla_jax.actions.spec import end_effector_spec
from vla_jax.build import load_policy
from vla_jax.data.tfds_writer import write_episodes
from vla_jax.train import train

IMAGES = np.zeros((2, 28, 28, 3), np.uint8)
PLAN = "pick the dog."


def test_a_run_without_plans_goes_on_with_them(data_sets, tmp_path):
    """Longer sequences, the same parameters; what is said is a plan and then a legal action."""
    spec = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)
    planned = [{**episode, "plan": "pick the dog"} for episode in episodes()]
    write_episodes(planned, tmp_path / "robot", spec, name="robot", description="", test_every=5)
    before = make_config(data_sets, train__steps=2)
    save_fresh(before, tmp_path / "before")
    config = make_config(
        (tmp_path / "robot", data_sets[1]),
        train__steps=20,
        train__init_from=str(tmp_path / "before"),
    )
    robot = dataclasses.replace(config.data.sources["robot"], plan="plan")
    data = dataclasses.replace(
        config.data,
        sources={**config.data.sources, "robot": robot},
        max_tokens=before.data.max_tokens + 12,
        max_answer_tokens=before.data.max_answer_tokens + 12,
    )
    optimizer = dataclasses.replace(config.optimizer, learning_rate=3e-3)
    train(dataclasses.replace(config, data=data, optimizer=optimizer), str(tmp_path / "plans"))
    policy = load_policy(tmp_path / "plans", batch_size=2)[0]
    result = policy.act(IMAGES, ["i am bored", "pick the cat"])
    assert result.plans == (PLAN, PLAN)  # the only plan it knows
    assert result.actions.shape == (2, 1, 8)
    for ids, action in zip(result.ids, result.actions, strict=True):
        np.testing.assert_array_equal(policy.action_tokenizer.decode(ids), action)
    assert np.all((result.actions >= spec.low) & (result.actions <= spec.high))
