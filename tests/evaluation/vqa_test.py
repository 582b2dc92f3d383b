from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.fakes import FakePolicy
from vla_jax.evaluation.base import run
from vla_jax.evaluation.vqa import (
    VqaBatch,
    VqaEvaluator,
    box_iou,
    integer_pieces,
    names_matched,
    normalize,
)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("The dog.", "dog", True),
        ("a  Dog", "dog", True),
        ("an apple!", "Apple", True),
        ("theatre", "atre", False),  # only whole words are articles
        ("ant", "nt", False),
        ("3.5", "35", False),  # a point in a number counts
        ("3.", "3", True),
        ("1,000", "1000", True),
        ("10", "1", False),
        ("Ｄｏｇ", "dog", True),  # full-width letters
        ("Straße", "strasse", True),
        ("собака。", "собака", True),
        ("the", "a", False),  # nothing but an article stays what it is
        ("?", "!", False),
        ("", "dog", False),
        ("left", "left of", False),
    ],
)
def test_normalize(a, b, same):
    assert (normalize(a) == normalize(b)) is same


def test_integer_pieces():
    np.testing.assert_array_equal(integer_pieces("<012><200>"), [12, 200])
    np.testing.assert_array_equal(integer_pieces(" <001> <002><003> <004>"), [1, 2, 3, 4])
    for text in ("", "dog", "<012", "<12><200>", "<012> dog", "<256><000>", "012 200"):
        assert integer_pieces(text) is None, text


def test_names_matched_counts_each_name_once():
    assert names_matched("dog, cat, car", "car, the dog") == (2, 3)
    assert names_matched("dog, dog", "dog") == (1, 2)
    assert names_matched("dog", "dog, dog, cat") == (1, 1)
    assert names_matched("chien, chat", "") == (0, 2)


def test_box_iou():
    a = np.array([0, 0, 10, 10])
    assert box_iou(a, a) == 1.0
    assert box_iou(a, np.array([0, 5, 10, 15])) == pytest.approx(50 / 150)
    assert box_iou(a, np.array([20, 20, 30, 30])) == 0.0
    assert box_iou(a, np.array([10, 10, 0, 0])) == 0.0  # inverted


SAMPLES = [
    # question, truth, task, language, said
    ("how many?", "2", "count", "en", "2"),
    ("how many birds?", "3", "count", "en", "2"),
    ("how many dogs?", "3", "count", "en", "2"),
    ("how many cats?", "3", "count", "en", "<001>"),
    ("what is this?", "the dog", "name", "en", "Dog"),
    ("caption in german", "hund, katze", "caption", "de", "hund, maus"),
    ("point to the dog", "<128><128>", "point", "en", "<128><138>"),  # 10/256 = 3.9%
    ("point to the cat", "<128><128>", "point", "en", "<128><148>"),  # 20/256 = 7.8%
    ("point to the car", "<128><128>", "point", "en", "<128>"),  # malformed
    ("offset from the dog to the cat", "<128><128>", "offset", "en", "<135><128>"),  # 7/127 = 5.5%
    ("detect the dog", "<000><000><100><100>", "detect", "en", "<000><000><100><060>"),
    ("detect the cat", "<000><000><100><100>", "detect", "en", "<000><000><100><040>"),
]


def make_evaluator(samples=SAMPLES, batch=5):
    def batches():
        for start in range(0, len(samples), batch):
            part = samples[start : start + batch]
            yield VqaBatch(
                images=np.zeros((len(part), 1, 64, 64, 3), np.uint8),
                questions=[s[0] for s in part],
                answers=[s[1] for s in part],
                tasks=[s[2] for s in part],
                languages=[s[3] for s in part],
            )

    return VqaEvaluator(batches)


def policy():
    return FakePolicy(answer={s[0]: s[4] for s in SAMPLES}.__getitem__)


def test_every_kind_is_scored():
    result = make_evaluator().measure(policy())
    counts = {k: (result[k]["count"], result[k]["n"]) for k in ("questions", "naming", "names")}
    assert counts == {"questions": (1, 4), "naming": (1, 2), "names": (2, 3)}
    assert (result["points"]["count"], result["points"]["n"]) == (2, 4)
    assert (result["boxes"]["count"], result["boxes"]["n"]) == (1, 2)
    assert (result["right"]["count"], result["right"]["n"]) == (5, 12)
    tasks = {row["task"]: row for row in result["tasks"]}
    # 10/256 and 20/256 of 64 pixels; the malformed one has no distance.
    assert tasks["point"]["median_px"] == pytest.approx(15 / 256 * 64)
    assert tasks["point"]["malformed"] == 1
    assert tasks["offset"]["median_px"] == pytest.approx(7 / 127 * 64)
    assert tasks["detect"]["mean_iou"] == pytest.approx((0.6 + 0.4) / 2)
    languages = {row["language"]: (row["count"], row["n"]) for row in result["languages"]}
    assert languages == {"en": (1, 1), "de": (1, 2)}


def test_confusions():
    result = make_evaluator().measure(policy())
    assert result["confusions"]["count"] == [
        {"truth": "3", "said": "2", "count": 2},
        {"truth": "3", "said": "001", "count": 1},
    ]
    # Rows are truths, columns are answers, the last one all other answers.
    assert result["matrix"] == {"count": {"labels": ["2", "3"], "counts": [[1, 0, 0], [2, 0, 1]]}}


def test_answers_of_several_people_count_as_vqa_does():
    """4 of 10 said what the policy says to one question, 2 of 10 to the other."""
    references = [("2",) * 4 + tuple("abcdef"), ("3",) * 2 + ("4",) * 8]

    def batches():
        yield VqaBatch(
            images=np.zeros((2, 1, 8, 8, 3), np.uint8),
            questions=["answer en how many?", "answer en how many dogs?"],
            answers=["2", "3"],
            tasks=["question"] * 2,
            languages=[""] * 2,
            references=references,
            whole=True,
        )

    said = {"answer en how many?": "two", "answer en how many dogs?": "three"}
    scalars = VqaEvaluator(batches).measure(FakePolicy(answer=said.__getitem__))["scalars"]
    assert scalars["vqa_accuracy"] == pytest.approx((1.0 + 0.6) / 2)
    assert scalars["exact_match"] == 0.5  # with the commonest


def test_batching_changes_nothing():
    results = [make_evaluator(batch=b).measure(policy()) for b in (1, 5, 12)]
    assert results[0] == results[1] == results[2]


def test_scalars_come_with_the_evaluators_name():
    scalars = dict(run(make_evaluator(), policy()))
    assert scalars["vqa/exact_match"] == scalars["vqa/vqa_accuracy"] == 0.25
    assert scalars["vqa/question/count"] == 0.25
    assert scalars["vqa/point_within"] == 0.5
    assert scalars["vqa/names"] == pytest.approx(2 / 3)
    assert all(isinstance(v, float) for v in scalars.values())


def test_examples_are_pictures_of_right_and_wrong_answers(tmp_path):
    result = make_evaluator().measure(policy(), tmp_path)
    kept = [(e["task"], e["right"]) for e in result["examples"]]
    assert kept.count(("count", False)) == 1  # of three
    assert kept.count(("count", True)) == 1
    with Image.open(tmp_path.parent / result["examples"][0]["image"]) as image:
        assert image.size == (64, 64)
    pointed = next(e for e in result["examples"] if e["task"] == "point" and e["right"])
    with Image.open(tmp_path.parent / pointed["image"]) as image:
        # Twice the size. (128.5, 138.5) / 256 is where the model points.
        assert image.getpixel((round(138.5 / 2), round(128.5 / 2))) == (214, 48, 49)


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        make_evaluator(samples=[]).measure(policy())
