"""CIDEr-D and BLEU against pycocoevalcap 1.2, which computed the figures here, and by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from tests.evaluation.fakes import FakePolicy
from vla_jax.evaluation.captions import (
    CaptionBatch,
    CaptionEvaluator,
    bleu,
    cider_d,
    words,
)

SAID = [
    "a man riding a wave on a surfboard",
    "a cat sits on the mat",
    "two dogs play with a red ball in the park",
    "a plate of food",
    "a bus",
]
REFERENCES = [
    (
        "a man on a surfboard rides a wave",
        "a surfer riding a large wave in the ocean",
        "man surfing a wave",
    ),
    ("a black cat sitting on a mat", "the cat sits on the mat"),
    (
        "two dogs playing with a ball",
        "dogs run after a red ball in the park",
        "two dogs in a park",
    ),
    ("a plate of food with rice and meat", "a white plate topped with food"),
    ("a red double decker bus drives down the street", "a bus on a city street"),
]
CIDER_D = 2.8478085036289746
BLEU = [0.8182656673397094, 0.744390721843142, 0.6166846869496067, 0.5223475798597352]


def test_scores_equal_the_coco_servers():
    assert cider_d(SAID, REFERENCES) == pytest.approx(CIDER_D, rel=1e-12)
    assert bleu(SAID, REFERENCES) == pytest.approx(BLEU, rel=1e-8)


def test_scores_by_hand():
    # 3 of 4 words and 1 of 3 pairs are in the reference of 4 words.
    one, two, three, _ = bleu(["red cat on mats"], [["red cat sits on"]])
    assert (one, two, three) == pytest.approx((3 / 4, math.sqrt(3 / 4 * 1 / 3), 0))
    # A caption of 2 words against 4: the nearest reference is twice as long.
    assert bleu(["red cat"], [["red cat sits here"]])[0] == pytest.approx(math.exp(1 - 4 / 2))
    # Two pictures, each with its own words: what is said of the first is right, of the other not.
    # All weights are log 2, each cosine is 1.
    both = [["one red cat sits"], ["two blue dogs run"]]
    assert cider_d(["one red cat sits", "no"], both) == pytest.approx(10 / 2)
    # Half of the words, none of the longer n-grams: cosine 1/2 for n = 1 alone.
    assert cider_d(["one x red y", "no"], both) == pytest.approx(10 / 2 * (1 / 2) / 4)
    assert cider_d(["anything"], [["anything"]]) == 0  # of a single picture all words are common


def test_words():
    assert words("A man's red-hot car, 2 dogs!") == ["a", "man's", "red", "hot", "car", "2", "dogs"]
    assert words("猫とイヌ cat") == ["猫", "と", "イ", "ヌ", "cat"]
    assert words("ein Bär、ＤＯＧ") == ["ein", "bär", "dog"]


def test_the_evaluator_scores_all_batches_together():
    said = dict(zip((f"Q: caption in english A: {n}" for n in range(5)), SAID))

    def batches():
        for rows in ([3, 4], [0, 1, 2]):  # out of order, as from two processes
            yield CaptionBatch(
                np.zeros((len(rows), 8, 8, 3), np.uint8),
                [list(said)[n] for n in rows],
                [REFERENCES[n] for n in rows],
                np.asarray(rows),
            )

    result = CaptionEvaluator(batches).measure(FakePolicy(answer=said.__getitem__))
    assert result["scalars"] == pytest.approx(
        {"cider_d": CIDER_D} | {f"bleu_{n}": value for n, value in enumerate(BLEU, 1)}
    )
    assert result["n"] == 5 and result["examples"][0]["said"] == SAID[0]
    with pytest.raises(ValueError, match="no captions"):
        CaptionEvaluator(lambda: iter(())).measure(FakePolicy())


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"pip install 'vla_jax\[captions\]'"):
        CaptionEvaluator(lambda: iter(()))
