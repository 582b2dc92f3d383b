"""Instructions after RT-1 (arXiv 2212.06817): pick, move near, put on, push.

Directions are the viewer's: x to the right, y to the back. Success is judged from where things
are, so every family can be checked on hand-made states.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np

Family = Literal["pick", "near", "put", "push"]

DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "front": (0.0, -1.0), "back": (0.0, 1.0)}

LIFT_M = 0.04
NEAR_M = 0.115  # between centres; blocks are 5.8 cm wide
PUSH_M = 0.06
MOVED_M = 0.03  # it is the target that moves near the reference, not the other way round
_ROOM_M, _NUDGE_M = 0.09, 0.06

_PHRASES = {
    "pick": ("pick the {x}", "pick up the {x}", "grab the {x}", "lift the {x}"),
    "near": (
        "move the {x} near the {y}",
        "bring the {x} to the {y}",
        "put the {x} next to the {y}",
    ),
    "put": ("put the {x} on the {y}", "place the {x} on the {y}", "move the {x} onto the {y}"),
    "push": ("push the {x} to the {d}", "slide the {x} to the {d}", "move the {x} to the {d}"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One instruction.

    Attributes:
      family: what kind.
      target: name of the block to move.
      reference: for near, a block's name; for put, "<colour> mat".
      direction: for push, one of `DIRECTIONS`.
      instruction: the words.
    """

    family: Family
    target: str
    reference: str = ""
    direction: str = ""
    instruction: str = ""

    def __post_init__(self):
        if self.family not in _PHRASES:
            raise ValueError(f"no task family {self.family!r}; choose from {tuple(_PHRASES)}")
        if self.family == "push" and self.direction not in DIRECTIONS:
            raise ValueError(f"push to {self.direction!r}: choose from {tuple(DIRECTIONS)}")
        if self.family in ("near", "put") and not self.reference:
            raise ValueError(f"a {self.family!r} task needs a reference")
        if not self.instruction.strip():
            raise ValueError("empty instruction: use `make_task` for a standard phrasing")

    @property
    def plan(self) -> str:
        """The task in plain words, whatever those of the instruction: `pick the apple`."""
        return make_task(self.family, self.target, self.reference, self.direction).instruction


def make_task(
    family: Family,
    target: str,
    reference: str = "",
    direction: str = "",
    phrasing: int = 0,
    *,
    subject: str = "",
) -> Task:
    """A task in one of the standard phrasings.

    Args:
      subject: what the target is called, `the fruit`; "": by its name.
    """
    phrases = _PHRASES.get(family, ("",))
    phrase = phrases[phrasing % len(phrases)].replace("the {x}", "{x}")
    words = phrase.format(x=subject or f"the {target}", y=reference, d=direction)
    return Task(family, target, reference, direction, words)


def random_task(
    family: Family, rng: random.Random, target: str, block: str, mat_color: str
) -> Task:
    """A task about `target` with, where one is needed, a reference block or mat."""
    phrasing = rng.randrange(12)
    reference = {"near": block, "put": f"{mat_color} mat"}.get(family, "")
    direction = rng.choice(tuple(DIRECTIONS)) if family == "push" else ""
    return make_task(family, target, reference, direction, phrasing)


def goal_spot(task: Task, target: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """A good place for the target, [2], from where it and the reference are. Not for a pick."""
    if task.family == "push":
        return target[:2] + 1.5 * PUSH_M * np.asarray(DIRECTIONS[task.direction])
    assert reference is not None
    if task.family == "put":
        return reference[:2]
    # On the side it comes from, so that the way there does not lead over the reference.
    away = target[:2] - reference[:2]
    return reference[:2] + away / max(float(np.linalg.norm(away)), 1e-6) * (NEAR_M - 0.025)


def is_fair(
    task: Task, target: np.ndarray, reference: np.ndarray | None, others: Sequence[np.ndarray]
) -> bool:
    """Whether there is room at the goal, and more to do than a nudge.

    Args:
      target, reference: where they are, [2] or [3] metres; None where the task has no reference.
      others: [2] metres each, of the other blocks.
    """
    if task.family == "pick":
        return True
    goal = goal_spot(task, target, reference)
    clear = all(np.linalg.norm(other - goal) > _ROOM_M for other in others)
    far = task.family != "near" or np.linalg.norm(target[:2] - goal) > _NUDGE_M
    return bool(np.all(np.abs(goal) <= [0.17, 0.155]) and clear and far)


@dataclasses.dataclass(frozen=True)
class TaskState:
    """What success depends on. Positions are metres, [3]; `start` is where the target began."""

    target: np.ndarray
    start: np.ndarray
    reference: np.ndarray | None
    mat_half_m: float
    held: bool


def is_success(task: Task, state: TaskState) -> bool:
    """Whether the instruction is carried out."""
    moved = state.target - state.start
    lifted = moved[2] >= LIFT_M
    if task.family == "pick":
        return bool(lifted and state.held)
    if task.family == "push":
        direction = np.asarray(DIRECTIONS[task.direction])
        along = float(moved[:2] @ direction)
        across = float(np.linalg.norm(moved[:2] - along * direction))
        return bool(along >= PUSH_M and across <= 0.5 * along and moved[2] < LIFT_M / 2)
    assert state.reference is not None
    apart = np.abs(state.target[:2] - state.reference[:2])
    at_rest = abs(moved[2]) < 0.015 and not state.held
    if task.family == "near":
        itself = np.linalg.norm(moved[:2]) >= MOVED_M
        return bool(at_rest and itself and np.linalg.norm(apart) <= NEAR_M)
    return bool(at_rest and apart.max() <= state.mat_half_m)
