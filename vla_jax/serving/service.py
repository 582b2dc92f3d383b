"""The server without its protocols: a robot's message in, an action or a hold out."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from vla_jax.decoding.chunks import ChunkExecutor
from vla_jax.serving.batcher import Batcher, Done
from vla_jax.serving.contract import Observation, ServedPolicy
from vla_jax.serving.metrics import Metrics
from vla_jax.serving.reply import Exchange, Reply
from vla_jax.serving.request import RequestReader, session_name
from vla_jax.serving.safety import HoldError, Safety
from vla_jax.serving.sessions import Session, Sessions
from vla_jax.serving.settings import ServerSettings


class Service:
    """Answers robots, whatever protocol they speak. Made inside a running event loop.

    Args:
      policy: whose actions these are.
      settings: see there.

    Raises:
      ValueError: settings that do not fit the policy.
    """

    def __init__(self, policy: ServedPolicy, settings: ServerSettings):
        self.policy, self.settings, self.metrics = policy, settings, Metrics()
        self.safety = Safety(policy.spec, settings.limits, policy.state_names)
        self.reader = RequestReader(
            policy,
            cameras=settings.cameras,
            max_side=settings.max_image_side,
            max_age_s=settings.max_frame_age_s,
        )
        self.sessions = Sessions(
            most=settings.max_sessions,
            idle_s=settings.session_idle_s,
            requests_per_s=settings.max_requests_per_s,
            frames=policy.frames,
            metrics=self.metrics,
        )
        self._executor()  # refuses settings that do not fit
        self._batcher = Batcher(
            policy,
            wait_s=settings.batch_wait_s,
            max_batch=settings.max_batch or max(policy.batch_sizes),
            max_queue=settings.max_queue,
            robots=self.sessions.about,
            metrics=self.metrics,
        )
        self._running: asyncio.Task | None = None
        self._forgetting: asyncio.Task | None = None
        self._draining, self._answering = False, 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    def description(self) -> dict[str, Any]:
        """What a client may want to know, as JSON can hold it."""
        policy = self.policy
        return {
            "server": "vla_jax",
            "bundle": policy.digest,
            "spec": policy.spec.digest,
            "action_spec": dataclasses.asdict(policy.spec),
            "cameras": list(policy.cameras),
            "state_names": list(policy.state_names),
            "chunk": policy.chunk,
            "image_size": policy.image_size,
        }

    @property
    def not_ready(self) -> str:
        """Why it does not take requests; "" if it does."""
        if self._draining:
            return "draining"
        if self._running is None or self._running.done():
            return "starting"
        stuck_s = max(10.0, 10 * self.settings.deadline_s)
        return "policy" if self._batcher.busy_s() > stuck_s else ""

    @property
    def hangs(self) -> bool:
        """Whether a call of the model is not over."""
        return self._batcher.busy_s() > 0

    async def start(self) -> None:
        """Warms up; then requests are answered."""
        await asyncio.to_thread(Image.preinit)  # the first file of a picture would load decoders
        await self._batcher.warm_up()
        self._running = asyncio.create_task(self._batcher.run())
        self._forgetting = asyncio.create_task(self._forget())
        self.metrics.ready.set(1)

    async def drain(self) -> bool:
        """Takes no new requests and waits for those in flight; whether all finished in time."""
        self._draining = True
        self.metrics.ready.set(0)
        try:
            async with asyncio.timeout(self.settings.drain_s):
                await self._quiet.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Ends what `start` began."""
        tasks = [t for t in (self._running, self._forgetting) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def act(
        self, fields: Mapping[str, Any], *, protocol: str, default_session: str, whole_chunk: bool
    ) -> Reply:
        """One robot's next actions.

        Args:
          fields: of the message; see `RequestReader`. Besides: "session", a robot's name; "reset",
            true at the first request of an episode; "last_action"; "timestamp" of the pictures,
            seconds since 1970; "spec", the digest of the robot's ActionSpec.
          protocol: for metrics.
          default_session: name of a robot that gives none.
          whole_chunk: the robot carries chunks out; else the server does.

        Raises:
          NotUnderstoodError: it is no request.
        """
        arrived = time.perf_counter()
        name = session_name(fields, default_session)
        session = None
        with self._in_flight():
            try:
                session = self.sessions.get(name)
                if reason := self.not_ready:
                    raise HoldError(reason, f"the server is not ready: {reason}")
                session.spend()
                async with asyncio.timeout(self.settings.deadline_s), session.lock:
                    reply = await self._next(fields, session, whole_chunk)
            except HoldError as e:
                reply = self._hold(e, session, fields, whole_chunk)
            except TimeoutError:
                late = HoldError("timeout", f"no action within {self.settings.deadline_s:g} s")
                reply = self._hold(late, session, fields, whole_chunk)
            except Exception as e:
                logging.exception("a request of %r failed", name)
                reply = self._hold(HoldError("internal", repr(e)), session, fields, whole_chunk)
        reply = reply._replace(total_s=time.perf_counter() - arrived)
        if session is not None:
            session.newest = Exchange(protocol, *session.asked, reply, time.time())
        self.metrics.seconds.labels(protocol).observe(reply.total_s)
        if reply.valid:
            self.metrics.actions.labels(protocol).inc()
        return reply

    async def answer(self, picture: Any, question: Any, *, protocol: str) -> str:
        """The answer in words to a question about a picture.

        Raises:
          HoldError: there is none, for whatever reason.
        """
        arrived = time.perf_counter()
        with self._in_flight():
            try:
                if reason := self.not_ready:
                    raise HoldError(reason, f"the server is not ready: {reason}")
                text = self.reader.instruction({"prompt": question})
                async with asyncio.timeout(self.settings.deadline_s):
                    image = await self.reader.picture(picture, "image")
                    done = await self._batcher.submit("answer", (image, text))
            except TimeoutError as e:
                why = f"no answer within {self.settings.deadline_s:g} s"
                raise HoldError("timeout", why) from e
        self.metrics.seconds.labels(protocol).observe(time.perf_counter() - arrived)
        return done.result

    def reset(self, name: str) -> None:
        """A robot begins a new episode."""
        self.sessions.close(name)

    async def _next(self, fields: Mapping[str, Any], session: Session, whole_chunk: bool) -> Reply:
        reader, session.asked = self.reader, ("", {})
        if fields.get("reset") is True:
            session.reset()
        reader.require_same_spec(fields)
        last = reader.last_action(fields)
        if last is not None:
            session.last = last
        reader.require_fresh(fields, session)
        state = reader.state(fields)
        instruction = reader.instruction(fields)
        session.asked = instruction, {}
        if whole_chunk:
            session.executor = None
        elif session.executor is None or instruction != session.instruction:
            session.executor, session.instruction = self._executor(), instruction
        # Looked at even where a chunk goes on: a robot without a camera must not move.
        observation = await reader.observation(fields, state)
        session.asked = instruction, observation.images
        if self.policy.frames > 1:
            observation = self._with_frames(observation, session, whole_chunk)
        reply, executor = Reply(np.zeros((0, 0), np.float32)), session.executor
        if executor is None or executor.due:
            reply = self._said(await self._batcher.submit("act", observation))
            if executor is not None:
                executor.add(reply.actions)
        actions = reply.actions if executor is None else executor.next()[None]
        actions, clipped = self.safety.apply(actions, session.last, state)
        for limit in clipped:
            self.metrics.clipped.labels(limit).inc()
        done_by_robot = self.settings.execute_steps or len(actions)
        session.last = actions[min(done_by_robot, len(actions)) - 1]
        return reply._replace(actions=actions, clipped=clipped)

    def _with_frames(
        self, observation: Observation, session: Session, whole_chunk: bool
    ) -> Observation:
        """Raises HoldError where the steps between the robot's requests are not known here."""
        if all(image.ndim == 4 for image in observation.images.values()):
            return observation
        frames = self.policy.frames
        if whole_chunk and self.policy.chunk > 1 and session.seen:
            raise HoldError(
                "image",
                f"the policy sees {frames} frames of consecutive steps: a robot that carries "
                f"chunks out sends uint8 [{frames}, h, w, 3] of each camera",
            )
        session.seen.add(observation.images)
        return observation._replace(images=session.seen.views())

    def _said(self, done: Done) -> Reply:
        """Raises HoldError if the policy's answer is no action."""
        action, size = done.result, len(self.policy.spec.dimensions)
        actions = np.asarray(action.actions, np.float32)
        if not action.valid:
            raise HoldError("illegal", f"the policy's answer is no action: {action.why}")
        if actions.shape != (self.policy.chunk, size):
            raise HoldError(
                "illegal",
                f"actions {list(actions.shape)}, not [{self.policy.chunk}, {size}]",
            )
        if not np.isfinite(actions).all():
            raise HoldError("nan", "the policy's action is NaN or infinite")
        return Reply(
            actions,
            tokens=tuple(np.asarray(action.tokens).tolist()),
            text=action.text,
            plan=action.plan,
            queue_s=done.queue_s,
            model_s=done.model_s,
            batch=done.batch,
        )

    def _hold(
        self, error: HoldError, session: Session | None, fields: Mapping[str, Any], chunk: bool
    ) -> Reply:
        self.metrics.holds.labels(error.reason).inc()
        try:
            state, last = self.reader.state(fields), self.reader.last_action(fields)
        except HoldError:
            state, last = None, None
        if last is None and session is not None:
            last = session.last
        action = self.safety.hold(last, state)
        if session is not None:
            # What was planned before does not go on after a stop.
            session.last, session.executor = action, None
            session.seen.clear()
        rows = self.policy.chunk if chunk else 1
        actions = np.repeat(action[None], rows, axis=0)
        return Reply(actions, valid=False, why=error.why, reason=error.reason)

    def _executor(self) -> ChunkExecutor:
        settings = self.settings
        if not settings.execute_steps and settings.ensemble_decay is None:
            return self.policy.make_executor()
        return ChunkExecutor(
            self.policy.spec,
            self.policy.chunk,
            execute_steps=settings.execute_steps or 1,
            ensemble_decay=settings.ensemble_decay,
        )

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(self.settings.session_idle_s / 4)
            self.sessions.forget_idle()

    @contextmanager
    def _in_flight(self) -> Iterator[None]:
        self._answering += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._answering -= 1
            if not self._answering:
                self._quiet.set()
