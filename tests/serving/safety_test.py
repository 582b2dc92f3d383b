"""Holding and limits, by hand; and the batcher's and settings' own rules."""

from __future__ import annotations

import numpy as np
import pytest

from vla_jax.actions.spec import ActionDimension, ActionSpec, end_effector_spec
from vla_jax.serving.safety import HoldError, Safety
from vla_jax.serving.settings import DimensionLimits, ServerSettings

ARM = end_effector_spec("arm", max_position_m=0.05, max_rotation_rad=0.25, control_hz=5.0)
OTHER = ActionSpec(
    name="other",
    dimensions=(
        ActionDimension("joint", "rad", -3.0, 3.0),
        ActionDimension("gripper_effort", "effort", -1.0, 1.0),
        ActionDimension("speed", "unknown", 0.5, 2.0),
        ActionDimension("done", "flag", 0.0, 1.0, levels=2),
    ),
    frame="base",
    rotation="none",
    gripper="effort",
    control_hz=10.0,
)


def arm(**changes: float) -> np.ndarray:
    action = np.zeros(8, np.float32)
    for name, value in changes.items():
        action[ARM.names.index(name)] = value
    return action


def test_holding_is_no_motion_and_the_gripper_as_it_is():
    safety = Safety(ARM)
    moving = arm(terminate=1, position_x=0.03, rotation_z=-0.2, gripper_closedness=0.8)
    np.testing.assert_array_equal(safety.hold(moving), arm(gripper_closedness=0.8))
    np.testing.assert_array_equal(safety.hold(None), arm())
    measured = Safety(ARM, state_names=("x", "gripper_closedness"))
    state = np.float32([0.3, 0.6])
    np.testing.assert_array_equal(measured.hold(None, state), arm(gripper_closedness=0.6))
    np.testing.assert_array_equal(measured.hold(moving, state), arm(gripper_closedness=0.8))


def test_holding_by_unit():
    last = np.float32([1.5, 1.0, 1.7, 1.0])
    # A delta of 0; the effort goes on; of an unknown scale what is nearest to 0; not done.
    np.testing.assert_array_equal(Safety(OTHER).hold(last), np.float32([0, 1, 0.5, 0]))
    np.testing.assert_array_equal(Safety(OTHER).hold(None), np.float32([0, 0, 0.5, 0]))
    limits = {"joint": DimensionLimits(keep=True), "speed": DimensionLimits(hold=1.0)}
    held = Safety(OTHER, limits).hold(last)
    np.testing.assert_array_equal(held, np.float32([1.5, 1, 1, 0]))


def test_what_is_within_all_limits_is_not_touched():
    limits = {
        "position_x": DimensionLimits(
            low=-0.03, high=0.03, max_change=0.02, workspace=(0.0, 0.5), state="x"
        )
    }
    actions = np.stack([arm(position_x=0.02), arm(position_x=0.03), arm(position_x=0.011)])
    safe, clipped = Safety(ARM, limits, ("x",)).apply(actions, None, np.float32([0.1]))
    np.testing.assert_array_equal(safe, actions)
    assert clipped == ()


@pytest.mark.parametrize(
    ("position", "wanted", "allowed"),
    [
        (0.49, [0.03, 0.03], [0.01, 0.0]),
        (0.01, [-0.03, 0.02], [-0.01, 0.02]),
        (0.60, [0.03, -0.03], [0.0, -0.03]),  # outside: back, not further
        (-0.1, [-0.03, 0.05], [0.0, 0.05]),
    ],
)
def test_the_workspace_ends_at_its_wall(position, wanted, allowed):
    limits = {"position_y": DimensionLimits(workspace=(0.0, 0.5), state="1")}
    actions = np.stack([arm(position_y=y) for y in wanted])
    state = np.float32([9.0, position])
    safe, clipped = Safety(ARM, limits).apply(actions, None, state)
    np.testing.assert_allclose(safe[:, 2], allowed, atol=1e-6)
    assert clipped == ("workspace",)


def test_bounds_of_the_spec_and_narrower_ones():
    limits = {"position_z": DimensionLimits(low=-0.01)}
    actions = arm(position_x=9, position_z=-0.04, gripper_closedness=-1, terminate=2)[None]
    safe, clipped = Safety(ARM, limits).apply(actions, None, None)
    want = arm(position_x=0.05, position_z=-0.01, gripper_closedness=0, terminate=1)
    np.testing.assert_array_equal(safe[0], want)
    assert clipped == ("bounds",)


def test_changes_are_bounded_from_step_to_step():
    limits = {"position_x": DimensionLimits(max_change=0.01)}
    actions = np.stack([arm(position_x=x) for x in (0.03, 0.03, 0.03, -0.05)])
    safe, clipped = Safety(ARM, limits).apply(actions, arm(position_x=0.005), None)
    np.testing.assert_allclose(safe[:, 1], [0.015, 0.025, 0.03, 0.02], atol=1e-7)
    assert clipped == ("change",)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_hold(bad):
    with pytest.raises(HoldError) as error:
        Safety(ARM).apply(arm(position_x=bad)[None], None, None)
    assert error.value.reason == "nan" and "position_x" in error.value.why


@pytest.mark.parametrize("state", [None, np.float32([]), np.float32([np.nan])])
def test_a_workspace_needs_to_know_where_the_robot_is(state):
    limits = {"position_x": DimensionLimits(workspace=(0.0, 0.5), state="0")}
    with pytest.raises(HoldError) as error:
        Safety(ARM, limits).apply(arm()[None], None, state)
    assert error.value.reason == "state"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"positionx": DimensionLimits()}, "did you mean 'position_x'"),
        ({"position_x": DimensionLimits(low=0.06)}, "nothing of the ActionSpec's bounds"),
        ({"position_x": DimensionLimits(hold=1.0)}, "outside the ActionSpec's bounds"),
        ({"position_x": DimensionLimits(workspace=(0, 1), state="x")}, "'x' is neither"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Safety(ARM, limits)


@pytest.mark.parametrize(
    "values",
    [
        {"low": np.nan},
        {"low": 1.0, "high": 0.0},
        {"max_change": 0.0},
        {"workspace": (1.0, 0.0), "state": "0"},
        {"workspace": (0.0, 1.0)},
        {"hold": 0.0, "keep": True},
    ],
)
def test_limits_that_contradict_themselves_are_refused(values):
    with pytest.raises(ValueError):
        DimensionLimits(**values)


@pytest.mark.parametrize(
    "values", [{"deadline_s": 0}, {"max_queue": 0}, {"batch_wait_s": -1}, {"tls_key": "key.pem"}]
)
def test_settings_that_cannot_be_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        ServerSettings(**values)
