"""Data converted to single steps or samples, as `vla_jax.data.convert` writes them.

    DIR/train/metadata.json                          what it is, and of which files; written last
    DIR/train/records-00003-of-00016.array_record    one record an example, a tf.train.Example
    DIR/train/steps.npy, episodes.npy                of robot data: actions, instructions, lengths

A record has what one sample or step shows and says: `image/<view>` encoded, then `prompt` and
`answer`, one or several phrasings of each; or `instruction`, `action` [A] in the units of the
ActionSpec, `plan` and `state` [S] where there are such, `episode` and `step`. Any program that
reads ArrayRecord and tf.train.Example can use it. What needs the actions of later steps, a chunk,
takes them from the table, so an example costs one read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from vla_jax.actions.spec import ActionSpec
from vla_jax.data import storage
from vla_jax.data.sources.array_records import ArrayRecords
from vla_jax.data.sources.base import Track, chunk_steps, frame_records, place
from vla_jax.data.sources.episodes import SPEC_KEY
from vla_jax.data.sources.records import parse_example
from vla_jax.data.storage import FileFacts
from vla_jax.text.prompts import PLAN_TEMPLATE, ROBOT_TEMPLATE, robot_prompts
from vla_jax.types import Example

METADATA, STEPS, EPISODES, UNFINISHED = "metadata.json", "steps.npy", "episodes.npy", "unfinished"
REMEDY = "run tools/convert.py again as before, it goes on where it was"

_FORMAT, _VERSION = "vla_jax converted data", 1
_IMAGE = "image/"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name, its number of records, its bytes and their SHA-256."""

    file: str
    records: int
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class ConvertedMetadata:
    """What `metadata.json` says.

    Attributes:
      views: names of an example's images.
      action_spec: of robot data.
      shards: in the order of their records.
      instructions: texts that the table of steps counts.
      conversion: of which source, and how it was made.
      digest: SHA-256 over all shards and tables: two sets with the same one hold the same data.
    """

    views: tuple[str, ...]
    action_spec: ActionSpec | None
    shards: tuple[Shard, ...]
    instructions: tuple[str, ...]
    conversion: dict[str, Any]
    digest: str

    def to_json(self) -> str:
        plain = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        plain[SPEC_KEY] = None if self.action_spec is None else self.action_spec.to_json()
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes, *, where: str) -> ConvertedMetadata:
        """Raises ValueError, naming `where`, if it is something else, damaged or of a new version.

        Args:
          where: the file, for messages.
        """
        try:
            plain = json.loads(text)
            found = plain.pop("format"), plain.pop("version")
            if found == (_FORMAT, _VERSION):
                plain["views"] = tuple(plain["views"])
                plain["shards"] = tuple(Shard(**shard) for shard in plain["shards"])
                plain["instructions"] = tuple(plain["instructions"])
                spec = plain[SPEC_KEY]
                plain[SPEC_KEY] = None if spec is None else ActionSpec.from_json(spec)
                return cls(**plain)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ValueError(
                f"{where} does not describe converted data, or is damaged ({e!r}): convert the "
                "data again with tools/convert.py"
            ) from e
        raise ValueError(
            f"{where} is of format {found[0]!r} version {found[1]!r}; this program reads "
            f"{_FORMAT!r} version {_VERSION}: convert the data again with tools/convert.py"
        )


def step_dtype(actions: int, states: int) -> np.dtype:
    """A row of `steps.npy`.

    Args:
      actions, states: A and S; S is 0 where there is no state.
    """
    state = [("state", np.float32, (states,))] if states else []
    return np.dtype([("action", np.float32, (actions,)), *state, ("instruction", np.int32)])


def encode_example(
    example: Example, views: Sequence[str], place: tuple[int, int, str] | None = None
) -> bytes:
    """A record of an example.

    Args:
      example: images are encoded; an action is [1, A] and all of it valid.
      views: names of its images.
      place: of robot data, episode, step and instruction.
    """
    features = tf.train.Features()

    def put(key: str, value: Any) -> None:
        if isinstance(value, bytes):
            features.feature[key].bytes_list.value.append(value)
        elif isinstance(value, str | tuple):  # one text or several
            texts = [value] if isinstance(value, str) else value
            features.feature[key].bytes_list.value.extend(text.encode() for text in texts)
        elif isinstance(value, int):
            features.feature[key].int64_list.value.append(value)
        else:
            features.feature[key].float_list.value.extend(np.asarray(value, np.float32).tolist())

    for view, image in zip(views, example.images, strict=True):
        put(_IMAGE + view, image)
    if example.action is None:
        put("prompt", example.prompt)
        put("answer", example.answer)
    else:
        put("action", example.action[0])
    if example.plan:
        put("plan", example.plan.encode())
    if example.state is not None:
        put("state", example.state)
    if place is not None:
        for key, value in zip(("episode", "step", "instruction"), place):
            put(key, value)
    # A map has no order of its own; the same data shall be the same bytes.
    return tf.train.Example(features=features).SerializeToString(deterministic=True)


def open_converted(
    name: str,
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    cameras: tuple[str, ...] = (),
    plan: str = "",
    chunk: int = 1,
    frames: int = 1,
    templates: tuple[str, ...] = (ROBOT_TEMPLATE,),
) -> ConvertedSource:
    """Opens converted data; those of robots are `ConvertedEpisodes`.

    Args:
      name: for messages.
      path: what was given as --out; local or in a store.
      split: its split.
      cameras: which views, in the model's order. Empty: all, in the order of the data set.
      plan: the feature that plans were converted from, if they were.
      chunk: C, actions of a record: that of its step and those that follow.
      frames: images of this many steps, see `EpisodeSource`; each costs a read.
      templates: of a robot's prompt, see `EpisodeSource`.

    Raises:
      FileNotFoundError: no such data set, or a shard of it is missing.
      ValueError: a conversion that is not finished, of another version, a file that is cut off, no
        such view.
    """
    directory = storage.join(path, split)
    where = f"data set {name!r} ({directory})"
    metadata = _read_metadata(directory, where)
    if metadata.conversion.get("plan", "") != plan:
        # A run says by this option whether its policy plans before it acts.
        raise ValueError(
            f"{where} was converted with plan={metadata.conversion.get('plan', '')!r}, and the "
            f"source says plan={plan!r}: say the same, or convert the data again"
        )
    if metadata.action_spec is None:
        return ConvertedSource(name, directory, metadata, cameras)
    return ConvertedEpisodes(
        name,
        directory,
        metadata,
        cameras,
        spec=metadata.action_spec,
        chunk=chunk,
        frames=frames,
        templates=templates,
    )


class ConvertedSource:
    """Random access to converted data: the examples of the source that they were made from.

    An example costs one read of one record. See `open_converted`.

    Attributes:
      metadata: of the data set.
      views: names of an example's images.
      files: the shards.
    """

    action_spec: ActionSpec | None = None

    def __init__(
        self,
        name: str,
        directory: str,
        metadata: ConvertedMetadata,
        cameras: tuple[str, ...] = (),
    ):
        self.name, self.metadata = name, metadata
        self._directory, self._where = directory, f"data set {name!r} ({directory})"
        self.views = cameras or metadata.views
        unknown = [view for view in self.views if view not in metadata.views]
        if unknown:
            raise ValueError(
                f"{self._where} has no view {unknown[0]!r}; it has {', '.join(metadata.views)}: "
                "name those, or convert the data again"
            )
        self.files = self._require_files()
        lengths = [shard.records for shard in metadata.shards]
        self._shards = ArrayRecords(self.files, lengths, said_by=METADATA)
        self._first = [0, *np.cumsum(lengths).tolist()]

    def __len__(self) -> int:
        return self._first[-1]

    def read(self, index: int) -> Example:
        """Example `index`. Raises ValueError, naming file and record, if it cannot be used."""
        return self._example(self._parse(index), index)

    def _example(self, features: Mapping[str, Any], index: int) -> Example:
        """All but a robot's prompt and action."""
        texts = ["prompt", "answer"] if self.action_spec is None else ["instruction"]
        needed = [*(_IMAGE + view for view in self.views), *texts]
        lacking = [key for key in needed if key not in features]
        if lacking:
            raise ValueError(
                f"{self._record(index)} has no {', '.join(lacking)}: convert the data again"
            )
        return Example(
            images=tuple(_bytes(features, _IMAGE + view) for view in self.views),
            prompt=_texts(features, "prompt") or "",
            answer=_texts(features, "answer"),
            plan=_bytes(features, "plan").decode(),
            state=_floats(features, "state"),
        )

    def _parse(self, index: int) -> Mapping[str, Any]:
        shard, number = place(self._first, index, "record", self.name)
        try:
            data = self._shards.read(shard, number)
        except (ValueError, IndexError, RuntimeError, EOFError, OSError) as e:
            raise ValueError(
                f"{self._record(index)} cannot be read: {e}. Copy the file again, or convert the "
                "data again"
            ) from e
        return parse_example(data, where=lambda: self._record(index))

    def _record(self, index: int) -> str:
        shard, number = place(self._first, index, "record", self.name)
        return f"data set {self.name!r}, {self.files[shard].path} record {number}"

    def _require_files(self) -> list[FileFacts]:
        shards = self.metadata.shards
        names = [storage.join(self._directory, shard.file) for shard in shards]
        files = storage.file_facts(names, where=self._where)
        for file, shard in zip(files, shards):
            if file.size != shard.size:
                raise ValueError(
                    f"{self._where}: {file.path} has {file.size} bytes, {METADATA} says "
                    f"{shard.size}: it is cut off or of another conversion; copy it again"
                )
        return files


class ConvertedEpisodes(ConvertedSource):
    """Converted robot data: every step of every episode is one record.

    The tables are mapped into memory, not read. See `open_converted`.
    """

    def __init__(
        self,
        name: str,
        directory: str,
        metadata: ConvertedMetadata,
        cameras: tuple[str, ...],
        *,
        spec: ActionSpec,
        chunk: int,
        frames: int,
        templates: tuple[str, ...],
    ):
        super().__init__(name, directory, metadata, cameras)
        self.action_spec, self._chunk, self._frames = spec, chunk, frames
        self._templates = templates
        self._starts, self._steps = self._tables()

    @property
    def num_episodes(self) -> int:
        return len(self._starts) - 1

    def locate(self, index: int) -> tuple[int, int]:
        """Record -> (episode, step)."""
        return place(self._starts, index, "step", self.name)

    def track(self, number: int) -> Track:
        """See `EpisodicSource`."""
        first = self._starts[number]
        steps = self._steps[first : self._starts[number + 1]]
        texts = self.metadata.instructions
        return Track(
            where=f"{self._where} episode {number}",
            first=first,
            actions=np.array(steps["action"]),
            instructions=tuple(texts[i] for i in steps["instruction"].tolist()),
            state=np.array(steps["state"]) if "state" in (steps.dtype.names or ()) else None,
        )

    def read(self, index: int) -> Example:
        """Step `index`; its action is [C, A].

        After the episode's last action that one is repeated, and `action_valid` is False.

        Raises ValueError naming data set, file and record if it cannot be used.
        """
        number, step = self.locate(index)
        features = self._parse(index)
        stored = _floats(features, "action")
        first, end = self._starts[number], self._starts[number + 1]
        rows, valid = chunk_steps(step, self._chunk, end - first, self._steps["action"].shape[1])
        action = np.array(self._steps["action"][first + rows])
        if stored is None or not np.array_equal(stored, action[0]):
            raise ValueError(
                f"{self._record(index)} has another action than {STEPS} for episode {number} step "
                f"{step}: they are of different conversions; copy the directory again"
            )
        example = self._example(features, index)
        earlier = [
            image
            for row in frame_records(index, step, self._frames)[:-1]
            for image in self._example(self._parse(row), row).images
        ]
        templates = (PLAN_TEMPLATE,) if example.plan else self._templates
        return dataclasses.replace(
            example,
            images=(*earlier, *example.images),
            prompt=robot_prompts(_bytes(features, "instruction").decode(), templates),
            action=action,
            action_valid=valid,
        )

    def _tables(self) -> tuple[list[int], np.ndarray]:
        """First record of each episode and the end of the last; rows of `step_dtype`."""
        try:
            lengths = _map(storage.join(self._directory, EPISODES))
            steps = _map(storage.join(self._directory, STEPS))
            starts = [0, *np.cumsum(lengths).tolist()]
            if not len(steps) == starts[-1] == len(self):
                raise ValueError(f"{len(steps)} steps, episodes of {starts[-1]}")
        except (OSError, ValueError, EOFError) as e:
            raise ValueError(
                f"{self._where} with {len(self)} records: {STEPS} or {EPISODES} is missing, cut "
                f"off or of another conversion ({e}): copy the directory again"
            ) from e
        return starts, steps


def _read_metadata(directory: str, where: str) -> ConvertedMetadata:
    file = storage.join(directory, METADATA)
    if storage.exists(file):
        return ConvertedMetadata.from_json(storage.read_file(file), where=file)
    if storage.list_files(storage.join(directory, f"{UNFINISHED}/*")):
        raise ValueError(f"{where}: its conversion is not finished: {REMEDY}")
    raise FileNotFoundError(
        f"{where}: no {METADATA} there. Give the directory that tools/convert.py wrote to, and a "
        "split that was converted"
    )


def _map(path: str) -> np.ndarray:
    """The array of a .npy file, mapped; of one in a store, a copy for which no name is left."""
    if storage.is_remote(path):
        [facts] = storage.file_facts([path], where=path)
        with tempfile.NamedTemporaryFile() as copy, storage.open_file(facts) as file:
            shutil.copyfileobj(file, copy, 8 * 2**20)
            copy.flush()
            return _map(copy.name)
    # A plain view of the mapping: indexing a np.memmap is slow.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _texts(features: Mapping[str, Any], key: str) -> str | tuple[str, ...] | None:
    """The text, or all if there are several; None if there is none."""
    if key not in features:
        return None
    texts = tuple(text.decode() for text in features[key].bytes_list.value)
    return texts[0] if len(texts) == 1 else texts


def _bytes(features: Mapping[str, Any], key: str) -> bytes:
    """b"" if there is none."""
    return features[key].bytes_list.value[0] if key in features else b""


def _floats(features: Mapping[str, Any], key: str) -> np.ndarray | None:
    return np.asarray(features[key].float_list.value, np.float32) if key in features else None
