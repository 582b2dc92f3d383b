"""Patch labels against the geometry they come from."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from vla_jax.corpus.dataset import Corpus
from vla_jax.corpus.patches import GRIPPER, OPEN, patch_labels
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
    words, places = patch_labels(Scene(View(48, True, 1.0), (dog,), (mat,)), bank, 48, 16)
    of_dog = ("dog",)
    assert words == [(), (), (), (), of_dog, of_dog, ("red mat",), of_dog, ()]
    of_dog, of_mat, none = [138, 138], [213, 42], [-1, -1]  # 26 / 48, 40 / 48, 8 / 48 of 256
    assert places.reshape(3, 3, 2).tolist() == [
        [none, none, none],
        [none, of_dog, of_dog],
        [of_mat, of_dog, none],
    ]


def test_a_tile_has_a_colour_and_a_block_has_it_in_its_name(bank):
    view = View(32, True, 1.0)
    things = [("dog", "green", 0.0), ("red block", "red", 16.0)]
    objects = tuple(
        dataclasses.replace(_placed(key, (y, 0.0, y + 16.0, 16.0)), tile=tile)
        for key, tile, y in things
    )
    words, _ = patch_labels(Scene(view, objects, ()), bank, 32, 16)
    assert words == [("dog", "green"), (), ("red block",), ()]


def test_a_gripper_is_marked_and_what_it_is_over(bank):
    dog = _placed("dog", (0.0, 16.0, 16.0, 32.0))
    view = View(48, True, 1.0)

    def labels(gripper: Gripper):
        return patch_labels(Scene(view, (dog,), (), gripper), bank, 48, 16)

    words, places = labels(Gripper((40.0, 24.0), 14.0, 8.0, open=False))
    its = (GRIPPER,)
    assert words == [(), ("dog",), (), (), its, (), (), its, ()]
    assert places[[4, 7]].tolist() == [[213, 128]] * 2
    words, _ = labels(Gripper((40.0, 24.0), 14.0, 14.0, open=True))
    assert words[4] == words[7] == (GRIPPER, OPEN)
    words, places = labels(Gripper((8.0, 24.0), 2.0, 8.0, open=True))  # over the dog
    assert words == [(), ("dog", GRIPPER), *[()] * 7]
    assert places[1].tolist() == [42, 128]


def test_the_patch_under_each_centre_has_the_thing_or_its_neighbour(bank):
    """In 200 scenes of the corpus a patch is named after a thing that is in it."""
    maker, rng = QuestionMaker(bank, 112), random.Random(0)
    for _ in range(200):
        scene = maker.make(rng).scene
        words = patch_labels(scene, bank, 112, 16).words
        names = np.array([w[0] if w else "" for w in words]).reshape(7, 7)
        for thing in scene.objects:
            if thing.box[2] - thing.box[0] < 24 or thing.box[3] - thing.box[1] < 24:
                continue  # may cover no quarter of any patch
            y, x = (min(6, int(v // 16)) for v in thing.center)
            around = names[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            value = bank.value(thing.key)
            assert (bank.name(thing.key) if value is None else str(value)) in around


def test_crowded_scenes_show_many_things_and_ask_about_them(bank):
    corpus = Corpus(112, crowded_share=1.0)
    things, questions = [], []
    for index in range(40):
        image, texts, patches = corpus.questions(index, 8, 16)
        assert image.shape == (112, 112, 3)
        if patches is None:  # easy-vqa
            continue
        shown = {words[0] for words in patches.words if words}
        things.append(np.mean([bool(words) for words in patches.words]))
        questions.append(len(texts))
        for prompt, answer in texts:
            if "what is at <" in prompt:
                assert answer in {bank.name(k) for k in bank.concepts("robot")} | shown | {
                    bank.name(k) for s in ("web_only", "background") for k in bank.concepts(s)
                }
    assert np.mean(things) > 0.4
    assert np.mean(questions) > 7
