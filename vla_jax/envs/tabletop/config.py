"""What the table-top world looks like and asks for. Imports no simulator."""

from __future__ import annotations

import dataclasses

from vla_jax.actions.spec import ActionSpec, end_effector_spec

FAMILIES = ("pick", "near", "put", "push")


@dataclasses.dataclass(frozen=True)
class TabletopConfig:
    """One kind of table-top world.

    Attributes:
      image_size: of the camera image, pixels.
      concepts: names of the pictures on the blocks; empty for split "robot".
      families: kinds of instructions.
      min_blocks, max_blocks: per scene, the ones that the task needs included.
      max_steps: time limit in control steps.
      control_hz: actions per second. RT-1 ran at about 3.
      max_position_m, max_rotation_rad: bounds of one action, per axis.
      yaw_rad: blocks are turned by up to this much.
      camera_jitter_m, light_jitter: how much camera position and brightness vary.
      wrist_camera: also give "wrist_image".
    """

    image_size: int = 112
    concepts: tuple[str, ...] = ()
    families: tuple[str, ...] = FAMILIES
    min_blocks: int = 2
    max_blocks: int = 3
    max_steps: int = 18
    control_hz: float = 3.0
    max_position_m: float = 0.1
    max_rotation_rad: float = 0.5
    yaw_rad: float = 0.0
    camera_jitter_m: float = 0.004
    light_jitter: float = 0.1
    wrist_camera: bool = False

    def __post_init__(self):
        unknown = set(self.families) - set(FAMILIES)
        if unknown or not self.families:
            raise ValueError(f"families {self.families}: choose from {FAMILIES}")
        if not 2 <= self.min_blocks <= self.max_blocks <= 4:
            raise ValueError(
                f"2 <= min_blocks <= max_blocks <= 4, got {self.min_blocks}, {self.max_blocks}"
            )

    @property
    def action_spec(self) -> ActionSpec:
        return end_effector_spec(
            "tabletop",
            max_position_m=self.max_position_m,
            max_rotation_rad=self.max_rotation_rad,
            control_hz=self.control_hz,
        )


CONFIGS = {
    "demo": TabletopConfig(families=("pick", "push")),
    "full": TabletopConfig(
        max_blocks=4,
        max_steps=30,
        yaw_rad=0.6,
        camera_jitter_m=0.02,
        light_jitter=0.35,
        wrist_camera=True,
    ),
}
"""The demo's world is what minutes of training on a laptop can learn: it asks to pick and to push,
and keeps blocks parallel to the gripper, so no action needs a rotation. The full one has all."""
