"""The scripted expert: a function of the present state alone.

A policy that sees one picture cannot imitate hidden progress, so the expert has none: what to do
follows from where the gripper is, how far it is open, where the block is, and the goal. Until it
holds the block it always moves straight to it in x and y, whatever z and fingers do meanwhile: one
thing less that depends on the phase.
"""

from __future__ import annotations

import numpy as np

from vla_jax.envs.tabletop.env import TabletopEnv
from vla_jax.envs.tabletop.tasks import DIRECTIONS, goal_spot

TRAVEL_Z_M = 0.10
GRASP_Z_M = 0.016
CARRY_Z_M = 0.10
# Closer than this in x and y, go down and make up for the rest on the way: the open fingers leave
# 1.9 cm on each side of a block.
_ALIGNED_M = 0.022
_LOW_M = 0.03
# With the fingertips down, a block that is no further off (across, along the fingers) is between
# them; closing centres it.
_BETWEEN_M = (0.024, 0.02)
_PLACED_M = {"near": 0.02, "put": 0.03}  # good enough to let go; success allows a little more
_TURN_RAD = 0.15  # fingers that close straighten a block that is turned by less
_PUSH_STEP_M = 0.08
OPEN, CLOSED = 0.0, 1.0


class Expert:
    """Privileged policy: `action(env)` for the present state."""

    def action(self, env: TabletopEnv) -> np.ndarray:
        """float32 [8] in the env's action spec."""
        if env.is_success:
            return self._act(env, np.zeros(3), self._present_grip(env), terminate=True)
        world, target = env.world, env.target_index
        tool, block = world.tool_position, world.block_position(target)
        above = block[:2] - tool[:2]
        holding = world.is_held(target) and world.closedness > 0.2
        if holding:
            return self._carry(env, tool, block)
        if tool[2] < _LOW_M and self._is_between(env, above):
            return self._act(env, np.array([*above, 0]), CLOSED)
        if np.abs(above).max() < _ALIGNED_M and tool[2] > TRAVEL_Z_M - 0.03:
            return self._act(env, np.array([*above, GRASP_Z_M - tool[2]]), OPEN, yaw=True)
        if tool[2] < TRAVEL_Z_M - 0.03:
            return self._act(env, np.array([*above, TRAVEL_Z_M - tool[2]]), OPEN)
        return self._act(env, np.array([*above, TRAVEL_Z_M - tool[2]]), OPEN, yaw=True)

    def _carry(self, env: TabletopEnv, tool: np.ndarray, block: np.ndarray) -> np.ndarray:
        task = env.task
        if task.family == "pick":
            return self._act(env, np.array([0, 0, CARRY_Z_M - tool[2]]), CLOSED)
        if task.family == "push":
            step = np.asarray(DIRECTIONS[task.direction]) * _PUSH_STEP_M
            return self._act(env, np.array([*step, 0]), CLOSED)
        away = goal_spot(task, block, env.reference_position) - block[:2]
        low = min(tool[2], block[2]) < _LOW_M
        if low and np.linalg.norm(away) < _PLACED_M[task.family]:
            return self._act(env, np.zeros(3), OPEN)
        if np.abs(away).max() < _ALIGNED_M and tool[2] > CARRY_Z_M - 0.04:
            return self._act(env, np.array([*away, GRASP_Z_M - tool[2]]), CLOSED)
        if tool[2] < CARRY_Z_M - 0.04:
            return self._act(env, np.array([0, 0, CARRY_Z_M - tool[2]]), CLOSED)
        return self._act(env, np.array([*away, CARRY_Z_M - tool[2]]), CLOSED)

    def _is_between(self, env: TabletopEnv, above: np.ndarray) -> bool:
        yaw = env.world.tool_rotation[2]
        across = above @ [np.cos(yaw), np.sin(yaw)]
        along = above @ [-np.sin(yaw), np.cos(yaw)]
        return bool(abs(across) < _BETWEEN_M[0] and abs(along) < _BETWEEN_M[1])

    def _present_grip(self, env: TabletopEnv) -> float:
        return CLOSED if env.world.command[6] > 0.5 else OPEN

    def _act(
        self,
        env: TabletopEnv,
        delta: np.ndarray,
        grip: float,
        *,
        terminate: bool = False,
        yaw: bool = False,
    ) -> np.ndarray:
        limit = env.config.max_position_m
        action = np.zeros(8, np.float32)
        action[0] = terminate
        action[1:4] = np.clip(delta, -limit, limit)
        if yaw:
            turn = env.world.block_yaw(env.target_index) - env.world.tool_rotation[2]
            turn = (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4  # to the nearest pair of sides
            if abs(turn) > _TURN_RAD:
                action[6] = np.clip(turn, -env.config.max_rotation_rad, env.config.max_rotation_rad)
        action[7] = grip
        return action
