"""One shard of converted data: a range of a source's episodes or records, and its tables."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from PIL import Image

from vla_jax.data import images, storage
from vla_jax.data.config import SourceConfig
from vla_jax.data.encoding import encode_image
from vla_jax.data.sources import converted
from vla_jax.data.sources.base import EpisodicSource, Source, Track
from vla_jax.data.sources.converted import Shard
from vla_jax.types import Example

_TOLD_EVERY = 32  # records


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One split of one source on its way. What a shard holds follows from this and the source.

    Attributes:
      name: of the source, for messages.
      source: what is converted.
      directory: of the split; local or in a store.
      units: episodes of robot data, or records, which are divided among the shards.
      shards: number of them.
      image_size: images become squares of so many pixels; 0: they stay as they are.
      jpeg_quality: images that have to be encoded become JPEG of this quality; 0: PNG, no loss.
      max_bad_records: damaged episodes that are left out.
    """

    name: str
    source: SourceConfig
    directory: str
    units: int
    shards: int
    image_size: int
    jpeg_quality: int
    max_bad_records: int

    def file(self, shard: int) -> str:
        return storage.join(
            self.directory, f"records-{shard:05d}-of-{self.shards:05d}.array_record"
        )

    def part(self, shard: int) -> str:
        return storage.join(self.directory, f"{converted.UNFINISHED}/{shard:05d}.npz")

    def span(self, shard: int) -> tuple[int, int]:
        """First unit of a shard, and that after its last."""
        return self.units * shard // self.shards, self.units * (shard + 1) // self.shards


@dataclasses.dataclass(frozen=True)
class Part:
    """What is known of a shard that is written.

    Attributes:
      shard: the file.
      lengths: int64 [episodes]; [0] of image-text data.
      steps: rows of `converted.step_dtype`; none of image-text data.
      instructions: texts that the rows count.
    """

    shard: Shard
    lengths: np.ndarray
    steps: np.ndarray
    instructions: tuple[str, ...]

    def to_bytes(self) -> bytes:
        about = json.dumps([dataclasses.asdict(self.shard), self.instructions])
        buffer = io.BytesIO()
        np.savez(buffer, about=np.array(about), lengths=self.lengths, steps=self.steps)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Part | None:
        """None if it is cut off: a machine that loses its power may keep an empty file."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                shard, instructions = json.loads(str(stored["about"]))
                return cls(Shard(**shard), stored["lengths"], stored["steps"], tuple(instructions))
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None


def write_shard(
    conversion: Conversion,
    shard: int,
    source: Source,
    told: Callable[[int], None] = lambda records: None,
) -> int:
    """Writes one shard, and then its part of the tables.

    Args:
      source: `conversion.source`, opened.
      told: called now and then with the number of records written since.

    Returns:
      Its number of records.

    Raises as `convert`.
    """
    if num_units(source) != conversion.units:
        raise ValueError(
            f"data set {conversion.name!r} had {conversion.units} episodes or records and has "
            f"{num_units(source)} now: remove {conversion.directory} and convert it again"
        )
    first, end = conversion.span(shard)
    views, path, count = view_names(source), conversion.file(shard), 0
    rows = _Rows(source, end - first)
    with _new_file(path) as local:
        writer = array_record_module.ArrayRecordWriter(local, "group_size:1,uncompressed")
        for index, episode, track in _records(source, first, end):
            where = f"data set {conversion.name!r} record {index}"
            example = _to_store(source.read(index), len(views), conversion, where)
            place = None
            if track is not None:
                step = index - track.first
                place = episode, step, track.instructions[step]
                rows.add(example, track, episode - first, step, where)
            writer.write(converted.encode_example(example, views, place))
            count += 1
            if count % _TOLD_EVERY == 0:
                told(_TOLD_EVERY)
        writer.close()
        size = os.path.getsize(local)
        with open(local, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    part = rows.part(Shard(path.rpartition("/")[2], count, size, digest))
    storage.write_file(conversion.part(shard), part.to_bytes())
    told(count % _TOLD_EVERY)
    return count


def num_units(source: Source) -> int:
    """Episodes of robot data, records of other data."""
    return source.num_episodes if isinstance(source, EpisodicSource) else len(source)


def view_names(source: Source) -> tuple[str, ...]:
    """Names of an example's images; a source of pictures has one, without a name of its own."""
    return getattr(source, "views", ("image",))


class _Rows:
    """The tables of one shard while it is written."""

    def __init__(self, source: Source, units: int):
        self._spec = source.action_spec
        self._lengths = np.zeros(units if self._spec else 0, np.int64)
        self._actions: list[np.ndarray] = []
        self._states: list[np.ndarray] = []
        self._texts: list[int] = []
        self._numbers: dict[str, int] = {}

    def add(self, example: Example, track: Track, episode: int, step: int, where: str) -> None:
        """Notes one step of an episode, counted in the shard.

        Raises ValueError if its action is not of one step and all valid.
        """
        assert self._spec is not None and example.action is not None
        if example.action_valid is not None or len(example.action) != 1:
            raise ValueError(f"{where}: an action that is padded or a chunk cannot be converted")
        self._actions.append(self._spec.validate(example.action[0], where=where))
        if track.state is not None:
            self._states.append(track.state[step])
        text = track.instructions[step]
        self._texts.append(self._numbers.setdefault(text, len(self._numbers)))
        self._lengths[episode] += 1

    def part(self, shard: Shard) -> Part:
        """Raises ValueError if only some steps have a state."""
        if self._states and len(self._states) != len(self._actions):
            raise ValueError(
                f"{shard.file}: {len(self._states)} of {len(self._actions)} steps have a state: "
                "repair or drop the other episodes"
            )
        sizes = [len(rows[0]) if rows else 0 for rows in (self._actions, self._states)]
        steps = np.zeros(len(self._actions), converted.step_dtype(*sizes))
        steps["instruction"] = self._texts
        if self._actions:
            steps["action"] = self._actions
        if self._states:
            steps["state"] = self._states
        return Part(shard, self._lengths, steps, tuple(self._numbers))


def _records(source: Source, first: int, end: int) -> Iterator[tuple[int, int, Track | None]]:
    """Record, episode and track of units first .. end - 1; no track where there are no episodes."""
    if not isinstance(source, EpisodicSource):
        yield from ((index, 0, None) for index in range(first, end))
        return
    for number in range(first, end):
        track = source.track(number)
        for step in range(len(track.actions)):
            yield track.first + step, number, track


def _to_store(example: Example, views: int, conversion: Conversion, where: str) -> Example:
    """The example with encoded images."""
    if len(example.images) != views:
        raise ValueError(f"{where} has {len(example.images)} images, others have {views}: drop it")
    try:
        encoded = tuple(_encoded(image, conversion, where) for image in example.images)
    except (tf.errors.InvalidArgumentError, OSError) as e:
        raise ValueError(f"{where}: its image cannot be decoded ({e}): drop the record") from e
    return dataclasses.replace(example, images=encoded)


def _encoded(image: bytes | np.ndarray, conversion: Conversion, where: str) -> bytes:
    size = conversion.image_size
    if size and _size_of(image) != (size, size):
        pixels = images.decode(tf.constant(images.to_bytes(image, where=where)), size).numpy()
    elif isinstance(image, bytes):
        return image
    else:
        pixels = image
    if conversion.jpeg_quality:
        return encode_image(pixels, "jpeg", conversion.jpeg_quality)
    return encode_image(pixels, "png")


def _size_of(image: bytes | np.ndarray) -> tuple[int, int]:
    """Height and width."""
    if not isinstance(image, bytes):
        return image.shape[0], image.shape[1]
    with Image.open(io.BytesIO(image)) as opened:
        return opened.height, opened.width


@contextlib.contextmanager
def _new_file(path: str) -> Iterator[str]:
    """A file on a local disk that becomes `path` if the block succeeds."""
    if storage.is_remote(path):
        with tempfile.TemporaryDirectory() as directory:
            local = os.path.join(directory, "file")
            yield local
            storage.upload_file(local, path)
        return
    directory, _, name = path.rpartition("/")
    # A name of its own, since an earlier run's process may not have ended yet. What a killed run
    # leaves here goes with the parts when the conversion is finished.
    local = f"{directory}/{converted.UNFINISHED}/{name}.{uuid.uuid4().hex}"
    yield local
    os.replace(local, path)
