"""The gymnasium environment."""

from __future__ import annotations

import random
import warnings
from typing import Any

import gymnasium
import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP

from vla_jax.envs.metaworld.config import MAX_STEPS, REACH_M, MetaworldConfig
from vla_jax.envs.metaworld.tasks import MetaworldTask, find_tasks

_CAMERA = "corner2"
_CAMERA_POSITION_M = (0.75, 0.075, 0.7)  # as arXiv 2206.14244, and everybody since, has it
_FOR_PEOPLE_PX = 224
# The full state holds positions of things and of the goal; this much is the arm's own.
_OWN_STATE = 4
_SCALE = np.array([REACH_M, REACH_M, REACH_M, 1.0], np.float32)


class MetaworldEnv(gymnasium.Env):
    """Meta-World's arm at one task, seen by a camera at a corner of the table.

    Objects and goal are drawn anew in each episode, from the same ranges as in Meta-World's MT1.

    Observation: {"image": uint8 [S, S, 3], "state": float32 [4]}. State: x, y, z of the hand (m)
    and how far the fingers are apart, of 0.1 m.

    Action: float32 [4], see `action_spec`: position deltas in metres, which Meta-World takes as
    hundredths, and gripper effort.

    Reward is 1 in a step that fulfils the task, which ends the episode; it is truncated after 500
    steps.

    `reset` options: "task" (a name; else drawn from those of the config).
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, config: MetaworldConfig | None = None):
        self.config = config or MetaworldConfig()
        self.action_spec = self.config.action_spec
        size = self.config.image_size
        self.observation_space = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8),
                "state": gymnasium.spaces.Box(-np.inf, np.inf, (_OWN_STATE,), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(
            self.action_spec.low, self.action_spec.high, dtype=np.float32
        )
        self.task: MetaworldTask
        self.is_success = False
        self._simulator: _Simulator | None = None
        self._full_state = np.zeros(0)

    @property
    def instruction(self) -> str:
        return self.task.instruction

    @property
    def full_state(self) -> np.ndarray:
        """float64 [39], what scripted experts see: positions of things and of the goal, too."""
        return self._full_state

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode. Everything follows from `seed` (drawn at random if None).

        Raises ValueError for an unknown task.
        """
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        name = (options or {}).get("task")
        names = self.config.tasks if name is None else (name,)
        self.task = random.Random(seed).choice(find_tasks(names))
        if self._simulator is None or self._simulator.name != self.task.name:
            self.close()
            self._simulator = _Simulator(self.task.name)
        self._full_state = self._simulator.reset(seed)
        self.is_success = False
        return self._observe(), self._info()

    def step(self, action: np.ndarray):
        """Raises ValueError for an action of wrong size or with NaN."""
        action = self.action_spec.validate(action, where="MetaworldEnv.step") / _SCALE
        if self.config.noise:
            action[:3] += self.np_random.normal(0, self.config.noise, 3)
        simulator = self._require_simulator()
        self._full_state, self.is_success, steps = simulator.step(np.clip(action, -1, 1))
        truncated = not self.is_success and steps >= MAX_STEPS
        info = self._info()
        return self._observe(), float(self.is_success), self.is_success, truncated, info

    def render(self) -> np.ndarray:
        """uint8 [224, 224, 3], for people."""
        return self._require_simulator().render(_FOR_PEOPLE_PX)

    def close(self) -> None:
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _require_simulator(self) -> _Simulator:
        if self._simulator is None:
            raise ValueError("this environment was never reset")
        return self._simulator

    def _observe(self) -> dict[str, np.ndarray]:
        return {
            "image": self._require_simulator().render(self.config.image_size),
            "state": self._full_state[:_OWN_STATE].astype(np.float32),
        }

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self.task.instruction,
            "family": self.task.family,
            "success": self.is_success,
        }


class Expert:
    """The scripted experts that come with Meta-World, clipped to what an action can be."""

    def action(self, env: MetaworldEnv) -> np.ndarray:
        """float32 [4], by the environment's ActionSpec."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that what they ask for gets clipped: all of them do
            wanted = ENV_POLICY_MAP[env.task.name]().get_action(env.full_state)
        return np.clip(wanted, -1, 1).astype(np.float32) * _SCALE


class _Simulator:
    """MuJoCo with the model of one task; as MT1 with a fresh draw in each episode has it."""

    def __init__(self, name: str):
        self.name = name
        make: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-goal-observable"]
        self._env = make(seed=0)
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        model = self._env.model
        model.camera(_CAMERA).pos[:] = _CAMERA_POSITION_M
        # Drawn on a processor, shadows, mirrors and smooth edges take nine tenths of the time.
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        self._renderers: dict[int, mujoco.Renderer] = {}

    def reset(self, seed: int) -> np.ndarray:
        """Returns the full state."""
        self._env.seed(seed)
        state, _ = self._env.reset()
        return state

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool, int]:
        """Takes an action in -1..1; returns (full state, whether that is success, steps so far)."""
        state, _, _, _, info = self._env.step(action)
        return state, bool(info["success"]), self._env.curr_path_length

    def render(self, size: int) -> np.ndarray:
        """uint8 [size, size, 3]."""
        if size not in self._renderers:
            self._renderers[size] = mujoco.Renderer(self._env.model, size, size)
        renderer = self._renderers[size]
        renderer.update_scene(self._env.data, camera=_CAMERA)
        flags: Any = mujoco.mjtRndFlag  # pyright: ignore[reportAttributeAccessIssue]
        renderer.scene.flags[[int(flags.mjRND_SHADOW), int(flags.mjRND_REFLECTION)]] = 0
        # This camera is mounted upside down.
        return np.ascontiguousarray(renderer.render()[::-1, ::-1])

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._env.close()
