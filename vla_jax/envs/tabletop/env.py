"""The gymnasium environment."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import gymnasium
import numpy as np

from vla_jax.corpus.pictures import MAT_COLORS, PictureBank
from vla_jax.envs.tabletop import scene
from vla_jax.envs.tabletop.config import TabletopConfig
from vla_jax.envs.tabletop.pushes import Mishap, push_steps, strike
from vla_jax.envs.tabletop.reasoning import KINDS, narrowed, rephrased
from vla_jax.envs.tabletop.tasks import (
    Task,
    TaskState,
    goal_spot,
    is_success,
    random_task,
)
from vla_jax.envs.tabletop.world import Block, Layout, Mat, World

_MIN_APART_M = 0.118
_REACH_M = (0.145, 0.125)  # |x|, |y| of things on the table
_HOLD_STEPS = 2
_ROOM_M, _NUDGE_M = 0.09, 0.06


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
        kind = None
        for attempt in range(100):
            if options.get("reasoning") and attempt % 25 == 0:  # another, if a kind cannot be had
                kind = rng.choice(KINDS)
            some = narrowed(kind, concepts, self._bank) if kind else concepts
            drawn = layout or self._draw_layout(rng, some, task)
            self.task = task or self._draw_task(rng, drawn, options.get("family"))
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

    def _draw_layout(self, rng: random.Random, concepts, task: Task | None) -> Layout:
        config = self.config
        count = rng.randint(config.min_blocks, config.max_blocks)
        needed = [] if task is None else [task.target]
        if task is not None and task.family == "near":
            needed.append(task.reference)
        others = [c for c in concepts if c not in needed]
        names = needed + rng.sample(others, count - len(needed) if count > len(needed) else 0)
        rng.shuffle(names)
        num_mats = rng.choice((0, 1, 2))
        if task is not None and task.family == "put":
            num_mats = max(1, num_mats)
        elif task is None and "put" in config.families:
            num_mats = rng.choice((1, 1, 2))
        colors = rng.sample(MAT_COLORS, num_mats)
        if task is not None and task.family == "put":
            wanted = task.reference.removesuffix(" mat")
            if wanted not in colors:
                colors[0] = wanted
        spots = _spots(rng, len(names) + num_mats)
        blocks = tuple(
            Block(
                name,
                *spot,
                yaw=rng.uniform(-1, 1) * config.yaw_rad,
                tile=self._draw_tile(rng, name),
            )
            for name, spot in zip(names, spots, strict=False)
        )
        mats = tuple(Mat(c, *s) for c, s in zip(colors, spots[len(names) :], strict=True))
        jitter = config.camera_jitter_m
        return Layout(
            blocks,
            mats,
            gripper=(rng.uniform(-0.14, 0.14), rng.uniform(-0.13, 0.13), rng.uniform(0.09, 0.11)),
            table=rng.choice(("plain", "wood", "speckle", "stripes")),
            table_color=_table_color(rng),
            camera_shift_m=(rng.uniform(-jitter, jitter), rng.uniform(-jitter, jitter), 0.0),
            light=1 + rng.uniform(-1, 1) * config.light_jitter,
            texture_seed=rng.randrange(2**31),
        )

    def _draw_tile(self, rng: random.Random, name: str) -> str:
        """A colour on which the picture shows; a number's is that of its plate."""
        if self._bank.category(name) == "number":
            return "white"
        tiles = ("white", "white", "white", "yellow", "pink", "black")
        return rng.choice([tile for tile in tiles if tile != self._bank.color(name)])

    def _draw_task(self, rng: random.Random, layout: Layout, family: str | None) -> Task:
        families = [family] if family else list(self.config.families)
        if not layout.mats:
            families = [f for f in families if f != "put"] or families
        chosen = rng.choice(families)
        target, other = rng.sample([b.name for b in layout.blocks], 2)
        mat = rng.choice(layout.mats).color if layout.mats else ""
        return random_task(chosen, rng, target, other, mat)  # pyright: ignore[reportArgumentType]

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
        """Whether there is room at the goal, and more to do than a nudge."""
        if self.task.family == "pick":
            return True
        goal = goal_spot(self.task, self._start, self.reference_position)
        names = [b.name for b in self.world.layout.blocks]
        others = [
            self.world.block_position(i)[:2]
            for i, name in enumerate(names)
            if name not in (self.task.target, self.task.reference)
        ]
        clear = all(np.linalg.norm(other - goal) > _ROOM_M for other in others)
        far = self.task.family != "near" or np.linalg.norm(self._start[:2] - goal) > _NUDGE_M
        return bool(np.all(np.abs(goal) <= [0.17, 0.155]) and clear and far)

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


def _spots(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """Places on the table, none too close to another."""
    while True:
        spots: list[tuple[float, float]] = []
        for _ in range(200):
            x, y = (rng.uniform(-r, r) for r in _REACH_M)
            if all((x - a) ** 2 + (y - b) ** 2 > _MIN_APART_M**2 for a, b in spots):
                spots.append((x, y))
            if len(spots) == count:
                return spots


def _table_color(rng: random.Random) -> tuple[int, int, int]:
    base = rng.choice(
        ((190, 160, 120), (150, 150, 155), (205, 200, 190), (110, 120, 115), (165, 130, 95))
    )
    r, g, b = (min(255, max(0, c + rng.randint(-15, 15))) for c in base)
    return r, g, b
