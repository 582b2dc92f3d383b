"""A step's rows: records read and tokenized, bad ones replaced up to a number."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from vla_jax.data import images
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.types import Example

Locate = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Step -> number of the sample int64 [B], source int32 [B], record int64 [B], of this process."""


class Row(NamedTuple):
    """A sample of the run: an example, and where it came from."""

    sample: int
    source: int
    record: int
    example: Example
    images: list[bytes]  # encoded


class Fetch:
    """Reads and tokenizes the rows of a step, or a part of them. Threads may share it.

    A record that cannot be used is an error that names it. With `max_bad_records`, as many are told
    on stderr, and each is replaced by the next one of its source that can be used; so
    what replaces a sample depends on the data alone.

    Args:
      sources: in the order of `locate`'s numbers.
      builder: makes token rows.
      locate: which records a step has.
      max_bad_records: see above.
      readers: records read at a time; more than one pays where a read waits for a network.

    Raises:
      ValueError: sources with different numbers of images.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        builder: SequenceBuilder,
        locate: Locate,
        *,
        max_bad_records: int = 0,
        readers: int = 1,
    ):
        if readers < 1 or max_bad_records < 0:
            raise ValueError(
                f"data.readers {readers} must be at least 1, data.max_bad_records "
                f"{max_bad_records} at least 0"
            )
        self._sources, self._builder, self._locate = sources, builder, locate
        self._max_bad, self._bad = max_bad_records, set[tuple[int, int]]()
        self._pool = ThreadPoolExecutor(readers) if readers > 1 else None
        self._lock = threading.Condition()
        self._running, self._stopped = 0, False
        self.error: Exception | None = None  # tf.data would turn it into text
        self.views = 0
        views = {s.name: len(self._row(0, k, 0).example.images) for k, s in enumerate(sources)}
        if len(set(views.values())) != 1:
            raise ValueError(f"every source of a mixture gives the same number of images: {views}")
        self.views = next(iter(views.values()))

    @property
    def bad_records(self) -> int:
        """Different records that were found to be bad."""
        return len(self._bad)

    def __call__(self, step: int, rows: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """-> encoded images object [rows, views], and the columns of these rows of the step."""
        with self._lock:
            if self._stopped:
                raise RuntimeError("the loader is closed")
            self._running += 1
        try:
            read, columns = self._build(self.read(step, rows))
            columns["source"] = np.asarray([row.source for row in read], np.int32)
            columns["sample"] = np.asarray([row.sample % 2**32 for row in read], np.uint32)
            return np.asarray([row.images for row in read], object), columns
        except Exception as e:
            self.error = self.error or e
            raise
        finally:
            with self._lock:
                self._running -= 1
                self._lock.notify_all()

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of no rows, for their names, dtypes and shapes [0, ...]."""
        own = {"source": np.zeros(0, np.int32), "sample": np.zeros(0, np.uint32)}
        return {**self._builder.build_rows([]), **own}

    def stop(self) -> None:
        """Waits for running calls; later ones fail at once."""
        with self._lock:
            self._stopped = True
            self._lock.wait_for(lambda: not self._running)
        if self._pool is not None:
            self._pool.shutdown()

    def read(self, step: int, rows: slice = slice(None)) -> list[Row]:
        """These rows of a step, not yet tokenized."""
        sample, source, record = (part[rows].tolist() for part in self._locate(step))
        if self._pool is None:
            return [self._row(n, k, i) for n, k, i in zip(sample, source, record)]
        return list(self._pool.map(self._row, sample, source, record))

    def find_bad_images(self, step: int) -> bool:
        """Whether the step has images that cannot be decoded; their records are bad from now on.

        Raises ValueError if that makes more bad ones than allowed.
        """
        found = False
        for row in self.read(step):
            if not all(images.can_decode(image) for image in row.images):
                found = True
                message = (
                    f"{self._where(row.source, row.record)}: its image is damaged or not PNG, "
                    "JPEG, GIF or BMP: repair or drop the record"
                )
                self._add_bad(row.source, row.record, ValueError(message))
        return found

    def _row(self, sample: int, source: int, record: int) -> Row:
        """A record, or the next one that is good."""
        size = len(self._sources[source])
        for i in ((record + n) % size for n in range(size)):
            if (source, i) in self._bad:
                continue
            try:
                where, example = self._where(source, i), self._sources[source].read(i)
                encoded = [images.to_bytes(view, where=where) for view in example.images]
                if self.views not in (0, len(encoded)):
                    raise ValueError(f"{where} has {len(encoded)} images, not {self.views}")
                return Row(sample, source, i, example, encoded)
            except (ValueError, OSError) as e:
                self._add_bad(source, i, e)
            except Exception as e:
                e.add_note(f"while reading {self._where(source, i)}")
                raise
        raise ValueError(f"source {self._sources[source].name!r} has no record that can be used")

    def _build(self, rows: list[Row]) -> tuple[list[Row], dict[str, np.ndarray]]:
        """Tokenizes; a record whose texts or action cannot be used is replaced."""
        try:
            return rows, self._builder.build_rows([row.example for row in rows])
        except ValueError:
            rows = [self._tokenizable(row) for row in rows]
            return rows, self._builder.build_rows([row.example for row in rows])

    def _tokenizable(self, row: Row) -> Row:
        while True:
            try:
                self._builder.build_rows([row.example])
                return row
            except ValueError as e:
                self._add_bad(row.source, row.record, e)
                row = self._row(row.sample, row.source, row.record)

    def _add_bad(self, source: int, record: int, error: Exception) -> None:
        """Raises `error` if there are too many now."""
        with self._lock:
            if (source, record) in self._bad:
                return
            self._bad.add((source, record))
            count = len(self._bad)
        where = self._where(source, record)
        if count > self._max_bad:
            error.add_note(
                f"while reading {where}: {count} bad records; data.max_bad_records allows "
                f"{self._max_bad}"
            )
            raise error
        print(f"replaced {where} ({count} of at most {self._max_bad}): {error}", file=sys.stderr)

    def _where(self, source: int, record: int) -> str:
        return f"source {self._sources[source].name!r} record {record}"
