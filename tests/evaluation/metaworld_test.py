"""Meta-World's two means, and its evaluator: what it measures, and one that was killed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.fakes import FakePool
from vla_jax import config as config_lib
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.decoding.policy import ActResult
from vla_jax.envs.metaworld.config import MetaworldConfig
from vla_jax.envs.metaworld.tasks import TASKS, TIERS, find_tasks
from vla_jax.envs.pool import Transition
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.evaluation.metaworld import PUBLISHED, TRIALS_FILE, MetaworldEvaluator, score_tiers
from vla_jax.evaluation.report.inputs import read_inputs
from vla_jax.evaluation.report.page import write_report
from vla_jax.evaluation.statistics import share_of

SPEC = MetaworldConfig().action_spec
FOUR = ("reach-v3", "soccer-v3", "push-v3", "stick-pull-v3")  # one of each tier


def shares(*wins: int) -> dict:
    """Ten trials of each task; the tier's successes are filled in from its first task on."""
    found = {}
    for tier, count in zip(TIERS, wins):
        for name in [name for name, task in TASKS.items() if task.tier == tier]:
            found[name] = share_of(min(10, count), 10)
            count -= found[name]["count"]
        assert count == 0
    return found


@pytest.mark.parametrize(
    ("policy", "wins", "task_mean"),
    [
        ("SmolVLA 0.24B", (242, 51, 21, 30), 0.688),
        ("SmolVLA 0.45B", (231, 46, 27, 30), 0.668),
        ("SmolVLA 2.25B", (244, 57, 42, 32), 0.75),
    ],
)
def test_published_rows_from_their_successes(policy, wins, task_mean):
    [row] = [row for row in PUBLISHED if row.policy == policy]
    result = score_tiers(shares(*wins))
    printed = [row.easy, row.medium, row.hard, row.very_hard]
    assert [100 * tier["share"] for tier in result["tiers"]] == pytest.approx(printed, abs=0.05)
    assert [tier["n"] for tier in result["tiers"]] == [280, 110, 60, 50]
    assert [tier["tasks"] for tier in result["tiers"]] == [28, 11, 6, 5]
    assert 100 * result["tier_mean"]["share"] == pytest.approx(row.average, abs=0.05)
    assert result["task_mean"]["share"] == pytest.approx(task_mean, abs=1e-12)


def test_published_averages_are_of_the_tiers():
    for row in PUBLISHED:
        mean = (row.easy + row.medium + row.hard + row.very_hard) / 4
        assert mean == pytest.approx(row.average, abs=0.06), row.policy


def test_no_tier_mean_without_all_tiers():
    result = score_tiers({"reach-v3": share_of(7, 10), "push-v3": share_of(2, 10)})
    assert result["tier_mean"] is None
    assert result["task_mean"]["share"] == pytest.approx(0.45)
    assert [(t["tier"], t["tasks"], t["of"]) for t in result["tiers"]] == [
        *(("easy", 1, 28), ("hard", 1, 6))
    ]


class Policy:
    """Acts on the state that it is given: it moves to x by a tenth of where it is."""

    def __init__(self, weights: float = 1.0):
        self.params = {"w": np.full(3, weights)}
        self.action_spec, self.robots, self.needs_state, self.frames = SPEC, (SPEC.name,), True, 1
        self.action_tokenizer = UniformTokenizer(SPEC, np.arange(1000, 1256))
        self.states: list[np.ndarray] = []

    def gather(self, found=(), error=None):
        return list(found)

    def act(self, images, instructions, *, temperature=0.0, seeds=(), states=None) -> ActResult:
        assert len(images) == len(states)
        self.states.extend(states)
        actions = np.zeros((len(states), 1, 4), np.float32)
        actions[:, 0, 0] = states[:, 0] / 10
        ids = np.stack([self.action_tokenizer.encode(chunk) for chunk in actions])
        return ActResult(actions, ids)


class World(FakePool):
    """Three steps; success if the hand was moved to positive x. It is there in odd trials."""

    def _observe(self, env):
        seed, _, options = self._episodes[env]
        place = 0.05 if (seed + list(TASKS).index(options["task"])) % 2 else -0.05
        state = np.array([place, 0.6, 0.2, 1.0], np.float32)
        return {**super()._observe(env), "state": state}

    def _info(self, env, success):
        name = self._episodes[env][2]["task"]
        return {"instruction": TASKS[name].instruction, "family": name, "success": success}

    def step(self, actions):
        results = {}
        for env, action in actions.items():
            action = np.full(4, 0.005, np.float32) if action is None else action
            episode = self._episodes[env]
            episode[1] += 1
            over = episode[1] >= 3
            success = bool(over and action[0] > 0)
            results[env] = Transition(
                self._observe(env), float(success), success, over and not success,
                self._info(env, success), np.asarray(action, np.float32),
            )  # fmt: skip
        return results


CONFIG = EvaluationConfig(world="metaworld", tasks=FOUR, trials=6, seed=100, baselines=False)


def test_what_is_measured(tmp_path):
    pool, policy = World(5), Policy()
    config = dataclasses.replace(CONFIG, baselines=True)
    (tmp_path / "media").mkdir()
    result = MetaworldEvaluator(config, 112, lambda: pool).measure(policy, tmp_path / "media")  # type: ignore[arg-type]
    runs = {run["agent"]: run for run in result["runs"]}
    assert set(runs) == {"policy", "random", "expert"}
    assert [row["family"] for row in runs["policy"]["families"]] == list(FOUR)
    # Every second trial, of each task.
    assert [row["count"] for row in runs["policy"]["families"]] == [3, 3, 3, 3]
    assert runs["expert"]["tier_mean"]["share"] == 1
    assert result["scalars"]["policy/tier_mean"] == 0.5 == result["scalars"]["policy/soccer-v3"]
    assert {state.shape for state in policy.states} == {(4,)}
    assert sorted(pool.started[:24]) == sorted([100, 101, 102, 103, 104, 105] * 4)
    videos = runs["policy"]["videos"]
    assert len(videos) == 8  # one success and one failure of each task
    assert all((tmp_path / clip["path"]).is_file() for clip in videos)

    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    (tmp_path / "media").rename(tmp_path / "run" / "evaluation" / "media")
    (tmp_path / "run" / "evaluation" / "metaworld.json").write_text(json.dumps(result))
    page = write_report(read_inputs(tmp_path / "run"), tmp_path / "report.html").read_text()
    for words in ("SmolVLA 0.45B", "57.3%", "1 of 28 tasks", "stick-pull", "not comparable"):
        assert words in page
    assert page.count("data:image/gif") == 8
    assert 'id="rollouts"' not in page and 'href="#rollouts"' not in page


def test_a_killed_evaluation_goes_on_with_what_is_missing(tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        (folder / "media").mkdir(parents=True)

    def measure(folder, pool, *, policy=None, config=CONFIG):
        evaluator = MetaworldEvaluator(config, 112, lambda: pool)
        return evaluator.measure(policy or Policy(), folder / "media")  # type: ignore[arg-type]

    wanted = measure(whole, World(5))

    class Killed(World):
        def step(self, actions):
            if self.calls > 4:
                raise KeyboardInterrupt
            self.calls += 1
            return super().step(actions)

    with pytest.raises(KeyboardInterrupt):
        measure(broken, Killed(5))
    log = broken / TRIALS_FILE
    finished = len(log.read_text().splitlines()) - 1
    assert 0 < finished < 24
    log.write_text(log.read_text() + '{"agent": "policy", "outc')  # cut off in the middle
    pool = World(5)
    found = measure(broken, pool)
    assert f"{finished} of 24 trials are done already" in capsys.readouterr().out
    assert len(pool.started) == 24 - finished
    for result in (found, wanted):
        for run in result["runs"]:
            del run["seconds"]
            run["videos"].sort(key=lambda clip: clip["path"])
    assert found == wanted

    # Other settings that change no trial: more of them, another task.
    pool = World(5)
    more = dataclasses.replace(CONFIG, tasks=(*FOUR, "sweep-v3"), trials=7, rollout_envs=3)
    measure(broken, pool, config=more)
    assert len(pool.started) == 4 + 7
    # Fewer: nothing is missing, and the videos are there.
    pool = World(5)
    fewer = measure(broken, pool, config=dataclasses.replace(CONFIG, tasks=FOUR[:2], trials=1))
    assert not pool.started and fewer["runs"][0]["total"]["n"] == 2
    assert {clip["family"] for clip in fewer["runs"][0]["videos"]} == set(FOUR[:2])
    # Another policy, and another way to act, start again.
    for changed in (
        {"policy": Policy(weights=2.0)},
        {"config": dataclasses.replace(CONFIG, action_temperature=0.5)},
    ):
        pool = World(5)
        measure(broken, pool, **changed)
        assert len(pool.started) == 24
        assert "of another policy or other settings; replaced" in capsys.readouterr().out


def test_configs():
    file = Path(__file__).parents[2] / "configs" / "metaworld.py"
    for size, tasks, chunk in (("mt50", 50, 8), ("cpu5", 5, 4)):
        config = config_lib.parse(config_lib.load_config(f"{file}:{size}"))
        assert len(find_tasks(config.evaluation.tasks)) == tasks
        assert config.evaluation.trials == 10
        assert config.data.actions.chunk == chunk >= config.evaluation.execute_steps
        # An action is four tokens, and one ends the answer.
        assert config.data.max_answer_tokens == 4 * chunk + 1
    with pytest.raises(ValueError, match="choose mt50 or cpu5"):
        config_lib.load_config(f"{file}:mt10")


def test_refused():
    with pytest.raises(ValueError, match="no Meta-World task 'push-v2'"):
        EvaluationConfig(tasks=("push-v2",))
    with pytest.raises(ValueError, match="trials must be at least 1"):
        EvaluationConfig(trials=0)
    policy = Policy()
    policy.action_spec = dataclasses.replace(SPEC, control_hz=10.0)
    with pytest.raises(ValueError, match="control_hz"):
        MetaworldEvaluator(CONFIG, 112, lambda: World(1)).measure(policy)  # type: ignore[arg-type]
