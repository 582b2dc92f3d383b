"""What a policy needs in somebody else's loop: its frames, its chunks, and its action in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.decoding.frames import FrameHistory
from vla_jax.serving.contract import Observation, ServedPolicy

_CLOSED = 0.5


class NoActionError(RuntimeError):
    """The policy gives no action: a server would tell a robot to hold its position."""


class Step(NamedTuple):
    """What is to be done now.

    Attributes:
      action: float32 [A], in the order and units of the ActionSpec.
      latency_s: of the model; None: it was not asked, a chunk goes on.
    """

    action: np.ndarray
    latency_s: float | None


class Episode:
    """One episode. Every observation is shown to it, in their order.

    The policy's chunks are carried out here, so that one of several frames sees consecutive ones:
    to the harness, a chunk has one action.

    Args:
      policy: whose actions these are.
      cameras: the policy's name of a camera -> the harness's; those left out are called the same.

    Raises:
      ValueError: `cameras` has a name that the policy does not know.
    """

    def __init__(self, policy: ServedPolicy, cameras: Mapping[str, str]):
        self._policy, self._executor = policy, policy.make_executor()
        self._names = camera_names(policy, cameras)
        self._seen = FrameHistory(policy.frames)

    def next(
        self, images: Mapping[str, Any], instruction: str, state: np.ndarray | None = None
    ) -> Step:
        """The action for an observation.

        Args:
          images: uint8 [h, w, 3] by the harness's names of cameras; others may be among them.

        Raises:
          NoActionError: a camera is missing, or the policy's answer is no action.
        """
        missing = [name for name in self._names.values() if name not in images]
        if missing:
            raise NoActionError(f"no picture of camera {missing[0]!r}; there are {sorted(images)}")
        self._seen.add({c: np.asarray(images[name]) for c, name in self._names.items()})
        latency_s = None
        if self._executor.due:
            seen = Observation(self._seen.views(), instruction, state)
            answer = self._policy.act([seen])[0]
            if not answer.valid:
                raise NoActionError(f"the policy's answer is no action: {answer.why}")
            try:
                self._executor.add(self._policy.spec.validate(answer.actions, where="the policy"))
            except ValueError as e:
                raise NoActionError(str(e)) from e
            latency_s = answer.latency_s
        return Step(self._executor.next(), latency_s)


def camera_names(policy: ServedPolicy, cameras: Mapping[str, str]) -> dict[str, str]:
    """The policy's name of each camera -> the harness's. Raises as `Episode`."""
    unknown = sorted(set(cameras) - set(policy.cameras))
    if unknown:
        raise ValueError(f"cameras: {unknown} are not the policy's, {list(policy.cameras)}")
    return {camera: cameras.get(camera, camera) for camera in policy.cameras}


@dataclasses.dataclass(frozen=True)
class EndEffector:
    """Where the parts of an end effector's action stand in an ActionSpec.

    Attributes:
      position, rotation: places of x, y, z; no rotation: ().
      gripper, terminate: places; None: there is none.
      frame: of the deltas, as the ActionSpec names it.
    """

    position: tuple[int, ...]
    rotation: tuple[int, ...]
    gripper: int | None
    terminate: int | None
    frame: str

    @classmethod
    def of(cls, spec: ActionSpec) -> Self:
        """Raises ValueError for an action that is none of an end effector with a gripper."""
        names = list(spec.names)

        def axes(part: str) -> tuple[int, ...]:
            wanted = [f"{part}_{axis}" for axis in "xyz"]
            return tuple(names.index(n) for n in wanted) if set(wanted) <= set(names) else ()

        units = [d.unit for d in spec.dimensions]
        grippers = [i for i, unit in enumerate(units) if unit in ("closedness", "effort")]
        position, rotation = axes("position"), axes("rotation")
        terminate = [names.index("terminate")] if "terminate" in names else []
        told = {*position, *rotation, *grippers, *terminate}
        turns = "roll-pitch-yaw" in spec.rotation
        frame, _, motion = spec.frame.partition(", ")  # as Open X-Embodiment's: "base, delta"
        if (
            not position
            or len(grippers) > 1
            or len(told) < len(names)
            or bool(rotation) != turns
            or motion not in ("", "delta")
        ):
            raise ValueError(
                f"ActionSpec {spec.name!r} has {spec.names} in frame {spec.frame!r}, rotation "
                f"{spec.rotation!r}: harnesses can be told of deltas of position_x, _y, _z, of "
                "rotation_x, _y, _z as roll, pitch, yaw, of one gripper and of terminate, no more"
            )
        return cls(
            position,
            rotation,
            grippers[0] if grippers else None,
            terminate[0] if terminate else None,
            frame,
        )

    def motion(self, action: np.ndarray) -> np.ndarray:
        """Position, then rotation if there is one: float32 [3 or 6] in the ActionSpec's units."""
        return action[[*self.position, *self.rotation]]

    def closedness(self, spec: ActionSpec, action: np.ndarray) -> float:
        """0 open .. 1 closed; of an effort, -1 .. 1 in the same direction."""
        assert self.gripper is not None
        value = float(action[self.gripper])
        return (value + 1) / 2 if spec.dimensions[self.gripper].unit == "effort" else value

    def is_closed(self, spec: ActionSpec, action: np.ndarray) -> bool:
        return self.closedness(spec, action) >= _CLOSED

    def stops(self, action: np.ndarray) -> bool:
        """Whether the policy says that the episode is over."""
        return self.terminate is not None and bool(action[self.terminate] > 0.5)
