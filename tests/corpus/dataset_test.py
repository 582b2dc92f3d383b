from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest

from vla_jax.corpus.concepts import LANGUAGES, load_concepts
from vla_jax.corpus.dataset import Corpus, EasyVqa

_DIGEST = """
import hashlib
from vla_jax.corpus.dataset import Corpus
corpus = Corpus(image_size=64, seed=3)
digest = hashlib.sha256()
for index in (7, 11, 5, 900_000_000_000):
    e = corpus.example(index)
    digest.update(e["image"].tobytes() + (e["prompt"] + e["answer"] + e["task"]).encode())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus(image_size=112, seed=0)


def test_same_index_same_bytes_in_another_process():
    corpus = Corpus(image_size=64, seed=3)
    for index in range(20):  # caches filled in another order must not matter
        corpus.example(index)
    digest = hashlib.sha256()
    for index in (7, 11, 5, 900_000_000_000):
        e = corpus.example(index)
        digest.update(e["image"].tobytes() + (e["prompt"] + e["answer"] + e["task"]).encode())
    other = subprocess.run(
        [sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == digest.hexdigest()


def test_examples_have_the_documented_form(corpus: Corpus):
    tasks = set()
    for index in range(400):
        e = corpus.example(index)
        tasks.add(e["task"])
        assert e["image"].shape == (112, 112, 3) and e["image"].dtype == np.uint8
        assert e["image"].flags.writeable
        assert e["prompt"].startswith("Q: ") and e["prompt"].endswith(" A:") and e["answer"]
        assert (e["prompt"], e["answer"]) == corpus.text(index)
        sample = corpus.sample(index)
        if sample is None:
            assert e["task"] == "easy_vqa"
        else:
            assert (sample.prompt, sample.task) == (e["prompt"], e["task"])
    assert {"point", "caption", "detect", "offset", "easy_vqa"} <= tasks


def test_splits_and_seeds_differ():
    texts = {
        name: [corpus.text(i) for i in range(200)]
        for name, corpus in {
            "train": Corpus(),
            "test": Corpus(split="test"),
            "seed": Corpus(seed=1),
        }.items()
    }
    for a, b in (("train", "test"), ("train", "seed"), ("test", "seed")):
        assert np.mean([x == y for x, y in zip(texts[a], texts[b], strict=True)]) < 0.1


def test_nowhere_concepts_never_occur(corpus: Corpus):
    nowhere = [c for c in load_concepts().values() if c.split == "nowhere"]
    # A Turkish horse is an "at": foreign names are looked for in captions of their language only.
    patterns = {
        language: re.compile(
            rf"(?<!\w)(?:{'|'.join(re.escape(c.names[language]) for c in nowhere)})(?!\w)"
        )
        for language in LANGUAGES
    }
    controls = {c.key for c in nowhere}
    pictures = {c.emoji for c in nowhere}
    for index in range(3000):
        sample = corpus.sample(index)
        prompt, answer = corpus.text(index)
        assert not patterns["en"].search(f"{prompt} {answer}"), (prompt, answer)
        if sample is not None:
            if sample.task == "caption":
                assert not patterns[sample.language].search(answer), answer
            shown = {o.key for o in sample.scene.objects}
            assert not shown & controls
            assert not {load_concepts()[k].emoji for k in shown} & pictures


def test_pictures_come_in_as_many_styles_as_are_asked_for():
    styles = {1: set(), 5: set()}
    for count, found in styles.items():
        corpus = Corpus(styles=count)
        for sample in filter(None, map(corpus.sample, range(60))):
            found |= {o.style for o in sample.scene.objects if load_concepts()[o.key].emoji}
    assert styles == {1: {0}, 5: set(range(5))}
    with pytest.raises(ValueError, match="styles 6: there are 1 to 5"):
        Corpus(styles=6)


def test_one_task_at_a_time(corpus: Corpus):
    assert {corpus.task_example("detect", i)["task"] for i in range(5)} == {"detect"}
    with pytest.raises(ValueError, match="'segment'"):
        corpus.task_example("segment", 0)


def test_easy_vqa_reads_its_own_questions():
    train, test = EasyVqa("train", 64), EasyVqa("test")
    assert (len(train), len(test)) == (38_575, 9_673)
    e = train.example(0)
    assert e["prompt"] == "Q: what is the blue shape? A:" and e["answer"] == "rectangle"
    blue = e["image"].astype(int)
    assert (blue[..., 2] - blue[..., 0] > 100).mean() > 0.02
    assert test.example(len(test) - 1)["image"].shape == (112, 112, 3)
    with pytest.raises(IndexError):
        train.example(len(train))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="'validation'"):
        Corpus(split="validation")
    with pytest.raises(ValueError, match="image_size 8"):
        Corpus(image_size=8)
    with pytest.raises(ValueError, match="not -1"):
        Corpus().example(-1)
