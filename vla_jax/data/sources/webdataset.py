"""Pictures with captions or questions in tar shards, as img2dataset and WebDataset write them.

Files that follow each other in a shard and share their name up to its first dot are one sample:

    000000012.jpg   the image: jpg, jpeg, png or webp
    000000012.txt   its caption
    000000012.json  more about it

The headers of a shard are read once, and give a table of where things are; then any sample can be
read by itself.
"""

from __future__ import annotations

import array
import os
import sys
import tarfile

import numpy as np

from vla_jax.data import storage
from vla_jax.data.sources import index_files
from vla_jax.data.sources.texts import TextLayout, json_object, json_texts
from vla_jax.data.storage import FileFacts
from vla_jax.text.prompts import CAPTION_TEMPLATE
from vla_jax.types import Example

TEXT_FILE = ".txt"
"""The field that is the sample's text file. All others are fields of its JSON file."""

CAPTIONS = TextLayout(CAPTION_TEMPLATE, TEXT_FILE, language="english")

_IMAGE, _TEXT, _JSON = range(3)
_KINDS = {"jpg": _IMAGE, "jpeg": _IMAGE, "png": _IMAGE, "webp": _IMAGE, "txt": _TEXT, "json": _JSON}
_NAMES = ("image (jpg, jpeg, png, webp)", ".txt", ".json")
_UNIT = tarfile.BLOCKSIZE  # files begin at multiples of it, which keeps the table small
_GAP = 64 * 1024  # bytes read in vain rather than asked for apart
_CUT_OFF = 2**32 - 1
_WHAT = "webdataset: uint32 (block, length) of image, txt, json; cut off"


class WebDatasetSource:
    """Every sample of the shards that has an image and the texts asked for is one record.

    Samples without them are left out; how many says a line at the opening. The table of samples is
    built at the first opening, see `index_files`.

    Args:
      name: for messages.
      path: of the shards, local or in a store: a pattern such as `gs://bucket/{00000..00012}.tar`
        or `/data/*.tar`, or a directory, which stands for its `*.tar`.
      texts: `.txt` is the text file without the white space around it, other fields are those of
        the JSON file.
      max_bad_records: so many shards may be cut off; the samples before the cut are used.
      threads: shards read at a time when the table is built.

    Raises:
      FileNotFoundError: no shard, or one of those named is missing.
      ValueError: a shard is cut off or damaged, or no sample can be used.
    """

    action_spec = None

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        texts: TextLayout = CAPTIONS,
        max_bad_records: int = 0,
        threads: int = 8,
    ):
        self.name, self._texts = name, texts
        pattern = os.fspath(path)
        if not pattern.endswith((".tar", "}")) and "*" not in pattern:
            pattern = storage.join(pattern, "*.tar")
        shards = storage.list_files(pattern)
        if not shards:
            raise FileNotFoundError(
                f"data set {name!r}: no file is like {pattern}: give the directory of the .tar "
                "shards, or a pattern such as /data/{00000..00012}.tar"
            )
        self._shards = storage.file_facts(shards, where=f"data set {name!r}")
        self._table = index_files.load_or_build_by_file(
            self._shards, _WHAT, self._scan, name=name, threads=threads
        )
        self._require_few_cut_off(max_bad_records)
        self._kinds = [_IMAGE]
        self._kinds += [_TEXT] if TEXT_FILE in texts.fields else []
        self._kinds += [_JSON] if set(texts.fields) - {TEXT_FILE} else []
        self._rows = self._usable()

    def __len__(self) -> int:
        return len(self._table) if self._rows is None else len(self._rows)

    def read(self, index: int) -> Example:
        """Sample `index`. Raises ValueError, naming shard and sample, if it cannot be used."""
        shard, spans = self._locate(index)
        try:
            data = _read_spans(shard.path, spans)
            record = json_object(data[_JSON], where="its .json") if _JSON in data else {}

            def find(field: str) -> list[str]:
                if field != TEXT_FILE:
                    return json_texts(record, field, where="its .json")
                return [data[_TEXT].decode().strip()]

            prompt, answer = self._texts.read(find, where=lambda: "it")
        except UnicodeDecodeError as e:
            raise ValueError(
                f"{self._where(index)}: its .txt is not UTF-8 ({e}): repair or drop it"
            ) from e
        except (ValueError, EOFError) as e:
            raise ValueError(f"{self._where(index)}: {e}") from e
        return Example(images=(data[_IMAGE],), prompt=prompt, answer=answer)

    def _locate(self, index: int) -> tuple[FileFacts, dict[int, tuple[int, int]]]:
        """The shard of a record, and offset and length of each kind of file that is needed."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of data set {self.name!r}, which has {len(self)}")
        row = self._table[index if self._rows is None else self._rows[index]].tolist()
        spans = {kind: (row[1 + 2 * kind] * _UNIT, row[2 + 2 * kind]) for kind in self._kinds}
        return self._shards[row[0]], spans

    def _where(self, index: int) -> str:
        """`data set 'web', /data/00000.tar sample '000000012' (byte 3584)`."""
        shard, spans = self._locate(index)
        offset = spans[_IMAGE][0]
        try:
            header = storage.read_range(shard.path, offset - _UNIT, _UNIT)
            key = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "replace").name
        except (OSError, EOFError, tarfile.TarError):
            key = "(its header cannot be read)"
        key = _split_name(key)[0] or key
        return f"data set {self.name!r}, {shard.path} sample {key!r} (byte {offset})"

    def _usable(self) -> np.ndarray | None:
        """int64 [records]: rows of the table with all that is needed; None: each of them."""
        lengths = {kind: self._table[:, 2 + 2 * kind] for kind in self._kinds}
        complete = np.logical_and.reduce([length > 0 for length in lengths.values()])
        if complete.all() and len(complete):
            return None
        lacking = ", ".join(
            f"{np.count_nonzero(length == 0)} have no {_NAMES[kind]}"
            for kind, length in lengths.items()
        )
        left_out = f"{np.count_nonzero(~complete)} of {len(complete)} samples cannot be used"
        if not complete.any():
            raise ValueError(
                f"data set {self.name!r}: {left_out} ({lacking}, an empty one counts as none). "
                f"{self._shards[0].path} begins with {self._first_names()}: name other fields, or "
                "download the shards again"
            )
        print(f"{self.name}: {left_out} and are left out: {lacking}", file=sys.stderr)
        return np.flatnonzero(complete)

    def _first_names(self) -> str:
        with storage.open_file(self._shards[0]) as file, tarfile.open(fileobj=file) as tar:
            names = [member.name for _, member in zip(range(6), tar)]
        return ", ".join(names) or "nothing"

    def _require_few_cut_off(self, allowed: int) -> None:
        cut = self._table[self._table[:, 1] == _CUT_OFF, 0].tolist()
        for number in cut:
            try:
                self._read_headers(self._shards[number], array.array("q"))
            except ValueError as e:
                if len(cut) > allowed:
                    e.add_note(
                        f"{len(cut)} shards are cut off or damaged, {allowed} may be: "
                        "data.max_bad_records"
                    )
                    raise
                print(f"left out, the end of a shard: {e}", file=sys.stderr)

    def _scan(self, shard: FileFacts) -> np.ndarray:
        """uint32 [samples, 6]: block and length of image, txt and json; (0, 0) for none.

        The last row of a shard that is cut off begins with `_CUT_OFF`, and is no sample.
        """
        rows = array.array("q")
        try:
            self._read_headers(shard, rows)
        except ValueError:
            rows.extend([0] * 6 if not rows else [])
            rows.extend((_CUT_OFF, *[0] * 5))
        table = np.frombuffer(rows, np.int64).reshape(-1, 6)
        return table[1:].astype(np.uint32)  # the first row is that before the first sample

    def _read_headers(self, shard: FileFacts, rows: array.array) -> None:
        """Extends `rows` by a sample before the first one, which is nothing, and the samples.

        Raises ValueError, naming the shard, where it is cut off; what came before is in `rows`.
        """
        row, last = [0] * 6, ""
        try:
            with storage.open_file(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - it keeps them all
                    key, extension = _split_name(member.name)
                    if not member.isreg() or member.issparse() or not key:
                        continue
                    if key != last:
                        rows.extend(row)
                        row, last = [0] * 6, key
                    kind = _KINDS.get(extension)
                    if kind is not None and not row[2 * kind]:
                        row[2 * kind : 2 * kind + 2] = member.offset_data // _UNIT, member.size
                file.seek(tar.offset)
                end, at = file.read(_UNIT), tar.offset
        except (tarfile.TarError, EOFError) as e:
            raise self._damaged(shard, str(e)) from e
        if end != bytes(_UNIT):
            raise self._damaged(shard, f"byte {at} is neither a header nor the end mark")
        rows.extend(row)

    def _damaged(self, shard: FileFacts, reason: str) -> ValueError:
        return ValueError(
            f"data set {self.name!r}, {shard.path} ({shard.size} bytes) is cut off, damaged or "
            f"compressed: {reason}. Download the shard again, or unpack it to a plain .tar"
        )


def _split_name(name: str) -> tuple[str, str]:
    """`a/b.seg.PNG` -> (`a/b`, `seg.png`); an empty key if the file belongs to no sample."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem and extension else ""), extension.lower()


def _read_spans(path: str, spans: dict[int, tuple[int, int]]) -> dict[int, bytes]:
    """Reads files of a shard that lie close together with one request."""
    start = min(offset for offset, _ in spans.values())
    end = max(offset + length for offset, length in spans.values())
    if end - start > sum(length for _, length in spans.values()) + _GAP:
        return {kind: storage.read_range(path, *span) for kind, span in spans.items()}
    data = storage.read_range(path, start, end - start)
    return {
        kind: data[offset - start : offset - start + length]
        for kind, (offset, length) in spans.items()
    }
