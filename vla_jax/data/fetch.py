"""A step's rows: records read and tokenized, bad ones replaced up to a number."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from vla_jax.data import images
from vla_jax.data.packing import Packing
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source, robot_of
from vla_jax.types import Example

Locate = Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]
"""Step -> of each of this process's samples its number int64, source int32, record int64 and random
bits int64 (see `types.chosen`): [B], or [B * k] where rows are packed."""


class Row(NamedTuple):
    """A sample of the run: an example, and where it came from."""

    sample: int
    source: int
    record: int
    draw: int
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
      blank: encoded image, which fills up the views of sources that have fewer than others.
      packing: several samples in a row; None: one.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        builder: SequenceBuilder,
        locate: Locate,
        *,
        max_bad_records: int = 0,
        readers: int = 1,
        blank: bytes = b"",
        packing: Packing | None = None,
    ):
        if readers < 1 or max_bad_records < 0:
            raise ValueError(
                f"data.readers {readers} must be at least 1, data.max_bad_records "
                f"{max_bad_records} at least 0"
            )
        self._sources, self._builder, self._locate = sources, builder, locate
        self._blank = blank
        self._packing, self._per_row = packing, 1 if packing is None else packing.examples
        self._max_bad, self._bad = max_bad_records, set[tuple[int, int]]()
        self._pool = ThreadPoolExecutor(readers) if readers > 1 else None
        self._lock = threading.Condition()
        self._running, self._stopped = 0, False
        self.error: Exception | None = None  # tf.data would turn it into text
        self._seconds = {"reading": 0.0, "tokenizing": 0.0}
        self._robots = [robot_of(source) for source in sources]
        self._views: list[int] = []  # of each source
        for number in range(len(sources)):
            self._views.append(len(self._row(0, number, 0, 0).images))
        self.views = max(self._views)

    @property
    def images_per_row(self) -> int:
        return self.views * self._per_row

    @property
    def bad_records(self) -> int:
        """Different records that were found to be bad."""
        return len(self._bad)

    def stage_seconds(self) -> dict[str, float]:
        """Wall time of the calls so far: "reading" (finding too) and "tokenizing"."""
        with self._lock:
            return dict(self._seconds)

    def __call__(self, step: int, rows: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """-> encoded images object [rows, images], and the columns of these rows of the step."""
        with self._lock:
            if self._stopped:
                raise RuntimeError("the loader is closed")
            self._running += 1
        begun = read_by = time.perf_counter()
        try:
            samples = slice(rows.start * self._per_row, rows.stop * self._per_row)
            found = self.read(step, samples)
            read_by = time.perf_counter()
            read, columns = self._build(found)
            filled = [row.images + [self._blank] * (self.views - len(row.images)) for row in read]
            encoded = np.asarray(filled, object)
            return encoded.reshape(-1, self.images_per_row), self._packed(read, columns)
        except Exception as e:
            self.error = self.error or e
            raise
        finally:
            done = time.perf_counter()
            with self._lock:
                self._seconds["reading"] += read_by - begun
                self._seconds["tokenizing"] += done - read_by
                self._running -= 1
                self._lock.notify_all()

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of no rows, for their names, dtypes and shapes [0, ...]."""
        return self._packed([], self._builder.build_rows([], robots=[]))

    def stop(self) -> None:
        """Waits for running calls; later ones fail at once."""
        with self._lock:
            self._stopped = True
            self._lock.wait_for(lambda: not self._running)
        if self._pool is not None:
            self._pool.shutdown()

    def read(self, step: int, samples: slice = slice(None)) -> list[Row]:
        """These samples of a step, not yet tokenized."""
        columns = (part[samples].tolist() for part in self._locate(step))
        return list((map if self._pool is None else self._pool.map)(self._row, *columns))

    def find_bad_images(self, step: int) -> bool:
        """Whether the step has images that cannot be decoded; their records are bad from now on.

        Raises ValueError if that makes more bad ones than allowed.
        """
        found = False
        for row in self.read(step):
            if not all(images.can_decode(image) for image in row.images):
                found = True
                message = (
                    f"{self._where(row.source, row.record)}: its image is damaged or not JPEG, "
                    "PNG, GIF, BMP or WebP: repair or drop the record"
                )
                self._add_bad(row.source, row.record, ValueError(message))
        return found

    def _packed(self, read: list[Row], columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        columns["source"] = np.asarray([row.source for row in read], np.int32)
        columns["sample"] = np.asarray([row.sample % 2**32 for row in read], np.uint32)
        there = np.asarray([len(row.images) for row in read], np.int32).reshape(-1, 1)
        there = np.arange(self.views) < there
        if self._packing is not None:
            columns = self._packing.pack(columns)
            segments = self._packing.image_segments(len(columns["tokens"]), self.views)
        elif len(set(self._views)) > 1:
            columns["segment"] = columns["valid"].astype(np.int32)
            segments = np.ones_like(there, np.int32)
        else:
            return columns
        # An image that fills up is of no example, so that nothing sees it.
        return {**columns, "image_segment": np.where(there.reshape(segments.shape), segments, -1)}

    def _row(self, sample: int, source: int, record: int, draw: int) -> Row:
        """A record, or the next one that is good."""
        size = len(self._sources[source])
        for i in ((record + n) % size for n in range(size)):
            if (source, i) in self._bad:
                continue
            try:
                example = self._sources[source].read(i)
                encoded = [
                    view
                    if isinstance(view, bytes)
                    else images.to_bytes(view, where=self._where(source, i))
                    for view in example.images
                ]
                if source < len(self._views) and len(encoded) != self._views[source]:
                    raise ValueError(
                        f"{self._where(source, i)} has {len(encoded)} images, not "
                        f"{self._views[source]} as record 0"
                    )
                return Row(sample, source, i, draw, example, encoded)
            except (ValueError, OSError) as e:
                self._add_bad(source, i, e)
            except Exception as e:
                e.add_note(f"while reading {self._where(source, i)}")
                raise
        raise ValueError(f"source {self._sources[source].name!r} has no record that can be used")

    def _build(self, rows: list[Row]) -> tuple[list[Row], dict[str, np.ndarray]]:
        """Tokenizes; a record whose texts or action cannot be used is replaced."""
        try:
            return rows, self._tokenize(rows)
        except ValueError:
            rows = [self._tokenizable(row) for row in rows]
            return rows, self._tokenize(rows)

    def _tokenize(self, rows: list[Row]) -> dict[str, np.ndarray]:
        return self._builder.build_rows(
            [row.example for row in rows],
            [row.draw for row in rows],
            [self._robots[row.source] for row in rows],
        )

    def _tokenizable(self, row: Row) -> Row:
        while True:
            try:
                self._tokenize([row])
                return row
            except ValueError as e:
                self._add_bad(row.source, row.record, e)
                row = self._row(row.sample, row.source, row.record, row.draw)

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
