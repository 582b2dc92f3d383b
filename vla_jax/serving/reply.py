"""What the server answers, whatever protocol the robot speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Reply(NamedTuple):
    """What a robot is to do.

    Attributes:
      actions: float32 [C, A], or [1, A] where the server carries chunks out; physical units.
      valid: False: they hold the position.
      why: it holds, "" if it does not.
      reason: the same as one of `REASONS`.
      clipped: the limits that changed the policy's actions.
      tokens, text, plan: what the policy said; empty if it was not asked.
      queue_s, model_s, total_s: waiting for the model, in the model, and everything.
      batch: requests that shared the model call; 0: none was needed.
    """

    actions: np.ndarray
    valid: bool = True
    why: str = ""
    reason: str = ""
    clipped: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    text: str = ""
    plan: str = ""
    queue_s: float = 0.0
    model_s: float = 0.0
    total_s: float = 0.0
    batch: int = 0

    def said(self) -> dict[str, Any]:
        """All but actions and times, as JSON and msgpack can hold it."""
        return {
            "valid": self.valid,
            "why": self.why,
            "reason": self.reason,
            "clipped": list(self.clipped),
            "tokens": list(self.tokens),
            "text": self.text,
            "plan": self.plan,
        }

    def times(self) -> dict[str, float]:
        """In milliseconds, and how many shared the call."""
        return {
            "queue_ms": 1e3 * self.queue_s,
            "model_ms": 1e3 * self.model_s,
            "total_ms": 1e3 * self.total_s,
            "batch": self.batch,
        }


class Exchange(NamedTuple):
    """A robot's request and its answer, for people who watch.

    Attributes:
      images: as the policy saw them, see `Observation`; none if they could not be read.
      at: seconds since 1970.
    """

    protocol: str
    instruction: str
    images: Mapping[str, np.ndarray]
    reply: Reply
    at: float
