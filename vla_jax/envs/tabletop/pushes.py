"""Things that go wrong while a task is done, so that recovery can be taught and measured.

Between two observations a hand nudges the target, the fingers lose it, or the gripper is pushed
away. What happens follows from the episode's seed and from what is going on at that step.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Literal

import numpy as np

from vla_jax.envs.tabletop.tasks import goal_spot

if TYPE_CHECKING:
    from vla_jax.envs.tabletop.env import TabletopEnv

Mishap = Literal["nudge", "shove", "drop"]

_FIRST_STEP, _STEPS_EACH = 2, 3  # steps 2 to 4 of an episode that the expert does in some 6
_NUDGE_M, _SHOVE_M = (0.03, 0.06), (0.04, 0.08)
_AWAY_M = 0.06  # a gripper this far off, or up, does not touch the block
_REACH_M, _GOAL_M = (0.145, 0.125), (0.17, 0.155)
_APART_M = 0.085
_TRIES = 50


def push_steps(rng: random.Random, count: int) -> frozenset[int]:
    """After which steps, counted from 1, something goes wrong. Raises ValueError below 0."""
    if count < 0:
        raise ValueError(f"pushes must be at least 0, got {count}")
    return frozenset(rng.sample(range(_FIRST_STEP, _FIRST_STEP + _STEPS_EACH * count), count))


def strike(env: TabletopEnv, rng: random.Random) -> Mishap:
    """Makes something go wrong that fits what is going on.

    A held target is dropped or, with the gripper, pushed off; one that lies free is nudged; a
    gripper that is not holding it is pushed off.
    """
    world, target = env.world, env.target_index
    tool, block = world.tool_position, world.block_position(target)
    held = world.is_held(target) and world.closedness > 0.2
    if held and rng.random() < 0.5:
        world.move(np.zeros(8, np.float32))
        return "drop"
    away = max(abs(tool[2] - block[2]), *np.abs(tool[:2] - block[:2]))
    if not held and away > _AWAY_M and rng.random() < 0.7:
        offset = _nudge(env, rng)
        if offset is not None:
            world.shift_block(target, offset)
            return "nudge"
    angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(*_SHOVE_M)
    action = np.zeros(8, np.float32)
    action[1:3] = far * math.cos(angle), far * math.sin(angle)
    action[7] = world.command[6]
    if not held:
        action[3] = max(0.0, 0.1 - tool[2])  # over the blocks, not through them
    world.move(action)
    return "shove"


def _nudge(env: TabletopEnv, rng: random.Random) -> np.ndarray | None:
    """A way [2] for the target to a free place from which the task can be done, if one is found."""
    world, target = env.world, env.target_index
    block = world.block_position(target)
    others = [world.block_position(i)[:2] for i in range(len(world.layout.blocks)) if i != target]
    for _ in range(_TRIES):
        angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(*_NUDGE_M)
        offset = far * np.array([math.cos(angle), math.sin(angle)])
        place = block[:2] + offset
        goal = goal_spot(env.task, place, None) if env.task.family == "push" else place
        free = all(np.linalg.norm(place - other) > _APART_M for other in others)
        if free and (np.abs(place) <= _REACH_M).all() and (np.abs(goal) <= _GOAL_M).all():
            return offset
    return None
