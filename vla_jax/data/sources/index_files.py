"""Small tables built once from a data set and kept beside it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from vla_jax.data import storage
from vla_jax.data.storage import FileFacts

_FORMAT = 2
_PROGRESS_SECONDS = 10


def load_or_build(
    files: Sequence[FileFacts], what: str, build: Callable[[], np.ndarray]
) -> np.ndarray:
    """The table `build()` makes from `files`, from disk if it was made before.

    It is kept as `.index-....npy` beside the first file or, if that place cannot be written, under
    `$XDG_CACHE_HOME/vla_jax` (`~/.cache/vla_jax`). Its name holds a hash of `what` and of the
    files' paths, sizes and versions, so a table of other files is never used. If neither place can
    be written, the table is built anew each time.

    A table from a local disk is mapped, not read: what is not used takes no memory.
    """
    facts = [(_place(f.path), f.size, f.version) for f in files]
    digest = hashlib.sha256(json.dumps([_FORMAT, what, facts]).encode()).hexdigest()[:16]
    name = f".index-{digest}.npy"
    places = [
        storage.join(place, name) for place in (storage.parent(files[0].path), _cache_directory())
    ]
    for place in places:
        try:
            return _load(place)
        except Exception:  # not there, not ours or half written, in the words of any store
            continue
    table = build()
    buffer = io.BytesIO()
    np.save(buffer, table)
    for place in places:
        try:
            storage.write_file(place, buffer.getvalue())
            break
        except Exception:  # read-only
            continue
    return table


def load_or_build_by_file(
    files: Sequence[FileFacts],
    what: str,
    build: Callable[[FileFacts], np.ndarray],
    *,
    name: str,
    threads: int = 8,
) -> np.ndarray:
    """Tables of single files as one, with a first column for the number of the file.

    The table of each file is kept too: a run that is stopped goes on where it was, and when a file
    changes or comes along, only that one is read again.

    Args:
      files: the files, in order; at least one.
      what: a table holds, and of which form.
      build: makes the table of one file, [rows, columns] of one dtype; called in threads.
      name: of the data set, for the progress line.
      threads: files read at a time.

    Returns:
      [rows of all files, 1 + columns].
    """

    def build_one(file: FileFacts) -> np.ndarray:
        table = load_or_build([file], what, lambda: build(file))
        return np.array(table)  # a mapped table would keep its file open

    def build_all() -> np.ndarray:
        tables: dict[int, np.ndarray] = {}
        pool, told = ThreadPoolExecutor(threads), time.monotonic()
        try:
            jobs = {pool.submit(build_one, file): number for number, file in enumerate(files)}
            for job in as_completed(jobs):
                tables[jobs[job]] = job.result()
                if time.monotonic() - told > _PROGRESS_SECONDS:
                    told = time.monotonic()
                    print(f"{name}: indexed {len(tables)} of {len(files)} files", file=sys.stderr)
        finally:
            pool.shutdown(cancel_futures=True)
        ordered = [tables[number] for number in range(len(files))]
        numbers = np.repeat(np.arange(len(files)), [len(table) for table in ordered])
        joined = np.concatenate(ordered)
        return np.concatenate([numbers.astype(joined.dtype)[:, None], joined], axis=1)

    return load_or_build(files, f"{what}, by file", build_all)


def _cache_directory() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "vla_jax")


def _place(path: str) -> str:
    return path if storage.is_remote(path) else os.path.realpath(path)


def _load(path: str) -> np.ndarray:
    if storage.is_remote(path):
        return np.load(io.BytesIO(storage.read_file(path)), allow_pickle=False)
    return np.load(path, mmap_mode="r", allow_pickle=False)
