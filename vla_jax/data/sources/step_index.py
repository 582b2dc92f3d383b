"""Where the steps of RLDS episodes are: read once, so that a step needs no parsing of its episode.

An RLDS episode is one record with all its pictures in it. Its numbers and texts are small and go
into tables; of its pictures the tables hold where in the record they stand. No image is decoded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vla_jax.data.sources import index_files
from vla_jax.data.sources.records import RecordFiles, parse_example

_TABLES = ("steps", "images", "numbers", "texts", "strings", "bad")


class StepFeatures(NamedTuple):
    """What is indexed. Names are paths of features, joined by "/".

    Attributes:
      images: encoded images, one a step.
      numbers: name -> shape at one step.
      texts: name -> 0 for a text; for a vector of UTF-8 bytes padded with 0, its length.
    """

    images: tuple[str, ...]
    numbers: Mapping[str, tuple[int, ...]]
    texts: Mapping[str, int]


class StepIndex(NamedTuple):
    """The tables of a split of E episodes and N steps.

    Attributes:
      starts: int64 [E + 1], first step of each episode, and N.
      images: int64 [N, image features, 2], offset in the episode's record, and length.
      numbers: float32 [N, K], the number features, flattened and joined; as stored, NaN too.
      texts: int32 [N, text features], indices into `strings`.
      strings: each text once.
      bad: episode -> why it cannot be read; such an episode has no steps.
    """

    starts: np.ndarray
    images: np.ndarray
    numbers: np.ndarray
    texts: np.ndarray
    strings: list[str]
    bad: dict[int, str]


def load_or_build(records: RecordFiles, features: StepFeatures) -> StepIndex:
    """The index of a split, from disk if it was built before; see `index_files`."""
    what = f"steps: {features.images} {dict(features.numbers)} {dict(features.texts)}"

    def build_file(file: int) -> dict[str, np.ndarray]:
        return _index_records(records, records.of_file(file), features)

    def build() -> dict[str, np.ndarray]:
        return _joined(
            index_files.build_parts(records.files, what, _TABLES, build_file, name=records.name)
        )

    tables = index_files.load_or_build_tables(records.files, f"{what}, joined", _TABLES, build)
    return StepIndex(
        starts=np.concatenate([[0], np.cumsum(tables["steps"])]),
        images=tables["images"],
        numbers=tables["numbers"],
        texts=tables["texts"],
        strings=_from_json(tables["strings"]),
        bad={int(number): why for number, why in _from_json(tables["bad"]).items()},
    )


class _Episode(NamedTuple):
    images: np.ndarray
    numbers: np.ndarray
    texts: np.ndarray


def _index_records(
    records: RecordFiles, numbers: range, features: StepFeatures
) -> dict[str, np.ndarray]:
    """The tables of a file's episodes. One that is damaged gets no steps, and a line in "bad"."""
    strings: dict[str, int] = {}
    steps, bad = np.zeros(len(numbers), np.int64), {}
    size = sum(int(np.prod(shape)) for shape in features.numbers.values())
    none = _Episode(
        np.zeros((0, len(features.images), 2), np.int64),
        np.zeros((0, size), np.float32),
        np.zeros((0, len(features.texts)), np.int32),
    )
    episodes = [none]
    for row, number in enumerate(numbers):
        try:
            data = records.read(number)
        except ValueError as e:
            bad[number] = str(e)
            continue
        where = records.where(number)
        try:
            episode = _index_episode(
                data,
                parse_example(data, where=functools.partial(records.where, number)),
                features,
                strings,
            )
        except ValueError as e:
            bad[number] = str(e) if str(e).startswith(where) else f"{where} (episode {number}): {e}"
            continue
        steps[row] = len(episode.texts)
        episodes.append(episode)
    images, all_numbers, texts = (np.concatenate(parts) for parts in zip(*episodes))
    return {
        "steps": steps,
        "images": images,
        "numbers": all_numbers,
        "texts": texts,
        "strings": _to_json(list(strings)),
        "bad": _to_json(bad),
    }


def _index_episode(
    data: bytes, stored: Mapping[str, Any], features: StepFeatures, strings: dict[str, int]
) -> _Episode:
    """The rows of one episode; new texts are added to `strings`."""
    views = [stored[key].bytes_list.value for key in features.images]
    steps = len(views[0])
    if any(len(view) != steps for view in views):
        raise ValueError(
            f"{[len(view) for view in views]} images in {features.images}: write the episode again"
        )
    numbers = [_numbers(stored[key], key, steps, shape) for key, shape in features.numbers.items()]
    columns = [_texts(stored[key], key, steps, size) for key, size in features.texts.items()]
    texts = np.zeros((steps, len(columns)), np.int32)
    for column, values in enumerate(columns):
        texts[:, column] = [strings.setdefault(text, len(strings)) for text in values]
    images = np.stack([_spans(data, view) for view in views], axis=1)
    joined = np.concatenate([np.zeros((steps, 0), np.float32), *numbers], axis=1)
    return _Episode(images, joined, texts)


def _spans(data: bytes, images: Any) -> np.ndarray:
    """int64 [steps, 2]: offset and length in the record of bytes that stand there in this order.

    Bytes that stand there twice are found at the first place, which is as good.
    """
    spans, position = np.zeros((len(images), 2), np.int64), 0
    for row, image in enumerate(images):
        position = data.index(image, position)
        spans[row] = position, len(image)
        position += len(image)
    return spans


def _numbers(feature: Any, key: str, steps: int, shape: tuple[int, ...]) -> np.ndarray:
    """float32 [steps, product of shape]."""
    kind = feature.WhichOneof("kind")
    values = np.zeros(0, np.float32)
    if kind in ("float_list", "int64_list"):
        values = np.asarray(getattr(feature, kind).value, np.float32)
    if values.size != steps * int(np.prod(shape)):
        raise ValueError(
            f"{key} has {values.size} numbers for {steps} steps of shape {shape}: write the "
            "episode again"
        )
    return values.reshape(steps, int(np.prod(shape)))


def _texts(feature: Any, key: str, steps: int, size: int) -> list[str]:
    """[steps], the same for each if the episode has one."""
    if size:
        codes = np.asarray(feature.int64_list.value, np.int64)
        if codes.size % size or (codes.size and not 0 <= codes.min() <= codes.max() < 256):
            raise ValueError(f"{key} is not UTF-8 bytes, {size} a step: write the episode again")
        stored = [row[row != 0].astype(np.uint8).tobytes() for row in codes.reshape(-1, size)]
    else:
        stored = list(feature.bytes_list.value)
    if len(stored) not in (1, steps):
        raise ValueError(f"{key} has {len(stored)} texts for {steps} steps: label or drop it")
    try:
        texts = {text: text.decode() for text in set(stored)}
    except UnicodeDecodeError as e:
        raise ValueError(f"{key} is not UTF-8 ({e}): write the episode again") from e
    return [texts[text] for text in stored] * (steps if len(stored) == 1 else 1)


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The tables of all files as one; each file has numbers of its own for its texts."""
    strings: dict[str, int] = {}
    bad, texts = {}, []
    for part in parts:
        bad |= _from_json(part["bad"])
        own = _from_json(part["strings"])
        ids = np.asarray([strings.setdefault(text, len(strings)) for text in own], np.int32)
        texts.append(ids[part["texts"]] if len(own) else part["texts"])
    whole = {
        name: np.concatenate([part[name] for part in parts])
        for name in ("steps", "images", "numbers")
    }
    return {
        **whole,
        "texts": np.concatenate(texts),
        "strings": _to_json(list(strings)),
        "bad": _to_json(bad),
    }


def _to_json(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _from_json(table: np.ndarray) -> Any:
    return json.loads(table.tobytes())
