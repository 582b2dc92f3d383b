"""Meta-World: its table of tasks, the environment beside Meta-World's own, experts, recording."""

from __future__ import annotations

import collections
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vla_jax.data.config import SourceConfig
from vla_jax.data.sources.opening import open_source
from vla_jax.data.staged import StagedEpisodes
from vla_jax.data.tfds_writer import write_episodes
from vla_jax.envs.episodes import generate, staged_metadata
from vla_jax.envs.metaworld.config import MetaworldConfig
from vla_jax.envs.metaworld.tasks import TASKS, find_tasks
from vla_jax.envs.pool import EnvPool
from vla_jax.envs.worlds import WORLDS

HERE = pathlib.Path(__file__).parent
SHORT = ("coffee-button-v3", "handle-press-v3")


@pytest.fixture(autouse=True)
def any_backend(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))


@pytest.fixture(scope="module")
def facts() -> dict:
    command = [sys.executable, str(HERE / "metaworld_simulated.py")]
    done = subprocess.run(
        command, cwd=HERE.parents[1], env=os.environ | {"PYTHONPATH": "."},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_table_of_tasks(facts):
    assert sorted(TASKS) == facts["experts"]
    tiers = collections.Counter(task.tier for task in TASKS.values())
    assert tiers == {"easy": 28, "medium": 11, "hard": 6, "very_hard": 5}
    said = collections.Counter(task.instruction for task in TASKS.values())
    assert [words for words, n in said.items() if n > 1] == ["Push the puck to a goal"]
    assert all(name == task.name == task.family for name, task in TASKS.items())
    assert find_tasks(()) == tuple(TASKS.values())
    for wrong, words in ((("reach-v2",), "no Meta-World task 'reach-v2'"), (SHORT * 2, "twice")):
        with pytest.raises(ValueError, match=words):
            MetaworldConfig(tasks=wrong)


def test_the_environment_is_metaworlds_own_by_the_published_protocol(facts):
    beside = facts["beside"]
    assert beside["successes"] == beside["their_successes"]
    assert beside["successes"][-1] and not any(beside["successes"][:-1])
    assert 20 < beside["steps"] < 50
    assert beside["moved_m"] > 0.2
    assert beside["difference"] < 1e-5  # metres; float32 actions
    error = beside["picture_error"]
    assert error["as it is"] < 12 < 20 < min(error["upside down"], error["mirrored"])


def test_same_seed_same_pixels(facts):
    found = facts["repeated"]
    assert found["first"] == found["again"] == found["elsewhere"]
    assert len(set(found.values())) == 3


def test_actions_are_metres_and_effort_and_state_is_hand_and_opening(facts):
    start, right, closed, opened = np.asarray(facts["exact"])
    assert 0.06 < (right - start)[0] < 0.1  # the hand follows the commanded position
    np.testing.assert_allclose((opened - start)[:3], [0.1, 0, 0], atol=0.005)
    assert start[3] > 0.9 and closed[3] < 0.5 < 0.9 < opened[3]


def test_noise_is_of_the_seed_and_on_positions(facts):
    noisy, exact = np.asarray(facts["noisy"]), np.asarray(facts["exact"])
    assert facts["noisy"] == facts["noisy again"]
    np.testing.assert_array_equal(noisy[0], exact[0])
    # 20 errors of 3 mm add up to some 13 mm.
    assert 0.002 < np.abs(noisy[1] - exact[1])[:3].max() < 0.05


def test_what_is_refused(facts):
    errors = facts["errors"]
    assert "never reset" in errors["never reset"]
    assert "no Meta-World task 'reach-v2'" in errors["unknown task"]
    assert "4 dimensions" in errors["size"]
    assert "NaN" in errors["NaN"]
    assert facts["checked"] == "ok"
    with pytest.raises(ValueError, match="noise"):
        MetaworldConfig(noise=-0.1)


def test_experts_of_every_tier_succeed_in_the_pool():
    tasks = ("handle-press-v3", "coffee-push-v3", "pick-place-v3", "stick-push-v3")
    with EnvPool(MetaworldConfig(image_size=16), num_envs=4, num_workers=2) as pool:
        with pytest.raises(ValueError, match="'reach'"):
            pool.reset({0: (1, {"task": "reach"})})
        started = pool.reset({i: (2_000, {"task": task}) for i, task in enumerate(tasks)})
        assert [started[i][1]["instruction"] for i in range(4)] == [  # type: ignore[index]
            TASKS[task].instruction for task in tasks
        ]
        running, taken = set(range(4)), []
        for _ in range(150):
            for i, transition in pool.step(dict.fromkeys(running)).items():
                assert transition is not None
                taken.append(transition.action)
                if transition.terminated:
                    assert transition.reward == 1 and transition.info["success"]
                    running.remove(i)
            if not running:
                break
        assert not running
    spec = MetaworldConfig().action_spec
    assert (np.abs(taken) <= spec.high).all()
    assert (np.abs(taken).max(axis=0) == spec.high).all()


def test_recorded_episodes_go_round_the_tasks_and_resume_to_the_same_files(tmp_path):
    config = MetaworldConfig(image_size=32, tasks=SHORT, noise=0.3)
    out = tmp_path / "staged"
    generate(out, episodes=4, workers=2, config=config)
    rows = list(StagedEpisodes(out))
    assert [row["metadata"]["family"] for row in rows] == [*SHORT, *SHORT[::-1]]
    spec = config.action_spec
    for row in rows:
        n = len(row["images"]["image"])
        assert 15 < n < 100
        assert row["state"].shape == row["action"].shape == (n, 4)
        assert (np.abs(row["action"]) <= spec.high).all()
        assert row["instruction"] == TASKS[str(row["metadata"]["family"])].instruction
        picture = Image.open(io.BytesIO(row["images"]["image"][0]))
        assert picture.size == (32, 32)
    assert staged_metadata(out)["config"]["tasks"] == list(SHORT)
    before = {path.name: path.read_bytes() for path in out.glob("episode_*")}
    (out / "episode_000001.npz").unlink()
    generate(out, episodes=4, workers=1, config=config)
    assert {path.name: path.read_bytes() for path in out.glob("episode_*")} == before
    with pytest.raises(ValueError, match="another config or seed"):
        generate(out, episodes=4, workers=1, config="metaworld")

    write_episodes(rows, tmp_path / "rlds", spec, name="metaworld", description="", test_every=4)
    source = open_source(
        "metaworld",
        SourceConfig("episodes", str(tmp_path / "rlds"), state=("steps/observation/state",)),
    )
    assert source.action_spec == spec
    example = source.read(3)
    assert example.state is not None and example.action is not None
    np.testing.assert_array_equal(example.state, rows[0]["state"][3])
    np.testing.assert_array_equal(example.action[0], rows[0]["action"][3])
    assert example.prompt == f"Q: what action should the robot take to {rows[0]['instruction']}? A:"


def test_each_so_manieth_episode_is_not_always_of_one_task():
    for config in (MetaworldConfig(), MetaworldConfig(tasks=tuple(TASKS)[:5])):
        count = 50 * len(find_tasks(config.tasks))
        of = [config.of_episode(k).tasks[0] for k in range(count)]
        assert set(collections.Counter(of).values()) == {50}
        held_out = collections.Counter(of[19::20])
        assert set(held_out) == set(of)
        assert max(held_out.values()) <= 4


def test_command_line_refuses(tmp_path):
    for words, message in (
        (["--config=demo", "--tasks=reach-v3"], "--tasks is for Meta-World"),
        (["--config=metaworld", "--tasks=reach-v3,fly-v3"], "no Meta-World task 'fly-v3'"),
    ):
        command = [sys.executable, "-m", "vla_jax.envs.episodes", f"--out={tmp_path}"]
        done = subprocess.run(
            [*command, "--episodes=1", *words], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 2 and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_worlds_by_name():
    assert WORLDS["metaworld"].action_spec == WORLDS["metaworld_noisy"].action_spec
    assert [d.name for d in WORLDS["metaworld"].action_spec.dimensions] == [
        *("position_x", "position_y", "position_z", "gripper_effort")
    ]
