"""Pictures with a question and an answer: one record a sample."""

from __future__ import annotations

import os
from typing import Any

from vla_jax.data.sources.records import RecordFiles, find_feature, require_image, require_text
from vla_jax.data.sources.texts import TextLayout
from vla_jax.types import Example, chosen

LABELS = ("task", "language")

PROMPT_AND_ANSWER = TextLayout("{prompt}", "answer")


class ImageTextSource:
    """A TFDS data set with an image and texts.

    As it comes it reads what this project writes: features image, prompt, answer, task, language.
    Others, by example:

        coco_captions: TextLayout(CAPTION_TEMPLATE, "captions/text", language="english")
        VQAv2: TextLayout(QUESTION_TEMPLATE, "answers/answer")

    Args:
      name: for messages.
      path: the data set's directory.
      split: its split.
      image: feature with the encoded image.
      max_bad_records: so many may be cut off at the end of files; to read one is an error.
      texts: which text features, or lists of them, make the prompt and the answer.

    Raises:
      FileNotFoundError: no such data set.
      ValueError: a feature is missing or of the wrong kind, a damaged file.
    """

    action_spec = None

    def __init__(
        self,
        name: str,
        path: str | os.PathLike[str],
        split: str = "train",
        *,
        image: str = "image",
        texts: TextLayout = PROMPT_AND_ANSWER,
        max_bad_records: int = 0,
    ):
        self.name = name
        self._records = RecordFiles(name, path, split, max_bad_records=max_bad_records)
        self._image, self._texts = image, texts
        features, where = self._records.info.features, f"data set {name!r} ({path})"
        require_image(features, image, where=where)
        for key in texts.fields:
            require_text(features, key, where=where)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Example:
        features = self._records.parse(index)

        def find(field: str) -> list[str]:
            return [text.decode() for text in features[field].bytes_list.value]

        prompt, answer = self._texts.read(find, where=lambda: self._records.where(index))
        images = features[self._image].bytes_list.value
        image = images[0] if images else b""
        if not image:
            raise ValueError(
                f"{self._records.where(index)} has no image in {self._image}: drop the record"
            )
        return Example(images=(image,), prompt=prompt, answer=answer)

    def texts(self, index: int) -> dict[str, str]:
        """Prompt, answer, task and language of record `index`; of several texts the first.

        Raises ValueError if the data set has no features task and language.
        """
        where = f"data set {self.name!r} ({self._records.path})"
        for key in LABELS:
            find_feature(self._records.info.features, key, where=where)
        prompt, answer = chosen(self.read(index))
        return {"prompt": prompt, "answer": answer or "", **self.labels(index)}

    @property
    def labelled(self) -> bool:
        """Whether the data set has features task and language."""
        features: Any = self._records.info.features
        return all(key in features for key in LABELS)

    def labels(self, index: int) -> dict[str, str]:
        """Task and language of record `index`; of data without them, "question" and ""."""
        if not self.labelled:
            return {"task": "question", "language": ""}
        features = self._records.parse(index)
        return {key: features[key].bytes_list.value[0].decode() for key in LABELS}
