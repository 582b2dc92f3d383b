"""What the server remembers of each robot between its requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import numpy as np

from vla_jax.decoding.chunks import ChunkExecutor
from vla_jax.decoding.frames import FrameHistory
from vla_jax.serving.metrics import Metrics
from vla_jax.serving.reply import Exchange
from vla_jax.serving.safety import HoldError

_ABOUT_S = 1.0  # RT-2's robots ask once to five times a second


class Session:
    """One robot's.

    Attributes:
      last: what it was commanded last, float32 [A]; None: nothing yet.
      executor: of the chunk it carries out; None: none.
      instruction: of that chunk.
      newest_frame: time of the newest picture, 0 if it never told.
      seen: the newest pictures by camera, for a policy that sees several frames.
      asked: instruction and pictures of the request that was read last.
      newest: its last request and the answer, for people who watch; None: there was none.
      lock: its requests are answered one after the other.
    """

    def __init__(self, requests_per_s: float, frames: int):
        self.last: np.ndarray | None = None
        self.executor: ChunkExecutor | None = None
        self.instruction = ""
        self.newest_frame = 0.0
        self.seen = FrameHistory(frames)
        self.asked: tuple[str, Mapping[str, np.ndarray]] = ("", {})
        self.newest: Exchange | None = None
        self.lock = asyncio.Lock()
        self.used = time.monotonic()
        self._rate, self._burst = requests_per_s, max(1.0, requests_per_s)
        self._credit = self._burst

    def reset(self) -> None:
        """A new episode begins."""
        self.last, self.executor, self.instruction, self.newest_frame = None, None, "", 0.0
        self.seen.clear()

    def spend(self) -> None:
        """Counts a request. Raises HoldError if there were too many."""
        now = time.monotonic()
        # A bucket that fills at the allowed rate and holds a second of it.
        self._credit = min(self._burst, self._credit + (now - self.used) * self._rate)
        self.used = now
        if self._credit < 1:
            raise HoldError("rate", f"more than {self._rate:g} requests a second")
        self._credit -= 1


class Sessions:
    """All robots, by the name they go by.

    Args:
      most, idle_s, requests_per_s: see `ServerSettings`.
      frames: that the policy sees at a time.
    """

    def __init__(
        self, *, most: int, idle_s: float, requests_per_s: float, frames: int, metrics: Metrics
    ):
        self._most, self._idle_s, self._metrics = most, idle_s, metrics
        self._rate, self._frames = requests_per_s, frames
        self._sessions: dict[str, Session] = {}

    def get(self, name: str) -> Session:
        """Raises HoldError if there are too many."""
        session = self._sessions.get(name)
        if session is None:
            if len(self._sessions) >= self._most:
                self.forget_idle()
            if len(self._sessions) >= self._most:
                raise HoldError("overload", f"{self._most} robots are served already")
            session = self._sessions[name] = Session(self._rate, self._frames)
            self._metrics.sessions.set(len(self._sessions))
        return session

    def newest(self) -> dict[str, Exchange]:
        """What each robot asked last, by its name."""
        return {n: s.newest for n, s in self._sessions.items() if s.newest is not None}

    def close(self, name: str) -> None:
        """Forgets a robot, if it is known."""
        self._sessions.pop(name, None)
        self._metrics.sessions.set(len(self._sessions))

    def forget_idle(self) -> None:
        """Forgets robots that have not asked for long."""
        since = time.monotonic() - self._idle_s
        self._sessions = {
            n: s for n, s in self._sessions.items() if s.used >= since or s.lock.locked()
        }
        self._metrics.sessions.set(len(self._sessions))

    def about(self) -> int:
        """Robots that asked within the last second."""
        recent = time.monotonic() - _ABOUT_S
        return sum(s.used > recent for s in self._sessions.values())
