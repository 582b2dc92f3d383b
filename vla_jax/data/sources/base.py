"""What the loader asks of a data set."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.types import Example


class Source(Protocol):
    """Random access to the records of one data set, in bounded memory.

    Attributes:
      name: for messages; the mixture's name of this source.
      action_spec: of robot data; None for image-text data.
    """

    @property
    def name(self) -> str: ...

    @property
    def action_spec(self) -> ActionSpec | None: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Example:
        """Record `index`, 0 <= index < len(self). May be called by several threads at once.

        Raises ValueError, naming data set and record, for a record that cannot be used.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Track:
    """One episode without its images, as stored: nothing is checked or cut.

    Attributes:
      where: data set and episode, for messages.
      first: record number of its first step; its n-th step is record first + n.
      actions: float32 [n, A], in the units of the source's ActionSpec.
      instructions: one for each of the n steps, as stored; "" where there is none.
      state: float32 [n, S], what the robot measured; None if it is not read.
    """

    where: str
    first: int
    actions: np.ndarray
    instructions: tuple[str, ...]
    state: np.ndarray | None = None


@runtime_checkable
class EpisodicSource(Source, Protocol):
    """A source whose records are the steps of robot episodes."""

    @property
    def num_episodes(self) -> int: ...

    def track(self, number: int) -> Track:
        """Episode `number`, 0 <= number < num_episodes. No image is read.

        Raises ValueError, naming the episode, if it cannot be read.
        """
        ...


def robot_of(source: Source) -> str:
    """Name of the source's ActionSpec; "" for image-text data."""
    return "" if source.action_spec is None else source.action_spec.name


def place(starts: Sequence[int], index: int, what: str, name: str) -> tuple[int, int]:
    """The part (episode, shard) that holds an index, and the index inside of it.

    Args:
      starts: first index of each part, and the end of the last.
      what: is counted; with `name`, the data set's, for the message.

    Raises IndexError for an index that there is not.
    """
    if not 0 <= index < starts[-1]:
        raise IndexError(f"{what} {index} of data set {name!r}, which has {starts[-1]}")
    part = bisect.bisect_right(starts, index) - 1
    return part, index - starts[part]


def frame_records(index: int, step: int, frames: int) -> list[int]:
    """The records whose images make the frames of record `index`, oldest first, itself the last.

    Args:
      step: of `index` in its episode, whose first record comes again where there is none before.
    """
    return [index - min(back, step) for back in reversed(range(frames))]


def chunk_steps(
    step: int, chunk: int, length: int, dimensions: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The steps whose actions make the chunk of `step`.

    Returns:
      int [C], the episode's last step again where it ends before the chunk; and `action_valid`
      bool [C, A] of the example, None where all is valid.
    """
    steps, last = step + np.arange(chunk), length - 1
    if steps[-1] <= last:
        return steps, None
    valid = np.broadcast_to((steps <= last)[:, None], (chunk, dimensions))
    return np.minimum(steps, last), valid
