"""The table-top simulator, driven by the served policy as any robot is."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.pool import EnvPool, Observation, Transition
from vla_jax.envs.tabletop.config import CONFIGS, TabletopConfig
from vla_jax.envs.tabletop.layout import Layout, draw_layout, has_room
from vla_jax.envs.tabletop.tasks import DIRECTIONS, Task, make_task
from vla_jax.serving.service import Service

SESSION = "page"
"""The robot's name."""

Status = Literal["starting", "broken", "ready", "running", "success", "failure", "ended", "stopped"]
_MAX_TEXT = 200
_PHRASINGS = 4  # no family has more
_T = TypeVar("_T")


class Moment(NamedTuple):
    """What there is to see of the demo.

    Attributes:
      status: "success" and "failure" by the simulator's own test; "ended" where it has none.
      message: the same for people.
      judged: whether the simulator can tell if the instruction is carried out.
      examples: instructions that this table allows.
      view: uint8 [224, 224, 3], for people.
      pictures: by camera, uint8 [h, w, 3], what the policy sees.
    """

    status: Status
    message: str
    seed: int = 0
    instruction: str = ""
    judged: bool = False
    step: int = 0
    max_steps: int = 0
    examples: tuple[str, ...] = ()
    view: np.ndarray | None = None
    pictures: Mapping[str, np.ndarray] = {}


class Demo:
    """One simulator in a process of its own, for all who look at the page. See `Moment`.

    Args:
      service: whose policy acts, under the service's limits.

    Raises:
      ValueError: the policy's actions are not the table-top's.
    """

    def __init__(self, service: Service):
        self._service = service
        self._world: TabletopConfig = CONFIGS[service.settings.demo_world]
        self._world.action_spec.require_same(
            service.policy.spec, here="the demo's table-top world", there="the bundle"
        )
        self.moment = Moment("starting", "The simulator starts.")
        # Calls of the simulator wait for each other here, not in the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="demo")
        self._pool: EnvPool | None = None
        self._opening: asyncio.Task | None = None
        self._running: asyncio.Task | None = None
        self._command = asyncio.Lock()
        self._stop = False
        self._tasks: dict[str, Task] = {}  # by instruction
        self._layout: Layout | None = None

    def open(self) -> None:
        """Starts the simulator; `moment` tells when it is there."""
        self._opening = asyncio.create_task(self._open())

    async def close(self) -> None:
        """Ends it."""
        self._stop = True
        tasks = [t for t in (self._opening, self._running) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._pool is not None:
            await self._call(self._pool.__exit__, None, None, None)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def set_scene(self, seed: int) -> None:
        """Another table; ends what runs.

        Raises:
          RuntimeError: the simulator does not run.
        """
        async with self._command:
            await self._end()
            await self._set_scene(seed)

    async def go(self, instruction: Any) -> None:
        """Begins an episode on this table, from its start.

        Raises:
          ValueError: no instruction.
          RuntimeError: the simulator or the server is not ready, or an episode is running.
        """
        if not isinstance(instruction, str) or not 0 < len(instruction.strip()) <= _MAX_TEXT:
            raise ValueError(f"type an instruction of up to {_MAX_TEXT} characters")
        async with self._command:
            if self._running is not None and not self._running.done():
                raise RuntimeError("an episode is running: stop it first")
            self._require_ready()
            if reason := self._service.not_ready:
                raise RuntimeError(f"the server is not ready: {reason}")
            self._stop = False
            self._running = asyncio.create_task(self._run(instruction.strip()))

    async def stop(self) -> None:
        """Ends the episode after its present step, if one is running."""
        async with self._command:
            await self._end()

    async def _end(self) -> None:
        self._stop = True
        if self._running is not None:
            await asyncio.wait([self._running])

    def _require_ready(self) -> None:
        if self._layout is None:
            raise RuntimeError(f"the simulator is not ready: {self.moment.message}")

    async def _open(self) -> None:
        try:
            self._pool = await self._call(
                lambda: EnvPool(self._world, num_envs=1, num_workers=1, timeout_s=60.0)
            )
            await self._set_scene(0)
        except Exception as e:
            logging.exception("the demo's simulator did not start")
            self.moment = Moment("broken", f"The simulator did not start: {e}")

    async def _set_scene(self, seed: int) -> None:
        if self._pool is None:
            self._require_ready()
        layout, tasks, examples = await self._call(_draw, self._world, seed)
        self._layout, self._tasks = layout, tasks
        self._service.reset(SESSION)  # what it did was at another table
        observation, _ = await self._reset(next(iter(tasks.values())), seed)
        self.moment = Moment(
            "ready",
            "A new table.",
            seed=seed,
            max_steps=self._world.max_steps,
            examples=examples,
            view=await self._view(),
            pictures=self._pictures(observation),
        )

    async def _run(self, instruction: str) -> None:
        try:
            await self._episode(instruction)
        except Exception as e:
            logging.exception("the demo's episode failed")
            self._show(status="broken", message=f"The simulator failed: {e}")

    async def _episode(self, instruction: str) -> None:
        task = self._tasks.get(normalized(instruction))
        judged = task is not None
        # The simulator wants some task; where the words are none of its own, its test says nothing.
        observation, _ = await self._reset(
            task or next(iter(self._tasks.values())), self.moment.seed
        )
        self.moment = self.moment._replace(instruction=instruction, judged=judged)
        begun, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
        for step in itertools.count():
            self._show(
                status="running",
                message=f"Step {step} of at most {self._world.max_steps}",
                step=step,
                view=await self._view(),
                pictures=self._pictures(observation),
            )
            if self._stop:
                self._show(status="stopped", message=f"Stopped after {step} steps.")
                return
            reply = await self._service.act(
                self._fields(observation, instruction, first=step == 0),
                protocol="page",
                default_session=SESSION,
                whole_chunk=False,
            )
            transition = await self._step(reply.actions[0])
            observation = transition.observation
            if end := self._verdict(transition, step + 1, judged):
                status, message = end
                view, pictures = await self._view(), self._pictures(observation)
                self._show(status, message, step=step + 1, view=view, pictures=pictures)
                return
            # As fast as a robot would be, and not faster.
            await asyncio.sleep(begun + (step + 1) / self._world.control_hz - loop.time())

    def _verdict(
        self, transition: Transition, steps: int, judged: bool
    ) -> tuple[Status, str] | None:
        """How the episode ended; None: it goes on."""
        said_so = bool(transition.action[0] > 0.5)
        if not (said_so or steps >= self._world.max_steps or (judged and transition.terminated)):
            return None
        how = "the policy said that it is done" if said_so else "its time is over"
        if not judged:
            return "ended", (
                f"Ended after {steps} steps: {how}. The simulator has no test for these words, so "
                "whether it succeeded cannot be judged."
            )
        if transition.info["success"]:
            return "success", f"Success after {steps} steps, by the simulator's own test."
        return "failure", f"Not done after {steps} steps: {how}."

    def _show(self, status: Status, message: str, **changed: Any) -> None:
        self.moment = self.moment._replace(status=status, message=message, **changed)

    def _fields(self, observation: Observation, instruction: str, *, first: bool) -> dict[str, Any]:
        """As a robot would send them."""
        names = self._service.settings.cameras
        pictures = {names.get(c, c): p for c, p in self._pictures(observation).items()}
        return {
            "images": pictures,
            "state": observation["state"],
            "prompt": instruction,
            "reset": first,
        }

    def _pictures(self, observation: Observation) -> dict[str, np.ndarray]:
        """Of the policy's cameras: by name where the simulator has it, else in order."""
        there = {k: v for k, v in observation.items() if k != "state"}
        cameras = self._service.policy.cameras
        spare = [name for name in there if name not in cameras]
        found = {}
        for camera in cameras:
            name = camera if camera in there else (spare.pop(0) if spare else None)
            if name is not None:
                found[camera] = there[name]
        return found

    async def _reset(self, task: Task, seed: int) -> tuple[Observation, dict[str, Any]]:
        assert self._pool is not None
        options = {"layout": self._layout, "task": task}
        for _ in range(2):  # a simulator that died is replaced
            found = (await self._call(self._pool.reset, {0: (seed, options)}))[0]
            if found is not None:
                return found
        raise RuntimeError("its process dies; run tools/setup_rendering.sh to check the renderer")

    async def _step(self, action: np.ndarray) -> Transition:
        assert self._pool is not None
        found = (await self._call(self._pool.step, {0: action}))[0]
        if found is None:
            raise RuntimeError("its process died; press go to try again")
        return found

    async def _view(self) -> np.ndarray | None:
        assert self._pool is not None
        return (await self._call(self._pool.render, [0]))[0]

    async def _call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)


def normalized(instruction: str) -> str:
    """Without what does not change the meaning."""
    return " ".join(instruction.casefold().strip(" .!").split())


def scene_tasks(layout: Layout, config: TabletopConfig) -> list[Task]:
    """All that can be asked on this table, in the standard phrasings."""
    blocks, mats = ([thing.name for thing in things] for things in (layout.blocks, layout.mats))
    wanted: list[tuple[str, str, str]] = []  # family, reference, direction
    for family in config.families:
        if family == "push":
            wanted += [(family, "", direction) for direction in DIRECTIONS]
        elif family == "pick":
            wanted.append((family, "", ""))
        else:
            wanted += [(family, name, "") for name in (blocks if family == "near" else mats)]
    tasks = []
    for target in blocks:
        for family, reference, direction in wanted:
            if reference == target:
                continue
            words = [make_task(family, target, reference, direction, k) for k in range(_PHRASINGS)]  # pyright: ignore[reportArgumentType]
            if has_room(words[0], layout):
                tasks += words
    return tasks


def _draw(config: TabletopConfig, seed: int) -> tuple[Layout, dict[str, Task], tuple[str, ...]]:
    """The table of a seed, its tasks by instruction, and one phrasing of each as an example."""
    bank = PictureBank()
    concepts = config.concepts or bank.concepts("robot")
    layout = draw_layout(random.Random(seed), config, bank, concepts)
    tasks = {normalized(t.instruction): t for t in scene_tasks(layout, config)}
    examples = dict.fromkeys(t.plan for t in tasks.values())
    return layout, tasks, tuple(examples)
