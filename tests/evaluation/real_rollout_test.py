"""The real simulators behind the evaluators."""

from __future__ import annotations

import pytest

from tests.evaluation.fakes import FakePolicy
from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.evaluation.rollout import expert_agent, make_plans, random_agent, run_episodes
from vla_jax.evaluation.tabletop import PointingEvaluator, RolloutEvaluator, make_pool

CONFIG = EvaluationConfig(
    rollout_episodes=4, rollout_envs=4, rollout_workers=1, pools=("web_only",), pointing_views=2
)


def test_the_policys_spec_is_the_worlds():
    assert FakePolicy().action_spec == CONFIGS["demo"].action_spec


@pytest.fixture(scope="module")
def pool():
    with make_pool(CONFIG, 4) as started:
        yield started


class Kept:
    """Lends a pool that stays open."""

    def __init__(self, pool):
        self._pool = pool

    def __enter__(self):
        return self._pool

    def __exit__(self, *_):
        pass


def test_expert_and_random_through_the_pool(pool):
    plans = make_plans(4, 2_000_000_000, CONFIGS["demo"].families, ("dog", "cat", "apple"))
    expert = run_episodes(pool, plans, expert_agent, label="expert")
    assert [o.family for o in expert] == 2 * list(CONFIGS["demo"].families)
    assert sum(o.success for o in expert) >= 3
    assert all(o.success == (o.ended != "time limit") for o in expert)
    chance = run_episodes(pool, plans, random_agent(CONFIGS["demo"].action_spec), label="random")
    assert sum(o.success for o in chance) <= 1
    # The same plans are the same tasks, whoever acts.
    assert [o.instruction for o in chance] == [o.instruction for o in expert]


def test_pushes_and_reasoning_through_the_pool(pool):
    options = {"pushes": 1, "reasoning": True}
    concepts = PictureBank().concepts("robot")
    plans = make_plans(4, 2_000_000_000, CONFIGS["demo"].families, concepts, **options)
    outcomes = run_episodes(pool, plans, expert_agent, label="expert, pushed")
    assert sum(o.success for o in outcomes) >= 3
    assert sum(o.pushes for o in outcomes) >= 3
    assert all(o.wanted_plan.startswith(o.family) for o in outcomes)
    assert all(o.instruction != o.wanted_plan for o in outcomes)


def test_evaluators_on_the_real_pool(pool, tmp_path):
    policy = FakePolicy(answer=lambda question: "<128><128>")
    result = RolloutEvaluator(CONFIG, lambda: Kept(pool)).measure(policy, tmp_path)
    runs = {run["agent"]: run for run in result["runs"]}
    assert runs["expert"]["total"]["count"] >= 3
    assert runs["policy"]["total"]["count"] <= 1
    assert len(runs["policy"]["videos"]) == len(CONFIGS["demo"].families)
    pointing = PointingEvaluator(CONFIG, lambda: Kept(pool)).measure(policy, tmp_path)
    blocks = pointing["pools"]["web_only"]["blocks"]
    assert blocks["n"] >= 4
    assert 0 < blocks["median_px"] < 112
