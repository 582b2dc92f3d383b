"""ActionSpec: what each number of an action means. It travels with data, checkpoints and servers.

A mismatch between two specs is refused, never guessed: a gripper sign or a frame that is silently
wrong trains and serves without an error and drops the robot's success to zero.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Literal

import numpy as np

Unit = Literal["m", "rad", "closedness", "effort", "flag", "unknown"]


@dataclasses.dataclass(frozen=True)
class ActionDimension:
    """One number of an action.

    Attributes:
      name: e.g. "position_x".
      unit: "m", "rad", "closedness" (0 open .. 1 closed), "effort" (of a gripper, -1 opens .. 1
        closes with full force), "flag" (0 or 1) or "unknown" (a robot controller's own scale that
        its data set does not explain).
      low, high: bounds in that unit; values outside are clipped when they become tokens.
      levels: number of discrete values. 2 for a flag; None for a continuous dimension.
    """

    name: str
    unit: Unit
    low: float
    high: float
    levels: int | None = None

    def __post_init__(self):
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"action dimension {self.name!r}: bounds [{self.low}, {self.high}] must be finite "
                "and low < high"
            )


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """The meaning of an action vector [A].

    Attributes:
      name: for messages, e.g. "tabletop".
      dimensions: in the order they are tokenized.
      frame: coordinate frame of the translation and rotation deltas.
      rotation: parameterisation of the rotation deltas.
      gripper: what the gripper number means, with its sign.
      control_hz: actions per second.
    """

    name: str
    dimensions: tuple[ActionDimension, ...]
    frame: str
    rotation: str
    gripper: str
    control_hz: float

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.dimensions)

    @property
    def low(self) -> np.ndarray:
        """float32 [A]."""
        return np.asarray([d.low for d in self.dimensions], np.float32)

    @property
    def high(self) -> np.ndarray:
        """float32 [A]."""
        return np.asarray([d.high for d in self.dimensions], np.float32)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ActionSpec:
        """Raises ValueError if `text` is not an ActionSpec."""
        try:
            raw = json.loads(text)
            dims = tuple(ActionDimension(**d) for d in raw.pop("dimensions"))
            return cls(dimensions=dims, **raw)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as e:
            raise ValueError(f"not an ActionSpec: {e}") from e

    @property
    def digest(self) -> str:
        """16 hex digits over every field."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def require_same(self, other: ActionSpec, *, here: str, there: str) -> None:
        """Raises ValueError naming every field in which two specs differ.

        Args:
          here, there: where each spec comes from, for the message, e.g. "the checkpoint".
        """
        if self == other:
            return
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        lines = [
            f"  {key}: {here} has {mine[key]!r}, {there} has {theirs[key]!r}"
            for key in mine
            if mine[key] != theirs[key]
        ]
        raise ValueError(
            f"the ActionSpec of {here} ({self.digest}) is not that of {there} ({other.digest}):\n"
            + "\n".join(lines)
            + "\nUse data and checkpoint of one robot, or convert the data set's actions."
        )

    def validate(self, action: np.ndarray, *, where: str) -> np.ndarray:
        """Returns `action` as float32 [..., A]; raises ValueError for a wrong size, NaN or inf."""
        action = np.asarray(action, np.float32)
        if action.ndim == 0 or action.shape[-1] != len(self.dimensions):
            raise ValueError(
                f"{where}: action of shape {action.shape}, but ActionSpec {self.name!r} has "
                f"{len(self.dimensions)} dimensions {self.names}"
            )
        if not np.isfinite(action).all():
            flat = action.reshape(-1, action.shape[-1])
            first = flat[~np.isfinite(flat).all(axis=1)][0]
            bad = sorted(name for name, x in zip(self.names, first) if not np.isfinite(x))
            raise ValueError(f"{where}: action is NaN or infinite in {bad}: {first.tolist()}")
        return action


def end_effector_spec(
    name: str, *, max_position_m: float, max_rotation_rad: float, control_hz: float
) -> ActionSpec:
    """RT-2's eight numbers: terminate, three of position, three of rotation, gripper.

    RT-2 (arXiv 2307.15818) section 3.2. Its appendix prints a string of seven numbers for the same
    scheme; the text and every other example have eight.
    """

    def delta(name: str, unit: Unit, limit: float) -> ActionDimension:
        return ActionDimension(name, unit, -limit, limit)

    return ActionSpec(
        name=name,
        dimensions=(
            ActionDimension("terminate", "flag", 0.0, 1.0, levels=2),
            delta("position_x", "m", max_position_m),
            delta("position_y", "m", max_position_m),
            delta("position_z", "m", max_position_m),
            delta("rotation_x", "rad", max_rotation_rad),
            delta("rotation_y", "rad", max_rotation_rad),
            delta("rotation_z", "rad", max_rotation_rad),
            ActionDimension("gripper_closedness", "closedness", 0.0, 1.0),
        ),
        frame="world",
        rotation="intrinsic roll-pitch-yaw delta",
        gripper="absolute closedness: 0 open, 1 closed",
        control_hz=control_hz,
    )
