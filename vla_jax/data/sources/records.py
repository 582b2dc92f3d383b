"""Serialized records of a TFDS data set by number, from ArrayRecord or TFRecord files."""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from vla_jax.data import storage
from vla_jax.data.sources import index_files
from vla_jax.data.sources.array_records import ArrayRecords
from vla_jax.data.sources.base import place
from vla_jax.data.storage import FileFacts

# A TFRecord is: length uint64, its checksum uint32, the bytes, their checksum uint32.
_HEADER, _FOOTER = 12, 4


class RecordFiles:
    """Records 0 .. len - 1 of one split, across its files.

    Args:
      name: the data set's name, for messages.
      path: directory with `dataset_info.json` and `features.json`, or one that holds a single such
        directory, a version; local or in a store.
      split: its split, e.g. "train".

    Raises:
      FileNotFoundError: no such data set, or a file of it is missing.
      ValueError: no such split, a file format other than ArrayRecord and TFRecord, a damaged file.
    """

    def __init__(
        self, name: str, path: str | os.PathLike[str], split: str, *, max_bad_records: int = 0
    ):
        self.name, self.split = name, split
        self.path = _version_directory(name, os.fspath(path))
        self.info = _dataset_info(name, self.path)
        if split not in self.info.splits:
            raise ValueError(
                f"data set {name!r} in {self.path} has no split {split!r}; "
                f"it has {', '.join(sorted(self.info.splits))}"
            )
        shards = self.info.splits[split]
        names = [storage.join(self.path, filename) for filename in sorted(shards.filenames)]
        self.files = storage.file_facts(
            names, where=f"data set {name!r}", may_miss=max_bad_records > 0
        )
        self._starts = [0, *np.cumsum(shards.shard_lengths).tolist()]
        self._shards = self._open(list(shards.shard_lengths))
        if isinstance(self._shards, _TfRecords):
            self._shards.require_few_cut_off(max_bad_records)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def metadata(self) -> dict[str, Any]:
        """What the writer stored in `metadata.json`; {} if nothing."""
        path = storage.join(self.path, "metadata.json")
        return json.loads(storage.read_file(path)) if storage.exists(path) else {}

    def read(self, index: int) -> bytes:
        """Raises ValueError, naming file and record, if it cannot be read."""
        shard, number = place(self._starts, index, "record", self.name)
        try:
            return self._shards.read(shard, number)
        except (ValueError, IndexError, RuntimeError, EOFError, OSError) as e:
            raise ValueError(f"{self.where(index)} cannot be read: {e}") from e

    def read_part(self, index: int, offset: int, length: int) -> bytes:
        """Bytes offset .. offset + length - 1 of a record, where `reads_parts`.

        Raises as `read` does.
        """
        shard, number = place(self._starts, index, "record", self.name)
        if not isinstance(self._shards, _TfRecords):
            raise ValueError(f"{self.where(index)}: its file format gives whole records only")
        try:
            return self._shards.read_part(shard, number, offset, length)
        except (EOFError, OSError) as e:
            raise ValueError(f"{self.where(index)} cannot be read: {e}") from e

    @property
    def reads_parts(self) -> bool:
        """Whether a part of a record can be read without the rest of it."""
        return isinstance(self._shards, _TfRecords)

    def parse(self, index: int) -> Mapping[str, Any]:
        """The record's tf.Example: flat feature name -> tf.train.Feature.

        Raises ValueError, naming file and record, if it cannot be read or parsed.
        """
        return parse_example(self.read(index), where=lambda: self.where(index))

    def of_file(self, file: int) -> range:
        """The records in a file."""
        return range(self._starts[file], self._starts[file + 1])

    def where(self, index: int) -> str:
        """`data set 'demo', /data/demo/demo-train.array_record-00003 record 17`."""
        shard, number = place(self._starts, index, "record", self.name)
        return f"data set {self.name!r}, {self.files[shard].path} record {number}"

    def _open(self, lengths: list[int]) -> _Shards:
        kind = self.info.file_format.value if self.info.file_format else "unknown"
        if kind == "array_record":
            return ArrayRecords(self.files, lengths, said_by="dataset_info.json")
        if kind == "tfrecord":
            return _TfRecords(self.name, self.files, lengths)
        raise ValueError(
            f"data set {self.name!r} in {self.path} is stored as {kind}; this program reads "
            "array_record and tfrecord: convert it with `tfds convert_format`"
        )


class _Shards(Protocol):
    def read(self, shard: int, number: int) -> bytes: ...


class _TfRecords:
    """Random access by a table of byte offsets."""

    def __init__(self, name: str, files: Sequence[FileFacts], lengths: Sequence[int]):
        self._name, self._files, self._lengths = name, files, lengths
        self._first = [0, *np.cumsum(lengths).tolist()]
        self._spans = index_files.load_or_build(
            files, "tfrecord spans, -1 where cut off", self._scan
        )

    def read(self, shard: int, number: int) -> bytes:
        """Raises ValueError for a record that was cut off when the table was made."""
        offset, length = self._spans[self._first[shard] + number].tolist()
        if length < 0:
            raise ValueError(f"the file is missing or cut off from byte {offset}; copy it again")
        return storage.read_range(self._files[shard].path, offset, length)

    def read_part(self, shard: int, number: int, offset: int, length: int) -> bytes:
        start = int(self._spans[self._first[shard] + number, 0])
        return storage.read_range(self._files[shard].path, start + offset, length)

    def require_few_cut_off(self, allowed: int) -> None:
        """Raises ValueError, naming the first, if files are cut off before more records."""
        cut = np.flatnonzero(self._spans[:, 1] < 0)
        if len(cut) > allowed:
            shard, number = place(self._first, int(cut[0]), "record", self._name)
            raise ValueError(
                f"data set {self._name!r}, {self._files[shard].path} record {number}: the file is "
                f"missing, cut off or damaged from byte {self._spans[cut[0], 0]} ({len(cut)} "
                f"records of the data set are lost, {allowed} may be: data.max_bad_records); copy "
                "it again"
            )

    def _scan(self) -> np.ndarray:
        """int64 [records, 2]: offset and length of each record's bytes, from the headers alone.

        Where a file is cut off, records have length -1, and the offset from which on it is.
        """
        spans = []
        for facts, count in zip(self._files, self._lengths):
            path, size, position, found = facts.path, facts.size, 0, 0
            with storage.open_file(facts) if size else io.BytesIO() as file:
                while position + _HEADER <= size:
                    file.seek(position)
                    (length,) = struct.unpack("<Q", file.read(8))
                    end = position + _HEADER + length + _FOOTER
                    if end > size:
                        break
                    spans.append((position + _HEADER, length))
                    position, found = end, found + 1
            if found > count:
                raise ValueError(
                    f"data set {self._name!r}, {path} has {found} records, dataset_info.json says "
                    f"{count}: copy it again"
                )
            spans += [(position, -1)] * (count - found)
        return np.asarray(spans, np.int64).reshape(-1, 2)


def parse_example(data: bytes, *, where: Callable[[], str]) -> Mapping[str, Any]:
    """A serialized tf.Example: flat feature name -> tf.train.Feature.

    Raises ValueError, starting with what `where` says, if it is not one.
    """
    try:
        return tf.train.Example.FromString(data).features.feature
    except DecodeError as e:
        raise ValueError(
            f"{where()} is damaged (not a tf.Example): copy or write the file again"
        ) from e


def find_feature(features: Any, path: str, *, where: str) -> Any:
    """The tfds feature at "steps/observation/image". Raises ValueError listing what is there.

    A name may hold a "/" itself, such as BC-Z's "future/xyz_residual".
    """
    node: Any = features
    rest = path
    while rest:
        if isinstance(node, (tfds.features.Dataset, tfds.features.Sequence)):
            node = node.feature
        names = sorted(node) if isinstance(node, tfds.features.FeaturesDict) else []
        name = next((n for n in names if f"{rest}/".startswith(f"{n}/")), None)
        if name is None:
            there = names or "no such level"
            raise ValueError(
                f"{where} has no feature {path!r}: at {rest.split('/')[0]!r} there is {there}; "
                "describe the data set with another layout"
            )
        node, rest = node[name], rest[len(name) + 1 :]
    return node


def require_image(features: Any, path: str, *, where: str) -> None:
    """Raises ValueError unless there is an encoded image [height, width, channels] at `path`."""
    feature: Any = find_feature(features, path, where=where)
    shape = feature.shape
    if not isinstance(feature, tfds.features.Image) or len(shape) != 3:
        raise ValueError(
            f"{where}: feature {path} is {type(feature).__name__} of shape {shape}; one "
            "encoded image [height, width, 3] a step or record is needed: store it as "
            "tfds.features.Image"
        )


def require_text(features: Any, path: str, *, where: str) -> None:
    """Raises ValueError unless there is a text, or one list of texts, at `path`."""
    feature: Any = find_feature(features, path, where=where)
    parts = path.split("/")
    on_the_way = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    lists = [p for p in on_the_way if _is_list(find_feature(features, p, where=where))]
    inner = feature.feature if _is_list(feature) else feature
    if len(lists) > 1 or not isinstance(inner, tfds.features.Text):
        raise ValueError(
            f"{where}: feature {path} is neither a text nor one list of texts but {feature}: name "
            "a text feature"
        )


def _is_list(feature: Any) -> bool:
    return isinstance(feature, (tfds.features.Dataset, tfds.features.Sequence))


def _version_directory(name: str, path: str) -> str:
    """The data set's directory itself, or that of its only version inside."""
    if storage.exists(storage.join(path, "dataset_info.json")):
        return path
    found = [
        storage.parent(f) for f in storage.list_files(storage.join(path, "*/dataset_info.json"))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"data set {name!r}: {path} has several versions, name one: {found}")
    raise FileNotFoundError(
        f"data set {name!r}: {path} has no dataset_info.json. Give the directory of a TFDS data "
        "set or of one of its versions (.../name/1.0.0), or write one with "
        "python -m vla_jax.data.write"
    )


def _dataset_info(name: str, path: str) -> tfds.core.DatasetInfo:
    try:
        if not storage.is_remote(path):
            return tfds.builder_from_directory(path).info
        # tfds knows fewer stores than `storage`, but all it needs are the small files.
        with tempfile.TemporaryDirectory() as copy:
            for kind in ("json", "txt"):
                for file in storage.list_files(storage.join(path, f"*.{kind}")):
                    data = storage.read_file(file)
                    storage.write_file(storage.join(copy, file.rpartition("/")[2]), data)
            return tfds.builder_from_directory(copy).info
    except OSError:
        raise
    except Exception as e:  # tfds raises many kinds for a malformed directory
        raise ValueError(f"data set {name!r} in {path} cannot be opened by tfds: {e}") from e
