"""Robot episodes in LeRobot form: numbers in Parquet files, pictures there or in videos."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from vla_jax.actions.spec import ActionSpec
from vla_jax.data import storage
from vla_jax.data.recent import RecentlyRead
from vla_jax.data.sources import index_files
from vla_jax.data.sources.base import Track, chunk_steps, frame_records, place
from vla_jax.data.sources.lerobot_meta import (
    SPEC_FILE,
    LeRobotMeta,
    open_parquet,
    read_columns,
    read_parquet,
)
from vla_jax.data.sources.video import VideoFrames
from vla_jax.data.storage import FileFacts
from vla_jax.text.prompts import ROBOT_TEMPLATE, robot_prompts
from vla_jax.types import Example

_NUMBERS = ("episode_index", "frame_index", "task_index", "timestamp")
_READERS = 8  # files read at a time


class LeRobotSource:
    """Every step of every episode is one record. Reads versions 2.0, 2.1 and 3.0.

    A table of all steps' actions is built at the first opening and mapped into memory, see
    `index_files`. Pictures are read when asked for: from videos through decoders that stay open,
    from Parquet files by row group.

    Args:
      name: for messages.
      path: the data set's directory, that which holds `meta`. Local or in a store.
      split: one of `splits` in its `meta/info.json`.
      cameras: image or video features, one per view, in the model's order. Empty: the only one.
      action: the feature that holds the actions.
      state: features of what the robot measures, joined; (): not read.
      spec: what the actions mean. None: as the data set's own `meta/action_spec.json` says.
      chunk: C, actions of a record: that of its step and those that follow.
      frames: images of this many steps, see `EpisodeSource`.
      video_cache: decoders kept open; a few MiB each, for 640 x 480 pixels, and 1 MiB of the file
        if it is in a store.
      cache_bytes: memory for row groups of pictures; those read last are kept.
      templates: of the prompt, with {instruction}; several phrasings of the same.

    Attributes:
      files: those with the split's actions and states, then those that list the episodes.

    Raises:
      FileNotFoundError: no such data set, or a file of it is missing.
      ValueError: another version, no such split, camera or action feature, no ActionSpec or another
        one than `spec`, a damaged file.
    """

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        split: str = "train",
        *,
        cameras: tuple[str, ...] = (),
        action: str = "action",
        state: tuple[str, ...] = (),
        spec: ActionSpec | None = None,
        chunk: int = 1,
        frames: int = 1,
        video_cache: int = 16,
        cache_bytes: int = 256 * 2**20,
        templates: tuple[str, ...] = (ROBOT_TEMPLATE,),
    ):
        self.name = name
        self._templates = templates
        self._meta = LeRobotMeta(name, path)
        self._cameras = self._meta.choose_cameras(cameras)
        self._action, self._chunk, self._frames = action, chunk, frames
        self._state = {feature: self._meta.size(feature) for feature in state}
        self.action_spec = self._find_spec(spec)
        self._tasks = self._meta.tasks()
        self._episodes = self._meta.episodes(split, self._cameras)
        self._starts = [0, *np.cumsum([e.length for e in self._episodes]).tolist()]
        self._data = list(dict.fromkeys(e.data for e in self._episodes))
        self.files = self._require_files()
        self._steps = self._load_steps(split)
        self._videos = VideoFrames(self._meta.fps, video_cache)
        self._row_groups = _RowGroups(self._meta.where, cache_bytes)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def views(self) -> tuple[str, ...]:
        """Names of an example's images."""
        return self._cameras

    @property
    def num_episodes(self) -> int:
        return len(self._episodes)

    def locate(self, index: int) -> tuple[int, int]:
        """Record -> (the episode's number in the data set, step)."""
        position, step = place(self._starts, index, "step", self.name)
        return self._episodes[position].index, step

    def track(self, number: int) -> Track:
        """See `EpisodicSource`."""
        episode, first = self._episodes[number], self._starts[number]
        steps = self._steps[first : self._starts[number + 1]]
        tasks = steps["task_index"].tolist()
        return Track(
            where=f"{self._meta.where} episode {episode.index}",
            first=first,
            actions=np.array(steps["action"]),
            instructions=tuple(self._tasks.get(task) or "" for task in tasks),
            state=np.array(steps["state"]) if self._state else None,
        )

    def read(self, index: int) -> Example:
        """Step `index`; its action is [C, A].

        A view is uint8 RGB [h, w, 3] if it comes from a video, else the encoded bytes that are
        stored. After the episode's last action that one is repeated, and `action_valid` is False.

        Raises ValueError naming data set, episode, step and file if it cannot be used.
        """
        position, step = place(self._starts, index, "step", self.name)
        episode = self._episodes[position]
        try:
            images = tuple(
                self._image(camera, episode.videos[view], row)
                for row in frame_records(index, step, self._frames)
                for view, camera in enumerate(self._cameras)
            )
            prompt = self._prompt(int(self._steps["task_index"][index]))
        except ValueError as e:
            raise ValueError(f"{self._meta.where} episode {episode.index} step {step}: {e}") from e
        size = len(self.action_spec.dimensions)
        steps, valid = chunk_steps(step, self._chunk, episode.length, size)
        actions = np.array(self._steps["action"][self._starts[position] + steps])
        bad = np.flatnonzero(~np.isfinite(actions).all(axis=1))
        if len(bad):
            at = f"{self._meta.where} episode {episode.index} step {steps[bad[0]]}"
            self.action_spec.validate(actions[bad[0]], where=f"{at} (repair or drop the episode)")
        state = np.array(self._steps["state"][index]) if self._state else None
        if state is not None and not np.isfinite(state).all():
            raise ValueError(
                f"{self._meta.where} episode {episode.index} step {step}: {', '.join(self._state)} "
                "is NaN or infinite: repair or drop the episode"
            )
        return Example(
            images=images, prompt=prompt, action=actions, action_valid=valid, state=state
        )

    def _image(
        self, camera: str, video: tuple[str, float] | None, index: int
    ) -> bytes | np.ndarray:
        row = self._steps[index]
        if video is not None:
            file, start = video
            return self._videos.read(file, start + float(row["timestamp"]))
        return self._row_groups.image(
            self._data[row["file"]], camera, int(row["group"]), int(row["row"])
        )

    def _prompt(self, task: int) -> str | tuple[str, ...]:
        if task not in self._tasks:
            raise ValueError(
                f"task_index {task} is not in meta/tasks.*; add it or drop the episode"
            )
        try:
            return robot_prompts(self._tasks[task] or "", self._templates)
        except ValueError as e:
            raise ValueError(f"task {task}: {e}; correct meta/tasks.* or drop the episode") from e

    def _find_spec(self, given: ActionSpec | None) -> ActionSpec:
        where, size = self._meta.where, self._meta.size(self._action)
        text = self._meta.stored_spec()
        if text is None and given is None:
            raise ValueError(
                f"{where} does not say what its actions mean. Check every line of this draft, "
                f"bounds and units too, and save it as {SPEC_FILE} in the data set, or pass a "
                f"spec:\n{self._meta.draft_spec(self._action)}"
            )
        spec = given
        if text is not None:
            try:
                spec = ActionSpec.from_json(text)
            except ValueError as e:
                raise ValueError(f"{where}, {SPEC_FILE}: {e}") from e
            if given is not None:
                given.require_same(spec, here="the spec passed", there=where)
        assert spec is not None
        if len(spec.dimensions) != size:
            raise ValueError(
                f"{where}: feature {self._action!r} has {size} numbers, ActionSpec {spec.name!r} "
                f"has {len(spec.dimensions)}, {spec.names}: correct the spec"
            )
        if spec.control_hz != self._meta.fps:
            raise ValueError(
                f"{where} has {self._meta.fps:g} steps a second (fps in meta/info.json), "
                f"ActionSpec {spec.name!r} {spec.control_hz:g}: correct one of them"
            )
        return spec

    def _require_files(self) -> list[FileFacts]:
        """Facts of `files`, once they and the videos are all there."""
        numbers = [*self._data, *self._meta.episode_files()]
        videos = (video[0] for e in self._episodes for video in e.videos if video is not None)
        files = [*numbers, *dict.fromkeys(videos)]
        return storage.file_facts(files, where=self._meta.where)[: len(numbers)]

    def _load_steps(self, split: str) -> np.ndarray:
        """One row a step, in order of episode and step; see `_read_steps` for its fields."""

        def build() -> np.ndarray:
            parts, told = [], time.monotonic()
            with ThreadPoolExecutor(_READERS) as pool:
                for part in pool.map(self._read_steps, range(len(self._data)), self._data):
                    parts.append(part)
                    if time.monotonic() - told > 10:
                        told = time.monotonic()
                        print(
                            f"{self.name}: read {len(parts)} of {len(self._data)} files",
                            file=sys.stderr,
                        )
            return self._arrange(np.concatenate(parts))

        ends = self._episodes[0].index, self._episodes[-1].index
        wanted = f"{self._action} {self._state} {split} {ends}"
        return index_files.load_or_build(self.files, f"lerobot steps: {wanted}", build)

    def _read_steps(self, number: int, file: str) -> np.ndarray:
        """The steps in one Parquet file, in its order."""
        columns = [self._action, *self._state, *_NUMBERS]
        with open_parquet(file, where=self._meta.where) as opened:
            table = read_columns(opened, columns)
            groups = range(opened.num_row_groups)
            lengths = [opened.metadata.row_group(group).num_rows for group in groups]
        size, state_size = len(self.action_spec.dimensions), sum(self._state.values())
        fields = [(name, np.float32 if name == "timestamp" else np.int32) for name in _NUMBERS]
        # Where the pictures are, if they are in this file.
        fields += [("file", np.int32), ("group", np.int32), ("row", np.int32)]
        vectors = [("action", np.float32, (size,)), ("state", np.float32, (state_size,))]
        steps = np.zeros(len(table), np.dtype([*fields, *vectors]))
        for name in _NUMBERS:
            steps[name] = table.column(name).to_numpy()
        if not np.isfinite(steps["timestamp"]).all():
            raise ValueError(f"{self._meta.where}, {file} has a timestamp that is NaN: repair it")
        steps["file"] = number
        steps["group"] = np.repeat(np.arange(len(lengths)), lengths)
        steps["row"] = np.concatenate([np.arange(n) for n in [0, *lengths]])
        steps["action"] = self._vectors(table, self._action, size, file)
        states = [self._vectors(table, name, n, file) for name, n in self._state.items()]
        steps["state"] = np.concatenate([np.zeros((len(table), 0)), *states], axis=1)
        return steps

    def _vectors(self, table: pa.Table, name: str, size: int, file: str) -> np.ndarray:
        """A column of lists of numbers as [rows, size]."""
        column = table.column(name).combine_chunks()
        values = column
        if not pa.types.is_primitive(column.type):
            values = column.flatten()
        if len(values) != len(table) * size or values.null_count:
            raise ValueError(
                f"{self._meta.where}, {file}: {len(values) - values.null_count} numbers of "
                f"{name!r} in {len(table)} steps, not {size} a step: write the file again"
            )
        return values.to_numpy(zero_copy_only=False).reshape(len(table), size)

    def _arrange(self, steps: np.ndarray) -> np.ndarray:
        """Those of the split's episodes, in order. Raises ValueError unless all are there."""
        wanted = np.array([e.index for e in self._episodes])
        steps = steps[np.isin(steps["episode_index"], wanted)]
        steps = steps[np.lexsort((steps["frame_index"], steps["episode_index"]))]
        found = np.searchsorted(steps["episode_index"], [*wanted, wanted[-1] + 1])
        for position, episode in enumerate(self._episodes):
            frames = steps["frame_index"][found[position] : found[position + 1]]
            if not np.array_equal(frames, np.arange(episode.length)):
                raise ValueError(
                    f"{self._meta.where} episode {episode.index}: {episode.data} has {len(frames)} "
                    f"of its steps, numbered {frames[:1]} to {frames[-1:]}; meta says there are "
                    f"{episode.length}, numbered from 0: copy file and meta/ again"
                )
        return steps


class _RowGroups:
    """Pictures in Parquet files. A picture is a struct of `bytes` and `path`."""

    def __init__(self, where: str, cache_bytes: int):
        self._where = where
        self._recent = RecentlyRead[pa.ChunkedArray](cache_bytes, lambda column: column.nbytes)

    def image(self, file: str, camera: str, group: int, row: int) -> bytes:
        """Encoded, as stored."""
        struct = self._column(file, camera, group)[row]
        data = struct["bytes"].as_py() if pa.types.is_struct(struct.type) else None
        if not data:
            raise ValueError(
                f"{file} row group {group} row {row} holds no picture in {camera!r}, only "
                f"{str(struct)[:80]}: write the data set again with its pictures embedded"
            )
        return data

    def _column(self, file: str, camera: str, group: int) -> pa.ChunkedArray:
        def read() -> pa.ChunkedArray:
            table = read_parquet(file, [camera], where=self._where, row_group=group)
            return table.column(camera)

        return self._recent.get((file, camera, group), read)
