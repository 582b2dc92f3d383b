"""Pictures with a question and an answer: one record a sample."""

from __future__ import annotations

import os

from vla_jax.data.sources.records import RecordFiles, find_feature, require_image
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
        require_image(self._records.info.features, "image", where=where)
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
            empty = "answer" if prompt.strip() else "prompt"
            raise ValueError(
                f"{self._records.where(index)} has an empty {empty}: fill it in or drop the record"
            )
        return Example(
            images=(features["image"].bytes_list.value[0],), prompt=prompt, answer=answer
        )

    def texts(self, index: int) -> dict[str, str]:
        """prompt, answer, task and language of record `index`."""
        features = self._records.parse(index)
        return {key: features[key].bytes_list.value[0].decode() for key in TEXTS}
