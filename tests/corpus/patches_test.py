"""Patch labels against the geometry they come from."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vla_jax.corpus.dataset import Corpus
from vla_jax.corpus.patches import GRIPPER, NOTHING, patch_labels
from vla_jax.corpus.pictures import PictureBank
from vla_jax.corpus.questions import QuestionMaker
from vla_jax.corpus.scenes import Gripper, Mat, Placed, Scene, View


@pytest.fixture(scope="module")
def bank() -> PictureBank:
    return PictureBank()


def _placed(key: str, box) -> Placed:
    center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return Placed(key, center, box, center, box[2] - box[0], 0.0)


def test_names_of_a_scene_laid_out_by_hand(bank):
    """A dog over four patches, one of them by less than a quarter; a mat under part of it."""
    dog = _placed("dog", (16.0, 16.0, 36.0, 36.0))  # patch 1,1 whole; 1,2 and 2,1 a quarter
    mat = Mat("red", (40.0, 8.0), (32.0, 0.0, 48.0, 20.0), 16.0, 0.0, False, None)
    names, places = patch_labels(Scene(View(48, True, 1.0), (dog,), (mat,)), bank, 48, 16)
    assert np.array(names).reshape(3, 3).tolist() == [
        [NOTHING, NOTHING, NOTHING],
        [NOTHING, "dog", "dog"],
        ["red mat", "dog", NOTHING],
    ]
    of_dog, of_mat, none = [138, 138], [213, 42], [-1, -1]  # 26 / 48, 40 / 48, 8 / 48 of 256
    assert places.reshape(3, 3, 2).tolist() == [
        [none, none, none],
        [none, of_dog, of_dog],
        [of_mat, of_dog, none],
    ]


def test_a_gripper_is_marked_where_nothing_else_is(bank):
    dog = _placed("dog", (0.0, 16.0, 16.0, 32.0))
    view = View(48, True, 1.0)
    names, places = patch_labels(
        Scene(view, (dog,), (), Gripper((40.0, 24.0), 14.0, 8.0, False)), bank, 48, 16
    )
    assert names == [NOTHING, "dog", NOTHING, NOTHING, GRIPPER, NOTHING, NOTHING, GRIPPER, NOTHING]
    assert places[[4, 7]].tolist() == [[213, 128]] * 2
    low, _ = patch_labels(
        Scene(view, (dog,), (), Gripper((8.0, 24.0), 2.0, 8.0, False)), bank, 48, 16
    )
    assert low == [NOTHING, "dog", *[NOTHING] * 7]


def test_the_patch_under_each_centre_has_the_thing_or_its_neighbour(bank):
    """In 200 scenes of the corpus a patch is named after a thing that is in it."""
    maker, rng = QuestionMaker(bank, 112), random.Random(0)
    for _ in range(200):
        scene = maker.make(rng).scene
        names = np.array(patch_labels(scene, bank, 112, 16).names).reshape(7, 7)
        for thing in scene.objects:
            if thing.box[2] - thing.box[0] < 24 or thing.box[3] - thing.box[1] < 24:
                continue  # may cover no quarter of any patch
            y, x = (min(6, int(v // 16)) for v in thing.center)
            around = names[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            assert bank.name(thing.key) in around


def test_crowded_scenes_show_many_things_and_ask_about_them(bank):
    corpus = Corpus(112, crowded_share=1.0)
    things, questions = [], []
    for index in range(40):
        image, texts, patches = corpus.questions(index, 8, 16)
        assert image.shape == (112, 112, 3)
        if patches is None:  # easy-vqa
            continue
        names = patches.names
        shown = set(names) - {NOTHING}
        things.append(np.mean([n != NOTHING for n in names]))
        questions.append(len(texts))
        for prompt, answer in texts:
            if "what is at <" in prompt:
                assert answer in {bank.name(k) for k in bank.concepts("robot")} | shown | {
                    bank.name(k) for s in ("web_only", "background") for k in bank.concepts(s)
                }
    assert np.mean(things) > 0.4
    assert np.mean(questions) > 7
