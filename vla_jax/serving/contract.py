"""What the server asks of a policy, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.decoding.chunks import ChunkExecutor


class Observation(NamedTuple):
    """What one robot sees and was told.

    Attributes:
      images: camera name -> uint8 [h, w, 3] of any size; [frames, h, w, 3], oldest first, for a
        policy that sees several frames. One frame counts as the first of an episode.
      state: float [S], what the robot measures, for a policy that was trained with it.
      temperature: 0 for the likeliest tokens, 1 for a sample of the model's distribution.
      seed: of the sample, in [0, 2**31).
    """

    images: Mapping[str, np.ndarray]
    instruction: str
    state: np.ndarray | None = None
    temperature: float = 0.0
    seed: int = 0


class Action(NamedTuple):
    """One chunk of actions.

    Attributes:
      actions: float32 [C, A] in the ActionSpec's units. NaN where it is not valid, so that whoever
        forgets to look cannot move a robot.
      tokens: int32 [K]; none if the model was not asked.
      text: the tokens, for people.
      plan: what it said first that it would do; "" if it does not plan.
      latency_s: of the call that it was part of.
      valid: False: do not do it.
      why: the reason, "" if it is valid.
    """

    actions: np.ndarray
    tokens: np.ndarray
    text: str
    plan: str
    latency_s: float
    valid: bool
    why: str


class ServedPolicy(Protocol):
    """A policy as the server sees it: `BundlePolicy`. Only one thread calls it."""

    @property
    def card(self) -> dict[str, Any]: ...
    @property
    def digest(self) -> str: ...
    @property
    def spec(self) -> ActionSpec: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def frames(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def state_names(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int: ...
    @property
    def batch_sizes(self) -> tuple[int, ...]: ...

    def make_executor(self) -> ChunkExecutor:
        """Carries out the chunks of one episode as the policy is meant to."""
        ...

    def act(self, observations: Sequence[Observation]) -> list[Action]:
        """One action per observation, in their order."""
        ...

    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        """One answer per picture uint8 [h, w, 3] and question."""
        ...

    def warm_up(self) -> None:
        """Compiles whatever the first request would wait for."""
        ...
