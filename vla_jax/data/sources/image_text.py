"""Pictures with a question and an answer: one record a sample."""

from __future__ import annotations

import os

import tensorflow_datasets as tfds

from vla_jax.data.sources.episodes import find_feature
from vla_jax.data.sources.records import RecordFiles
from vla_jax.types import Example

TEXTS = ("prompt", "answer", "task", "language")


class ImageTextSource:
    """A TFDS data set with features image, prompt, answer, task, language.

    Args:
      name: for messages.
      path: the data set's directory.
      split: its split.

    Raises:
      FileNotFoundError: no such data set.
      ValueError: a feature is missing or of the wrong kind, a damaged file.
    """

    action_spec = None

    def __init__(self, name: str, path: str | os.PathLike[str], split: str = "train"):
        self.name = name
        self._records = RecordFiles(name, path, split)
        where = f"data set {name!r} ({path})"
        image = find_feature(self._records.info.features, "image", where=where)
        if not isinstance(image, tfds.features.Image) or len(image.shape) != 3:
            raise ValueError(
                f"{where}: feature image is {type(image).__name__} of shape {image.shape}; an "
                "encoded image [height, width, 3] is needed: store it as tfds.features.Image"
            )
        for key in TEXTS:
            find_feature(self._records.info.features, key, where=where)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Example:
        features = self._records.parse(index)
        prompt, answer = (
            features[key].bytes_list.value[0].decode() for key in ("prompt", "answer")
        )
        if not prompt.strip() or not answer:
            raise ValueError(
                f"{self._records.where(index)} has an empty {'answer' if prompt.strip() else 'prompt'}"
                ": fill it in or drop the record"
            )
        return Example(
            images=(features["image"].bytes_list.value[0],), prompt=prompt, answer=answer
        )

    def texts(self, index: int) -> dict[str, str]:
        """prompt, answer, task and language of record `index`."""
        features = self._records.parse(index)
        return {key: features[key].bytes_list.value[0].decode() for key in TEXTS}
