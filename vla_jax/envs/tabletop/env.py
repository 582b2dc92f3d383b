"""The gymnasium environment."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import gymnasium
import numpy as np

from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.tabletop import scene
from vla_jax.envs.tabletop.config import TabletopConfig
from vla_jax.envs.tabletop.layout import Layout, draw_layout, draw_task
from vla_jax.envs.tabletop.pushes import Mishap, push_steps, strike
from vla_jax.envs.tabletop.reasoning import KINDS, narrowed, rephrased
from vla_jax.envs.tabletop.tasks import Task, TaskState, is_fair, is_success
from vla_jax.envs.tabletop.world import World

_HOLD_STEPS = 2


class TabletopEnv(gymnasium.Env):
    """A gripper over a table, and an instruction.

    Observation: {"image": uint8 [S, S, 3], "state": float32 [8]} and, if configured,
    "wrist_image". State: measured x, y, z (m), roll, pitch, yaw (rad), commanded and measured
    closedness.

    Action: float32 [8], see `action_spec`. Deltas add to the commanded pose.

    Reward is 1 in a step in which the instruction is fulfilled. An episode ends when the policy
    terminates or when the goal has held for two steps (so a policy is not punished for a late
    terminate), and is truncated after `max_steps`.

    `reset` options: "task" (a `Task`), "layout" (a `Layout`), "family" (draw a task of this one),
    "concepts" (names of blocks to draw from), "reasoning" (True: the instruction describes its
    target, see `reasoning`), "pushes" (how often something goes wrong, see `pushes`).
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, config: TabletopConfig | None = None):
        self.config = config or TabletopConfig()
        self.action_spec = self.config.action_spec
        self._bank = PictureBank()
        self._concepts = self._checked(self.config.concepts or self._bank.concepts("robot"))
        self.world = World(self.config)
        size = self.config.image_size
        image = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        spaces: dict[str, gymnasium.Space] = {
            "image": image,
            "state": gymnasium.spaces.Box(-np.inf, np.inf, (8,), np.float32),
        }
        if self.config.wrist_camera:
            spaces["wrist_image"] = image
        self.observation_space = gymnasium.spaces.Dict(spaces)
        self.action_space = gymnasium.spaces.Box(
            self.action_spec.low, self.action_spec.high, dtype=np.float32
        )
        self.task: Task
        self._steps = self._held_for = 0
        self._push_steps, self._mishaps = frozenset[int](), list[Mishap]()

    @property
    def instruction(self) -> str:
        return self.task.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts an episode. Everything follows from `seed` (drawn at random if None).

        Raises ValueError for a task whose objects are not on the table, or unknown concepts.
        """
        super().reset(seed=seed)
        options = options or {}
        rng = random.Random(int(self.np_random.integers(2**62)) if seed is None else seed)
        concepts = self._checked(options.get("concepts", self._concepts))
        task = options.get("task")
        layout = options.get("layout")
        families = (options["family"],) if options.get("family") else self.config.families
        kind = None
        for attempt in range(100):
            if options.get("reasoning") and attempt % 25 == 0:  # another, if a kind cannot be had
                kind = rng.choice(KINDS)
            some = narrowed(kind, concepts, self._bank) if kind else concepts
            drawn = layout or draw_layout(rng, self.config, self._bank, some, task)
            self.task = task or draw_task(rng, drawn, families)
            self._require_objects(drawn, self.task)
            if kind:
                words = rephrased(self.task, drawn, kind, self._bank, rng)
                if words is None:
                    continue
                self.task = dataclasses.replace(self.task, instruction=words)
            self.world.reset(drawn)
            self._start = self.world.block_position(self.target_index)
            given = layout is not None and task is not None
            if not self.is_success and (given or self._is_fair()):
                break
        else:
            raise ValueError(
                f"{self.task.instruction!r} is fulfilled before it begins, or cannot be"
            )
        self._steps = self._held_for = 0
        self._push_rng, self._mishaps = random.Random(rng.getrandbits(64)), []
        self._push_steps = push_steps(self._push_rng, options.get("pushes", 0))
        return self._observe(), self._info()

    def step(self, action: np.ndarray):
        """Raises ValueError for an action of wrong size or with NaN."""
        action = self.action_spec.validate(action, where="TabletopEnv.step")
        action = np.clip(action, self.action_spec.low, self.action_spec.high)
        self.world.move(action)
        self._steps += 1
        if self._steps in self._push_steps and action[0] <= 0.5:
            self._go_wrong()
        success = self.is_success
        self._held_for = self._held_for + 1 if success else 0
        terminated = bool(action[0] > 0.5) or self._held_for >= _HOLD_STEPS
        truncated = not terminated and self._steps >= self.config.max_steps
        return self._observe(), float(success), terminated, truncated, self._info()

    def _go_wrong(self) -> None:
        before = self.world.block_position(self.target_index)
        self._mishaps.append(strike(self, self._push_rng))
        # What the target was moved by is no part of doing the task.
        self._start[:2] += (self.world.block_position(self.target_index) - before)[:2]

    def render(self) -> np.ndarray:
        """uint8 [224, 224, 3], for people."""
        return self.world.render(224)

    def close(self) -> None:
        self.world.close()

    @property
    def target_index(self) -> int:
        return self._index(self.task.target)

    @property
    def reference_position(self) -> np.ndarray | None:
        """Centre of the task's reference block or mat, [3] metres, if it has one."""
        if self.task.family == "near":
            return self.world.block_position(self._index(self.task.reference))
        for mat in self.world.layout.mats:
            if mat.name == self.task.reference:
                return np.array([mat.x, mat.y, 0.02])
        return None

    @property
    def is_success(self) -> bool:
        target = self.target_index
        state = TaskState(
            target=self.world.block_position(target),
            start=self._start,
            reference=self.reference_position,
            mat_half_m=scene.MAT_HALF_M,
            held=self.world.is_held(target),
        )
        return is_success(self.task, state)

    def object_pixels(self) -> list[dict[str, Any]]:
        """Name, centre (y, x) and box (y0, x0, y1, x1) in pixels of each block and mat."""
        found = []
        for i, block in enumerate(self.world.layout.blocks):
            top = self.world.block_position(i)
            top[2] += scene.BLOCK_HALF_M[2]
            found.append(self._in_picture(block.name, top, scene.BLOCK_HALF_M[0]))
        for mat in self.world.layout.mats:
            center = np.array([mat.x, mat.y, 0.001])
            found.append(self._in_picture(mat.name, center, scene.MAT_HALF_M))
        return found

    def _in_picture(self, name: str, center: np.ndarray, half: float) -> dict[str, Any]:
        around = center + half * np.array(
            [[0, 0, 0], [-1, -1, 0], [-1, 1, 0], [1, -1, 0], [1, 1, 0]]
        )
        middle, *corners = self.world.pixels(around, self.config.image_size)
        (y0, x0), (y1, x1) = np.min(corners, axis=0), np.max(corners, axis=0)
        return {
            "name": name,
            "center_yx": (float(middle[0]), float(middle[1])),
            "box_yxyx": (float(y0), float(x0), float(y1), float(x1)),
        }

    def _index(self, name: str) -> int:
        return [b.name for b in self.world.layout.blocks].index(name)

    def _checked(self, concepts) -> tuple[str, ...]:
        concepts = tuple(concepts)
        for name in concepts:
            self._bank.concept(name)  # raises ValueError for an unknown one
        if len(concepts) < self.config.max_blocks:
            raise ValueError(
                f"{len(concepts)} concepts for up to {self.config.max_blocks} different blocks"
            )
        return concepts

    def _require_objects(self, layout: Layout, task: Task) -> None:
        blocks = [b.name for b in layout.blocks]
        mats = [m.name for m in layout.mats]
        wanted = {task.target: blocks}
        if task.reference:
            wanted[task.reference] = blocks if task.family == "near" else mats
        for name, there in wanted.items():
            if name not in there:
                raise ValueError(f"{task.instruction!r}: {name!r} is not among {there}")
        if task.family == "near" and task.target == task.reference:
            raise ValueError(f"{task.instruction!r}: a block cannot be moved near itself")

    def _is_fair(self) -> bool:
        names = [b.name for b in self.world.layout.blocks]
        others = [
            self.world.block_position(i)[:2]
            for i, name in enumerate(names)
            if name not in (self.task.target, self.task.reference)
        ]
        return is_fair(self.task, self._start, self.reference_position, others)

    def _observe(self) -> dict[str, np.ndarray]:
        world, size = self.world, self.config.image_size
        state = [*world.tool_position, *world.tool_rotation, world.command[6], world.closedness]
        observation = {"image": world.render(size), "state": np.asarray(state, np.float32)}
        if self.config.wrist_camera:
            observation["wrist_image"] = world.render(size, "wrist")
        return observation

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self.task.instruction,
            "family": self.task.family,
            "plan": self.task.plan,
            "pushes": len(self._mishaps),
            "success": self.is_success,
            "objects": self.object_pixels(),
        }
