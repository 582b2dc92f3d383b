"""The corpus as a function of an index, and easy-vqa beside it."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from PIL import Image

from vla_jax.corpus.concepts import package_file
from vla_jax.corpus.paint import Painter
from vla_jax.corpus.patches import PatchLabels, patch_labels
from vla_jax.corpus.pictures import ART_STYLES, PictureBank
from vla_jax.corpus.questions import QuestionMaker, Sample
from vla_jax.corpus.scenes import LEAST_PX
from vla_jax.corpus.task_weights import PACKED_WEIGHTS
from vla_jax.text.prompts import question_prompt

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

EASY_VQA_SHARE = 0.03
GROUNDED_THINGS = 6


class CorpusExample(TypedDict):
    """One web sample. `language` is the code of the answer's or the asked name's language."""

    image: np.ndarray  # uint8 [S, S, 3]
    prompt: str
    answer: str
    task: str
    language: str


class PictureQuestions(NamedTuple):
    """One picture with several questions."""

    image: np.ndarray  # uint8 [S, S, 3]
    texts: list[tuple[str, str]]  # (prompt, answer)
    patches: PatchLabels | None  # None where they are not known


class Corpus:
    """Endless: `example(index)` depends on (seed, split, index) and nothing else.

    Args:
      image_size: side of the square images, pixels.
      seed: another seed is another corpus.
      split: "train" and "test" differ in every scene; concepts are the same.
      background_share: how much of the pictures is the long tail of all other emoji; a small model
        on a small budget learns the curated ones better with less of it.
      max_pictures: most pictures in a scene; fewer make an easier corpus to start with.
      least_px: side of the smallest pictures where an image has 112 pixels, see `scenes.compose`.
      crowded_share: how much of `questions` is about scenes with about ten pictures, which teach
        more per image.
      styles: pictures are drawn in one of so many of `pictures.ART_STYLES`.

    Raises ValueError for an unknown split, images under 32 pixels or too many styles.
    """

    def __init__(
        self,
        image_size: int = 112,
        seed: int = 0,
        split: str = "train",
        background_share: float = 0.3,
        max_pictures: int = 5,
        crowded_share: float = 0.0,
        least_px: float = LEAST_PX,
        styles: int = 1,
    ):
        _require_split(split)
        if not 1 <= styles <= len(ART_STYLES):
            raise ValueError(f"styles {styles}: there are 1 to {len(ART_STYLES)}, {ART_STYLES}")
        if image_size < 32:
            raise ValueError(f"image_size {image_size} is too small to show pictures: use >= 32")
        self.image_size, self.seed, self.split = image_size, seed, split
        self.crowded_share = crowded_share
        self._bank = PictureBank()
        self._maker = QuestionMaker(
            self._bank, image_size, background_share, max_pictures, least_px, styles
        )
        self._painter = Painter(self._bank)
        self._easy_vqa = EasyVqa(split, image_size)

    def example(self, index: int) -> CorpusExample:
        """Sample number `index` >= 0."""
        rng = self._rng(index)
        if rng.random() < EASY_VQA_SHARE:
            return self._easy_vqa.example(rng.randrange(len(self._easy_vqa)))
        sample = self._maker.make(rng)
        return self._painted(sample, rng)

    def questions(self, index: int, count: int, patch: int) -> PictureQuestions:
        """A picture with up to `count` different questions about it, drawn by `PACKED_WEIGHTS`.

        The first asks for a grounded caption: names and places of up to `GROUNDED_THINGS` things.

        Args:
          patch: side of the image patches that get a label, pixels.
        """
        rng = self._rng(index)
        if rng.random() < EASY_VQA_SHARE:
            image, texts = self._easy_vqa.questions(rng.randrange(len(self._easy_vqa)), count)
            return PictureQuestions(image, texts, None)
        if rng.random() < self.crowded_share:
            scene, first = self._maker.crowded_scene(rng), []
        else:
            first = [self._maker.make(rng, PACKED_WEIGHTS)]
            scene = first[0].scene
        image = self._painter.paint(scene, rng)
        grounded = self._maker.grounded_caption(scene, GROUNDED_THINGS, rng)
        samples = [grounded, *first, *self._maker.make_about(scene, count, rng)]
        texts = list({s.prompt: s.answer for s in samples}.items())[:count]
        labels = patch_labels(scene, self._bank, self.image_size, patch)
        return PictureQuestions(image, texts, labels)

    def task_example(self, task: str, index: int) -> CorpusExample:
        """Like `example` for one task of `questions.TASK_WEIGHTS`; its own scenes."""
        rng = self._rng(index, task)
        return self._painted(self._maker.make_task(task, rng), rng)

    def text(self, index: int) -> tuple[str, str]:
        """(prompt, answer) of `example(index)`, without painting it."""
        rng = self._rng(index)
        if rng.random() < EASY_VQA_SHARE:
            return self._easy_vqa.text(rng.randrange(len(self._easy_vqa)))
        sample = self._maker.make(rng)
        return sample.prompt, sample.answer

    def sample(self, index: int) -> Sample | None:
        """The scene and question behind `example(index)`; None where it is easy-vqa's."""
        rng = self._rng(index)
        return None if rng.random() < EASY_VQA_SHARE else self._maker.make(rng)

    def _painted(self, sample: Sample, rng: random.Random) -> CorpusExample:
        image = self._painter.paint(sample.scene, rng)
        return CorpusExample(
            image=image,
            prompt=sample.prompt,
            answer=sample.answer,
            task=sample.task,
            language=sample.language,
        )

    def _rng(self, index: int, task: str = "") -> random.Random:
        if index < 0:
            raise ValueError(f"sample index must be >= 0, not {index}")
        key = f"{self.seed}/{self.split}/{task}/{index}".encode()
        return random.Random(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest()))


class EasyVqa:
    """easy-vqa (MIT): questions about one coloured shape; its own train and test pictures."""

    def __init__(self, split: str = "train", image_size: int = 112):
        _require_split(split)
        self.split, self.image_size = split, image_size

    def __len__(self) -> int:
        return len(_easy_vqa_questions(self.split))

    def text(self, index: int) -> tuple[str, str]:
        """(prompt, answer) of question `index`."""
        question, answer, _ = _easy_vqa_questions(self.split)[index]
        return question_prompt(question), answer

    def example(self, index: int) -> CorpusExample:
        """Question `index` in 0 .. len - 1, its picture scaled to `image_size`."""
        prompt, answer = self.text(index)
        number = _easy_vqa_questions(self.split)[index][2]
        path = package_file("easy_vqa", f"data/{self.split}/images/{number}.png")
        with Image.open(path) as file:
            side = (self.image_size, self.image_size)
            image = file.convert("RGB").resize(side, Image.Resampling.BILINEAR)
        return CorpusExample(
            image=np.array(image), prompt=prompt, answer=answer, task="easy_vqa", language="en"
        )

    def questions(self, index: int, count: int) -> tuple[np.ndarray, list[tuple[str, str]]]:
        """Question `index` with up to `count` - 1 others about its picture."""
        table = _easy_vqa_questions(self.split)
        same = [i for i in range(len(table)) if table[i][2] == table[index][2] and i != index]
        texts = [self.text(i) for i in (index, *same[: count - 1])]
        return self.example(index)["image"], texts


@functools.cache
def _easy_vqa_questions(split: str) -> list[tuple[str, str, int]]:
    path = package_file("easy_vqa", f"data/{split}/questions.json")
    return [tuple(row) for row in json.loads(path.read_text(encoding="utf-8"))]


def _require_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
