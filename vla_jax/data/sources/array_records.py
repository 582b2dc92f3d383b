"""Records of ArrayRecord files by number, on a local disk or in a store.

Both are read by the array_record library, which decodes every form of them and checks their hashes.
It opens local files only. For a file in a store it is therefore given a local one that has nothing
in it but the bytes it is about to read, at the places where the file has them.

A file is a row of chunks, each of one record or of a group of them; then a chunk that lists where
they begin, the footer; and in the last 64 KiB one that says where the footer begins, the postscript
(github.com/google/array_record, cpp/layout.proto). A chunk is compressed records after a header,
and every 64 KiB of the file begin with a block header, wherever in a chunk that is
(github.com/google/riegeli, doc/riegeli_records_file_format.md).
"""

from __future__ import annotations

import contextlib
import functools
import resource
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from vla_jax.data import storage
from vla_jax.data.recent import RecentlyRead
from vla_jax.data.storage import FileFacts

_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 2**16, 24, 40  # bytes
_TAIL = 2 * _BLOCK  # read at first: the postscript and most often the whole footer
_KEPT = 16 * 2**20  # bytes of chunks read last, where each holds many records
_SIMPLE = ord("r")  # type of a chunk whose records lie one after the other
_CODECS = {0: None, ord("b"): "brotli", ord("z"): "zstd", ord("s"): "snappy"}
_MAGIC = 0x71930E704FDAE05E  # of a postscript
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # those of random access


class ArrayRecords:
    """ArrayRecord files, local or in a store. Each is opened at first use.

    Several threads may read at once. Of a file in a store a record costs one request, for the bytes
    of its chunk and no more; opening it costs one of 128 KiB, and a second where the list of its
    chunks is longer. That list is kept, some 13 bytes a chunk.

    Args:
      files: the shards.
      lengths: records of each.
      said_by: where the lengths are from, for messages.
    """

    def __init__(self, files: Sequence[FileFacts], lengths: Sequence[int], *, said_by: str):
        self._facts, self._lengths, self._said_by = files, lengths, said_by
        self._files: dict[int, _File] = {}
        # A reader keeps a file open, and a process may have so many open.
        self._readers = RecentlyRead[Any](max(1, _most_open_files() // 4), lambda reader: 1)
        self._stand_in = _StandIn() if any(storage.is_remote(file.path) for file in files) else None
        self._chunks = RecentlyRead[bytes](_KEPT, len)

    def read(self, shard: int, number: int) -> bytes:
        """Record `number` of a shard.

        Raises ValueError, EOFError or RuntimeError if it is damaged, OSError if it cannot be read.
        """
        file = self._files.get(shard) or self._first_use(shard)
        return file.read(self._readers.get(shard, file.open), number)

    def _first_use(self, shard: int) -> _File:
        facts = self._facts[shard]
        if storage.is_remote(facts.path):
            assert self._stand_in is not None
            file = _RemoteFile(facts, self._stand_in, self._chunks)
        else:
            file = _LocalFile(facts)
        try:
            reader, why = file.open(), ""
            count = reader.num_records()
        except RuntimeError as e:
            reader, why, count = None, f" ({e})", 0
        if count != self._lengths[shard]:
            raise ValueError(
                f"{count} records can be read{why}, {self._said_by} says {self._lengths[shard]}: "
                "the file is cut off, damaged or of another data set; copy or write it again"
            )
        self._readers.get(shard, lambda: reader)
        # Two threads may do this at the same time; one of the two files is used by both.
        return self._files.setdefault(shard, file)


class _File(Protocol):
    def open(self) -> Any:
        """A reader of the library. Raises RuntimeError if it cannot open the file."""

    def read(self, reader: Any, number: int) -> bytes: ...


class _LocalFile:
    def __init__(self, facts: FileFacts):
        self._path, self._lock = facts.path, threading.Lock()

    def open(self) -> Any:
        return _open(self._path)

    def read(self, reader: Any, number: int) -> bytes:
        with self._lock:
            return reader.read([number])[0]


class _RemoteFile:
    def __init__(self, facts: FileFacts, stand_in: _StandIn, chunks: RecentlyRead[bytes]):
        self._path, self._stand_in, self._chunks = facts.path, stand_in, chunks
        start = max(0, facts.size - _TAIL)
        tail = storage.read_range(facts.path, start, facts.size - start)
        footer = _footer_start(tail, facts.size)
        if footer is not None and footer < start:
            tail = storage.read_range(facts.path, footer, start - footer) + tail
        elif footer is not None:
            tail = tail[footer - start :]
        # From the footer on; most of it are zeros.
        self._tail, self._footer = zlib.compress(tail, 1), facts.size - len(tail)

    def open(self) -> Any:
        with self._stand_in.holding(self._footer, zlib.decompress(self._tail)) as path:
            return _open(path)

    def read(self, reader: Any, number: int) -> bytes:
        starts, group = self._list
        start, end = starts[number // group :][:2].tolist()
        fetch = functools.partial(storage.read_range, self._path, start, end - start)
        data = fetch() if group == 1 else self._chunks.get((self._path, start), fetch)
        with self._stand_in.holding(start, data):
            return reader.read([number])[0]

    @functools.cached_property
    def _list(self) -> tuple[np.ndarray, int]:
        """Where chunks begin and the last ends, int64; records of each, but perhaps the last."""
        starts, group = _chunk_starts(zlib.decompress(self._tail)[:-_BLOCK], self._footer)
        return np.append(starts, self._footer), group


def _most_open_files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**16 if soft == resource.RLIM_INFINITY else soft


def _open(path: str) -> Any:
    reader = array_record_module.ArrayRecordReader(path, _OPTIONS)
    reader.seek(0)  # an error here, if it was one to open it
    return reader


class _StandIn:
    """The local file that the library reads in place of those in a store."""

    def __init__(self):
        self._file = tempfile.NamedTemporaryFile(prefix="array_record-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # which removes it
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def holding(self, start: int, data: bytes) -> Iterator[str]:
        """Its path, while it has `data` from byte `start` on. For one thread at a time."""
        with self._lock:
            try:
                self._file.seek(start)
                self._file.write(data)
                self._file.flush()
                yield self._file.name
            finally:
                self._file.seek(0)
                self._file.truncate()


def _footer_start(tail: bytes, size: int) -> int | None:
    """Where the footer begins; None if this is not the end of an ArrayRecord file.

    Args:
      tail: of the file, with its last block.
      size: of the file, in bytes.
    """
    try:
        sizes, values = _decode(tail[-_BLOCK:], 0)
        [copies] = {values[start:][:length] for start, length in _spans(sizes)}
        offset_tag, offset, magic_tag, magic = _varints(copies).tolist()
    except (ValueError, OSError):  # of ours and of the decompressor
        return None
    if (offset_tag, magic_tag, magic) != (8, 16, _MAGIC) or offset >= size - _BLOCK:
        return None
    return offset


def _chunk_starts(footer: bytes, position: int) -> tuple[np.ndarray, int]:
    """Where the chunks of a file begin, int64, and how many records each but the last has.

    Args:
      footer: the bytes of that chunk, and perhaps padding.
      position: of the footer in the file.

    Raises ValueError if it is of a form that is not known.
    """
    sizes, values = _decode(footer, position)
    # About the file; then of each chunk its start, bytes and records, numbered 1 to 3 as varints.
    fields = _varints(values[int(sizes[0]) :])
    if len(fields) != 6 * (len(sizes) - 1) or (fields.reshape(-1, 6)[:, ::2] != (8, 16, 24)).any():
        raise ValueError("its list of chunks is not of version 1 of ArrayRecord: convert the data")
    return fields[1::6].astype(np.int64), int(fields[5])


def _decode(data: bytes, position: int) -> tuple[np.ndarray, bytes]:
    """Sizes of a chunk's records, uint64, and the records, one after the other.

    Args:
      data: begins with the chunk.
      position: of `data` in the file.

    Raises ValueError or OSError if it is something else; it is not checked by its hash.
    """
    plain = _without_block_headers(data, position)
    size, kind = int.from_bytes(plain[8:16], "little"), plain[24:25]
    body = plain[_CHUNK_HEADER:][:size]
    if len(body) < size or kind != bytes([_SIMPLE]) or not body or body[0] not in _CODECS:
        raise ValueError("not a chunk of records that lie one after the other")
    codec = _CODECS[body[0]]
    length, rest = _split_varint(body[1:])
    return _varints(_decompress(rest[:length], codec)), _decompress(rest[length:], codec)


def _without_block_headers(data: bytes, position: int) -> bytes:
    first = -position % _BLOCK  # where in `data` the first block begins
    rest = (data[at + _BLOCK_HEADER : at + _BLOCK] for at in range(first, len(data), _BLOCK))
    return data[:first] + b"".join(rest)


def _decompress(data: bytes, codec: str | None) -> bytes:
    if codec is None:
        return data
    size, compressed = _split_varint(data)
    return pyarrow.Codec(codec).decompress(compressed, size, asbytes=True) if size else b""


def _split_varint(data: bytes) -> tuple[int, bytes]:
    """The number at the beginning, and what comes after it."""
    end = next((at for at, byte in enumerate(data[:10], 1) if byte < 128), None)
    if end is None:
        raise ValueError("no varint")
    return int(_varints(data[:end])[0]), data[end:]


def _varints(data: bytes) -> np.ndarray:
    """uint64; their bytes hold 7 bits each, the lowest first, and a bit that says more follow."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128)
    starts = np.append(0, ends[:-1] + 1) if len(ends) else ends
    lengths = ends - starts + 1
    if lengths.sum() != len(raw) or (lengths > 10).any():
        raise ValueError("not a row of varints")
    values = np.zeros(len(ends), np.uint64)
    for place in range(lengths.max(initial=0)):
        there = lengths > place
        bits = (raw[starts[there] + place] & 127).astype(np.uint64)
        values[there] |= bits << np.uint64(7 * place)
    return values


def _spans(sizes: np.ndarray) -> list[tuple[int, int]]:
    """Start and length of records of these sizes."""
    ends = np.cumsum(sizes)
    return list(zip((ends - sizes).tolist(), sizes.tolist()))
