"""Bundles in published evaluation harnesses, run by the harnesses' own programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vla_eval.api
from inspect_robots import cli, eval, registry
from inspect_robots.embodiment import EmbodimentBase, EmbodimentInfo
from inspect_robots.errors import CompatibilityError
from inspect_robots.rollout import derive_seed
from inspect_robots.scene import Scene
from inspect_robots.scorer import success_at_end
from inspect_robots.spaces import ActionSemantics, Box, CameraSpec, ObservationSpace
from inspect_robots.task import Task
from inspect_robots.types import Observation, StepResult
from vla_eval import specs
from vla_eval.benchmarks.base import StepBenchmark
from vla_eval.benchmarks.base import StepResult as BenchmarkStep

from tests.serving.fake_server import FakePolicy, expected
from tests.serving.served import ROOT, picture
from vla_jax.actions.spec import ActionDimension, ActionSpec
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.serving import contract
from vla_jax.serving.harnesses import inspect_robots_policy
from vla_jax.serving.harnesses.episode import EndEffector, Episode, NoActionError
from vla_jax.serving.harnesses.inspect_robots_policy import InspectRobotsPolicy
from vla_jax.serving.harnesses.inspect_robots_tabletop import TabletopEmbodiment, tabletop_task
from vla_jax.serving.harnesses.vla_eval_server import PolicyServer

STEPS = 3  # of each chunk of four


class Fake(FakePolicy):
    """Of its chunks, so many steps are carried out."""

    def __init__(self, **more: Any):
        super().__init__(**{"execute_steps": STEPS} | more)


def said(front: int, step: int, prompt: str, state=None) -> np.ndarray:
    """The fake's action [8] at a step of the chunk that it made of a picture."""
    images = {"front": picture(front), "wrist": picture(20)}
    return expected(contract.Observation(images, prompt, state), ("front", "wrist"), 4)[step]


def test_an_episode_shows_a_policy_the_frames_before():
    policy = Fake(frames=3, chunk=1, execute_steps=1)
    episode = Episode(policy, {"front": "top"})
    got = []
    for front in (1, 2, 4):
        images = {"top": picture(front), "wrist": picture(10 * front), "other": picture(99)}
        got.append(episode.next(images, "lift it").action)
    # Of the frames before, both cameras; the first stands for those before it.
    earlier = [round(float(action[6]) * 1e4) for action in got]
    assert earlier == [11 + 11, 11 + 11, 11 + 22]
    with pytest.raises(NoActionError, match="no picture of camera 'wrist'; there are"):
        episode.next({"top": picture(1)}, "lift it")
    with pytest.raises(ValueError, match=r"cameras: \['left'\] are not the policy's"):
        Episode(policy, {"left": "top"})


# ---- inspect-robots


class Arm(EmbodimentBase):
    """Succeeds after six steps; remembers what it was told."""

    def __init__(self, *, rotation: str = "euler_xyz", cameras=("top", "wrist")):
        semantics = ActionSemantics("eef_delta_pose", rotation, "continuous", "world")  # type: ignore[arg-type]
        space = ObservationSpace(
            tuple(CameraSpec(name, 8, 8) for name in cameras), frozenset({"pose", "grip"})
        )
        self.info = EmbodimentInfo("arm", Box((7,), semantics=semantics), space, control_hz=5.0)
        self.told: list[np.ndarray] = []

    def reset(self, scene: Scene, *, seed: int | None = None) -> Observation:
        self._steps = 0
        return self._seen()

    def step(self, action) -> StepResult:
        self.told.append(action.data)
        self._steps += 1
        done = self._steps == 6
        return StepResult(
            self._seen(), terminated=done, termination_reason="success" if done else None
        )

    def _seen(self) -> Observation:
        images = {"top": picture(10 * self._steps), "wrist": picture(20)}
        return Observation(images, {"pose": np.array([0.1, 0.2]), "grip": np.float64(0.3)})


def task(*instructions: str) -> Task:
    scenes = [Scene(f"scene-{i}", text) for i, text in enumerate(instructions)]
    return Task("lifting", scenes, success_at_end(), max_steps=9)


def adapted(policy: Fake | None = None, **more) -> InspectRobotsPolicy:
    policy = policy or Fake()
    return InspectRobotsPolicy(policy, cameras="front=top", **more)


def test_inspect_robots_gets_actions_in_its_units_and_order(tmp_path):
    arm, policy = Arm(), Fake(states=3)
    robot = adapted(policy, state="pose,grip", gripper_open=0.08, gripper_closed=0.0)
    (log,) = eval(task("lift it", "close it"), robot, arm, log_dir=str(tmp_path))
    assert log.status == "success" and log.results.metrics == {"success_at_end": 1.0}
    state = np.float32([0.1, 0.2, 0.3])
    want = [
        said(10 * (t - t % STEPS), t % STEPS, text, state)
        for text in ("lift it", "close it")
        for t in range(6)
    ]
    assert len(arm.told) == 12
    for got, action in zip(arm.told, want):
        np.testing.assert_allclose(got[:6], action[1:7], rtol=1e-6)
        # Closedness of 0.25 and 1 is so many metres of opening.
        np.testing.assert_allclose(got[6], 0.06 if action[7] == 0.25 else 0.0, atol=1e-9)
    assert log.eval.policy_checkpoint == "f00d"


def test_a_hold_is_an_error_of_the_policy_and_is_not_scored(tmp_path):
    arm = Arm()
    (log,) = eval(task("illegal", "lift it"), adapted(), arm, log_dir=str(tmp_path))
    failed, lifted = log.samples
    assert failed.status == "error" and lifted.status == "success"
    assert "PolicyError: the policy's answer is no action: token 5 stands" in str(failed)
    # The metric is of what was scored; nothing was commanded in the other.
    assert log.results.metrics == {"success_at_end": 1.0} and len(arm.told) == 6


def test_terminate_ends_a_trial_of_inspect_robots(tmp_path):
    arm = Arm()
    (log,) = eval(task("finish it"), adapted(), arm, log_dir=str(tmp_path))
    assert len(arm.told) == 3 and "terminate" in str(log.samples[0])
    assert log.results.metrics == {"success_at_end": 0.0}


def test_inspect_robots_refuses_what_does_not_fit(tmp_path):
    for arm in (Arm(rotation="axis_angle"), Arm(cameras=("top",))):
        with pytest.raises(CompatibilityError):
            eval(task("lift it"), adapted(), arm, log_dir=str(tmp_path))
        assert not arm.told
    with pytest.raises(ValueError, match="needs a state of"):
        adapted(Fake(states=2))
    with pytest.raises(ValueError, match="write POLICYS=EMBODIMENTS"):
        InspectRobotsPolicy(Fake(), cameras="front")


@pytest.mark.parametrize(
    ("names", "frame", "rotation"),
    [
        (("position_x", "position_y", "gripper"), "world", "none"),
        (("position_x", "position_y", "position_z", "elbow"), "world", "none"),
        (("position_x", "position_y", "position_z"), "base, velocity", "none"),
        (("position_x", "position_y", "position_z"), "base", "roll-pitch-yaw"),
    ],
)
def test_actions_that_harnesses_have_no_words_for_are_refused(names, frame, rotation):
    units = ["closedness" if name == "gripper" else "m" for name in names]
    dimensions = tuple(ActionDimension(n, u, -1, 1) for n, u in zip(names, units))  # type: ignore[arg-type]
    spec = ActionSpec("odd", dimensions, frame, rotation, "none", 5.0)
    with pytest.raises(ValueError, match="ActionSpec 'odd' has"):
        EndEffector.of(spec)


def test_an_effort_is_a_closedness_too():
    dimensions = tuple(ActionDimension(f"position_{a}", "m", -1, 1) for a in "xyz")
    dimensions += (ActionDimension("gripper_effort", "effort", -1, 1),)
    spec = ActionSpec("arm", dimensions, "tool, delta", "none", "effort", 5.0)
    arm = EndEffector.of(spec)
    for effort, closedness in ((-1, 0), (0.5, 0.75), (1, 1)):
        assert arm.closedness(spec, np.float32([1, 2, 3, effort])) == closedness
    assert (arm.frame, arm.terminate, arm.rotation) == ("tool", None, ())
    assert not arm.stops(np.float32([1, 2, 3, 1]))


@pytest.fixture
def entry_points(tmp_path, monkeypatch) -> None:
    """Those of pyproject.toml, as if this checkout were installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = tmp_path / "site" / "vla_jax_entry_points-0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: x\nVersion: 0\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(registry, "_loaded_entrypoints", False)


def test_inspect_robots_command_runs_a_bundle(entry_points, tmp_path, monkeypatch):
    asked = []

    def loaded(bundle: str, **more):
        asked.append(bundle)
        return Fake()

    monkeypatch.setattr(inspect_robots_policy, "load", loaded)
    monkeypatch.setitem(registry._FACTORIES["embodiment"], "arm", Arm)
    monkeypatch.setitem(registry._FACTORIES["task"], "lifting", lambda: task("lift it"))
    command = "run --policy vla_jax -P bundle=my_bundle -P cameras=front=top -P gripper_open=1 "
    command += "-P gripper_closed=0 --embodiment arm --task lifting --no-prompt --no-rerun "
    code = cli.main([*command.split(), "--log-dir", str(tmp_path / "logs")])
    assert code == 0 and asked == ["my_bundle"]
    (path,) = (tmp_path / "logs").glob("actions/*/*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 1 + 6
    want = [said(10 * (t - t % STEPS), t % STEPS, "lift it") for t in range(6)]
    got = np.array([row["action"] for row in rows[1:]])
    np.testing.assert_allclose(got, [[*a[1:7], 0.75] for a in want], rtol=1e-6)


class Replay(FakePolicy):
    """Does what it was given, and keeps what it saw."""

    spec = CONFIGS["demo"].action_spec

    def __init__(self, actions: list[np.ndarray]):
        super().__init__(cameras=["image"], chunk=1)
        self._actions = iter(actions)
        self.seen: list[contract.Observation] = []

    def act(self, observations) -> list[contract.Action]:
        self.seen += observations
        action = next(self._actions)[None]
        return [contract.Action(action, np.zeros(0, np.int32), "", "", 0.0, True, "")]


def test_the_table_top_is_an_embodiment_of_inspect_robots(tmp_path):
    table = tabletop_task(scenes=1, family="pick")
    arm = TabletopEmbodiment()
    try:
        pool, seed = arm._pool, derive_seed(0, 0, 0)
        first, info = pool.reset({0: (seed, {"family": "pick"})})[0]
        seen, actions, done = [first["image"]], [], False
        while not done:  # by the scripted expert
            step = pool.step({0: None})[0]
            actions.append(step.action)
            seen.append(step.observation["image"])
            done = step.terminated or step.truncated
        assert step.reward == 1.0
        # What is done again ends as it did; who stops before has not succeeded.
        for script, success in ((actions, 1.0), ([*actions[:2], np.eye(8)[0]], 0.0)):
            policy = Replay(script)
            robot = InspectRobotsPolicy(policy)
            (log,) = eval(table, robot, arm, log_dir=str(tmp_path))
            assert log.results.metrics == {"success_at_end": success}
            assert len(policy.seen) == len(script)
            for observation, image in zip(policy.seen, seen):
                assert observation.instruction == info["instruction"]
                np.testing.assert_array_equal(observation.images["image"], image)
        assert log.samples[0].epochs and "terminate" in str(log.samples[0])
    finally:
        arm.close()
    with pytest.raises(ValueError, match="no table-top 'moon'"):
        TabletopEmbodiment("moon")


def test_entry_points_are_there(entry_points):
    assert registry.registered("embodiment")["vla_jax_tabletop"] is TabletopEmbodiment
    scenes = registry.resolve("task", "vla_jax_tabletop", scenes=3).scenes
    assert [scene.init_seed for scene in scenes] == [0, 1, 2]


# ---- vla-eval


class Bench(StepBenchmark):
    """Succeeds if what is reached after four steps is where the fake goes."""

    render_backends = frozenset({"cpu", "gpu"})
    told: list[np.ndarray] = []  # noqa: RUF012

    @classmethod
    def configure_render(cls, mode: str) -> dict[str, str]:
        return {}

    def __init__(self, send_wrist_image: bool = False):
        super().__init__()
        self._wrist = send_wrist_image

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": name} for name in ("lift it", "illegal", "close it")]

    def reset(self, task: dict[str, Any]) -> int:
        self._steps = 0
        return 0

    def step(self, action: dict[str, Any]) -> BenchmarkStep:
        self.told.append(action["actions"])
        self._steps += 1
        return BenchmarkStep(self._steps, 0.0, self._steps == 4, {})

    def make_obs(self, raw_obs: int, task: dict[str, Any]) -> dict[str, Any]:
        images = {"top": picture(10 * raw_obs)}
        if self._wrist:
            images["wrist"] = picture(20)
        state = np.float64([0.1, 0.2, 0.3])
        return {"images": images, "task_description": task["name"], "states": state}

    def get_step_result(self, step_result: BenchmarkStep) -> dict[str, Any]:
        return {"success": bool(self.told[-1][6] == 1.0)}

    def get_action_spec(self) -> dict[str, specs.DimSpec]:
        return {
            "position": specs.POSITION_DELTA,
            "rotation": specs.ROTATION_EULER,
            "gripper": specs.GRIPPER_CLOSE_POS,
        }

    def get_observation_spec(self) -> dict[str, specs.DimSpec]:
        images = {"top": specs.IMAGE_RGB, "wrist": specs.IMAGE_RGB}
        return {**images, "state": specs.RAW, "language": specs.LANGUAGE}


CONFIG = {
    "server": {"timeout": 60},
    "benchmarks": [{"benchmark": f"{__name__}:Bench", "name": "bench", "max_steps": 9}],
}


def require_results(results: list[dict[str, Any]], told: list[np.ndarray], state=None) -> None:
    """As by hand: in two tasks four steps are done, in between one fails before the first."""
    (bench,) = results
    lifted, failed, closed = (entry["episodes"][0] for entry in bench["tasks"])
    assert not lifted["metrics"]["success"] and closed["metrics"]["success"]
    assert failed["failure_reason"] == "model_act" and "token 5 stands" in failed["failure_detail"]
    assert bench["num_errors"] == 1 and lifted["steps"] == closed["steps"] == 4
    want = [
        said(10 * (t - t % STEPS), t % STEPS, text, state)
        for text in ("lift it", "close it")
        for t in range(4)
    ]
    # Metres over 0.05, radians over 0.5; the gripper is open below a half.
    scaled = [[*a[1:4] / 0.05, *a[4:7] / 0.5, 1 if a[7] > 0.5 else -1] for a in want]
    np.testing.assert_allclose(told, scaled, rtol=1e-6)


def test_vla_eval_evaluates_a_policy(caplog):
    policy, Bench.told = Fake(states=3), []
    server = PolicyServer(
        policy,
        cameras={"front": "top"},
        gripper="binary_close_positive",
        position_unit=0.05,
        rotation_unit=0.5,
    )
    with caplog.at_level("WARNING"):
        results = vla_eval.api.evaluate(server, CONFIG, no_save=True)
    require_results(results, Bench.told, np.float32([0.1, 0.2, 0.3]))
    # It was told that the wrist is wanted, and that all means the same on both sides.
    assert "Spec mismatch" not in caplog.text


def test_vla_eval_warns_of_another_gripper(caplog):
    policy = Fake()
    server = PolicyServer(policy, cameras={"front": "top"})
    config = {**CONFIG, "benchmarks": [{**CONFIG["benchmarks"][0], "max_tasks": 1}]}
    with caplog.at_level("WARNING"):
        vla_eval.api.evaluate(server, config, no_save=True)
    assert "continuous_close_01 vs binary_close_positive" in caplog.text
    with pytest.raises(ValueError, match="position_unit must be above 0"):
        PolicyServer(policy, position_unit=0.0)


PROGRAM = """
import importlib.util, sys
from vla_eval.model_servers.serve import run_server
from vla_jax.serving.harnesses import vla_eval_server

spec = importlib.util.spec_from_file_location("fake_server", sys.argv.pop(1))
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)

def load(bundle, **more):
    assert bundle == "my_bundle"
    return fake.FakePolicy(execute_steps=3)

vla_eval_server.load = load
run_server(vla_eval_server.BundleServer)
"""


@contextmanager
def running(*arguments: str) -> Iterator[int]:
    """The port of the server's own program, of a bundle that is the fake."""
    fake = str(Path(__file__).with_name("fake_server.py"))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, fake, "--host=127.0.0.1", "--port=0", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        lines = ""
        for line in process.stderr:
            lines += line
            if match := re.search(r"server listening on 127.0.0.1:(\d+)", line):
                yield int(match[1])
                break
        else:
            raise AssertionError(lines)
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_vla_evals_server_program_serves_a_bundle():
    Bench.told = []
    options = ["bundle=my_bundle", 'cameras={"front": "top"}', "gripper=binary_close_positive"]
    options += ["position_unit=0.05", "rotation_unit=0.5"]
    with running(*(f"--args.{option}" for option in options)) as port:
        url = f"ws://127.0.0.1:{port}"
        results = vla_eval.api.run(CONFIG, server_url=url, no_save=True)
    require_results(results, Bench.told)
