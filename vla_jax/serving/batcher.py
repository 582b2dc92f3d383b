"""Many robots' requests become one call of the model."""

from __future__ import annotations

import asyncio
import collections
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from vla_jax.serving.contract import Observation, ServedPolicy
from vla_jax.serving.metrics import Metrics
from vla_jax.serving.safety import HoldError

Kind = Literal["act", "answer"]
Payload = Observation | tuple[Any, str]  # of "act"; picture and question of "answer"


class Done(NamedTuple):
    """A model's answer to one request."""

    result: Any  # Action of "act", str of "answer"
    queue_s: float
    model_s: float
    batch: int


class _Waiting(NamedTuple):
    kind: Kind
    payload: Payload
    future: asyncio.Future[Done]
    arrived: float  # time.perf_counter


class Batcher:
    """A bounded queue before one thread that calls the policy.

    A batch starts when the model is free and the batch is full, all robots that are about are in
    it, or it has waited `wait_s` for more since the model was free: those who have just been
    answered ask again soon, and without that pause two halves would take turns for ever. What its
    sender has given up is left out. If a batch of several fails, each is tried alone, so that one
    request cannot spoil the others'.

    Args:
      policy: called in the thread alone.
      wait_s, max_batch, max_queue: see `ServerSettings`.
      robots: how many robots are about.
    """

    def __init__(
        self,
        policy: ServedPolicy,
        *,
        wait_s: float,
        max_batch: int,
        max_queue: int,
        robots: Callable[[], int],
        metrics: Metrics,
    ):
        self._policy, self._metrics = policy, metrics
        self._wait_s, self._robots = wait_s, robots
        self._max_batch, self._max_queue = max_batch, max_queue
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._arrived = asyncio.Event()
        self._busy_since: float | None = None
        self._free_since = 0.0
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future]] = (
            queue.SimpleQueue()
        )
        self._loop = asyncio.get_running_loop()
        # A daemon: a model that hangs must not keep the process alive.
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def busy_s(self) -> float:
        """How long the present call of the model has lasted; 0 if there is none."""
        return 0.0 if self._busy_since is None else time.perf_counter() - self._busy_since

    async def submit(self, kind: Kind, payload: Payload) -> Done:
        """Waits for the model. Cancel it to give up.

        Raises:
          HoldError: the queue is full, or the policy failed.
        """
        if len(self._waiting) >= self._max_queue:
            self._forget_abandoned()
        if len(self._waiting) >= self._max_queue:
            raise HoldError("overload", f"{self._max_queue} requests wait already")
        future: asyncio.Future[Done] = self._loop.create_future()
        self._waiting.append(_Waiting(kind, payload, future, time.perf_counter()))
        self._metrics.queue.set(len(self._waiting))
        self._arrived.set()
        return await future

    async def warm_up(self) -> None:
        """Raises what the policy raises."""
        await self._call(self._policy.warm_up)

    async def run(self) -> None:
        """Serves the queue until it is cancelled."""
        while True:
            await self._until_worth_a_call()
            batch = self._take()
            if batch:
                await self._serve(batch)

    async def _until_worth_a_call(self) -> None:
        while True:
            self._arrived.clear()
            if self._waiting:
                wanted = min(self._max_batch, max(1, self._robots()))
                since = max(self._waiting[0].arrived, self._free_since)
                left = since + self._wait_s - time.perf_counter()
                if len(self._waiting) >= wanted or left <= 0:
                    return
                try:
                    async with asyncio.timeout(left):
                        await self._arrived.wait()
                except TimeoutError:
                    return
            else:
                await self._arrived.wait()

    def _forget_abandoned(self) -> None:
        self._waiting = collections.deque(w for w in self._waiting if not w.future.done())

    def _take(self) -> list[_Waiting]:
        """The oldest request and others of its kind."""
        self._forget_abandoned()
        batch: list[_Waiting] = []
        others: collections.deque[_Waiting] = collections.deque()
        for waiting in self._waiting:
            fits = len(batch) < self._max_batch and (not batch or waiting.kind == batch[0].kind)
            (batch if fits else others).append(waiting)
        self._waiting = others
        self._metrics.queue.set(len(others))
        return batch

    async def _serve(self, batch: list[_Waiting]) -> None:
        started = time.perf_counter()
        try:
            results = await self._call(lambda: self._ask(batch))
            error = None
        except Exception as e:
            logging.exception("the policy failed on a batch of %d", len(batch))
            results, error = [], e
        model_s = time.perf_counter() - started
        self._metrics.model_seconds.observe(model_s)
        self._metrics.batch.observe(len(batch))
        if error is not None and len(batch) > 1:
            for waiting in batch:
                if not waiting.future.done():
                    await self._serve([waiting])
            return
        for index, waiting in enumerate(batch):
            if waiting.future.done():
                continue
            if error is not None:
                waiting.future.set_exception(HoldError("policy", f"the policy failed: {error}"))
            else:
                queue_s = started - waiting.arrived
                self._metrics.queue_seconds.observe(queue_s)
                waiting.future.set_result(Done(results[index], queue_s, model_s, len(batch)))

    def _ask(self, batch: list[_Waiting]) -> list[Any]:
        payloads: list[Any] = [w.payload for w in batch]
        if batch[0].kind == "act":
            results = list(self._policy.act(payloads))
        else:
            results = list(self._policy.answer([p[0] for p in payloads], [p[1] for p in payloads]))
        if len(results) != len(batch):
            raise ValueError(f"{len(results)} answers to {len(batch)} requests")
        return results

    async def _call(self, function: Callable[[], Any]) -> Any:
        future = self._loop.create_future()
        self._busy_since = time.perf_counter()
        self._calls.put((function, future))
        try:
            # A call cannot be stopped: whoever is cancelled here leaves it running.
            return await asyncio.shield(future)
        finally:
            if future.done():
                self._busy_since, self._free_since = None, time.perf_counter()

    def _work(self) -> None:
        while True:
            function, future = self._calls.get()
            try:
                setter, value = _set_result, function()
            except Exception as e:
                setter, value = _set_error, e
            try:
                self._loop.call_soon_threadsafe(setter, future, value)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return


def _set_result(future: asyncio.Future, value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _set_error(future: asyncio.Future, error: Exception) -> None:
    if not future.done():
        # A future cannot hold it.
        wrapped = RuntimeError(repr(error)) if isinstance(error, StopIteration) else error
        future.set_exception(wrapped)
