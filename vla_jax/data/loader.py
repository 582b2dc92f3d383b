"""Batches of a run, executed by tf.data; the whole state is the number of the next step.

Step s of a run with global batch B holds samples s * B .. (s + 1) * B - 1 of the mixture; a process
reads the rows of each batch that its devices hold. Where each row holds k samples, B rows are B * k
samples.
Which records those are is the mixture's business, so the loader can start at any step at once, on
any number of processes.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import tensorflow as tf

from vla_jax.data import images
from vla_jax.data.fetch import Fetch, Locate
from vla_jax.data.mixture import Mixture
from vla_jax.data.packing import Packing
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.types import Batch

_FOREVER = 2**40
# Groups of rows read while others are decoded. Python runs one at a time, so more only get in each
# other's way; `readers` is for waiting.
_READ_AHEAD = 1
# One call of NumPy costs as much for a few samples as for a few hundred.
_LOCATED_AT_ONCE = 1024
_DECODING_S = "decoding_s"  # a column on its way out of tf.data, not of the batch


class EvaluationBatch(Batch):
    """A batch of one data set. Rows that fill up the last batch repeat a record."""

    row_valid: np.ndarray  # bool [B]: not filling
    record: np.ndarray  # int64 [B]: record of the source


class Loader:
    """Iterates over this process's share of the batches, from `start_step` to the end of data.

    Args:
      mixture: its names are those of `sources`, in the same order.
      sources: by name.
      builder: makes token rows.
      batch_size: of all processes together.
      image_size: images come out square, with this side in pixels.
      start_step: first step.
      rows: of each batch, those that this process reads; None: all.
      threads: of tf.data's own pool.
      prefetch: batches made ahead.
      readers, max_bad_records, packing: see `Fetch`.

    Raises:
      ValueError: names that do not match, rows that the batch does not have, a robot data set
        whose ActionSpec is not the action tokenizer's.
    """

    def __init__(
        self,
        mixture: Mixture,
        sources: Mapping[str, Source],
        builder: SequenceBuilder,
        *,
        batch_size: int,
        image_size: int,
        start_step: int = 0,
        rows: np.ndarray | None = None,
        threads: int = 2,
        prefetch: int = 2,
        readers: int = 1,
        max_bad_records: int = 0,
        packing: Packing | None = None,
    ):
        if tuple(sources) != mixture.names:
            raise ValueError(f"the mixture has {mixture.names}, the sources are {tuple(sources)}")
        for source in sources.values():
            require_spec(source, builder)
        rows = _require_rows(rows, batch_size)

        k = 1 if packing is None else packing.examples
        samples = (rows[:, None] * k + np.arange(k)).reshape(-1)

        last = _FOREVER if mixture.length is None else mixture.length // (batch_size * k)
        fetch = Fetch(
            list(sources.values()),
            builder,
            _locator(mixture, samples, batch_size * k, last),
            max_bad_records=max_bad_records,
            readers=readers,
            blank=images.blank(image_size),
            packing=packing,
        )

        def make(start: int) -> tf.data.Dataset:
            batches = _pipeline(fetch, start, last, image_size, len(rows), threads)
            return batches.prefetch(prefetch)

        self._fetch, self._stream = fetch, _Stream(make, fetch, start_step)
        self._threads = threads

    @property
    def step(self) -> int:
        """The next step to come out. All there is to save."""
        return self._stream.step

    @property
    def views(self) -> int:
        """Images of a sample; a source that has fewer is filled up."""
        return self._fetch.views

    @property
    def bad_records(self) -> int:
        """Records of this process that could not be used and were replaced."""
        return self._fetch.bad_records

    def stage_seconds(self) -> dict[str, float]:
        """Wall seconds that each stage was at work so far: the one with most holds up the others.

        "reading" and "tokenizing" take turns; "decoding" is the mean over the threads that do it.
        """
        decoding = self._stream.decoding_s / self._threads
        return {**self._fetch.stage_seconds(), "decoding": decoding}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return cast(Batch, next(self._stream))

    def close(self) -> None:
        """Stops reading ahead. Happens by itself when the loader goes or the program ends."""
        self._stream.close()


def evaluation_batches(
    source: Source,
    builder: SequenceBuilder,
    *,
    batch_size: int,
    image_size: int,
    limit: int | None = None,
    rows: np.ndarray | None = None,
    threads: int = 2,
) -> Iterator[EvaluationBatch]:
    """One pass over a data set, or over `limit` records spread evenly over it.

    Every process gets the same number of batches. Arguments as for `Loader`.
    """
    require_spec(source, builder)
    rows = _require_rows(rows, batch_size)
    count = len(source) if limit is None else min(limit, len(source))
    if count < 1:
        raise ValueError(f"source {source.name!r} has no records to evaluate on (limit {limit})")
    records = np.arange(count, dtype=np.int64) * len(source) // count
    steps = -(-count // batch_size)

    def locate(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        index = np.minimum(step * batch_size + rows, count - 1)
        return index, np.zeros(len(rows), np.int32), records[index], np.zeros(len(rows), np.int64)

    fetch = Fetch([source], builder, locate)

    def make(start: int) -> tf.data.Dataset:
        return _pipeline(fetch, start, steps, image_size, len(rows), threads).prefetch(1)

    stream = _Stream(make, fetch, 0)
    try:
        for step in range(steps):
            batch = next(stream)
            batch["row_valid"] = step * batch_size + rows < count
            batch["record"] = locate(step)[2]
            yield cast(EvaluationBatch, batch)
    finally:
        stream.close()


def require_spec(source: Source, builder: SequenceBuilder) -> None:
    """Raises ValueError if the builder cannot turn the source's actions into tokens."""
    if source.action_spec is None:
        return
    if not builder.action_tokenizers:
        raise ValueError(f"source {source.name!r} has actions, and no action tokenizer is given")
    try:
        tokenizer = builder.tokenizer_of(source.action_spec.name)
    except ValueError as e:
        raise ValueError(f"source {source.name!r}: {e}") from e
    tokenizer.spec.require_same(
        source.action_spec, here="the action tokenizer", there=f"source {source.name!r}"
    )


def queue_bytes(rows: int, views: int, image_size: int, *, threads: int, prefetch: int) -> int:
    """Most bytes of pixels that a loader holds: batches ready and in the making.

    Args: as for `Loader`; `rows` are those of one process, `views` the images of one.
    """
    image = 3 * image_size**2 * views
    # One more batch is being put together, and one is the user's.
    return image * (rows * (prefetch + 2) + _group_size(rows) * (threads + _READ_AHEAD))


def _locator(mixture: Mixture, samples: np.ndarray, per_step: int, last: int) -> Locate:
    """Where the samples of steps 0 .. last - 1 are, found for several steps at once.

    Args:
      samples: int64 [n], of step 0: those that this process reads.
      per_step: samples of a step, of all processes.
    """
    steps = max(1, _LOCATED_AT_ONCE // len(samples))

    @functools.lru_cache(maxsize=2)
    def located(first: int) -> tuple[np.ndarray, ...]:
        starts = np.arange(first, min(first + steps, last), dtype=np.int64) * per_step
        numbers = (starts[:, None] + samples).reshape(-1)
        found = numbers, *mixture.locate(numbers), mixture.draws(numbers)
        return tuple(column.reshape(len(starts), -1) for column in found)

    def locate(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        numbers, source, record, draw = (
            column[step % steps] for column in located(step - step % steps)
        )
        return numbers, source, record, draw

    return locate


def _group_size(rows: int) -> int:
    """Rows that are read and decoded together: the largest divisor up to 32."""
    return max(n for n in range(1, min(rows, 32) + 1) if rows % n == 0)


def _pipeline(
    fetch: Fetch, start: int, stop: int, image_size: int, rows: int, threads: int
) -> tf.data.Dataset:
    """Steps start .. stop - 1 as batches of `rows` rows, in order."""
    if threads < 1:
        raise ValueError(f"the loader needs at least one thread, not {threads}")
    images.hide_accelerators()
    group = _group_size(rows)
    groups, signature = rows // group, fetch.columns()
    types = [tf.string, *(tf.as_dtype(column.dtype) for column in signature.values())]

    def fetch_group(number: np.ndarray) -> list[np.ndarray]:
        step, part = divmod(int(number), groups)
        encoded, columns = fetch(step, slice(part * group, (part + 1) * group))
        return [encoded, *columns.values()]

    def read(number: tf.Tensor) -> dict[str, tf.Tensor]:
        encoded, *columns = tf.numpy_function(fetch_group, [number], types)
        for column, like in zip(columns, signature.values()):
            column.set_shape((group, *like.shape[1:]))
        encoded.set_shape((group, fetch.images_per_row))
        return {"images": encoded, **dict(zip(signature, columns))}

    def decode(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        begun = tf.timestamp()
        with tf.control_dependencies([begun]):
            encoded = tf.reshape(columns["images"], [-1])
        pixels = images.decode_all(encoded, image_size)
        with tf.control_dependencies([pixels]):
            seconds = tf.timestamp() - begun
        shape = (group, fetch.images_per_row, image_size, image_size, 3)
        return {**columns, "images": tf.reshape(pixels, shape), _DECODING_S: seconds}

    def join(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        seconds = tf.reduce_sum(columns.pop(_DECODING_S))
        joined = {
            name: tf.reshape(column, (rows, *column.shape[2:])) for name, column in columns.items()
        }
        return {**joined, _DECODING_S: seconds}

    dataset = tf.data.Dataset.range(start * groups, stop * groups)
    # Order is kept.
    dataset = dataset.map(read, num_parallel_calls=_READ_AHEAD, deterministic=True)
    dataset = dataset.map(decode, num_parallel_calls=threads, deterministic=True)
    if groups > 1:
        dataset = dataset.batch(groups, drop_remainder=True).map(join)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


class _Stream:
    """The batches of a pipeline one by one, with errors a person can read.

    A batch with an image that cannot be decoded is made again, if that many bad records are
    allowed: pipelines start anywhere at once.

    tf.data's threads call Python. They must be gone before the interpreter is, or it aborts: hence
    the finalizer, which also runs at exit.

    Args:
      make: first step -> the pipeline from there on.

    Attributes:
      step: the next one.
      decoding_s: seconds of decoding, summed over threads, in the batches so far.
    """

    def __init__(self, make: Callable[[int], tf.data.Dataset], fetch: Fetch, step: int):
        self.step, self.decoding_s = step, 0.0
        self._make, self._fetch = make, fetch
        self._iterators: list[Any] = [make(step).as_numpy_iterator()]
        self.close = weakref.finalize(self, _stop, fetch, self._iterators)

    def __next__(self) -> dict[str, Any]:
        while True:
            if not self._iterators:
                raise ValueError("the loader is closed")
            try:
                batch = cast(dict[str, Any], next(self._iterators[0]))
            except tf.errors.OpError as e:
                if self._fetch.error is not None:
                    raise self._fetch.error from None
                if not self._fetch.find_bad_images(self.step):
                    raise
                del e  # it holds the old pipeline
                self._iterators[0] = self._make(self.step).as_numpy_iterator()
                continue
            self.step += 1
            self.decoding_s += float(batch.pop(_DECODING_S))
            return batch


def _stop(fetch: Fetch, iterators: list[Any]) -> None:
    fetch.stop()
    iterators.clear()


def _require_rows(rows: np.ndarray | None, batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if rows is None:
        return np.arange(batch_size, dtype=np.int64)
    if not len(rows) or min(rows) < 0 or max(rows) >= batch_size:
        raise ValueError(f"rows {rows} are not rows of a batch of {batch_size}")
    return np.asarray(rows, np.int64)
