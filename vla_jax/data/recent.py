"""Values read last, kept within a limit of bytes."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class RecentlyRead(Generic[_Value]):
    """A cache that several threads may use at once.

    Args:
      limit: in bytes. A single value above it is returned and not kept.
      num_bytes: size of a value.
    """

    def __init__(self, limit: int, num_bytes: Callable[[_Value], int]):
        self._limit, self._size_of = limit, num_bytes
        self._values: collections.OrderedDict[Hashable, _Value] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0  # of all that is kept

    def __len__(self) -> int:
        return len(self._values)

    def clear(self) -> None:
        """Forgets all values."""
        with self._lock:
            self._values.clear()
            self.num_bytes = 0

    def get(self, key: Hashable, read: Callable[[], _Value]) -> _Value:
        """The value of `key`; `read()` makes it, outside the lock, if it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = read()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.num_bytes += self._size_of(value)
            while self.num_bytes > self._limit:
                self.num_bytes -= self._size_of(self._values.popitem(last=False)[1])
        return value
