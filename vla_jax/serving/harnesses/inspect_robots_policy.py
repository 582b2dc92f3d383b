"""A bundle as a policy of inspect-robots:

    inspect-robots run --policy vla_jax -P bundle=DIR --embodiment ... --task ...

Actions are an end effector's deltas in metres and radians with the gripper last. The policy's
"terminate" stops a trial with the reason "terminate". Where a server would tell a robot to hold its
position, the trial ends with PolicyError and no action.
"""

from __future__ import annotations

from typing import cast, get_args

import numpy as np
from inspect_robots.errors import PolicyError
from inspect_robots.policy import PolicyBase, PolicyConfig, PolicyInfo
from inspect_robots.scene import Scene
from inspect_robots.spaces import (
    ActionSemantics,
    Box,
    CameraSpec,
    ControlMode,
    Frame,
    ObservationSpace,
    RotationRepr,
)
from inspect_robots.types import Action, ActionChunk, Observation

from vla_jax.actions.spec import ActionSpec
from vla_jax.serving.contract import ServedPolicy
from vla_jax.serving.harnesses.episode import EndEffector, Episode, NoActionError, camera_names
from vla_jax.serving.policy import load


class InspectRobotsPolicy(PolicyBase):
    """See `from_bundle`."""

    def __init__(
        self,
        policy: ServedPolicy,
        *,
        cameras: str = "",
        state: str = "",
        frame: str = "",
        gripper_open: float = 0.0,
        gripper_closed: float = 1.0,
    ):
        self._policy = policy
        self._cameras = _pairs(cameras)
        self._state = tuple(key.strip() for key in state.split(",") if key.strip())
        if policy.state_names and not self._state:
            raise ValueError(
                f"the policy needs a state of {list(policy.state_names)}: name the embodiment's "
                "keys that make it up, in order, e.g. state=eef_pos,gripper"
            )
        self._arm = EndEffector.of(policy.spec)
        self._gripper = gripper_open, gripper_closed
        size = policy.image_size
        names = camera_names(policy, self._cameras).values()
        self.info = PolicyInfo(
            name=f"vla_jax/{policy.spec.name}",
            action_space=action_box(policy.spec, self._arm, frame, self._gripper),
            observation_space=ObservationSpace(
                cameras=tuple(CameraSpec(name, size, size) for name in names),
                state_keys=frozenset(self._state),
            ),
            control_hz=policy.spec.control_hz,
            checkpoint=policy.digest,
        )
        self.config = PolicyConfig(temperature=0.0)
        self._instruction = ""
        self._episode: Episode | None = None

    def reset(self, scene: Scene) -> None:
        self._instruction = scene.instruction
        self._episode = Episode(self._policy, self._cameras)

    def act(self, observation: Observation) -> ActionChunk:
        """One action. Raises PolicyError where there is none."""
        assert self._episode is not None
        state = None
        if self._state:
            parts = [np.ravel(observation.state[key]) for key in self._state]
            state = np.concatenate(parts).astype(np.float32)
        try:
            step = self._episode.next(
                observation.images, observation.instruction or self._instruction, state
            )
        except NoActionError as e:
            raise PolicyError(str(e)) from e
        stops = self._arm.stops(step.action)
        meta = {"request_stop": True, "stop_reason": "terminate"} if stops else {}
        return ActionChunk(
            [Action(self._physical(step.action), meta)],
            control_hz=self._policy.spec.control_hz,
            inference_latency_s=step.latency_s,
        )

    def _physical(self, action: np.ndarray) -> np.ndarray:
        motion = self._arm.motion(action).astype(np.float64)
        if self._arm.gripper is None:
            return motion
        opened, closed = self._gripper
        closedness = self._arm.closedness(self._policy.spec, action)
        return np.append(motion, opened + closedness * (closed - opened))


def from_bundle(
    bundle: str,
    cameras: str = "",
    state: str = "",
    frame: str = "",
    gripper_open: float = 0.0,
    gripper_closed: float = 1.0,
) -> InspectRobotsPolicy:
    """What inspect-robots makes of `--policy vla_jax -P bundle=DIR -P ...`.

    Args:
      bundle: a directory that `python -m vla_jax.export` wrote.
      cameras: the policy's names of cameras and the embodiment's, "image=top,wrist=hand", where
        they differ.
      state: keys of the embodiment's state that make up the policy's, joined in this order.
      frame: "base", "world" or "camera", where the ActionSpec does not say.
      gripper_open, gripper_closed: the embodiment's numbers of an open and a closed gripper.

    Raises:
      FileNotFoundError, ValueError: as `vla_jax.serving.load`; an ActionSpec that inspect-robots
        has no words for; a state without keys.
    """
    policy = load(bundle, max_batch_size=1)
    policy.warm_up()  # no robot waits for a compiler
    return InspectRobotsPolicy(
        policy,
        cameras=cameras,
        state=state,
        frame=frame,
        gripper_open=gripper_open,
        gripper_closed=gripper_closed,
    )


def action_box(spec: ActionSpec, arm: EndEffector, frame: str, gripper: tuple[float, float]) -> Box:
    """The action space as inspect-robots compares it. Raises ValueError for an unknown frame."""
    frame = frame or arm.frame
    if frame not in get_args(Frame):
        raise ValueError(
            f"the ActionSpec's frame is {spec.frame!r}; inspect-robots knows {get_args(Frame)}: "
            "say which it is, frame=..."
        )
    places = [*arm.position, *arm.rotation]
    low, high, names = spec.low[places], spec.high[places], [spec.names[i] for i in places]
    if arm.gripper is not None:
        low, high = np.append(low, min(gripper)), np.append(high, max(gripper))
        names.append(spec.names[arm.gripper])
    return Box(
        (len(names),),
        low.astype(np.float64),
        high.astype(np.float64),
        ActionSemantics(
            control_mode=cast(ControlMode, "eef_delta_pose" if arm.rotation else "eef_delta_pos"),
            rotation_repr=cast(RotationRepr, "euler_xyz" if arm.rotation else "none"),
            gripper="none" if arm.gripper is None else "continuous",
            frame=cast(Frame, frame),
            dim_labels=tuple(names),
        ),
    )


def _pairs(text: str) -> dict[str, str]:
    """ "a=b,c=d" as a mapping. Raises ValueError."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, other = part.partition("=")
        if not equals:
            raise ValueError(f"cameras: {part!r}; write POLICYS=EMBODIMENTS,...")
        found[name.strip()] = other.strip()
    return found
