"""Many environments in a few worker processes.

Workers are spawned, never forked, and load neither TensorFlow nor `vla_jax.data`: TensorFlow
exports LLVM symbols to which a software renderer would bind, and the process would die in its first
picture; a child forked from a process with TensorFlow would too.

A worker that dies or does not answer is reported, replaced by a fresh one, and its unfinished
environments come back as `None`: run those episodes again.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import sys
import time
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from vla_jax.envs.gl import choose_backend
from vla_jax.envs.worlds import WorldConfig, open_world

_log = logging.getLogger(__name__)

Observation = dict[str, np.ndarray]


class Transition(NamedTuple):
    """What a step gives, as in gymnasium, with the action that was taken."""

    observation: Observation
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    action: np.ndarray


class EnvPool:
    """Environments 0 .. num_envs - 1, spread over workers. Use as a context.

    Args:
      config: of every environment.
      num_envs, num_workers: how many; a worker steps its own one after the other.
      timeout_s: longest wait for one answer; starting up takes some seconds.

    Raises RuntimeError if a worker cannot start, or keeps dying at its first request.
    """

    def __init__(
        self,
        config: WorldConfig,
        *,
        num_envs: int,
        num_workers: int = 2,
        timeout_s: float = 120.0,
    ):
        if num_envs < 1 or num_workers < 1:
            raise ValueError(f"need at least one environment and worker: {num_envs}, {num_workers}")
        self.num_envs = num_envs
        self.restarts = 0
        self._failures = 0  # since the last answer
        self._config = config
        self._lost: set[int] = set()
        self._timeout_s = timeout_s
        self._workers = [self._spawn() for _ in range(min(num_workers, num_envs))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        for process, connection in self._workers:
            with contextlib.suppress(OSError):
                connection.send(("close", []))
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()

    def reset(
        self, requests: Mapping[int, tuple[int, dict[str, Any] | None]]
    ) -> dict[int, tuple[Observation, dict[str, Any]] | None]:
        """Starts episodes: environment -> (seed, options of the world's `reset`).

        Raises ValueError, as the world's `reset` does, for a bad task.
        """
        self._lost -= set(requests)
        return self._ask("reset", requests)

    def step(self, actions: Mapping[int, np.ndarray | None]) -> dict[int, Transition | None]:
        """One step of each environment named; an action of None lets the scripted expert act.

        An environment that was lost with its worker gives `None` until it is reset.
        """
        lost = self._lost & set(actions)
        answers = self._ask("step", {e: a for e, a in actions.items() if e not in lost})
        return answers | dict.fromkeys(lost)

    def render(self, envs: list[int]) -> dict[int, np.ndarray | None]:
        """Larger pictures, uint8 [224, 224, 3]."""
        return self._ask("render", dict.fromkeys(envs))

    def _spawn(self):
        choose_backend()  # in the parent, so that a missing library is reported once and clearly
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._config), daemon=True)
        # A spawned process imports the main script again; one that imports TensorFlow at its top
        # would bring it into the worker.
        script = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            process.start()
        finally:
            sys.modules["__main__"] = script
        theirs.close()
        return process, ours

    def _ask(self, command: str, requests: Mapping[int, Any]) -> dict[int, Any]:
        shares: list[list[tuple[int, Any]]] = [[] for _ in self._workers]
        for env, request in requests.items():
            if not 0 <= env < self.num_envs:
                raise ValueError(f"no environment {env}: there are {self.num_envs}")
            shares[env % len(self._workers)].append((env, request))
        results: dict[int, Any] = {}
        sent = []
        for number, share in enumerate(shares):
            if not share:
                continue
            try:
                self._workers[number][1].send((command, share))
                sent.append(number)
            except OSError:
                results |= self._replace(number, shares[number], "died")
        failure: Exception | None = None
        for number in sent:
            answer = self._receive(number)
            if isinstance(answer, Exception):
                failure = answer
            elif answer is None:
                results |= self._replace(number, shares[number], "died or did not answer")
            else:
                self._failures = 0
                results |= answer
        if failure is not None:
            raise failure
        return results

    def _receive(self, number: int) -> dict[int, Any] | Exception | None:
        process, connection = self._workers[number]
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            ready = multiprocessing.connection.wait([connection, process.sentinel], timeout=1.0)
            if connection in ready:
                try:
                    return connection.recv()
                except (EOFError, OSError):
                    return None
            if process.sentinel in ready:
                return None
        return None

    def _replace(self, number: int, share: list[tuple[int, Any]], why: str) -> dict[int, None]:
        process, connection = self._workers[number]
        process.kill()
        process.join()
        connection.close()
        envs = [env for env, _ in share]
        _log.warning(
            "environment worker %d %s (exit code %s); started another, lost environments %s",
            number,
            why,
            process.exitcode,
            envs,
        )
        self._lost |= set(range(number, self.num_envs, len(self._workers)))
        self.restarts += 1
        self._failures += 1
        if self._failures > 3 * len(self._workers):
            raise RuntimeError(
                f"environment workers keep dying (last exit code {process.exitcode}): run "
                "tools/setup_rendering.sh to check the renderer"
            )
        self._workers[number] = self._spawn()
        return dict.fromkeys(envs)


def _serve(connection, config: WorldConfig) -> None:
    """A worker: answers requests until told to close or its parent is gone."""
    envs: dict[int, tuple[Any, Any]] = {}  # each with its expert

    def answer(command: str, env: int, request: Any) -> Any:
        if command == "reset":
            if env not in envs:
                envs[env] = open_world(config)
            seed, options = request
            return envs[env][0].reset(seed=seed, options=options)
        if env not in envs:
            raise ValueError(f"environment {env} was never reset")
        world, expert = envs[env]
        if command == "render":
            return world.render()
        action = expert.action(world) if request is None else request
        observation, reward, terminated, truncated, info = world.step(action)
        taken = np.asarray(action, np.float32)
        return Transition(observation, reward, terminated, truncated, info, taken)

    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        while (request := connection.recv())[0] != "close":
            command, share = request
            try:
                answers = {env: answer(command, env, request) for env, request in share}
            except ValueError as e:
                answers = e
            connection.send(answers)
    for world, _ in envs.values():
        world.close()
