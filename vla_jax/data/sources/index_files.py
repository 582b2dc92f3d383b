"""Small tables built once from a data set and kept beside it."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np

_FORMAT = 1


def load_or_build(
    files: Sequence[pathlib.Path], what: str, build: Callable[[], np.ndarray]
) -> np.ndarray:
    """The table `build()` makes from `files`, mapped from disk if it was made before.

    It is kept as `.index-....npy` beside the first file or, if that directory is read-only, under
    `$XDG_CACHE_HOME/vla_jax` (`~/.cache/vla_jax`). Its name holds a hash of `what` and of the
    files' paths, sizes and times, so a table of other files is never used. If neither place can be
    written, the table is built anew each time.
    """
    facts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(json.dumps([_FORMAT, what, facts]).encode()).hexdigest()[:16]
    places = [files[0].parent, _cache_directory()]
    for place in places:
        try:
            return np.load(place / f".index-{digest}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            continue
    table = build()
    for place in places:
        try:
            _save(table, place / f".index-{digest}.npy")
            break
        except OSError:
            continue
    return table


def _cache_directory() -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(home) / "vla_jax"


def _save(table: np.ndarray, path: pathlib.Path) -> None:
    """Writes beside and renames, so that a reader never sees half a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, table)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
