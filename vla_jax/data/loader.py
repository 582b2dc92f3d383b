"""Batches of a run, executed by tf.data; the whole state is the number of the next step.

Step s of a run with global batch B holds samples s * B .. (s + 1) * B - 1 of the mixture; process p
of P reads the p-th of P equal slices. Which records those are is the mixture's business, so the
loader can start at any step at once, on any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf

from vla_jax.actions.spec import ActionSpec
from vla_jax.data import images
from vla_jax.data.mixture import Mixture, SourceConfig
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.episodes import EpisodeSource
from vla_jax.data.sources.image_text import ImageTextSource
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
        self._rows = _local_rows(batch_size, process_index, process_count)
        self._mixture, self._batch_size = mixture, batch_size
        self._fetch = _Fetch(list(sources.values()), builder)
        self.step = start_step
        """The next step to come out. All there is to save."""
        dataset = _pipeline(
            self._fetch, self._sample, start_step, _FOREVER, image_size, len(self._rows), threads
        )
        self._batches = dataset.prefetch(prefetch).as_numpy_iterator()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = _next(self._batches, self._fetch, self._sample, self.step)
        self.step += 1
        return cast(Batch, batch)

    def _sample(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        return self._mixture.locate(step * self._batch_size + self._rows)


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

    fetch = _Fetch([source], builder)
    dataset = _pipeline(fetch, sample, 0, steps, image_size, len(rows), threads)
    batches = dataset.prefetch(1).as_numpy_iterator()
    for step in range(steps):
        batch = _next(batches, fetch, sample, step)
        batch["row_valid"] = step * batch_size + rows < count
        batch["record"] = sample(step)[1]
        yield cast(EvaluationBatch, batch)


def open_source(
    name: str,
    config: SourceConfig,
    *,
    split: str | None = None,
    expected_spec: ActionSpec | None = None,
) -> EpisodeSource | ImageTextSource:
    """Opens a data set of the config, on another split if given. Raises as the sources do."""
    split = split or config.split
    if config.kind == "image_text":
        return ImageTextSource(name, config.path, split)
    return EpisodeSource(
        name, config.path, split, expected_spec=expected_spec, cache_mib=config.cache_mib
    )


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
    """Reads and tokenizes a batch; keeps the exception that tf.data would turn into text."""

    def __init__(self, sources: Sequence[Source], builder: SequenceBuilder):
        self._sources, self._builder = sources, builder
        views = {source.name: len(source.read(0).images) for source in sources}
        if len(set(views.values())) != 1:
            raise ValueError(f"every source of a mixture gives the same number of images: {views}")
        self.views = next(iter(views.values()))
        self.max_tokens = builder.max_tokens
        self.error: Exception | None = None

    def __call__(self, source: np.ndarray, record: np.ndarray) -> tuple[np.ndarray, ...]:
        """int32 [B], int64 [B] -> encoded images object [B, views] and the token arrays [B, T]."""
        examples = self.read(source, record)
        rows = self._builder.build_rows(examples)
        encoded = [
            [images.to_bytes(view, where=self.where(k, i)) for view in example.images]
            for example, k, i in zip(examples, source, record)
        ]
        for row, k, i in zip(encoded, source, record):
            if len(row) != self.views:
                raise ValueError(f"{self.where(k, i)} has {len(row)} images, not {self.views}")
        return (
            np.asarray(encoded, object),
            rows["tokens"],
            rows["attend_causal"],
            rows["in_loss"],
            rows["valid"],
        )

    def read(self, source: np.ndarray, record: np.ndarray) -> list[Example]:
        return [self._sources[k].read(i) for k, i in zip(source.tolist(), record.tolist())]

    def where(self, source: int, record: int) -> str:
        return f"source {self._sources[source].name!r} record {record}"


def _pipeline(
    fetch: _Fetch,
    sample: _Sample,
    start: int,
    stop: int,
    image_size: int,
    rows: int,
    threads: int,
) -> tf.data.Dataset:
    """Steps start .. stop - 1 as batches of `rows` rows, in order."""
    images.hide_accelerators()

    def read(step: np.ndarray) -> tuple[np.ndarray, ...]:
        try:
            source, record = sample(int(step))
            return (*fetch(source, record), source)
        except Exception as e:
            fetch.error = fetch.error or e
            raise

    types = (tf.string, tf.int32, tf.bool, tf.bool, tf.bool, tf.int32)
    names = ("images", "tokens", "attend_causal", "in_loss", "valid", "source")
    widths = ((fetch.views,), *[(fetch.max_tokens,)] * 4, ())

    def read_step(step: tf.Tensor) -> dict[str, tf.Tensor]:
        columns: dict[str, tf.Tensor] = dict(zip(names, tf.numpy_function(read, [step], types)))
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


def _next(
    batches: Iterator[Any],
    fetch: _Fetch,
    sample: _Sample,
    step: int,
) -> dict[str, Any]:
    """Batch number `step`; an error comes out as the source raised it, or names the record."""
    try:
        return next(batches)
    except tf.errors.OpError as e:
        if fetch.error is not None:
            raise fetch.error from None
        source, record = sample(step)
        for example, k, i in zip(fetch.read(source, record), source, record):
            for view in example.images:
                try:
                    tf.io.decode_image(images.to_bytes(view, where=fetch.where(k, i)), channels=3)
                except tf.errors.OpError:
                    raise ValueError(
                        f"{fetch.where(k, i)}: its image is damaged or not PNG, JPEG, GIF or BMP: "
                        "repair or drop the record"
                    ) from e
        raise


def _local_rows(batch_size: int, process_index: int, process_count: int) -> np.ndarray:
    if batch_size < 1 or batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size {batch_size} cannot be divided among {process_count} processes "
            f"(this is number {process_index}): make it a multiple"
        )
    local = batch_size // process_count
    return process_index * local + np.arange(local, dtype=np.int64)
