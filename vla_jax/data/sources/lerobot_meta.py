"""What the `meta` directory of a LeRobot data set says. Versions 2.0, 2.1 and 3.0."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_jax.data import storage

VERSIONS = ("v2.0", "v2.1", "v3.0")
SPEC_FILE = "meta/action_spec.json"
"""Where a data set holds its ActionSpec. LeRobot itself knows no such file and ignores it."""

_EDIT = "EDIT"


@dataclasses.dataclass(frozen=True)
class Episode:
    """Attributes:
    index: its number in the data set.
    length: steps.
    data: its parquet file.
    videos: of each camera in the order asked for, the mp4 file and the time in it at which the
      episode starts, in seconds. None for a camera whose pictures are in the parquet file.
    """

    index: int
    length: int
    data: str
    videos: tuple[tuple[str, float] | None, ...]


class LeRobotMeta:
    """The metadata of one data set.

    Attributes:
      info: `meta/info.json`.
      features: of a step, by name: {"dtype": ..., "shape": [...], "names": ...}.
      fps: steps a second.

    Raises:
      FileNotFoundError: no such data set.
      ValueError: another version, a file of `meta` that cannot be understood.
    """

    def __init__(self, name: str, path: str | os.PathLike[str]):
        self.path = os.fspath(path).rstrip("/")
        self.where = f"data set {name!r} ({self.path})"
        file = self._file("meta/info.json")
        if not storage.exists(file):
            raise FileNotFoundError(
                f"{self.where} has no meta/info.json. Give the directory of one LeRobot data set, "
                "the one that holds data/ and meta/"
            )
        self.info = self._json(_read_text(file), "meta/info.json")
        version = self.info.get("codebase_version")
        if version not in VERSIONS:
            raise ValueError(
                f"{self.where} is of version {version!r}; {', '.join(VERSIONS)} are read: convert "
                "it with LeRobot's own convert_dataset scripts"
            )
        self._one_file_an_episode = version != "v3.0"
        try:
            self.features: dict[str, dict[str, Any]] = self.info["features"]
            self.fps = float(self.info["fps"])
            self._data_path = self.info["data_path"]
        except (KeyError, TypeError, ValueError) as e:
            raise ValueError(f"{self.where}: meta/info.json lacks {e}: copy it again") from e
        if not self.fps > 0:
            raise ValueError(f"{self.where}: meta/info.json has fps {self.fps}; correct it")

    def choose_cameras(self, cameras: Sequence[str]) -> tuple[str, ...]:
        """`cameras` if they are all there; if none are named, the only one there is.

        Raises ValueError listing what is there.
        """
        there = [
            key
            for key, feature in self.features.items()
            if feature.get("dtype") in ("image", "video") and not _is_depth(feature)
        ]
        missing = [key for key in cameras if key not in there]
        if missing:
            raise ValueError(f"{self.where} has no camera {', '.join(missing)}; it has {there}")
        if not cameras and len(there) != 1:
            raise ValueError(
                f"{self.where} has {len(there)} cameras, {there}: name those to use, in the "
                "model's order"
            )
        return tuple(cameras) or tuple(there)

    def is_video(self, camera: str) -> bool:
        return self.features[camera]["dtype"] == "video"

    def size(self, feature: str) -> int:
        """Of a list of numbers. Raises ValueError if there is no such feature or it is no list."""
        if feature not in self.features:
            raise ValueError(
                f"{self.where} has no feature {feature!r}; it has {sorted(self.features)}: name "
                "those that hold actions and state"
            )
        shape = self.features[feature].get("shape")
        if not isinstance(shape, list) or len(shape) != 1:
            raise ValueError(
                f"{self.where}: feature {feature!r} has shape {shape}; actions and states are "
                "lists of numbers"
            )
        return int(shape[0])

    def tasks(self) -> dict[int, str]:
        """task_index -> text."""
        if self._one_file_an_episode:
            return {t["task_index"]: t["task"] for t in self._lines("meta/tasks.jsonl")}
        table = self._parquet(self._require("meta/tasks.parquet"))
        # The text is the index of the data frame that was written, which has a name or none.
        texts = [c for c in table.column_names if c in ("task", "__index_level_0__")]
        if "task_index" not in table.column_names or not texts:
            raise ValueError(
                f"{self.where}: meta/tasks.parquet has columns {table.column_names}, not "
                "task_index and task: copy it again"
            )
        return dict(zip(table.column("task_index").to_pylist(), table.column(texts[0]).to_pylist()))

    def episode_files(self) -> list[str]:
        """The files that list the episodes."""
        if self._one_file_an_episode:
            return [self._require("meta/episodes.jsonl")]
        pattern = storage.join(glob.escape(self.path), "meta/episodes/*/*.parquet")
        files = storage.list_files(pattern)
        return files or [self._require("meta/episodes/chunk-000/file-000.parquet")]

    def episodes(self, split: str, cameras: Sequence[str]) -> list[Episode]:
        """Those of a split, in order."""
        first, end = self._split(split)
        read = self._read_v2 if self._one_file_an_episode else self._read_v3
        try:
            found = [e for e in read(cameras) if first <= e.index < end]
        except (KeyError, TypeError, AttributeError, IndexError) as e:
            raise ValueError(
                f"{self.where}: its list of episodes or its file names in meta/info.json cannot be "
                f"used: {e!r}; copy meta/ again"
            ) from e
        found.sort(key=lambda e: e.index)
        if not found:
            raise ValueError(f"{self.where}: no episodes in split {split!r} ({first}:{end})")
        return found

    def draft_spec(self, feature: str) -> str:
        """An ActionSpec as JSON, guessed, for a person to correct."""
        size = self.size(feature)
        names = _flat_names(self.features[feature].get("names"))
        if len(names) != size:
            names = [f"{feature}_{i}" for i in range(size)]
        low, high = self._bounds(feature, size)
        draft = {
            "name": self.info.get("robot_type") or self.path.rpartition("/")[2],
            "dimensions": [
                {"name": n, "unit": _guess_unit(n), "low": lo, "high": hi, "levels": None}
                for n, lo, hi in zip(names, low, high)
            ],
            "frame": f"{_EDIT}: world, base or end effector?",
            "rotation": f"{_EDIT}: e.g. axis-angle delta, joint angles",
            "gripper": f"{_EDIT}: e.g. absolute closedness: 0 open, 1 closed",
            "control_hz": self.fps,
        }
        return json.dumps(draft, indent=2)

    def stored_spec(self) -> str | None:
        """The text of `SPEC_FILE`, if there is one. Raises ValueError if it is a draft still."""
        file = self._file(SPEC_FILE)
        if not storage.exists(file):
            return None
        text = _read_text(file)
        if f'"{_EDIT}' in text:
            raise ValueError(f"{self.where}: {SPEC_FILE} is a draft: fill in what says {_EDIT}")
        return text

    def _split(self, split: str) -> tuple[int, int]:
        splits = self.info.get("splits") or {"train": f"0:{self.info.get('total_episodes', 0)}"}
        if split not in splits:
            raise ValueError(
                f"{self.where} has no split {split!r}; meta/info.json has {', '.join(splits)}"
            )
        try:
            first, end = (int(part) for part in str(splits[split]).split(":"))
        except ValueError as e:
            raise ValueError(
                f'{self.where}: split {split!r} is {splits[split]!r} in meta/info.json; "0:50" '
                "would be episodes 0 to 49: correct it"
            ) from e
        return first, end

    def _read_v2(self, cameras: Sequence[str]) -> Iterator[Episode]:
        chunk_size = int(self.info.get("chunks_size", 1000))
        for line in self._lines("meta/episodes.jsonl"):
            index = line["episode_index"]
            place = {"episode_chunk": index // chunk_size, "episode_index": index}

            def video(camera: str, place: dict[str, int] = place) -> tuple[str, float]:
                file = self.info["video_path"].format(video_key=camera, **place)
                return self._file(file), 0.0

            yield Episode(
                index,
                line["length"],
                self._file(self._data_path.format(**place)),
                tuple(video(c) if self.is_video(c) else None for c in cameras),
            )

    def _read_v3(self, cameras: Sequence[str]) -> Iterator[Episode]:
        prefixes = {c: f"videos/{c}/" for c in cameras if self.is_video(c)}
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        for prefix in prefixes.values():
            columns += [prefix + c for c in ("chunk_index", "file_index", "from_timestamp")]
        data_files: dict[tuple[int, int], str] = {}
        for file in self.episode_files():
            for row in self._parquet(file, columns).to_pylist():

                def video(prefix: str, camera: str, row: dict = row) -> tuple[str, float]:
                    name = self.info["video_path"].format(
                        video_key=camera,
                        chunk_index=row[prefix + "chunk_index"],
                        file_index=row[prefix + "file_index"],
                    )
                    return self._file(name), float(row[prefix + "from_timestamp"])

                place = row["data/chunk_index"], row["data/file_index"]
                if place not in data_files:
                    name = self._data_path.format(chunk_index=place[0], file_index=place[1])
                    data_files[place] = self._file(name)
                yield Episode(
                    row["episode_index"],
                    row["length"],
                    data_files[place],
                    tuple(video(prefixes[c], c) if c in prefixes else None for c in cameras),
                )

    def _bounds(self, feature: str, size: int) -> tuple[list[float], list[float]]:
        """From the statistics: 1st and 99th percentile if there, else least and greatest."""
        low, high = np.full(size, -1.0), np.full(size, 1.0)
        for least, greatest in (("q01", "q99"), ("min", "max")):
            found = [s[feature] for s in self._statistics() if least in s.get(feature, {})]
            if found:
                low = np.min([np.ravel(s[least]) for s in found], axis=0)
                high = np.max([np.ravel(s[greatest]) for s in found], axis=0)
                break
        still = ~(low < high)  # a dimension that never moved, or NaN
        low[still], high[still] = -1.0, 1.0
        return [float(f"{v:.6g}") for v in low], [float(f"{v:.6g}") for v in high]

    def _statistics(self) -> list[dict[str, Any]]:
        """Of the whole data set or, in version 2.1, of each episode; [] if there are none."""
        file = self._file("meta/stats.json")
        if storage.exists(file):
            return [self._json(_read_text(file), "meta/stats.json")]
        if storage.exists(self._file("meta/episodes_stats.jsonl")):
            return [line["stats"] for line in self._lines("meta/episodes_stats.jsonl")]
        return []

    def _file(self, name: str) -> str:
        return storage.join(self.path, name)

    def _require(self, name: str) -> str:
        if not storage.exists(self._file(name)):
            raise FileNotFoundError(f"{self.where} has no {name}: copy the data set again")
        return self._file(name)

    def _lines(self, file: str) -> list[dict[str, Any]]:
        lines = _read_text(self._require(file)).splitlines()
        return [self._json(s, f"{file} line {n}") for n, s in enumerate(lines, 1) if s.strip()]

    def _json(self, text: str, file: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as e:
            raise ValueError(f"{self.where}: {file} is no JSON: {e}; copy it again") from e
        if not isinstance(value, dict):
            raise ValueError(f"{self.where}: {file} is no JSON object; copy it again")
        return value

    def _parquet(self, file: str, columns: Sequence[str] | None = None) -> pa.Table:
        return read_parquet(file, columns, where=self.where)


@contextlib.contextmanager
def open_parquet(file: str, *, where: str) -> Iterator[pq.ParquetFile]:
    """Opens a file to read parts of it, see `read_columns`.

    What is raised meanwhile because it is damaged becomes a ValueError naming file and remedy.
    """
    try:
        with contextlib.ExitStack() as stack:
            remote = storage.is_remote(file)
            source = stack.enter_context(storage.open_blocks(file)) if remote else file
            yield stack.enter_context(pq.ParquetFile(source))
    except (ValueError, OSError, EOFError, pa.ArrowException) as e:
        raise ValueError(f"{where}, {file} cannot be read: {e}: copy it again") from e


def read_columns(
    opened: pq.ParquetFile, columns: Sequence[str] | None = None, row_group: int | None = None
) -> pa.Table:
    """Some columns of a file or of one of its row groups. Raises ValueError if one is missing."""
    there = opened.schema_arrow.names
    missing = [c for c in columns or () if c not in there]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}; it has {there}")
    groups = range(opened.num_row_groups) if row_group is None else (row_group,)
    # One group after the other: reading a file whole, pyarrow holds all that it read besides the
    # result. No threads, because callers read in parallel.
    return pa.concat_tables(
        opened.read_row_group(group, None if columns is None else list(columns), use_threads=False)
        for group in groups
    )


def read_parquet(
    file: str,
    columns: Sequence[str] | None = None,
    *,
    where: str,
    row_group: int | None = None,
) -> pa.Table:
    """`read_columns` of a file.

    Raises ValueError naming the file and the remedy if it is damaged or a column is missing.
    """
    with open_parquet(file, where=where) as opened:
        return read_columns(opened, columns, row_group)


def _read_text(file: str) -> str:
    return storage.read_file(file).decode("utf-8")


def _is_depth(feature: dict[str, Any]) -> bool:
    infos = [feature.get(key) or {} for key in ("info", "video_info")]
    return any(i.get("is_depth_map") or i.get("video.is_depth_map") for i in infos)


def _flat_names(names: Any) -> list[str]:
    """A list, lists by group, or a place by name."""
    if isinstance(names, dict):
        if all(isinstance(v, int) for v in names.values()):
            return sorted(names, key=lambda n: names[n])
        names = list(names.values())
    if not isinstance(names, list):
        return []
    return [n for part in names for n in (part if isinstance(part, list) else [str(part)])]


def _guess_unit(name: str) -> str:
    name = name.lower()
    if "grip" in name:
        return "closedness"
    linear = name in ("x", "y", "z", "dx", "dy", "dz") or name.startswith(("pos", "delta_"))
    return "m" if linear else "rad"
