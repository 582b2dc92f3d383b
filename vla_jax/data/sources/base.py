"""What the loader asks of a data set."""

from __future__ import annotations

from typing import Protocol

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
