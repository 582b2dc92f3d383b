"""Reasoning instructions with their plans; pushes and recovery; and recordings without them."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vla_jax.corpus.concepts import load_concepts
from vla_jax.corpus.pictures import PictureBank
from vla_jax.data.sources.episodes import EpisodeLayout, EpisodeSource
from vla_jax.data.staged import StagedEpisodes
from vla_jax.data.tfds_writer import write_episodes
from vla_jax.envs.episodes import Recording, generate
from vla_jax.envs.tabletop.config import FAMILIES
from vla_jax.envs.tabletop.reasoning import KINDS, REQUESTS, TRAITS, narrowed, rephrased
from vla_jax.envs.tabletop.tasks import make_task
from vla_jax.text.prompts import PLAN_TEMPLATE, plan_sentence, robot_prompt
from vla_jax.text.vocabulary import Vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[2]
BANK = PictureBank()
WORDS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "tests/envs/simulated_recordings.py"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Plans


def parse_plan(plan: str) -> list[str]:
    """[family, target, reference, direction] of a plain sentence."""
    for family, pattern in {
        "pick": r"pick the (.+)",
        "near": r"move the (.+) near the (.+)",
        "put": r"put the (.+) on the (.+ mat)",
        "push": r"push the (.+) to the (left|right|front|back)",
    }.items():
        if match := re.fullmatch(pattern, plan):
            target, other = [*match.groups(), ""][:2]
            return [family, target, *(("", other) if family == "push" else (other, ""))]
    raise AssertionError(f"not a plan: {plan!r}")


def test_subprocess_plans_say_the_task(facts):
    seen = facts["reasoning"] + facts["of strangers"]
    assert [parse_plan(scene["plan"]) for scene in seen] == [scene["task"] for scene in seen]
    assert {scene["task"][0] for scene in seen} == set(FAMILIES)


def test_plain_words_are_their_own_plan():
    for family in FAMILIES:
        for phrasing in range(4):
            task = make_task(family, "apple", "red mat", "left", phrasing)
            assert task.plan == make_task(family, "apple", "red mat", "left").instruction
    assert make_task("pick", "apple", phrasing=2, subject="the fruit").instruction == (
        "grab the fruit"
    )


def fitting(instruction: str, scene: dict[str, Any]) -> set[str]:
    """Blocks that an instruction could mean, by rules of this file; a second reading of the words.

    Traits and requests come from the table: there, those that perhaps fit count, too.
    """
    blocks = {name: (x, y) for name, x, y, _ in scene["blocks"]}
    numbers = {int(name[7:]): name for name in blocks if name.startswith("number ")}
    for words, fits, perhaps in (*REQUESTS, *TRAITS):
        if words in instruction:
            return {b for b in blocks if b in (*fits, *perhaps)}
    if match := re.search(r"the sum of (\w+) and (\w+)", instruction):
        return {numbers[WORDS[match[1]] + WORDS[match[2]]]}
    if match := re.search(r"the answer of (\w+) minus (\w+)", instruction):
        return {numbers[WORDS[match[1]] - WORDS[match[2]]]}
    if match := re.search(r"the answer of two times (\w+)", instruction):
        return {numbers[2 * WORDS[match[1]]]}
    if match := re.search(r"the (small|larg)est number", instruction):
        assert len(numbers) > 1
        return {numbers[min(numbers) if match[1] == "small" else max(numbers)]}
    if match := re.search(r"what is (left of|right of|above|below) the (.+)", instruction):
        anchor = max((b for b in blocks if match[2].startswith(b)), key=len)
        sign = -1 if match[1] in ("left of", "below") else 1
        axis = 0 if match[1] in ("left of", "right of") else 1
        things = {**blocks, **{name: (x, y) for name, x, y in scene["mats"]}}
        there = sign * things[anchor][axis]
        return {n for n, at in things.items() if sign * at[axis] > there}
    if match := re.search(r"the (\w+) one", instruction):
        tiles = {name for name, *_, tile in scene["blocks"] if tile == match[1]}
        unclear = {b for b in blocks if not BANK.color(b)} - {scene["task"][1]}
        return {b for b in blocks if BANK.color(b) == match[1]} | tiles | unclear
    by_noun = {"ball": "sport", "piece of clothing": "clothing", "plain block": "block"}
    for noun in (*by_noun, *{BANK.category(b) for b in blocks}):
        if f"the {noun}" in instruction:
            category = by_noun.get(noun, noun)
            return {b for b in blocks if BANK.category(b) == category}
    raise AssertionError(f"not understood: {instruction!r}")


def test_subprocess_one_block_fits(facts):
    for scene in facts["reasoning"]:
        assert fitting(scene["instruction"], scene) == {scene["task"][1]}, scene


def test_subprocess_instructions_do_not_name_their_target(facts):
    seen = facts["reasoning"]
    told = [s for s in seen if re.search(rf"\b{s['task'][1]}\b", s["instruction"])]
    assert not [s for s in told if f"the {s['task'][1]}" in s["instruction"]]
    assert len({s["instruction"] for s in seen}) > 120
    kinds = {
        "number": r"sum|answer|est number",
        "relation": r"what is (left of|right of|above|below)",
        "attribute": "|".join(w for w, *_ in (*REQUESTS, *TRAITS)) + r"|the \w+ one\b",
    }
    for pattern in kinds.values():
        assert sum(bool(re.search(pattern, s["instruction"])) for s in seen) > 20


def names_of(*splits: str) -> re.Pattern[str]:
    names = [c.names["en"] for c in load_concepts().values() if c.split in splits]
    return re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names))


def test_subprocess_no_word_of_a_concept_that_robots_never_see(facts):
    strange = names_of("web_only", "nowhere")
    robot = set(BANK.concepts("robot"))
    said = [words for words, *_ in (*REQUESTS, *TRAITS)]
    for scene in facts["reasoning"]:
        said += [scene["instruction"], scene["plan"]]
        assert {name for name, *_ in scene["blocks"]} <= robot
    assert not [text for text in said if strange.search(text)]
    assert [s for s in facts["of strangers"] if strange.search(s["plan"])]  # the check can fail
    assert {c for _, *sets in (*REQUESTS, *TRAITS) for c in itertools.chain(*sets)} <= robot


def scene(*blocks: tuple[str, float, float], mats=(), tile="white"):
    return SimpleNamespace(
        blocks=tuple(SimpleNamespace(name=n, x=x, y=y, tile=tile) for n, x, y in blocks),
        mats=tuple(SimpleNamespace(x=x, y=y) for x, y in mats),
    )


@pytest.mark.parametrize(
    ("kind", "blocks", "words"),
    [
        ("category", [("apple", 0, 0), ("dog", 0.1, 0)], "pick the fruit"),
        ("category", [("apple", 0, 0), ("banana", 0.1, 0)], None),
        ("category", [("apple", 0, 0), ("corn", 0.1, 0)], None),  # some call corn a fruit
        ("category", [("key", 0, 0), ("corn", 0.1, 0)], None),  # no everyday word for it
        ("number", [("number 5", 0, 0), ("number 1", 0.1, 0)], "sum|minus|largest"),
        ("number", [("dog", 0, 0), ("number 1", 0.1, 0)], None),
        ("attribute", [("house", 0, 0), ("sailboat", 0.1, 0)], None),  # people live in both
        ("attribute", [("moon", 0, 0), ("key", 0.1, 0)], "what shines at night|the yellow one"),
        ("relation", [("key", -0.1, 0.01), ("dog", 0, 0)], "pick what is left of the dog"),
        ("relation", [("key", 0.01, -0.1), ("dog", 0, 0)], "pick what is below the dog"),
        ("relation", [("key", 0.1, 0.1), ("dog", 0, 0)], None),  # on a diagonal
        ("relation", [("key", 0.1, 0), ("dog", 0, 0), ("cat", 0.01, 0.12)], None),
    ],
)
def test_only_what_cannot_be_misunderstood_is_said(kind, blocks, words):
    task = make_task("pick", blocks[0][0])
    said = {rephrased(task, scene(*blocks), kind, BANK, random.Random(i)) for i in range(40)}
    if words is None:
        assert said == {None}
        return
    # In some phrasing of a pick, or as a wish.
    plain = {(s or "").replace("pick up", "pick").replace("grab", "pick") for s in said}
    assert any(re.search(words, text) for text in plain)
    assert None not in said


def test_a_mat_on_the_same_side_counts_and_so_does_a_tile_of_the_colour():
    task, blocks = make_task("pick", "key"), (("key", -0.1, 0.0), ("dog", 0.0, 0.0))
    mat = scene(*blocks, mats=((-0.05, 0.1),))
    assert rephrased(task, mat, "relation", BANK, random.Random(0)) is None
    red = make_task("pick", "car")
    for tile, said in (("white", True), ("red", False)):
        found = {
            rephrased(red, scene(("car", 0, 0), ("cat", 0.1, 0), tile=tile), "attribute", BANK, r)
            for r in map(random.Random, range(40))
        }
        assert any("the red one" in (text or "") for text in found) == said


def test_numbers_are_drawn_among_numbers_if_there_are_enough():
    robot = BANK.concepts("robot")
    assert narrowed("number", robot, BANK) == tuple(f"number {i}" for i in range(1, 6))
    assert narrowed("number", ("dog", "cat", "number 1"), BANK) == ("dog", "cat", "number 1")
    assert all(narrowed(k, robot, BANK) == robot for k in KINDS if k != "number")


def test_subprocess_the_demo_has_room_for_prompts_and_plans(facts):
    """`configs/demo_cotrain.py:plans`: 58 tokens, of which an answer may take 28."""
    vocabulary = Vocabulary()

    def count(text: str) -> int:
        return len(vocabulary.encode(text))

    for seen in facts["reasoning"]:
        plan = count(plan_sentence(seen["plan"])) + count("Action:") + 8 + 1
        assert plan <= 28
        assert 1 + count(robot_prompt(seen["instruction"], PLAN_TEMPLATE)) + plan <= 58


# Recordings


def test_subprocess_recordings_are_as_they_were_without_the_flags(facts):
    usual = facts["as usual"]
    assert usual["same"] == [True] * 3
    assert usual["planned"] == [True] * 3
    assert usual["keys"] == sorted(
        ("image_bytes", "image_ends", "state", "action", "instruction", "family", "target",
         "reference", "seed")
    )  # fmt: skip


def test_subprocess_what_is_recorded_is_the_expert_s_answer_to_the_state_after_a_push(facts):
    runs = [run for run in facts["watched"] if run["recorded"]]
    assert len(runs) >= 5
    for run in runs:
        assert run["the expert's"] and run["after the push"] and run["again"]
        assert 1 <= run["pushes"] == len(run["mishaps"]) <= 2
    still = np.concatenate([run["still"] for run in runs])
    shoved = [
        jump
        for run in runs
        if run["mishaps"].count("shove") == 1 == len(run["mishaps"])
        for jump in run["jumps"]
    ]
    # 4 to 8 cm, with the noise of what is carried out; nothing else moves the gripper like that.
    assert shoved and min(shoved) > 0.03
    assert np.median(still) < 0.02


def test_subprocess_the_expert_recovers(facts):
    recovery = facts["recovery"]
    by_pushes = np.asarray(recovery["success"]).mean(axis=0)
    assert by_pushes[0] == 1 and by_pushes[1] >= 0.95 and by_pushes[2] >= 0.85
    counts = np.asarray(recovery["pushes"])
    assert (counts[:, 0] == 0).all() and counts[:, 1].mean() > 0.9 and counts[:, 2].max() == 2
    assert recovery["told"] and recovery["mishaps"] == ["drop", "nudge", "shove"]


def test_subprocess_pushes_are_seeded_and_leave_the_scene_as_it_is(facts):
    recovery = facts["recovery"]
    assert recovery["same scene"] and recovery["same start"] and recovery["again"]
    assert recovery["changed"] == len(recovery["success"])
    assert facts["error"] == "pushes must be at least 0, got -1"


@pytest.fixture(scope="module")
def staged(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("staged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))
        generate(out, episodes=6, workers=1, seed=9, recording=Recording(plans=0.5, recovery=0.5))
    return out


def test_shares_are_in_the_metadata_and_must_stay_the_same(staged, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))
    metadata = json.loads((staged / "metadata.json").read_text())
    assert (metadata["plans"], metadata["recovery"]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="another config or seed"):
        generate(staged, episodes=6, workers=1, seed=9)
    with pytest.raises(ValueError, match=r"plans is a share in 0 \.\. 1, got 1.5"):
        Recording(plans=1.5)


def test_shares_of_many_seeds():
    options = [Recording(0.5, 0.3).options(seed) for seed in range(4000)]
    assert np.mean(["reasoning" in o for o in options]) == pytest.approx(0.5, abs=0.03)
    assert np.mean(["pushes" in o for o in options]) == pytest.approx(0.3, abs=0.03)
    assert not any(Recording(plans=0.0).options(seed) for seed in range(50))


def test_a_data_set_has_plans_for_those_who_want_them(staged, tmp_path):
    episodes = StagedEpisodes(staged)
    rows = list(episodes)
    assert all({"seed", "pushes"} <= set(row["metadata"]) for row in rows)
    options = [Recording(0.5, 0.5).options(row["metadata"]["seed"]) for row in rows]
    assert any("pushes" in o for o in options) and any("reasoning" in o for o in options)
    for row, option in zip(rows, options):
        named = row["metadata"]["target"] in row["instruction"]
        assert named != ("reasoning" in option)
        assert ("pushes" in option) >= bool(row["metadata"]["pushes"])
    write_episodes(rows, tmp_path / "robot", episodes.spec, name="r", description="", test_every=99)
    layout = EpisodeLayout(plan="plan")
    planned = EpisodeSource("robot", tmp_path / "robot", layout=layout)
    plain = EpisodeSource("robot", tmp_path / "robot")
    starts = np.cumsum([0, *(len(row["action"]) for row in rows)])
    for row, start in zip(rows, starts):
        example, other = planned.read(start), plain.read(start)
        assert example.plan == row.get("plan") and other.plan == ""
        assert example.prompt == robot_prompt(row["instruction"], PLAN_TEMPLATE)
        assert other.prompt == robot_prompt(row["instruction"])
        np.testing.assert_array_equal(example.action, other.action)
    del rows[2]["plan"]
    with pytest.raises(ValueError, match="episode 2: every episode has a plan, or none has"):
        write_episodes(rows, tmp_path / "some", episodes.spec, name="r", description="")
