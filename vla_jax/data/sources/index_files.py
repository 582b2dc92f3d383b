"""Small tables built once from a data set and kept beside it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from vla_jax.data import storage
from vla_jax.data.storage import FileFacts

_FORMAT = 3
_PROGRESS_SECONDS = 10
# NumPy reads a file's header by `ast`, which Python 3.11.7 cannot do in two threads (gh-106905).
_HEADERS = threading.Lock()


def load_or_build(
    files: Sequence[FileFacts], what: str, build: Callable[[], np.ndarray]
) -> np.ndarray:
    """The table `build()` makes from `files`; see `load_or_build_tables`."""
    return load_or_build_tables(files, what, ("table",), lambda: {"table": build()})["table"]


def load_or_build_tables(
    files: Sequence[FileFacts],
    what: str,
    names: Sequence[str],
    build: Callable[[], Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The tables `build()` makes from `files`, from disk if they were made before.

    They are kept as `.index-....npy` beside the first file or, if that place cannot be written,
    under `$XDG_CACHE_HOME/vla_jax` (`~/.cache/vla_jax`). Their names hold a hash of `what` and of
    the files' paths, sizes and versions, so tables of other files are never used. If neither place
    can be written, the tables are built anew each time.

    A table from a local disk is mapped, not read: what is not used takes no memory.

    Args:
      names: of the tables.
    """
    facts = [(_place(f.path), f.size, f.version) for f in files]
    digest = hashlib.sha256(json.dumps([_FORMAT, what, facts]).encode()).hexdigest()[:16]
    stems = [
        storage.join(place, f".index-{digest}-")
        for place in (storage.parent(files[0].path), _cache_directory())
    ]
    for stem in stems:
        try:
            return {name: _load(f"{stem}{name}.npy") for name in names}
        except Exception:  # not there, not ours or half written, in the words of any store
            continue
    tables = dict(build())
    for stem in stems:
        try:
            for name in names:
                buffer = io.BytesIO()
                np.save(buffer, tables[name])
                storage.write_file(f"{stem}{name}.npy", buffer.getvalue())
            return {name: _load(f"{stem}{name}.npy") for name in names}
        except Exception:  # read-only
            continue
    return tables


def load_or_build_by_file(
    files: Sequence[FileFacts],
    what: str,
    build: Callable[[FileFacts], np.ndarray],
    *,
    name: str,
    threads: int = 8,
) -> np.ndarray:
    """Tables of single files as one, with a first column for the number of the file.

    Args:
      build: makes the table of one file, [rows, columns] of one dtype.
      files, what, name, threads: see `build_parts`.

    Returns:
      [rows of all files, 1 + columns].
    """

    def build_all() -> np.ndarray:
        parts = build_parts(
            files, what, ("table",), lambda n: {"table": build(files[n])}, name=name,
            threads=threads,
        )  # fmt: skip
        ordered = [part["table"] for part in parts]
        numbers = np.repeat(np.arange(len(files)), [len(table) for table in ordered])
        joined = np.concatenate(ordered)
        return np.concatenate([numbers.astype(joined.dtype)[:, None], joined], axis=1)

    return load_or_build(files, f"{what}, by file", build_all)


def build_parts(
    files: Sequence[FileFacts],
    what: str,
    names: Sequence[str],
    build: Callable[[int], Mapping[str, np.ndarray]],
    *,
    name: str,
    threads: int = 8,
) -> list[dict[str, np.ndarray]]:
    """The tables of each file, made in threads.

    They are kept: a run that is stopped goes on where it was, and when a file changes or comes
    along, only that one is read again. Processes that start together each take the files in an
    order of their own, so that they share the work.

    Args:
      files: the files, in order; at least one.
      what: the tables hold, and of which form.
      names: of the tables.
      build: number of the file -> its tables.
      name: of the data set, for the progress line.
      threads: files read at a time.
    """

    def build_one(number: int) -> dict[str, np.ndarray]:
        tables = load_or_build_tables([files[number]], what, names, lambda: build(number))
        # A mapped table would keep its file open.
        return {key: np.array(table) for key, table in tables.items()}

    parts: dict[int, dict[str, np.ndarray]] = {}
    begun = told = time.monotonic()
    order = np.random.default_rng(os.getpid()).permutation(len(files)).tolist()
    pool = ThreadPoolExecutor(threads)
    try:
        jobs = {pool.submit(build_one, number): number for number in order}
        for job in as_completed(jobs):
            parts[jobs[job]] = job.result()
            now = time.monotonic()
            if now - told > _PROGRESS_SECONDS:
                told = now
                left = (now - begun) / len(parts) * (len(files) - len(parts))
                print(
                    f"{name}: indexed {len(parts)} of {len(files)} files, {left:.0f} s left",
                    file=sys.stderr,
                )
    finally:
        pool.shutdown(cancel_futures=True)
    return [parts[number] for number in range(len(files))]


def _cache_directory() -> str:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(home, "vla_jax")


def _place(path: str) -> str:
    return path if storage.is_remote(path) else os.path.realpath(path)


def _load(path: str) -> np.ndarray:
    data = io.BytesIO(storage.read_file(path)) if storage.is_remote(path) else None
    with _HEADERS:
        if data is not None:
            return np.load(data, allow_pickle=False)
        # A plain view of the mapping: a np.memmap is ten times slower to look things up in.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
