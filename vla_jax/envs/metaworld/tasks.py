"""The fifty tasks of Meta-World MT50, each with its tier and instruction. Imports no simulator.

Tiers are those of arXiv 2206.14244; with the sentences they are as in LeRobot's
`metaworld_config.json`, which published results use. Two tasks, push and push-back, have the same
sentence: only the picture tells them apart.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

Tier = Literal["easy", "medium", "hard", "very_hard"]

TIERS: tuple[Tier, ...] = ("easy", "medium", "hard", "very_hard")


@dataclasses.dataclass(frozen=True)
class MetaworldTask:
    """One of the fifty.

    Attributes:
      name: of Meta-World's environment, `reach-v3`.
      tier: how hard it is.
      instruction: what the policy is told.
    """

    name: str
    tier: Tier
    instruction: str
    # What episodes of any world are recorded with; here the name says it all.
    target: ClassVar[str] = ""
    reference: ClassVar[str] = ""

    @property
    def family(self) -> str:
        """What results are grouped by: the name."""
        return self.name


_EASY = {
    "button-press": "Press a button",
    "button-press-topdown": "Press a button from the top",
    "button-press-topdown-wall": "Bypass a wall and press a button from the top",
    "button-press-wall": "Bypass a wall and press a button",
    "coffee-button": "Push a button on the coffee machine",
    "dial-turn": "Rotate a dial 180 degrees",
    "door-close": "Close a door with a revolving joint",
    "door-lock": "Lock the door by rotating the lock clockwise",
    "door-open": "Open a door with a revolving joint",
    "door-unlock": "Unlock the door by rotating the lock counter-clockwise",
    "drawer-close": "Push and close a drawer",
    "drawer-open": "Open a drawer",
    "faucet-close": "Rotate the faucet clockwise",
    "faucet-open": "Rotate the faucet counter-clockwise",
    "handle-press": "Press a handle down",
    "handle-press-side": "Press a handle down sideways",
    "handle-pull": "Pull a handle up",
    "handle-pull-side": "Pull a handle up sideways",
    "lever-pull": "Pull a lever down 90 degrees",
    "peg-unplug-side": "Unplug a peg sideways",
    "plate-slide": "Slide a plate into a cabinet",
    "plate-slide-back": "Get a plate from the cabinet",
    "plate-slide-back-side": "Get a plate from the cabinet sideways",
    "plate-slide-side": "Slide a plate into a cabinet sideways",
    "reach": "Reach a goal position",
    "reach-wall": "Bypass a wall and reach a goal",
    "window-close": "Push and close a window",
    "window-open": "Push and open a window",
}
_MEDIUM = {
    "basketball": "Dunk the basketball into the basket",
    "bin-picking": "Grasp the puck from one bin and place it into another bin",
    "box-close": "Grasp the cover and close the box with it",
    "coffee-pull": "Pull a mug from a coffee machine",
    "coffee-push": "Push a mug under a coffee machine",
    "hammer": "Hammer a screw on the wall",
    "peg-insert-side": "Insert a peg sideways",
    "push-wall": "Bypass a wall and push a puck to a goal",
    "soccer": "Kick a soccer into the goal",
    "sweep": "Sweep a puck off the table",
    "sweep-into": "Sweep a puck into a hole",
}
_HARD = {
    "assembly": "Pick up a nut and place it onto a peg",
    "hand-insert": "Insert the gripper into a hole",
    "pick-out-of-hole": "Pick up a puck from a hole",
    "pick-place": "Pick and place a puck to a goal",
    "push": "Push the puck to a goal",
    "push-back": "Push the puck to a goal",
}
_VERY_HARD = {
    "disassemble": "Pick a nut out of a peg",
    "pick-place-wall": "Pick a puck, bypass a wall and place the puck",
    "shelf-place": "Pick and place a puck onto a shelf",
    "stick-pull": "Grasp a stick and pull a box with the stick",
    "stick-push": "Grasp a stick and push a box using the stick",
}

TASKS: dict[str, MetaworldTask] = {
    f"{name}-v3": MetaworldTask(f"{name}-v3", tier, instruction)
    for tier, tasks in zip(TIERS, (_EASY, _MEDIUM, _HARD, _VERY_HARD))
    for name, instruction in tasks.items()
}


def find_tasks(names: tuple[str, ...]) -> tuple[MetaworldTask, ...]:
    """The tasks of these names, in the given order; all fifty for ().

    Raises ValueError for an unknown name, or one that comes twice.
    """
    for name in names:
        if name not in TASKS:
            raise ValueError(f"no Meta-World task {name!r}; there are {', '.join(TASKS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"a Meta-World task is named twice: {', '.join(names)}")
    return tuple(TASKS[name] for name in names or TASKS)
