"""Answers are recomputed here from the scene's records, by other means than the questions use."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from vla_jax.corpus.coordinates import RELATIONS, offset_pieces, piece, point_bins
from vla_jax.corpus.pictures import COLORS, PictureBank
from vla_jax.corpus.questions import (
    CATEGORY_NOUNS,
    QuestionMaker,
    Sample,
)
from vla_jax.corpus.task_weights import ABOUT_REPEATED, PACKED_WEIGHTS, TASK_WEIGHTS

SIZE = 112


@pytest.fixture(scope="module")
def maker() -> QuestionMaker:
    return QuestionMaker(PictureBank(), SIZE)


def _samples(maker: QuestionMaker, task: str, count: int) -> list[Sample]:
    return [maker.make_task(task, random.Random(f"{task}{i}")) for i in range(count)]


def _question(sample: Sample) -> str:
    found = re.fullmatch(r"Q: (.*) A:", sample.prompt)
    assert found
    return found[1]


def _integers(text: str) -> list[int]:
    assert re.fullmatch(r"(<\d{3}>)+", text), text
    return [int(v) for v in re.findall(r"\d+", text)]


def _centers(sample: Sample) -> dict[str, np.ndarray]:
    """key -> (y, x) in 0..1."""
    return {o.key: np.array(o.center) / SIZE for o in sample.scene.objects}


def _mentioned(sample: Sample, text: str | None = None) -> list[str]:
    """Shown concepts whose name is in the question, in order, the longest match first."""
    text = _question(sample) if text is None else text
    names = {o.key for o in sample.scene.objects} | {f"{m.color} mat" for m in sample.scene.mats}
    pattern = "|".join(re.escape(n) for n in sorted(names, key=len, reverse=True))
    return re.findall(rf"(?<!\w)(?:{pattern})(?!\w)", text)


def test_points_are_inside_the_named_object(maker: QuestionMaker):
    in_other_languages = 0
    for sample in _samples(maker, "point", 500):
        y, x = _integers(sample.answer)
        named = [
            o
            for o in sample.scene.objects
            if maker.bank.name(o.key, sample.language) in _question(sample)
        ]
        in_other_languages += sample.language != "en"
        inside = [
            o.box[0] - 0.5 <= (y + 0.5) / 256 * SIZE <= o.box[2] + 0.5
            and o.box[1] - 0.5 <= (x + 0.5) / 256 * SIZE <= o.box[3] + 0.5
            for o in named
        ]
        assert any(inside), sample.prompt
    assert 20 < in_other_languages < 120


def test_mat_points(maker: QuestionMaker):
    for sample in _samples(maker, "point_mat", 200):
        found = re.search(r"(\w+) mat", _question(sample))
        assert found
        (mat,) = [m for m in sample.scene.mats if m.color == found[1]]
        error = (np.array(_integers(sample.answer)) + 0.5) / 256 - np.array(mat.center) / SIZE
        assert np.abs(error).max() < 1 / 256


def test_boxes(maker: QuestionMaker):
    for sample in _samples(maker, "detect", 200):
        key = _mentioned(sample)[-1]
        (box,) = [o.box for o in sample.scene.objects if o.key == key]
        expected = np.clip(np.floor(np.array(box) / SIZE * 256), 0, 255)
        np.testing.assert_array_equal(_integers(sample.answer), expected)


def test_offsets_are_signed_and_symmetric(maker: QuestionMaker):
    for sample in _samples(maker, "offset", 200):
        places = _centers(sample) | {
            f"{m.color} mat": np.array(m.center) / SIZE for m in sample.scene.mats
        }
        source, target = _mentioned(sample)
        got = (np.array(_integers(sample.answer)) - 128) / 127
        np.testing.assert_allclose(got, places[target] - places[source], atol=0.5 / 127 + 1e-9)
    assert offset_pieces((5, 9), (5, 9), SIZE) == "<128><128>"
    assert offset_pieces((0, 0), (SIZE, SIZE), SIZE) == "<255><255>"
    assert offset_pieces((SIZE, SIZE), (0, 0), SIZE) == "<001><001>"


def test_reaching_is_from_the_gripper_and_ends_at_a_quarter_of_the_image(maker: QuestionMaker):
    clipped = errands = 0
    for sample in _samples(maker, "reach", 200):
        places = _centers(sample) | {
            f"{m.color} mat": np.array(m.center) / SIZE for m in sample.scene.mats
        }
        gripper, (target, *goal) = sample.scene.gripper, _mentioned(sample)
        assert gripper is not None
        if goal and target == gripper.holds:
            (target,) = goal
        errands += len(goal)
        down, right = places[target] - np.array(sample.scene.gripper.dot) / SIZE
        way = np.array([right, -down])
        clipped += int((np.abs(way) > 0.25).any())
        height, *moves = _integers(sample.answer)
        assert abs(height / 127 / 4 - sample.scene.gripper.lift_px / SIZE) <= 0.5 / 508 + 1e-9
        got = (np.array(moves) - 128) / 127 / 4
        np.testing.assert_allclose(got, np.clip(way, -0.25, 0.25), atol=0.5 / 508 + 1e-9)
    assert 0 < clipped < 200 and 30 < errands < 120
    for sample in _samples(maker, "gripper", 50):
        assert sample.scene.gripper is not None
        assert tuple(_integers(sample.answer)) == point_bins(sample.scene.gripper.dot, SIZE)


def test_what_a_gripper_is_over_and_whether_it_is_open(maker: QuestionMaker):
    answers, held = [], []
    for sample in _samples(maker, "over", 400):
        assert sample.scene.gripper is not None
        if sample.task == "holds":
            held.append(sample.answer)
            if sample.answer in ("yes", "no"):
                holds = _mentioned(sample) == [sample.scene.gripper.holds]
                assert (sample.answer == "yes") == holds
            else:
                assert sample.answer == sample.scene.gripper.holds
            continue
        dot = np.array(sample.scene.gripper.dot)
        below = {
            o.key
            for o in sample.scene.objects
            if (np.array(o.box[:2]) < dot).all() and (dot < np.array(o.box[2:])).all()
        }
        answers.append(sample.answer)
        if sample.answer in ("yes", "no"):
            (asked,) = _mentioned(sample)
            assert (sample.answer == "yes") == (asked in below)
        else:
            assert below == ({sample.answer} if sample.answer != "nothing" else set())
    assert {"yes", "no", "nothing"} < set(answers) and {"yes", "no"} < set(held)
    for sample in _samples(maker, "grip", 60):
        assert sample.scene.gripper is not None
        wide = sample.scene.gripper.half_px > 10.5 * SIZE / 112
        assert (sample.answer == "yes") == (wide and not sample.scene.gripper.holds)


def test_several_questions_about_a_thing_shown_twice_do_not_ask_where_it_is(maker: QuestionMaker):
    rng, asked = random.Random(0), 0
    while asked < 50:
        scene = maker.make_task("count", rng).scene
        keys = [o.key for o in scene.objects]
        for sample in maker.make_about(scene, 6, rng) if len(set(keys)) < len(keys) else ():
            assert sample.task in ABOUT_REPEATED
            asked += 1


def test_which_is_where_it_says(maker: QuestionMaker):
    seen = set()
    for sample in _samples(maker, "which", 300):
        question, centers = _question(sample), _centers(sample)
        (source,) = _mentioned(sample)
        offset = {k: c - centers[source] for k, c in centers.items() if k != source}
        if "nearest" in question or "next to" in question:
            seen.add("nearest")
            answer = min(offset, key=lambda k: float(np.hypot(*offset[k])))
        else:
            axis, sign, where = {
                "left of": (1, -1, "left"), "right of": (1, 1, "right"),
                "above": (0, -1, "above"), "below": (0, 1, "below"),
            }[next(w for w in RELATIONS if w in question)]  # fmt: skip
            seen.add(where)
            answers = [
                k
                for k, d in offset.items()
                if sign * d[axis] > 0 and abs(d[axis]) > abs(d[1 - axis])
            ]
            assert len(answers) == 1
            answer = answers[0]
        assert sample.answer == answer
    assert seen == {"nearest", "left", "right", "above", "below"}


def test_relation_words(maker: QuestionMaker):
    for sample in _samples(maker, "relation", 200):
        target, source = _mentioned(sample)
        dy, dx = _centers(sample)[target] - _centers(sample)[source]
        if abs(dx) > abs(dy):
            assert sample.answer == ("left" if dx < 0 else "right")
        else:
            assert sample.answer == ("above" if dy < 0 else "below")


def test_name_at(maker: QuestionMaker):
    for sample in _samples(maker, "name_at", 200):
        place = (np.array([int(v) for v in re.findall(r"<(\d+)>", sample.prompt)]) + 0.5) / 256
        centers = _centers(sample)
        assert sample.answer == min(centers, key=lambda k: float(np.hypot(*(centers[k] - place))))


def test_names_and_captions(maker: QuestionMaker):
    for sample in _samples(maker, "name", 50):
        assert [sample.answer] == [o.key for o in sample.scene.objects]
    languages = set()
    for sample in _samples(maker, "caption", 300):
        languages.add(sample.language)
        by_x = sorted(sample.scene.objects, key=lambda o: o.center[1])
        assert sample.answer == ", ".join(maker.bank.name(o.key, sample.language) for o in by_x)
    assert len(languages) == 14


def test_categories_have_one_answer(maker: QuestionMaker):
    nouns = {noun.split(" ", 1)[1]: category for category, noun in CATEGORY_NOUNS.items()}
    pattern = "|".join(sorted(nouns, key=len, reverse=True))
    edible = {"fruit", "vegetable", "food", "drink"}
    for sample in _samples(maker, "category", 300):
        found = re.search(pattern, _question(sample))
        assert found
        category = nouns[found[0]]
        shown = [o.key for o in sample.scene.objects]
        (answer,) = [k for k in shown if maker.bank.category(k) == category]
        if category == "food":
            assert sum(maker.bank.category(k) in edible for k in shown) == 1
        if sample.task == "category":
            assert sample.answer == answer
        else:
            assert sample.task == "point_category"
            place = (np.array(_integers(sample.answer)) + 0.5) / 256
            assert np.abs(place - _centers(sample)[answer]).max() < 1 / 256


def test_colours_and_what_is_on_the_mat(maker: QuestionMaker):
    kinds = set()
    for sample in _samples(maker, "color", 200):
        question = _question(sample)
        if question.startswith("what is on"):
            kinds.add("on")
            color = question.split()[4]
            (answer,) = [o.key for o in sample.scene.objects if o.mat == color]
        else:
            name = re.search(r"(?:under|with) the (.*)\?", question)
            assert name
            (placed,) = [o for o in sample.scene.objects if o.key == name[1]]
            kind = "mat" if "mat under" in question else "tile"
            kinds.add(kind)
            answer = placed.mat if kind == "mat" else placed.tile
            assert answer in COLORS
        assert sample.answer == answer
    assert kinds == {"on", "mat", "tile"}


def test_counts(maker: QuestionMaker):
    answers = set()
    for sample in _samples(maker, "count", 200):
        shown = [o.key for o in sample.scene.objects]
        found = re.fullmatch(r"how many times do you see the (.*)\?", _question(sample))
        assert found and int(sample.answer) == shown.count(found[1])
        answers.add(sample.answer)
    assert answers == {"1", "2", "3", "4"}
    for sample in _samples(maker, "count_all", 100):
        assert int(sample.answer) == len(sample.scene.objects)


def test_numbers(maker: QuestionMaker):
    tasks = set()
    for sample in _samples(maker, "numbers", 300):
        tasks.add(sample.task)
        values = [int(o.key[-1]) for o in sample.scene.objects if o.key.startswith("number ")]
        assert len(values) >= 2
        question = _question(sample)
        if sample.task == "sum":
            assert int(sample.answer) == sum(values)
            continue
        value = min(values) if "smallest" in question else max(values)
        if sample.task == "number":
            assert int(sample.answer) == value
        else:
            place = (np.array(_integers(sample.answer)) + 0.5) / 256
            assert np.abs(place - _centers(sample)[f"number {value}"]).max() < 1 / 256
    assert tasks == {"sum", "number", "point_number"}


def test_presence(maker: QuestionMaker):
    answers = []
    for sample in _samples(maker, "present", 200):
        found = re.fullmatch(r"(?:is the (.*) here|do you see the (.*))\?", _question(sample))
        assert found
        present = (found[1] or found[2]) in _centers(sample)
        assert sample.answer == ("yes" if present else "no")
        answers.append(present)
    assert 0.35 < np.mean(answers) < 0.65


def test_mixture(maker: QuestionMaker):
    rng = random.Random(0)
    samples = [maker.make(rng) for _ in range(3000)]
    kinds = {
        "sum": "numbers",
        "number": "numbers",
        "point_number": "numbers",
        "point_category": "category",
        "holds": "over",
    }
    tasks = [kinds.get(s.task, s.task) for s in samples]
    for task, weight in TASK_WEIGHTS.items():
        share = weight / sum(TASK_WEIGHTS.values())
        # A task that finds no scene gives way to "point".
        slack = 4 * (share / len(samples)) ** 0.5 + (0.02 if task == "point" else 0.0)
        assert tasks.count(task) / len(samples) == pytest.approx(share, abs=slack), task
    keys = [o.key for s in samples for o in s.scene.objects]
    background = np.mean([maker.bank.concept(k).split == "background" for k in keys])
    assert 0.2 < background < 0.35
    robot = np.mean([maker.bank.concept(k).split == "robot" for k in keys])
    web_only = np.mean([maker.bank.concept(k).split == "web_only" for k in keys])
    assert 0.7 < robot / web_only < 1.4
    for sample in samples:
        assert sample.prompt.startswith("Q: ") and sample.prompt.endswith(" A:")
        assert sample.answer and sample.answer == sample.answer.lower()


def test_several_questions_about_numbers(maker: QuestionMaker):
    """One in seven packed pictures is of numbers, and about most of those numbers are asked."""
    rng = random.Random(0)
    firsts = [maker.make(rng, PACKED_WEIGHTS) for _ in range(600)]
    arithmetic = {"sum", "number", "point_number"}
    of_numbers = [s.scene for s in firsts if s.task in arithmetic]
    share = PACKED_WEIGHTS["numbers"] / sum(PACKED_WEIGHTS.values())
    assert len(of_numbers) / len(firsts) == pytest.approx(share, abs=0.05)
    asked = [{s.task for s in maker.make_about(scene, 8, rng)} for scene in of_numbers]
    assert np.mean([bool(tasks & arithmetic) for tasks in asked]) > 0.7


def test_bad_input_is_named(maker: QuestionMaker):
    with pytest.raises(ValueError, match=r"'segment'.*point"):
        maker.make_task("segment", random.Random(0))
    with pytest.raises(ValueError, match="not 256"):
        piece(256)
    assert point_bins((-3.0, 500.0), SIZE) == (0, 255)
