"""Batches of a run, executed by tf.data; the whole state is the number of the next step.

Step s of a run with global batch B holds samples s * B .. (s + 1) * B - 1 of the mixture; process p
of P reads the p-th of P equal slices. Which records those are is the mixture's business, so the
loader can start at any step at once, on any number of processes.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from vla_jax.data import images
from vla_jax.data.mixture import Mixture
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.types import Batch, Example

_FOREVER = 2**62
_Sample = Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> source [B], record [B]


class EvaluationBatch(Batch):
    """A batch of one data set. Rows that fill up the last batch repeat a record."""

    row_valid: np.ndarray  # bool [B]: not filling
    record: np.ndarray  # int64 [B]: record of the source


class Loader:
    """Iterates over this process's share of the batches, from `start_step` on, without end.

    Args:
      mixture: its names are those of `sources`, in the same order.
      sources: by name.
      builder: makes token rows.
      batch_size: of all processes together.
      image_size: images come out square, with this side in pixels.
      start_step: first step.
      process_index, process_count: which slice of each batch is ours.
      threads: of tf.data's own pool.
      prefetch: batches made ahead.

    Raises:
      ValueError: names that do not match, a batch that cannot be divided among the processes, a
        robot data set whose ActionSpec is not the action tokenizer's.
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
        process_index: int = 0,
        process_count: int = 1,
        threads: int = 2,
        prefetch: int = 2,
    ):
        if tuple(sources) != mixture.names:
            raise ValueError(f"the mixture has {mixture.names}, the sources are {tuple(sources)}")
        for source in sources.values():
            require_spec(source, builder)
        rows = _local_rows(batch_size, process_index, process_count)

        def sample(step: int) -> tuple[np.ndarray, np.ndarray]:
            return mixture.locate(step * batch_size + rows)

        fetch = _Fetch(list(sources.values()), builder, sample)
        dataset = _pipeline(fetch, start_step, _FOREVER, image_size, len(rows), threads)
        self._stream = _Stream(dataset.prefetch(prefetch), fetch, start_step)

    @property
    def step(self) -> int:
        """The next step to come out. All there is to save."""
        return self._stream.step

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
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
) -> Iterator[EvaluationBatch]:
    """One pass over a data set, or over `limit` records spread evenly over it.

    Every process gets the same number of batches. Arguments as for `Loader`.
    """
    require_spec(source, builder)
    rows = _local_rows(batch_size, process_index, process_count)
    count = len(source) if limit is None else min(limit, len(source))
    if count < 1:
        raise ValueError(f"source {source.name!r} has no records to evaluate on (limit {limit})")
    records = np.arange(count, dtype=np.int64) * len(source) // count
    steps = -(-count // batch_size)

    def sample(step: int) -> tuple[np.ndarray, np.ndarray]:
        index = np.minimum(step * batch_size + rows, count - 1)
        return np.zeros(len(rows), np.int32), records[index]

    fetch = _Fetch([source], builder, sample)
    dataset = _pipeline(fetch, 0, steps, image_size, len(rows), threads)
    stream = _Stream(dataset.prefetch(1), fetch, 0)
    try:
        for step in range(steps):
            batch = next(stream)
            batch["row_valid"] = step * batch_size + rows < count
            batch["record"] = sample(step)[1]
            yield cast(EvaluationBatch, batch)
    finally:
        stream.close()


def require_spec(source: Source, builder: SequenceBuilder) -> None:
    """Raises ValueError if the builder cannot turn the source's actions into tokens."""
    if source.action_spec is None:
        return
    if builder.action_tokenizer is None:
        raise ValueError(f"source {source.name!r} has actions, and no action tokenizer is given")
    builder.action_tokenizer.spec.require_same(
        source.action_spec, here="the action tokenizer", there=f"source {source.name!r}"
    )


class _Fetch:
    """Reads and tokenizes a step's rows; keeps the exception that tf.data would turn into text."""

    def __init__(self, sources: Sequence[Source], builder: SequenceBuilder, sample: _Sample):
        self._sources, self._builder, self._sample = sources, builder, sample
        views = {source.name: len(source.read(0).images) for source in sources}
        if len(set(views.values())) != 1:
            raise ValueError(f"every source of a mixture gives the same number of images: {views}")
        self.views = next(iter(views.values()))
        self.max_tokens = builder.max_tokens
        self.error: Exception | None = None
        self._running, self._stopped = 0, False
        self._changed = threading.Condition()

    def __call__(self, step: np.ndarray) -> tuple[np.ndarray, ...]:
        """-> encoded images object [B, views], token arrays [B, T], source int32 [B]."""
        with self._changed:
            if self._stopped:
                raise RuntimeError("the loader is closed")
            self._running += 1
        try:
            return self._rows(int(step))
        except Exception as e:
            self.error = self.error or e
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Waits for running calls; later ones fail at once."""
        with self._changed:
            self._stopped = True
            self._changed.wait_for(lambda: not self._running)

    def read(self, step: int) -> tuple[np.ndarray, list[tuple[str, Example]]]:
        """-> source int32 [B], and for every row what to call it in a message, and the example."""
        source, record = self._sample(step)
        return source, [
            (f"source {self._sources[k].name!r} record {i}", self._sources[k].read(i))
            for k, i in zip(source.tolist(), record.tolist())
        ]

    def _rows(self, step: int) -> tuple[np.ndarray, ...]:
        source, named = self.read(step)
        rows = self._builder.build_rows([example for _, example in named])
        encoded = []
        for where, example in named:
            if len(example.images) != self.views:
                raise ValueError(f"{where} has {len(example.images)} images, not {self.views}")
            encoded.append([images.to_bytes(view, where=where) for view in example.images])
        return (
            np.asarray(encoded, object),
            rows["tokens"],
            rows["attend_causal"],
            rows["in_loss"],
            rows["valid"],
            source,
        )


def _pipeline(
    fetch: _Fetch, start: int, stop: int, image_size: int, rows: int, threads: int
) -> tf.data.Dataset:
    """Steps start .. stop - 1 as batches of `rows` rows, in order."""
    if threads < 1:
        raise ValueError(f"the loader needs at least one thread, not {threads}")
    images.hide_accelerators()

    types = (tf.string, tf.int32, tf.bool, tf.bool, tf.bool, tf.int32)
    names = ("images", "tokens", "attend_causal", "in_loss", "valid", "source")
    widths = ((fetch.views,), *[(fetch.max_tokens,)] * 4, ())

    def read_step(step: tf.Tensor) -> dict[str, tf.Tensor]:
        columns: dict[str, tf.Tensor] = dict(zip(names, tf.numpy_function(fetch, [step], types)))
        for name, width in zip(names, widths):
            columns[name].set_shape((rows, *width))
        return columns

    def decode(row: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        views = [images.decode(view, image_size) for view in tf.unstack(row["images"])]
        return {**row, "images": tf.stack(views)}

    dataset = tf.data.Dataset.range(start, stop)
    # Two, so that the next batch is read while one is decoded. Order is kept.
    dataset = dataset.map(read_step, num_parallel_calls=2, deterministic=True)
    dataset = dataset.unbatch().map(decode, num_parallel_calls=threads, deterministic=True)
    dataset = dataset.batch(rows, drop_remainder=True)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = threads
    options.threading.max_intra_op_parallelism = 1
    return dataset.with_options(options)


class _Stream:
    """The batches of a pipeline one by one, with errors a person can read.

    tf.data's threads call Python. They must be gone before the interpreter is, or it aborts: hence
    the finalizer, which also runs at exit.
    """

    def __init__(self, dataset: tf.data.Dataset, fetch: _Fetch, step: int):
        self.step = step
        self._fetch = fetch
        self._iterators: list[Any] = [dataset.as_numpy_iterator()]
        self.close = weakref.finalize(self, _stop, fetch, self._iterators)

    def __next__(self) -> dict[str, Any]:
        if not self._iterators:
            raise ValueError("the loader is closed")
        try:
            batch = next(self._iterators[0])
        except tf.errors.OpError as e:
            raise self._explained(e) from None
        self.step += 1
        return batch

    def _explained(self, error: tf.errors.OpError) -> Exception:
        """What the source raised, or which record of this step has a bad image."""
        if self._fetch.error is not None:
            return self._fetch.error
        for where, example in self._fetch.read(self.step)[1]:
            for view in example.images:
                try:
                    tf.io.decode_image(images.to_bytes(view, where=where), channels=3)
                except tf.errors.OpError:
                    return ValueError(
                        f"{where}: its image is damaged or not PNG, JPEG, GIF or BMP: repair or "
                        "drop the record"
                    )
        return error


def _stop(fetch: _Fetch, iterators: list[Any]) -> None:
    fetch.stop()
    iterators.clear()


def _local_rows(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    if batch_size < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {process_count} processes "
            f"(this is number {process_index}): make it a multiple"
        )
    local = batch_size // process_count
    return process_index * local + np.arange(local, dtype=np.int64)
