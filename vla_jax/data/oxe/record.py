"""What there is to know of one Open X-Embodiment data set, and its actions as RT-2's numbers."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from vla_jax.actions.spec import ActionDimension, ActionSpec, Unit
from vla_jax.data.oxe.standardize import (
    TO_CLOSEDNESS,
    GripperForm,
    RotationForm,
    reached_deltas,
    to_rpy,
)
from vla_jax.data.sources.episodes import EpisodeLayout, EpisodeSource
from vla_jax.data.statistics import load_or_measure, require_ranges

_PART = re.compile(r"(?P<feature>[^\[]+)(\[(?P<start>\d+)(:(?P<stop>\d+))?\])?")

# Half the narrowest range of a number: of one that a data set never uses, such as a rotation.
_MIN_HALF_RANGE = 0.005


class Quantiles(NamedTuple):
    """1st and 99th percentile of a data set's converted actions, each [A]."""

    q01: np.ndarray
    q99: np.ndarray


class _Number(NamedTuple):
    name: str
    unit: Unit
    limit: float | None  # None: the bounds are the data set's quantiles


@dataclasses.dataclass(frozen=True)
class OxeRecord:
    """Where one data set keeps what RT-2's eight numbers need, and in which form.

    Parts of an action are named "action[3:6]": feature "steps/action", elements 3, 4 and 5; without
    brackets it is the whole feature.

    Attributes:
      name: as published, e.g. "taco_play".
      robot: for people.
      control_hz: actions a second.
      source: where the facts were found.
      image: image feature of the observation.
      wrist: a second one, of a camera at the hand; "": none.
      instruction: text feature, see `EpisodeLayout.instruction`.
      kind: "end effector": terminate, position (3), rotation (3), closedness. "joints": terminate,
        `joints` (n), closedness. "planar": position (2), nothing else.
      position: part, metres after `scale`.
      rotation: part, in form `rotation_form`, radians after `scale`; "": it does not turn, 0.
      rotation_start: part that an "axis-angle difference" starts from.
      joints: part, of kind "joints".
      reached: part [6], the measured x, y, z, roll, pitch, yaw. If given, its change until the next
        step is taken in place of `position` and `rotation`.
      gripper: part [1], of form `gripper_form`; "": none, closedness is 0.
      first_step_empty: the first stored action is no command; its gripper is that of the second.
      terminate: part [1]; above 0.5 the episode ends. Without a flag of its own: "is_last".
      frame: whose axes the numbers are along: "base", "tool" or "unknown".
      motion: "delta", "velocity", "absolute" (a target pose, not a change) or "unknown".
      scale: factor of the stored position (or joints), and of the stored rotation.
      units: of those numbers, scaled. "unknown": of the robot's controller.
      limits: +- bounds of position (or joints) and of rotation where they are published; None: the
        data set's quantiles.
      note: on what sources do not say, or say differently.
    """

    name: str
    robot: str
    control_hz: float
    source: str
    image: str = "image"
    wrist: str = ""
    instruction: str | tuple[str, ...] = "steps/language_instruction"
    kind: Literal["end effector", "joints", "planar"] = "end effector"
    position: str = "action[0:3]"
    rotation: str = "action[3:6]"
    rotation_form: RotationForm = "roll-pitch-yaw"
    rotation_start: str = ""
    joints: str = ""
    reached: str = ""
    gripper: str = ""
    gripper_form: GripperForm = "none"
    first_step_empty: bool = False
    terminate: str = "is_last"
    frame: Literal["base", "tool", "unknown"] = "unknown"
    motion: Literal["delta", "velocity", "absolute", "unknown"] = "delta"
    scale: tuple[float, float] = (1.0, 1.0)
    units: tuple[Unit, Unit] = ("unknown", "unknown")
    limits: tuple[float | None, float | None] = (None, None)
    note: str = ""

    @property
    def needs_quantiles(self) -> bool:
        """Whether some bounds are not published."""
        return any(number.limit is None for number in self._numbers())

    def layout(
        self, quantiles: Quantiles | None = None, *, with_wrist: bool = False
    ) -> EpisodeLayout:
        """How `EpisodeSource` reads this data set.

        Args:
          quantiles: see `spec`.
          with_wrist: the wrist camera as a second view.

        Raises ValueError, naming the data set, for missing quantiles or a wrist camera it lacks.
        """
        if with_wrist and not self.wrist:
            raise ValueError(f"data set {self.name!r} has no wrist camera: read one view")
        views = (self.image, self.wrist) if with_wrist else (self.image,)
        return EpisodeLayout(
            images=tuple(f"steps/observation/{view}" for view in views),
            instruction=self.instruction,
            actions=self.features,
            convert=self.convert,
            spec=self.spec(quantiles),
        )

    @property
    def features(self) -> tuple[str, ...]:
        """The numeric features that `convert` needs, each once."""
        if self.kind == "planar":
            parts = [self.position]
        elif self.kind == "joints":
            parts = [self.joints, self.gripper, self.terminate]
        else:
            motion = [self.reached] if self.reached else [self.position, self.rotation]
            parts = [*motion, self.rotation_start, self.gripper, self.terminate]
        return tuple(dict.fromkeys(_split(part)[0] for part in parts if part))

    def convert(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """{feature: array [steps, ...]} of one episode -> float32 [steps, A], see `kind`."""
        steps = len(next(iter(stored.values())))

        def take(part: str) -> np.ndarray:
            feature, elements = _split(part)
            return stored[feature].astype(np.float64).reshape(steps, -1)[:, elements]

        if self.kind == "planar":
            return (take(self.position) * self.scale[0]).astype(np.float32)
        if self.kind == "joints":
            motion = take(self.joints) * self.scale[0]
        elif self.reached:
            motion = reached_deltas(take(self.reached))
        else:
            rotation = np.zeros((steps, 3))
            if self.rotation:
                start = take(self.rotation_start) if self.rotation_start else None
                turn = take(self.rotation) * self.scale[1]
                rotation = to_rpy(turn, self.rotation_form, start)
            motion = np.concatenate([take(self.position) * self.scale[0], rotation], axis=1)
        gripper = take(self.gripper)[:, 0] if self.gripper else np.zeros(steps)
        if self.first_step_empty and steps > 1:
            gripper[0] = gripper[1]
        closedness = TO_CLOSEDNESS[self.gripper_form](gripper)
        terminate = take(self.terminate)[:, 0] > 0.5
        return np.column_stack([terminate, motion, closedness]).astype(np.float32)

    def spec(self, quantiles: Quantiles | None = None) -> ActionSpec:
        """The meaning of `convert`'s numbers.

        Args:
          quantiles: of all A converted numbers, see `measure`; used where no bounds are published.

        Raises ValueError, naming the data set, if they are needed and missing, or of a wrong size.
        """
        numbers = self._numbers()
        if quantiles is None and self.needs_quantiles:
            raise ValueError(
                f"data set {self.name!r}: no bounds are published for "
                f"{', '.join(n.name for n in numbers if n.limit is None)}; give the quantiles of "
                "its actions (vla_jax.data.oxe.record.measure)"
            )
        if quantiles is not None and any(np.shape(q) != (len(numbers),) for q in quantiles):
            raise ValueError(
                f"data set {self.name!r}: quantiles of shapes {[np.shape(q) for q in quantiles]}, "
                f"need one for each of {[n.name for n in numbers]}"
            )
        form = "roll-pitch-yaw" if self.rotation or self.reached else "none"
        if form != "none" and self.rotation_form not in ("roll-pitch-yaw", "yaw-pitch-roll"):
            form += ", R = Rz Ry Rx"
        closedness = "absolute closedness: 0 open, 1 closed"
        return ActionSpec(
            name=self.name,
            dimensions=tuple(_dimension(n, i, quantiles) for i, n in enumerate(numbers)),
            frame=f"{self.frame}, {self.motion}",
            rotation=form if self.kind == "end effector" else "none",
            gripper=closedness if self.gripper else "none",
            control_hz=self.control_hz,
        )

    def _numbers(self) -> list[_Number]:
        position = [f"position_{axis}" for axis in "xyz"]
        if self.kind == "planar":
            return [_Number(name, self.units[0], self.limits[0]) for name in position[:2]]
        if self.kind == "joints":
            elements = _split(self.joints)[1]
            names = [f"joint_{i + 1}" for i in range(elements.stop - elements.start)]
            motion = [_Number(name, self.units[0], self.limits[0]) for name in names]
        else:
            turns = self.rotation or self.reached
            limit = self.limits[1] if turns else _MIN_HALF_RANGE
            unit = self.units[1] if turns else "rad"
            motion = [_Number(name, self.units[0], self.limits[0]) for name in position]
            motion += [_Number(f"rotation_{axis}", unit, limit) for axis in "xyz"]
        return [
            _Number("terminate", "flag", 1.0),
            *motion,
            _Number("gripper_closedness", "closedness", 1.0),
        ]


def measure(
    record: OxeRecord,
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    max_bad_records: int = 0,
) -> Quantiles:
    """Quantiles of a data set's converted actions.

    Kept beside the data, see `index_files`.

    Raises as `EpisodeSource` does, and ValueError naming the numbers without published bounds whose
    range is too small to take bounds from; one that is the same in every step may be.
    """
    numbers = record._numbers()
    # The bounds do not matter here: `EpisodeSource` does not clip.
    any_bounds = Quantiles(-np.ones(len(numbers)), np.ones(len(numbers)))
    source = EpisodeSource(
        record.name,
        path,
        split,
        layout=record.layout(any_bounds),
        max_bad_records=max_bad_records,
    )
    actions = load_or_measure(source, f"actions of {record}").actions
    require_ranges(
        actions,
        [number.name for number in numbers if number.limit is None],
        where=f"data set {record.name!r} ({path})",
        remedy="correct `scale` of its OxeRecord, or give it the bounds as `limits`",
        constant=True,
    )
    return Quantiles(actions.quantile(0.01), actions.quantile(0.99))


def _split(part: str) -> tuple[str, slice]:
    """ "action[3:6]" -> "steps/action", slice(3, 6)."""
    match = _PART.fullmatch(part)
    assert match is not None, part
    feature, start, stop = f"steps/{match['feature']}", match["start"], match["stop"]
    if start is None:
        return feature, slice(None)
    return feature, slice(int(start), int(stop) if stop else int(start) + 1)


def _dimension(number: _Number, index: int, quantiles: Quantiles | None) -> ActionDimension:
    if number.unit == "flag":
        return ActionDimension(number.name, "flag", 0.0, 1.0, levels=2)
    if number.unit == "closedness":
        return ActionDimension(number.name, "closedness", 0.0, 1.0)
    if number.limit is not None:
        return ActionDimension(number.name, number.unit, -number.limit, number.limit)
    assert quantiles is not None
    low, high = float(quantiles.q01[index]), float(quantiles.q99[index])
    widen = max(0.0, _MIN_HALF_RANGE - (high - low) / 2)
    return ActionDimension(number.name, number.unit, low - widen, high + widen)
