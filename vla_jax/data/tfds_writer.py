"""Writes TFDS data sets that plain `tfds.builder_from_directory` opens.

A data set is written beside its place and renamed at the end, so a directory is a whole data set or
is not there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.generate import ImageTextRow
from vla_jax.data.progress import Progress
from vla_jax.data.sources.episodes import SPEC_KEY
from vla_jax.data.staged import EpisodeRow

FileFormat = Literal["array_record", "tfrecord"]
EPISODES_PER_SHARD, ROWS_PER_SHARD = 256, 16_384


def write_episodes(
    episodes: Iterable[EpisodeRow],
    out_dir: str | os.PathLike[str],
    spec: ActionSpec,
    *,
    name: str,
    description: str,
    test_every: int = 20,
    total: int | None = None,
    file_format: FileFormat = "array_record",
    overwrite: bool = False,
) -> None:
    """Writes an RLDS data set with splits train and test.

    Args:
      episodes: read once, a few at a time.
      out_dir: the data set's directory; made.
      spec: of the actions; stored in the metadata.
      name, description: of the data set.
      test_every: each so-manieth episode goes to "test", unless it names its split.
      total: number of episodes if known, for the progress line.
      file_format: array_record or tfrecord.
      overwrite: replace what is there.

    Raises:
      FileExistsError: `out_dir` is there already.
      ValueError: no episodes, or an episode that is malformed; names it.
    """
    stream = iter(episodes)
    first = next(stream, None)
    if first is None:
        raise ValueError(f"no episodes to write to {out_dir}")
    features = _episode_features(first, len(spec.dimensions))

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, episode in enumerate(itertools.chain([first], stream)):
            if ("plan" in episode) != ("plan" in first):
                raise ValueError(f"episode {number}: every episode has a plan, or none has")
            by_number = "test" if number % test_every == test_every - 1 else "train"
            yield episode.get("split", by_number), _rlds(episode, spec, f"episode {number}")

    _write(
        rows(),
        pathlib.Path(out_dir),
        features,
        name=name,
        description=description,
        metadata={SPEC_KEY: spec.to_json()},
        rows_per_shard=EPISODES_PER_SHARD,
        total=total,
        file_format=file_format,
        overwrite=overwrite,
    )


def write_image_text(
    splits: Mapping[str, Iterable[ImageTextRow]],
    out_dir: str | os.PathLike[str],
    *,
    name: str,
    description: str,
    total: int | None = None,
    file_format: FileFormat = "array_record",
    overwrite: bool = False,
) -> None:
    """Writes an image-text data set; encoded images are stored as they are.

    Arguments as for `write_episodes`; `splits` are written one after the other.

    Raises:
      FileExistsError: `out_dir` is there already.
      ValueError: no rows, or a row with an empty prompt or answer; names it.
    """
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "prompt": tfds.features.Text(),
            "answer": tfds.features.Text(),
            "task": tfds.features.Text(),
            "language": tfds.features.Text(),
        }
    )

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for split, examples in splits.items():
            for number, row in enumerate(examples):
                if not row["prompt"].strip() or not row["answer"]:
                    raise ValueError(f"row {number} of split {split} has no prompt or no answer")
                yield split, dict(row)

    _write(
        rows(),
        pathlib.Path(out_dir),
        features,
        name=name,
        description=description,
        metadata={},
        rows_per_shard=ROWS_PER_SHARD,
        total=total,
        file_format=file_format,
        overwrite=overwrite,
    )


def _episode_features(episode: EpisodeRow, action_size: int) -> tfds.features.FeaturesDict:
    scalar = {bool: np.bool_, int: np.int64, float: np.float32}
    metadata = {
        key: tfds.features.Text()
        if isinstance(value, str)
        else tfds.features.Scalar(scalar[type(value)])
        for key, value in episode["metadata"].items()
    }
    observation = {view: tfds.features.Image(shape=(None, None, 3)) for view in episode["images"]}
    state_size = np.shape(episode["state"])[-1]
    return tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "observation": {
                        **observation,
                        "state": tfds.features.Tensor(shape=(state_size,), dtype=np.float32),
                    },
                    "action": tfds.features.Tensor(shape=(action_size,), dtype=np.float32),
                    "language_instruction": tfds.features.Text(),
                    "is_first": tfds.features.Scalar(np.bool_),
                    "is_last": tfds.features.Scalar(np.bool_),
                    "is_terminal": tfds.features.Scalar(np.bool_),
                    "reward": tfds.features.Scalar(np.float32),
                    "discount": tfds.features.Scalar(np.float32),
                }
            ),
            "episode_metadata": metadata,
            **({"plan": tfds.features.Text()} if "plan" in episode else {}),
        }
    )


def _rlds(episode: EpisodeRow, spec: ActionSpec, where: str) -> dict[str, Any]:
    """Columns to RLDS steps. A success ends in a terminal state; a failure is cut off."""
    actions = spec.validate(episode["action"], where=where)
    steps = len(actions)
    if actions.ndim != 2 or steps < 1:
        raise ValueError(f"{where}: actions of shape {actions.shape}, need [steps, A]")
    if not episode["instruction"].strip():
        raise ValueError(f"{where}: empty instruction: say what the robot was asked to do")
    state = np.asarray(episode["state"], np.float32)
    lengths = {"state": len(state)} | {view: len(i) for view, i in episode["images"].items()}
    if set(lengths.values()) != {steps}:
        raise ValueError(f"{where}: {steps} actions, but {lengths}: one of each a step")
    for view, images in episode["images"].items():
        for image in images:
            if not isinstance(image, bytes) and np.shape(image)[2:] != (3,):
                raise ValueError(
                    f"{where}: {view} of shape {np.shape(image)}; need [height, width, 3] or "
                    "encoded bytes"
                )
    last = np.arange(steps) == steps - 1
    return {
        "steps": {
            "observation": {**{k: list(v) for k, v in episode["images"].items()}, "state": state},
            "action": actions,
            "language_instruction": [episode["instruction"]] * steps,
            "is_first": np.arange(steps) == 0,
            "is_last": last,
            "is_terminal": last & episode["success"],
            "reward": np.asarray(last & episode["success"], np.float32),
            "discount": np.asarray(~(last & episode["success"]), np.float32),
        },
        "episode_metadata": dict(episode["metadata"]),
        **({"plan": episode["plan"]} if "plan" in episode else {}),
    }


def _write(
    rows: Iterator[tuple[str, dict[str, Any]]],
    out_dir: pathlib.Path,
    features: tfds.features.FeaturesDict,
    *,
    name: str,
    description: str,
    metadata: dict[str, str],
    rows_per_shard: int,
    total: int | None,
    file_format: FileFormat,
    overwrite: bool,
) -> None:
    with _new_directory(out_dir, overwrite=overwrite) as directory:
        info = tfds.core.DatasetInfo(
            builder=DatasetIdentity(
                name=name,
                version=tfds.core.Version("1.0.0"),
                data_dir=str(directory),
                module_name="vla_jax",
            ),
            description=description,
            features=features,
            metadata=tfds.core.MetadataDict(metadata),
        )
        writer = tfds.core.SequentialWriter(info, rows_per_shard, file_format=file_format)
        progress = Progress(name, total)
        # tfds writes the metadata again after each chunk.
        while chunk := list(itertools.islice(rows, max(1, rows_per_shard // 16))):
            by_split: dict[str, list[dict[str, Any]]] = {}
            for split, row in chunk:
                by_split.setdefault(split, []).append(row)
            writer.initialize_splits(list(by_split), fail_if_exists=False)
            writer.add_examples(by_split)
            progress.add(len(chunk))
        if not progress.done:
            raise ValueError(f"no rows to write to {out_dir}")
        writer.close_all()
    progress.finish(out_dir)


@contextlib.contextmanager
def _new_directory(path: pathlib.Path, *, overwrite: bool) -> Iterator[pathlib.Path]:
    """A directory beside `path` that becomes `path` if the block succeeds."""
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already: remove it or ask to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if overwrite:
            shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
