"""Files of data sets, wherever they are: local paths, gs://, s3://, and what else fsspec opens.

Requests to a store fail now and then. Those that may succeed later are repeated, with growing
pauses; a file that is not there, or not ours to read, is an error at once.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import glob
import io
import itertools
import os
import pathlib
import random
import re
import shutil
import stat
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from vla_jax.data.recent import RecentlyRead

TRIES = 8
"""How often a request is made before its error counts. Pauses between them add up to a minute."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
_BLOCK = 8 * 2**20  # bytes of a request when a remote file is read from start to end
_SMALL_BLOCK, _BLOCKS_KEPT = 256 * 2**10, 4  # bytes and number, when it is read here and there
_CONNECTIONS = 16  # requests at a time about facts of many files
_LIST_FROM = 32  # files of a directory, from which on it is listed instead
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}
# What a store calls the version of a file; the first that it gives is used.
_VERSIONS = (
    "etag", "ETag", "generation", "md5Hash", "crc32c", "mtime", "LastModified", "updated",
    "last_modified", "created",
)  # fmt: skip
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_LASTING_ERRNO = {
    errno.EINVAL, errno.ENOTSUP, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS, errno.EEXIST,
}  # fmt: skip

_Result = TypeVar("_Result")
_told: set[str] = set()
_told_lock = threading.Lock()
_jitter = random.Random()  # its own, so that no seed of the program moves


@dataclasses.dataclass(frozen=True)
class FileFacts:
    """What tells one version of a file from another.

    Attributes:
      path: as it can be opened.
      size: in bytes.
      version: its time of change or, in a store, its etag or the like.
    """

    path: str
    size: int
    version: str


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a URL, other than file://."""
    return "://" in _text(path)


def join(base: str | os.PathLike[str], name: str) -> str:
    """`name` inside `base`; an absolute path or URL stays as it is."""
    if "://" in name or name.startswith("/"):
        return name
    return f"{_text(base).rstrip('/')}/{name}"


def parent(path: str | os.PathLike[str]) -> str:
    """The directory that holds `path`."""
    text = _text(path)
    return text.rpartition("/")[0] if is_remote(text) else str(pathlib.Path(text).parent)


def read_range(path: str | os.PathLike[str], start: int, length: int) -> bytes:
    """`length` bytes from byte `start` on. May be called by several threads at once.

    Raises:
      EOFError: the file is shorter.
      OSError: it cannot be read; FileNotFoundError if it is not there.
    """
    text = _text(path)
    if length == 0:
        return b""
    if is_remote(text):
        system, inner = _backend(text)
        data = _repeat(text, lambda: system.cat_file(inner, start=start, end=start + length))
    else:
        data = _read_local(text, start, length)
    if len(data) != length:
        raise EOFError(
            f"{text} ends {length - len(data)} bytes before byte {start + length}: it is cut off "
            "or was changed; copy it again"
        )
    return data


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The whole file. Raises OSError; FileNotFoundError if it is not there."""
    text = _text(path)
    if not is_remote(text):
        return pathlib.Path(text).read_bytes()
    system, inner = _backend(text)
    return _repeat(text, lambda: system.cat_file(inner))


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a whole file at once: a reader sees the old one or the new one. Makes directories.

    Raises OSError if it cannot be written, or what the store's own library raises.
    """
    text = _text(path)
    if is_remote(text):
        system, inner = _backend(text)
        _repeat(text, lambda: system.pipe_file(inner, data))
        return
    target = pathlib.Path(text)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not by mkstemp, whose files only their owner may read.
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def upload_file(local: str, path: str | os.PathLike[str]) -> None:
    """Copies a file from a local disk to a store, in pieces. Raises as `write_file`."""
    system, inner = _backend(_text(path))
    _repeat(_text(path), lambda: system.put_file(local, inner))


def remove_directory(path: str | os.PathLike[str]) -> None:
    """Removes a directory and all that is in it; nothing happens if it is not there."""
    text = _text(path)
    if not is_remote(text):
        shutil.rmtree(text, ignore_errors=True)
        return
    system, inner = _backend(text)
    with contextlib.suppress(FileNotFoundError):
        _repeat(text, lambda: system.rm(inner, recursive=True))


def open_file(facts: FileFacts) -> BinaryIO:
    """Opens a file to read it from start to end, perhaps with jumps; remote ones in large blocks.

    Raises OSError; FileNotFoundError if it is not there.
    """
    if not is_remote(facts.path):
        return open(facts.path, "rb")
    return cast(BinaryIO, io.BufferedReader(_RemoteFile(facts), _BLOCK))


def open_blocks(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a remote file to read pieces of it here and there.

    Small pieces come from the blocks read last, 1 MiB at most, which are kept until it is closed;
    a large one is a request of its own. For one thread at a time.

    Raises OSError; FileNotFoundError if it is not there.
    """
    text = _text(path)
    facts = _facts(text)
    if facts is None:
        raise FileNotFoundError(f"{text} is not there")
    return cast(BinaryIO, _BlockFile(facts))


def list_files(pattern: str | os.PathLike[str]) -> list[str]:
    """Paths of a pattern, in order.

    Braces are spelled out, whether the files are there or not: `{000..012}` counts, with as many
    digits as given, `{a,b}` lists. Then `*`, `?`, `[...]` and `**` match the files that are there;
    a path without them stands for itself.
    """
    paths: list[str] = []
    for text in _spell_out(_text(pattern)):
        if not re.search(r"[*?\[]", text) or exists(text):
            paths.append(text)
            continue
        paths.extend(sorted(_glob(text) if is_remote(text) else glob.glob(text, recursive=True)))
    return paths


def file_facts(
    paths: Sequence[str | os.PathLike[str]], *, where: str, may_miss: bool = False
) -> list[FileFacts]:
    """Facts of files that must all be there.

    Args:
      paths: of the files.
      where: what they belong to, for messages, e.g. "data set 'demo'".
      may_miss: a missing file counts as an empty one, unless all are missing.

    Raises FileNotFoundError, saying how many are missing and naming the first.
    """
    texts = [_text(path) for path in paths]
    if any(is_remote(text) for text in texts):
        facts = _remote_facts(texts)
    else:
        facts = [_facts(text) for text in texts]
    missing = [text for text, known in zip(texts, facts) if known is None]
    if missing and not (may_miss and len(missing) < len(texts)):
        raise FileNotFoundError(
            f"{where}: {len(missing)} of {len(texts)} files are missing, e.g. {missing[0]}: "
            "copy or write the data set again"
        )
    return [known or FileFacts(text, 0, "missing") for text, known in zip(texts, facts)]


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file (not a directory) of this path."""
    return _facts(_text(path)) is not None


class _RemoteFile(io.RawIOBase):
    """The file object that libraries ask for."""

    def __init__(self, facts: FileFacts):
        self._facts, self._position = facts, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._facts.size}
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._facts.size - self._position))
        buffer[:length] = self._read(self._position, length)
        self._position += length
        return length

    def _read(self, start: int, length: int) -> bytes:
        return read_range(self._facts.path, start, length)


class _BlockFile(_RemoteFile):
    """Keeps the blocks it read last."""

    def __init__(self, facts: FileFacts):
        super().__init__(facts)
        self._recent = RecentlyRead[bytes](_BLOCKS_KEPT * _SMALL_BLOCK, len)

    def close(self) -> None:
        self._recent.clear()
        super().close()

    def _read(self, start: int, length: int) -> bytes:
        if not 0 < length < _SMALL_BLOCK:
            return super()._read(start, length)
        first, end = start // _SMALL_BLOCK, -(-(start + length) // _SMALL_BLOCK)
        blocks = b"".join(self._block(number) for number in range(first, end))
        return blocks[start - first * _SMALL_BLOCK :][:length]

    def _block(self, number: int) -> bytes:
        def read() -> bytes:
            start = number * _SMALL_BLOCK
            size = min(_SMALL_BLOCK, self._facts.size - start)
            return read_range(self._facts.path, start, size)

        return self._recent.get(number, read)


def _text(path: str | os.PathLike[str]) -> str:
    return os.fspath(path).removeprefix("file://")


def _read_local(path: str, start: int, length: int) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(handle, length, start)
        while len(data) < length:  # one call may give less, 2 GiB at most
            more = os.pread(handle, length - len(data), start + len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(handle)


def _glob(pattern: str) -> list[str]:
    system, inner = _backend(pattern)
    found = _list(pattern, system, lambda: system.glob(inner))
    return [system.unstrip_protocol(path) for path in found]


def _facts(path: str) -> FileFacts | None:
    """None: there is no such file."""
    if not is_remote(path):
        try:
            known = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(known.st_mode):
            return None
        return FileFacts(path, known.st_size, str(known.st_mtime_ns))
    system, inner = _backend(path)
    try:
        info = _repeat(path, lambda: system.info(inner))
    except FileNotFoundError:
        return None
    return _from_info(path, info)


def _remote_facts(paths: Sequence[str]) -> list[FileFacts | None]:
    """`_facts` of each path. A directory with many of them is listed once."""
    counts = collections.Counter(parent(path) for path in paths if is_remote(path))
    directories = [directory for directory, count in counts.items() if count >= _LIST_FROM]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        listed = dict(zip(directories, pool.map(_list_facts, directories)))

        def look(path: str) -> FileFacts | None:
            directory = parent(path)
            return listed[directory].get(path) if directory in listed else _facts(path)

        return list(pool.map(look, paths))


def _list_facts(directory: str) -> dict[str, FileFacts]:
    """Of all files in a remote directory, by path."""
    system, inner = _backend(directory)
    try:
        infos = _list(directory, system, lambda: system.ls(inner, detail=True))
    except FileNotFoundError:
        return {}
    paths = (join(directory, info["name"].rpartition("/")[2]) for info in infos)
    facts = (_from_info(path, info) for path, info in zip(paths, infos))
    return {known.path: known for known in facts if known is not None}


def _list(path: str, system: Any, request: Callable[[], _Result]) -> _Result:
    """`_repeat`, without what fsspec remembers: others write files too."""
    system.invalidate_cache()
    try:
        return _repeat(path, request)
    finally:
        system.invalidate_cache()


def _from_info(path: str, info: dict[str, Any]) -> FileFacts | None:
    """From what fsspec says of it. None: it is no file."""
    if info["type"] != "file":
        return None
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return FileFacts(path, int(info["size"]), version)


def _backend(path: str) -> tuple[Any, str]:
    """fsspec's file system for a path, and the path inside it."""
    try:
        system, inner = fsspec.core.url_to_fs(path)
    except ImportError as e:
        protocol = path.partition("://")[0]
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'vla_jax[{extra}]'" if extra else "install its fsspec backend"
        raise ImportError(f"{path}: {protocol}:// cannot be read here ({e}): {remedy}") from e
    except ValueError as e:
        raise ValueError(f"{path}: {e}: give a local path, gs:// or s3://") from e
    return system, inner


def _repeat(path: str, request: Callable[[], _Result]) -> _Result:
    """What `request` returns, tried again while it may still succeed."""
    for attempt in itertools.count(1):
        try:
            return request()
        except Exception as e:  # each store's library has errors of its own
            if not _may_pass(e):
                raise
            reason = f"{type(e).__name__}: {e}"
            if attempt == TRIES:
                raise OSError(f"{path}: gave up after {TRIES} tries: {reason}") from e
        _tell_once(path, f"{path}: {reason}; trying again, up to {TRIES} times")
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
        time.sleep(pause * _jitter.uniform(0.5, 1))  # not all processes at the same moment
    raise AssertionError("not reached")


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, _LASTING):
        return False
    for name in ("status", "code"):  # aiohttp's and gcsfs's errors
        status = str(getattr(error, name, None))
        if status.isdecimal():
            return int(status) in (408, 429) or int(status) >= 500
    if isinstance(error, OSError):
        # gcsfs reports a 403 as an OSError without number.
        return error.errno not in _LASTING_ERRNO and not str(error).startswith("Forbidden")
    # Lost connections of aiohttp are no OSErrors.
    return any(kind.__module__.startswith("aiohttp") for kind in type(error).__mro__)


def _tell_once(path: str, message: str) -> None:
    with _told_lock:
        if path in _told:
            return
        _told.add(path)
    print(message, file=sys.stderr)


def _spell_out(pattern: str) -> list[str]:
    """`a{0..2}` -> a0, a1, a2; `{a,b}` -> a, b. Braces of another form stay."""
    for match in re.finditer(r"\{([^{}]*)\}", pattern):
        body = match[1]
        span = re.fullmatch(r"(\d+)\.\.(\d+)", body)
        if span:
            width = len(span[1]) if span[1].startswith("0") else 0
            parts = [str(n).zfill(width) for n in range(int(span[1]), int(span[2]) + 1)]
        elif "," in body:
            parts = body.split(",")
        else:
            continue
        head, tail = pattern[: match.start()], pattern[match.end() :]
        return [head + part + rest for part in parts for rest in _spell_out(tail)]
    return [pattern]
