"""The built-in table-top as an embodiment and a task of inspect-robots:

    inspect-robots run --policy vla_jax -P bundle=DIR \\
        --embodiment vla_jax_tabletop --task vla_jax_tabletop

What is asked for is drawn with the scene, so observations carry the instruction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from inspect_robots.embodiment import (
    AUTO_RESET,
    PRIVILEGED_SUCCESS,
    RESETTABLE,
    SEEDABLE,
    EmbodimentBase,
    EmbodimentInfo,
)
from inspect_robots.errors import EmbodimentFault
from inspect_robots.scene import Scene
from inspect_robots.scorer import success_at_end
from inspect_robots.spaces import CameraSpec, ObservationSpace
from inspect_robots.task import Task
from inspect_robots.types import Action, Observation, StepResult

from vla_jax.envs.pool import EnvPool
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.serving.harnesses.episode import EndEffector
from vla_jax.serving.harnesses.inspect_robots_policy import action_box

_LOST = "the simulator's process died"


class TabletopEmbodiment(EmbodimentBase):
    """The simulator in a process of its own. A policy that stops is taken to say "terminate".

    Args:
      world: of `envs.tabletop.config.CONFIGS`, "demo" or "full".

    Raises:
      ValueError: no such world.
      RuntimeError: the simulator does not start.
    """

    def __init__(self, world: str = "demo"):
        if world not in CONFIGS:
            raise ValueError(f"no table-top {world!r}; there are {tuple(CONFIGS)}")
        config = CONFIGS[world]
        spec = self._spec = config.action_spec
        self._arm = EndEffector.of(spec)
        self._cameras = ("image", "wrist_image") if config.wrist_camera else ("image",)
        size = config.image_size
        self.info = EmbodimentInfo(
            f"vla_jax_tabletop/{world}",
            action_box(spec, self._arm, "", (0.0, 1.0)),
            ObservationSpace(
                tuple(CameraSpec(name, size, size) for name in self._cameras), frozenset({"state"})
            ),
            control_hz=spec.control_hz,
            is_simulated=True,
            capabilities=frozenset({SEEDABLE, RESETTABLE, AUTO_RESET, PRIVILEGED_SUCCESS}),
            docs=f"Deltas of the commanded pose, {spec.rotation}; gripper: {spec.gripper}.",
        )
        self._pool = EnvPool(config, num_envs=1, num_workers=1)
        self._instruction = ""

    def reset(self, scene: Scene, *, seed: int | None = None) -> Observation:
        """Draws a table and a task from the seed; 0 if there is none."""
        answer = self._pool.reset({0: (seed or 0, dict(scene.metadata))})[0]
        if answer is None:
            raise EmbodimentFault(_LOST)
        observation, info = answer
        self._instruction = info["instruction"]
        return self._seen(observation)

    def step(self, action: Action) -> StepResult:
        """One action; "success" if the instruction is fulfilled where the episode ends."""
        data, arm = np.asarray(action.data, np.float32), self._arm
        full = np.zeros(len(self._spec.dimensions), np.float32)
        full[[*arm.position, *arm.rotation, arm.gripper]] = data
        full[arm.terminate] = float(bool(action.meta.get("request_stop")))
        done = self._pool.step({0: full})[0]
        if done is None:
            raise EmbodimentFault(_LOST)
        reason = ("success" if done.reward > 0 else "terminate") if done.terminated else None
        return StepResult(
            self._seen(done.observation),
            reward=done.reward,
            terminated=done.terminated,
            termination_reason=reason,
            truncated=done.truncated,
            info={"success": done.reward > 0},
        )

    def close(self) -> None:
        self._pool.__exit__()

    def _seen(self, observation: dict[str, Any]) -> Observation:
        images = {name: observation[name] for name in self._cameras}
        return Observation(images, {"state": observation["state"]}, self._instruction)


def tabletop_task(scenes: int = 20, family: str = "", max_steps: int = 30) -> Task:
    """So many tables, each with a task of a family, or of any of the world's.

    Args:
      scenes: how many; each has a seed of its own.
      family: "pick", "near", "put" or "push"; "": whichever is drawn.
      max_steps: actions of a trial; the world's own limit counts, too.
    """
    metadata = {"family": family} if family else {}
    drawn = [
        Scene(f"table-{i}", "what the table asks for", init_seed=i, metadata=metadata)
        for i in range(scenes)
    ]
    return Task("vla_jax_tabletop", drawn, success_at_end(), max_steps=max_steps)
