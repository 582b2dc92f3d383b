"""What the server asks of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from vla_jax.actions.spec import ActionSpec


class Observation(NamedTuple):
    """What one robot sees: a picture uint8 [h, w, 3] of each camera, and what it is to do."""

    images: Mapping[str, np.ndarray]
    instruction: str
    state: np.ndarray | None = None
    temperature: float = 0.0
    seed: int = 0


class Action(NamedTuple):
    """What a policy says to one observation."""

    actions: np.ndarray  # float32 [C, A], physical units
    tokens: np.ndarray  # int32 [K]
    text: str
    plan: str
    latency_s: float
    valid: bool
    why: str  # "" if valid


class ServedPolicy(Protocol):
    """A policy as the server sees it. Only one thread calls it."""

    @property
    def card(self) -> dict[str, Any]: ...
    @property
    def digest(self) -> str: ...
    @property
    def spec(self) -> ActionSpec: ...
    @property
    def cameras(self) -> tuple[str, ...]: ...
    @property
    def chunk(self) -> int: ...
    @property
    def state_names(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int: ...
    @property
    def batch_sizes(self) -> tuple[int, ...]: ...

    def act(self, observations: Sequence[Observation]) -> list[Action]:
        """One action per observation, in their order."""
        ...

    def answer(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> list[str]:
        """One answer per picture uint8 [h, w, 3] and question."""
        ...

    def warm_up(self) -> None:
        """Compiles whatever the first request would wait for."""
        ...
