"""What the Meta-World environment shows and takes. Imports no simulator."""

from __future__ import annotations

import dataclasses
from typing import Self

from vla_jax.actions.spec import ActionDimension, ActionSpec
from vla_jax.envs.metaworld.tasks import find_tasks

CONTROL_HZ = 80.0  # MuJoCo steps of 2.5 ms, five to an action
REACH_M = 0.01  # an action of 1 moves the commanded position by so much, along one axis
MAX_STEPS = 500

_SPEC = ActionSpec(
    name="metaworld",
    dimensions=(
        *(ActionDimension(f"position_{axis}", "m", -REACH_M, REACH_M) for axis in "xyz"),
        ActionDimension("gripper_effort", "effort", -1.0, 1.0),
    ),
    frame="world",
    rotation="none",
    gripper="effort: -1 opens with full force, 1 closes with full force",
    control_hz=CONTROL_HZ,
)


@dataclasses.dataclass(frozen=True)
class MetaworldConfig:
    """One kind of Meta-World environment.

    Attributes:
      image_size: of the camera image, pixels.
      tasks: names of the tasks that episodes are of; (): all fifty.
      noise: what is carried out differs from each position command by a normal error of so many
        times its bound. 0 for evaluation; in recorded episodes it shows how the expert comes back
        from where it would not have gone (DART, arXiv 1703.09327).
    """

    image_size: int = 112
    tasks: tuple[str, ...] = ()
    noise: float = 0.0

    def __post_init__(self):
        find_tasks(self.tasks)
        if self.image_size < 1 or self.noise < 0:
            raise ValueError(
                f"image_size {self.image_size} must be at least 1, noise {self.noise} at least 0"
            )

    @property
    def action_spec(self) -> ActionSpec:
        return _SPEC

    @property
    def max_steps(self) -> int:
        return MAX_STEPS

    @property
    def control_hz(self) -> float:
        return CONTROL_HZ

    def of_episode(self, number: int) -> Self:
        """The config of recorded episode `number`: of one task.

        Episodes come in rounds through all tasks. Each round begins one task further on, so that
        every so-manieth episode, which is held out, is not always of the same task.
        """
        tasks = find_tasks(self.tasks)
        turn = number // len(tasks) + number
        return dataclasses.replace(self, tasks=(tasks[turn % len(tasks)].name,))
