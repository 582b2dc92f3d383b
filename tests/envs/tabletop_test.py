"""The table-top world. Everything that renders runs in processes of its own: `simulated.py`."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.tabletop.config import CONFIGS, FAMILIES, TabletopConfig
from vla_jax.envs.tabletop.tasks import (
    DIRECTIONS,
    LIFT_M,
    NEAR_M,
    PUSH_M,
    Task,
    TaskState,
    goal_spot,
    is_success,
    make_task,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _start(what: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "tests/envs/simulated.py", what],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen) -> Any:
    out, problems = process.communicate(timeout=300)
    assert process.returncode == 0, problems
    assert problems == ""
    return json.loads(out)


@pytest.fixture(scope="module")
def simulated() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(facts, views) of two processes."""
    facts, views = _start("facts"), _start("views")
    return _finish(facts), _finish(views)


@pytest.fixture(scope="module")
def facts(simulated) -> dict[str, Any]:
    return simulated[0]


def test_subprocess_a_seed_gives_the_same_task_layout_and_pixels(simulated):
    facts, views = simulated
    assert facts["views again"] == views[:2]  # another process, after other episodes
    for what in ("task", "layout", "pixels"):
        assert len({view[what] for view in views}) == len(views)


def test_subprocess_blocks_are_held_by_friction(facts):
    on_table, lifted = 0.02, 0.02 + 0.084
    assert facts["closed"] == pytest.approx([on_table, on_table, lifted, lifted], abs=0.004)
    assert facts["opened"][:3] == facts["closed"][:3]
    assert facts["opened"][3] == pytest.approx(on_table, abs=0.001)
    assert facts["never closed"] == pytest.approx([on_table] * 3, abs=0.001)


@pytest.mark.parametrize("which", range(3))
def test_subprocess_object_pixels_agree_with_the_picture(facts, which):
    view = facts["pointing"][which]
    np.testing.assert_allclose(view["said"], view["seen"], atol=1.2)


@pytest.mark.parametrize("which", range(2))
def test_subprocess_object_pixels_agree_from_a_moved_camera(facts, which):
    view = facts["moved camera"][which]
    assert view["pixels"] > 30
    np.testing.assert_allclose(view["said"], view["seen"], atol=0.7)


@pytest.mark.parametrize("family", FAMILIES)
def test_subprocess_the_expert_succeeds_and_chance_does_not(facts, family):
    counts = {policy: by_family[family] for policy, by_family in facts["successes"].items()}
    assert counts == {"clean": 3, "noisy": 3, "random": 0}


@pytest.mark.parametrize(
    ("what", "part"),
    [
        ("unknown object", "'banana' is not among ['red block', 'apple']"),
        ("unknown mat", "'red mat' is not among ['blue mat']"),
        ("no such concept", "no concept 'no such thing'"),
        ("no such concept in a layout", "no concept 'no such thing'"),
        ("no such reference", "no concept 'no such thing'"),
        ("no such colour", "no colour ['loud']"),
        ("near itself", "cannot be moved near itself"),
        ("near itself, drawn", "cannot be moved near itself"),
        ("fulfilled", "is fulfilled before it begins"),
        ("table", "no table 'lava'; there are plain, wood"),
        ("table picture", "no concept ''"),
        ("small table", "too small to push on: at least 0.2"),
        ("clutter", "at most 4 blocks, 3 mats and 8 other things"),
        ("concepts", "no concept 'no such thing'"),
        ("too few concepts", "2 concepts for up to 3 different blocks"),
        ("family", "no task family 'juggle'"),
        ("nan", "NaN or infinite in ['position_x']"),
        ("shape", "action of shape (7,)"),
        ("config", "no concept 'no such thing'"),
    ],
)
def test_subprocess_refused(facts, what, part):
    assert part in facts["errors"][what]


def test_subprocess_rooms_are_dressed_as_the_layout_says(facts):
    rooms = {name: np.array(colors) for name, colors in facts["rooms"].items()}
    corner = {name: colors[0] for name, colors in rooms.items()}
    table = {name: colors[1] for name, colors in rooms.items()}
    np.testing.assert_array_equal(rooms["plain again"], rooms["plain"])  # nothing stays
    for name in ("floor", "clutter", "large table"):
        np.testing.assert_allclose(table[name], table["plain"], atol=1.0)
    assert corner["floor"].argmax() == 1 and corner["floor"][1] > 3 * corner["floor"][0]
    assert corner["clutter"].min() > corner["plain"].max() + 100
    np.testing.assert_allclose(corner["large table"], table["plain"], atol=3.0)
    # Without sun, 0.45 + 0.2 * 0.4 of the table's colour is left, looked at from almost above.
    assert table["dark"].max() < 0.8 * table["plain"].min()
    np.testing.assert_allclose(table["low red sun"][1:], table["dark"][1:], atol=2.0)
    assert table["low red sun"][0] > table["dark"][0] + 30
    # The place is in the right third of the table: of the French flag, the red one.
    flag = PictureBank().picture("france flag", 72)[36, 60, :3].astype(float)
    np.testing.assert_allclose(table["picture"], flag, atol=12.0)
    assert np.ptp(table["picture"]) > 100 > 10 > np.ptp(table["plain"])


def test_subprocess_blocks_carry_only_the_concepts_asked_for(facts):
    bank = PictureBank()
    robot, strangers = set(bank.concepts("robot")), set(bank.concepts("web_only"))
    assert not robot & strangers
    assert len(facts["names"]) > 30 and set(facts["names"]) <= robot
    assert set(facts["names of strangers"]) <= strangers  # by an option of reset
    assert set(facts["full"]["names"]) <= strangers  # by the config


def test_subprocess_full_config(facts):
    full = facts["full"]
    assert full["shapes"] == {
        "image": [112, 112, 3],
        "wrist_image": [112, 112, 3],
        "state": [8],
    }
    assert full["wrist colours"] > 20
    assert any(abs(yaw) > 0.1 for yaw in full["yaws"])
    assert full["render"] == [224, 224, 3]
    assert full["successes"] == 2 * len(FAMILIES)


def state(target=(0.0, 0.0, 0.02), start=(0.0, 0.0, 0.02), reference=None, held=False) -> TaskState:
    return TaskState(
        target=np.array(target),
        start=np.array(start),
        reference=None if reference is None else np.array(reference),
        mat_half_m=0.05,
        held=held,
    )


def test_pick_means_lifted_and_held():
    pick = make_task("pick", "apple")
    high = (0.0, 0.0, 0.02 + LIFT_M + 1e-6)
    assert is_success(pick, state(high, held=True))
    assert not is_success(pick, state(high, held=False))
    assert not is_success(pick, state((0.0, 0.0, 0.02 + LIFT_M - 1e-3), held=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_push_means_far_enough_the_right_way_on_the_table(direction):
    push = make_task("push", "apple", direction=direction)
    x, y = DIRECTIONS[direction]

    def moved(along: float, across: float = 0.0, up: float = 0.0) -> bool:
        where = (along * x - across * y, along * y + across * x, 0.02 + up)
        return is_success(push, state(where))

    assert moved(PUSH_M + 1e-6)
    assert not moved(PUSH_M - 1e-3)
    assert not moved(-PUSH_M - 1e-6)
    assert moved(0.08, across=0.039) and not moved(0.08, across=0.041)
    assert not moved(0.08, up=0.05)


def test_near_means_set_down_close_by():
    near = make_task("near", "apple", "car")
    there: dict[str, Any] = {"start": (0.2, 0.0, 0.02), "reference": (0.0, 0.0, 0.02)}
    assert is_success(near, state((NEAR_M - 1e-3, 0.0, 0.02), **there))
    assert not is_success(near, state((NEAR_M + 1e-3, 0.0, 0.02), **there))
    assert not is_success(near, state((NEAR_M - 1e-3, 0.0, 0.02), **there, held=True))
    assert not is_success(near, state((NEAR_M - 1e-3, 0.0, 0.06), **there))
    # The reference came to the target: not what was asked for.
    start = (0.1, 0.0, 0.02)
    assert not is_success(near, state(start, start=start, reference=(0.0, 0.0, 0.02)))


def test_put_means_let_go_on_the_mat():
    put = make_task("put", "apple", "blue mat")
    there: dict[str, Any] = {"start": (0.2, 0.0, 0.02), "reference": (0.0, 0.1, 0.02)}
    assert is_success(put, state((0.049, 0.051, 0.02), **there))
    assert not is_success(put, state((0.051, 0.1, 0.02), **there))
    assert not is_success(put, state((0.0, 0.1, 0.02), **there, held=True))
    assert not is_success(put, state((0.0, 0.1, 0.05), **there))


def test_goals_fulfil_their_tasks():
    start, reference = np.array([0.1, -0.1, 0.02]), np.array([-0.1, 0.05, 0.02])
    for task in (
        make_task("near", "apple", "car"),
        make_task("put", "apple", "red mat"),
        make_task("push", "apple", direction="left"),
    ):
        goal = (*goal_spot(task, start, reference), 0.02)
        assert is_success(task, state(goal, tuple(start), tuple(reference)))


def test_every_phrasing_names_what_it_is_about():
    for phrasing in range(4):
        assert "apple" in make_task("pick", "apple", phrasing=phrasing).instruction
        near = make_task("near", "apple", "car", phrasing=phrasing).instruction
        assert near.index("apple") < near.index("car")
        push = make_task("push", "apple", direction="left", phrasing=phrasing).instruction
        assert push.endswith("apple to the left")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("pick", "apple"), "empty instruction"),
        (("juggle", "apple", "", "", "juggle"), "no task family 'juggle'"),
        (("push", "apple", "", "up", "push it up"), "push to 'up'"),
        (("near", "apple", "", "", "move it"), "needs a reference"),
        (("put", "apple", "", "", "put it"), "needs a reference"),
    ],
)
def test_impossible_tasks(arguments, part):
    with pytest.raises(ValueError, match=part):
        Task(*arguments)


def test_impossible_configs():
    with pytest.raises(ValueError, match="choose from"):
        TabletopConfig(families=("pick", "juggle"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_blocks"):
        TabletopConfig(min_blocks=3, max_blocks=2)
    assert CONFIGS["demo"].action_spec == CONFIGS["full"].action_spec
