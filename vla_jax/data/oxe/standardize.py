"""Conversions that several data sets share: rotations to roll-pitch-yaw, grippers to closedness.

Everything works on a whole episode at once. Roll, pitch and yaw turn about the fixed x, y and z
axes, in that order: R = Rz(yaw) Ry(pitch) Rx(roll).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

# A gripper number below / above is closed / open; between them it is on its way.
_CLOSED_BELOW, _OPEN_ABOVE = 0.05, 0.95
# A relative gripper number this small moves nothing.
_DEAD_ZONE = 0.1


def matrix_to_rpy(matrix: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] -> roll, pitch, yaw [..., 3], radians.

    Where the pitch is +-90 degrees only yaw -+ roll is defined: the yaw is then 0.
    """
    pitch = np.arctan2(-matrix[..., 2, 0], np.hypot(matrix[..., 0, 0], matrix[..., 1, 0]))
    locked = np.hypot(matrix[..., 0, 0], matrix[..., 1, 0]) < 1e-6
    roll = np.where(
        locked,
        np.arctan2(-matrix[..., 1, 2], matrix[..., 1, 1]),
        np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]),
    )
    yaw = np.where(locked, 0.0, np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]))
    return np.stack([roll, pitch, yaw], axis=-1)


def quaternion_to_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Quaternions x, y, z, w [..., 4] of any length but 0 -> rotation matrices [..., 3, 3].

    A quaternion of length 0 is no rotation and gives NaN.
    """
    with np.errstate(invalid="ignore"):
        x, y, z, w = np.moveaxis(
            quaternion / np.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0
        )
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def axis_angle_to_matrix(vector: np.ndarray) -> np.ndarray:
    """Axis times angle in radians [..., 3] -> rotation matrices [..., 3, 3]."""
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    # sin(half) / (2 half), also at 0.
    xyz = vector * np.sinc(half / np.pi) / 2
    return quaternion_to_matrix(np.concatenate([xyz, np.cos(half)], axis=-1))


def euler_to_matrix(angles: np.ndarray, axes: str) -> np.ndarray:
    """Turns about fixed axes, the first letter of `axes` first -> rotation matrices [..., 3, 3].

    Args:
      angles: [..., number of axes], radians, in the order of `axes`.
      axes: e.g. "xyz", which is roll, pitch, yaw.
    """
    result = np.broadcast_to(np.eye(3), (*angles.shape[:-1], 3, 3))
    for number, axis in enumerate(axes):
        unit = np.eye(3)["xyz".index(axis)]
        result = axis_angle_to_matrix(angles[..., number, None] * unit) @ result
    return result


def reached_deltas(poses: np.ndarray) -> np.ndarray:
    """x, y, z, roll, pitch, yaw of each step [steps, 6] -> their change until the next step.

    Angles change by the short way round. Nothing follows the last step: its change is 0.
    """
    delta = np.diff(poses, axis=0, append=poses[-1:])
    delta[:, 3:] = (delta[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    return delta


def integrate_closing(closing: np.ndarray) -> np.ndarray:
    """Relative gripper numbers [steps], + closes and - opens -> closedness [steps], 0 or 1.

    Numbers within +-0.1 leave the gripper as it is. Before the first that moves it, it is in the
    opposite state, or else that number would do nothing; it is open if none moves it.
    """
    moves = np.flatnonzero(np.abs(closing) > _DEAD_ZONE)
    if not len(moves):
        return np.zeros(len(closing))
    closed = closing[moves] > 0
    last_move = np.searchsorted(moves, np.arange(len(closing)), side="right") - 1
    return np.where(last_move < 0, ~closed[0], closed[last_move]).astype(np.float64)


def binarize_openness(openness: np.ndarray) -> np.ndarray:
    """Openness [steps], 0 closed .. 1 open -> 0 or 1: the state that a movement ends in.

    Numbers between 0.05 and 0.95 count as the next one outside. If none follows they become the
    episode's last number, as it is.
    """
    settled = np.flatnonzero((openness < _CLOSED_BELOW) | (openness > _OPEN_ABOVE))
    next_settled = np.searchsorted(settled, np.arange(len(openness)))
    states = np.append((openness[settled] > _OPEN_ABOVE).astype(np.float64), openness[-1])
    return states[next_settled]


GripperForm = Literal[
    "0 open .. 1 closed",
    "-1 open .. 1 closed",
    "0 closed .. 1 open",
    "-1 closed .. 1 open",
    "0 closed .. 1 open, binarized",
    "+ closes, - opens",
    "none",
]
"""How a data set stores its gripper. All are absolute but "+ closes, - opens"."""


def _closed(stored: np.ndarray) -> np.ndarray:
    return np.clip(stored, 0, 1)


def _open(stored: np.ndarray) -> np.ndarray:
    return 1 - np.clip(stored, 0, 1)


# Where -1 is one end the published conversions clip too, so that 0 counts as that end.
TO_CLOSEDNESS: dict[GripperForm, Callable[[np.ndarray], np.ndarray]] = {
    "0 open .. 1 closed": _closed,
    "-1 open .. 1 closed": _closed,
    "0 closed .. 1 open": _open,
    "-1 closed .. 1 open": _open,
    "0 closed .. 1 open, binarized": lambda stored: _open(binarize_openness(stored)),
    "+ closes, - opens": integrate_closing,
    "none": np.zeros_like,
}
"""Stored gripper numbers [steps] -> closedness [steps], 0 open .. 1 closed."""

RotationForm = Literal[
    "roll-pitch-yaw",
    "yaw-pitch-roll",
    "euler zxy",
    "axis-angle",
    "axis-angle difference",
    "quaternion xyzw",
]
"""How a data set stores a rotation. "euler zxy" turns about fixed axes, z first. An "axis-angle
difference" is that of two axis-angle vectors, which is not a rotation by itself."""


def to_rpy(stored: np.ndarray, form: RotationForm, start: np.ndarray | None = None) -> np.ndarray:
    """Stored rotations [steps, 3 or 4], in radians -> roll, pitch, yaw [steps, 3].

    Args:
      start: for an "axis-angle difference" the axis-angle vectors [steps, 3] it is added to; the
        result is the turn from there, about the axes of the frame they are given in.
    """
    if form == "roll-pitch-yaw":
        return stored
    if form == "yaw-pitch-roll":
        return stored[:, ::-1]
    if form == "euler zxy":
        return matrix_to_rpy(euler_to_matrix(stored, "zxy"))
    if form == "axis-angle":
        return matrix_to_rpy(axis_angle_to_matrix(stored))
    if form == "axis-angle difference":
        assert start is not None
        before = np.swapaxes(axis_angle_to_matrix(start), -1, -2)
        return matrix_to_rpy(axis_angle_to_matrix(start + stored) @ before)
    return matrix_to_rpy(quaternion_to_matrix(stored))
