"""Rows of the picture corpus, painted and encoded in parallel. Imports no TensorFlow."""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import multiprocessing
from collections.abc import Iterator
from typing import NamedTuple, TypedDict

from vla_jax.corpus.dataset import Corpus
from vla_jax.corpus.scenes import LEAST_PX
from vla_jax.data.encoding import ImageFormat, encode_image

CHUNK = 64


class ImageTextRow(TypedDict):
    """One image-text sample, ready to be stored."""

    image: bytes  # encoded
    prompt: str
    answer: str
    task: str
    language: str


def corpus_rows(
    split: str,
    count: int,
    *,
    image_size: int = 112,
    seed: int = 0,
    workers: int = 2,
    image_format: ImageFormat = "jpeg",
    background_share: float = 0.3,
    least_px: float = LEAST_PX,
    styles: int = 1,
) -> Iterator[ImageTextRow]:
    """Samples 0 .. count - 1 of a `Corpus` with these settings, in order.

    Raises RuntimeError if a worker process dies.
    """
    settings = _Settings(image_size, seed, split, background_share, least_px, styles)
    make = functools.partial(_make_chunk, settings, image_format)
    spans = ((first, min(first + CHUNK, count)) for first in range(0, count, CHUNK))
    # Spawned, because forking a process that runs TensorFlow's threads can hang the child.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)
    try:
        waiting: collections.deque[concurrent.futures.Future[list[ImageTextRow]]]
        waiting = collections.deque()
        for first, last in spans:
            waiting.append(pool.submit(make, first, last))
            # A few chunks ahead and no more, so that memory stays small however slow the disk.
            if len(waiting) >= 4 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool as e:
        raise RuntimeError(f"a worker that painted the {split} pictures died: {e}") from e
    finally:
        pool.shutdown(cancel_futures=True)


class _Settings(NamedTuple):
    """Of a `Corpus`; picklable and hashable."""

    image_size: int
    seed: int
    split: str
    background_share: float
    least_px: float
    styles: int


def _make_chunk(
    settings: _Settings, image_format: ImageFormat, first: int, last: int
) -> list[ImageTextRow]:
    corpus = _corpus(settings)
    rows = []
    for index in range(first, last):
        example = corpus.example(index)
        rows.append(
            ImageTextRow(
                image=encode_image(example["image"], image_format),
                prompt=example["prompt"],
                answer=example["answer"],
                task=example["task"],
                language=example["language"],
            )
        )
    return rows


@functools.lru_cache(maxsize=1)
def _corpus(settings: _Settings) -> Corpus:
    return Corpus(**settings._asdict())
