"""Pictures with texts in JSON lines: one object a line, images in files beside it.

{"image": "000012.jpg", "prefix": "caption en", "suffix": "a dog on a mat"}
"""

from __future__ import annotations

import array
import os

import numpy as np

from vla_jax.data import storage
from vla_jax.data.sources import index_files
from vla_jax.data.sources.texts import TextLayout, json_object, json_texts
from vla_jax.data.storage import FileFacts
from vla_jax.types import Example

PREFIX_AND_SUFFIX = TextLayout("{prefix}", "suffix")

_WHAT = "jsonl: int64 offset, length, number of the line"


class JsonlSource:
    """Every line that is not blank is one record.

    A table of where lines begin is built at the first opening, see `index_files`.

    Args:
      name: for messages.
      path: of the file or files, local or in a store; may be a pattern, `/data/{0..3}.jsonl`.
      image_root: what image paths are relative to. None: the directory of the file they stand in.
      image: field with the path of the image.
      texts: fields of prompt and answer. Some models need a line feed after the prefix:
        `TextLayout("{prefix}\\n", "suffix")`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no line in it.
    """

    action_spec = None

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        *,
        image_root: str | os.PathLike[str] | None = None,
        image: str = "image",
        texts: TextLayout = PREFIX_AND_SUFFIX,
    ):
        self.name, self._image_field, self._texts = name, image, texts
        files = storage.list_files(path)
        if not files:
            raise FileNotFoundError(f"data set {name!r}: no file is like {os.fspath(path)}")
        self._files = storage.file_facts(files, where=f"data set {name!r}")
        self._roots = [
            storage.parent(file.path) if image_root is None else os.fspath(image_root)
            for file in self._files
        ]
        self._table = index_files.load_or_build_by_file(self._files, _WHAT, _scan, name=name)
        if not len(self._table):
            raise ValueError(f"data set {name!r}: {files[0]} has no line: write it again")

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> Example:
        """Line `index`. Raises ValueError, naming file and line, if it cannot be used."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of data set {self.name!r}, which has {len(self)}")
        file, offset, length, line = self._table[index].tolist()
        path = self._files[file].path
        where = f"data set {self.name!r}, {path} line {line} (byte {offset})"
        try:
            data = storage.read_range(path, offset, length)
        except EOFError as e:
            raise ValueError(f"{where}: {e}") from e
        record = json_object(data, where=where)
        prompt, answer = self._texts.read(
            lambda field: json_texts(record, field, where=where), where=lambda: where
        )
        return Example(
            images=(self._image(record, self._roots[file], where),), prompt=prompt, answer=answer
        )

    def _image(self, record: dict, root: str, where: str) -> bytes:
        names = json_texts(record, self._image_field, where=where)
        if len(names) != 1 or not names[0]:
            raise ValueError(
                f"{where}: {self._image_field} holds {names}, not one path: repair or drop it"
            )
        path = storage.join(root, names[0])
        try:
            image = storage.read_file(path)
        except (FileNotFoundError, IsADirectoryError) as e:
            raise ValueError(
                f"{where}: its image {path} is not there: copy it there, give another image_root, "
                "or drop the line"
            ) from e
        if not image:
            raise ValueError(f"{where}: its image {path} is empty: copy it again or drop the line")
        return image


def _scan(file: FileFacts) -> np.ndarray:
    """int64 [lines, 3]: offset and length of each line that is not blank, and its number from 1."""
    rows, offset = array.array("q"), 0
    with storage.open_file(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                rows.extend((offset, len(line), number))
            offset += len(line)
    return np.frombuffer(rows, np.int64).reshape(-1, 3)
