"""RT-2's suites: what they ask, that it was never shown, that it can be done, and the sums."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest

import vla_jax.build
from tests.evaluation.fakes import FakePolicy, FakePool
from vla_jax import config as config_lib
from vla_jax.config import Config
from vla_jax.corpus.concepts import LANGUAGES, load_concepts
from vla_jax.corpus.coordinates import relation
from vla_jax.corpus.phrases import CATEGORY_NOUNS
from vla_jax.corpus.pictures import PictureBank
from vla_jax.data.config import DataConfig, SourceConfig
from vla_jax.envs.pool import EnvPool
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.envs.tabletop.layout import (
    TABLE_COLOR_SPREAD,
    TRAINING_PATTERNS,
    TRAINING_TABLE_COLORS,
    Layout,
    draw_layout,
    draw_task,
)
from vla_jax.evaluate import evaluate
from vla_jax.evaluation.base import EvaluationConfig, write_result
from vla_jax.evaluation.rollout import expert_agent, random_agent, run_episodes
from vla_jax.evaluation.statistics import share_of
from vla_jax.evaluation.suites import words
from vla_jax.evaluation.suites.cells import (
    CELLS,
    PAPER_MODELS,
    cells_of,
    draw_episode,
    episode_seed,
    make_plans,
)
from vla_jax.evaluation.suites.episode import Episode, only_one
from vla_jax.evaluation.suites.evaluator import SuiteEvaluator, averages_of, table
from vla_jax.models.presets import ModelConfig
from vla_jax.training.config import TrainConfig
from vla_jax.training.optimizer import OptimizerConfig

BANK = PictureBank()
WORLDS = tuple(CONFIGS)
SUITES = ("seen", "unseen", "emergent", "control")
PER_CELL = 30


@pytest.fixture(scope="module")
def episodes() -> dict[tuple[str, str], list[Episode]]:
    """(world, cell) -> episodes."""
    return {
        (world, cell.name): [
            draw_episode(cell, 5, i, CONFIGS[world], BANK) for i in range(PER_CELL)
        ]
        for world in WORLDS
        for cell in CELLS
    }


def of(episodes, cell: str) -> list[Episode]:
    return [episode for world in WORLDS for episode in episodes[world, cell]]


def names(layout: Layout) -> list[str]:
    return [block.name for block in layout.blocks]


# What training shows


@pytest.fixture(scope="module")
def training() -> list[Episode]:
    """What resets with 1,000 seeds draw in each world: the first table, even if it is refused."""
    found = []
    for config in CONFIGS.values():
        for seed in range(1000):
            rng = random.Random(seed)
            layout = draw_layout(rng, config, BANK, BANK.concepts("robot"))
            found.append(Episode(draw_task(rng, layout, config.families), layout, ""))
    return found


def test_training_episodes_show_and_name_no_concept_of_another_split(training):
    shown = {name for episode in training for name in names(episode.layout)}
    assert shown == set(BANK.concepts("robot"))  # all of them, so the draws are many enough
    found = strangers_in({episode.task.instruction for episode in training})
    assert found == {"pick"}  # the verb, and a miner's tool of the same name


def strangers_in(instructions: Iterable[str]) -> set[str]:
    """What in them is the name, in any language, of a concept of another split than "robot"."""
    strangers = {
        concept.names[language]
        for concept in load_concepts().values()
        if concept.split != "robot"
        for language in LANGUAGES
    }
    found = set()
    for said in map(str.split, instructions):
        ends = range(1, len(said) + 1)
        found |= strangers & {" ".join(said[i:j]) for j in ends for i in range(j)}
    return found


@pytest.mark.parametrize("leak", ["check mark", "löwe", "hamburguesa", "wolf", "night with stars"])
def test_the_search_for_leaks_finds_them(leak):
    burger = leak == "hamburguesa"  # a robot concept in Spanish
    assert strangers_in([f"push the {leak} to the left"]) == (set() if burger else {leak})


def test_training_tables_are_within_the_constants(training):
    assert {episode.layout.table for episode in training} == set(TRAINING_PATTERNS)
    assert all(_like_training(episode.layout) for episode in training)


def _like_training(layout: Layout) -> bool:
    """Whether training could draw this table."""
    near = any(
        max(abs(a - b) for a, b in zip(layout.table_color, base, strict=True)) <= TABLE_COLOR_SPREAD
        for base in TRAINING_TABLE_COLORS
    )
    return near and layout.table in TRAINING_PATTERNS


# What the suites ask


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_what_is_asked_about_was_never_in_episodes(episodes, cell):
    splits = {"robot": {"robot"}, "web": {"web_only", "background"}, "nowhere": {"nowhere"}}
    for episode in of(episodes, cell.name):
        concept = BANK.concept(episode.about)
        assert concept.split in splits[cell.concepts]
        assert len(concept.key) <= 24  # or the corpus would not ask about it
        task = episode.task
        assert episode.about == (task.reference if task.family == "near" else task.target)
        if task.family == "near" and cell.concepts != "robot":
            assert BANK.concept(task.target).split == "robot"
        if cell.concepts != "robot":
            # Another unfamiliar thing is there, so going for what is unfamiliar is no way out.
            others = set(names(episode.layout)) - {episode.about}
            if task.family != "near" or len(episode.layout.blocks) > 2:
                assert any(BANK.concept(o).split != "robot" for o in others)
    families = {episode.task.family for episode in episodes["full", cell.name]}
    assert families == set(CONFIGS["full"].families)


def test_blocks_differ_and_are_as_many_as_in_training(episodes):
    for (world, cell), drawn in episodes.items():
        config = CONFIGS[world]
        counts = {len(episode.layout.blocks) for episode in drawn}
        assert max(counts) == config.max_blocks and min(counts) >= config.min_blocks
        if BANK.concept(drawn[0].about).split != "robot":
            assert counts == {config.max_blocks}, cell
        for episode in drawn:
            assert len(set(names(episode.layout))) == len(episode.layout.blocks)
            assert len({mat.color for mat in episode.layout.mats}) == len(episode.layout.mats)


@pytest.mark.parametrize("cell", ["seen", "objects_easy", "objects_hard", "control"])
def test_plain_instructions_name_the_thing_alone(episodes, cell):
    for episode in of(episodes, cell):
        said = [n for n in names(episode.layout) if _says(episode.task.instruction, n)]
        task = episode.task
        assert sorted(said) == sorted({task.target, task.reference} & set(names(episode.layout)))


def _says(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def test_similar_objects_lie_beside_their_like(episodes):
    alike = [
        BANK.category(other) == BANK.category(e.about)
        for e in of(episodes, "objects_hard")
        for other in names(e.layout)
        if other not in (e.about, e.task.target) and BANK.concept(other).split == "web_only"
    ]
    different = [
        BANK.category(other) == BANK.category(e.about)
        for e in of(episodes, "objects_easy")
        for other in names(e.layout)
        if other not in (e.about, e.task.target)
    ]
    assert np.mean(alike) > 0.9 and not any(different)


def test_exactly_one_number_is_the_answer(episodes):
    kinds = set()
    for episode in of(episodes, "reasoning_math"):
        values = {n: v for n in names(episode.layout) if (v := BANK.value(n)) is not None}
        text = episode.task.instruction
        kind, right = _solve(text, list(values.values()))
        kinds.add(kind)
        assert [n for n, v in values.items() if v == right] == [episode.about], text
        assert len(values) > 1
    assert kinds == {"sum", "times", "minus", "smallest", "largest"}


def _solve(text: str, values: list[int]) -> tuple[str, int]:
    if "smallest" in text or "largest" in text:
        return ("smallest", min(values)) if "smallest" in text else ("largest", max(values))
    numbers = [words.NUMBER_WORDS.index(w) for w in text.split() if w in words.NUMBER_WORDS]
    a, b = numbers
    if "sum of" in text:
        return "sum", a + b
    return ("times", a * b) if "times" in text else ("minus", a - b)


def test_exactly_one_thing_is_of_the_category_or_has_the_sign(episodes):
    nouns = {noun.split(" ", 1)[1]: category for category, noun in CATEGORY_NOUNS.items()}
    signs = 0
    for episode in of(episodes, "reasoning_category"):
        text = episode.task.instruction
        if episode.about in words.SIGNS:
            signs += 1
            said = [n for n in names(episode.layout) if words.SIGNS.get(n, "\0") in text]
        else:
            asked = {category for noun, category in nouns.items() if _says(text, noun)}
            said = [n for n in names(episode.layout) if BANK.category(n) in asked]
        assert said == [episode.about], text
    assert 15 < signs < 45


def test_exactly_one_thing_is_what_the_nutrition_words_mean(episodes):
    asked = set()
    for episode in of(episodes, "reasoning_nutrition"):
        [(said, good, bad)] = [row for row in words.NUTRITION if row[0] in episode.task.instruction]
        asked.add(said)
        assert [n for n in names(episode.layout) if n in good] == [episode.about]
        rest = [n for n in names(episode.layout) if n not in (episode.about, episode.task.target)]
        assert any(n in bad for n in rest)
        for other in set(rest) - set(bad):
            assert BANK.category(other) not in ("fruit", "vegetable", "food", "drink")
    assert asked == {row[0] for row in words.NUTRITION}


def test_whole_instructions_in_five_languages_and_colours_in_english(episodes):
    seen = set()
    for episode in of(episodes, "reasoning_languages"):
        text, shown = episode.task.instruction, names(episode.layout)
        found = [lg for lg in words.LANGUAGES if _translates(lg, episode)]
        seen.update(found)
        if found:
            assert re.search(r"\b(the|left|right|on|mat)\b", text) is None
            continue
        seen.add("en")
        assert episode.says_colors
        color, category = BANK.color(episode.about), BANK.category(episode.about)
        noun = CATEGORY_NOUNS[category].split(" ", 1)[1]
        assert f"the {color} {noun}" in text
        same = [n for n in shown if BANK.category(n) == category and BANK.color(n) in (color, "")]
        assert same == [episode.about]
    assert seen == {*words.LANGUAGES, "en"}


def _translates(language: str, episode: Episode) -> bool:
    if episode.about not in words.TRANSLATED:
        return False
    task = episode.task
    mine = words.sentence_in(language, task.family, task.target, task.reference, task.direction)
    return mine == task.instruction and words.name_in(language, episode.about) in mine


@pytest.mark.parametrize("language", words.LANGUAGES)
def test_translated_names_are_the_banks_and_differ(language):
    for key in (*words.TRANSLATED, *words.TRANSLATED_MOVERS):
        if BANK.category(key) != "block" and key != "apple":  # "red apple" in the bank
            assert BANK.name(key, language) in words.name_in(language, key)
    assert len({words.name_in(language, key) for key in words.TRANSLATED}) == len(words.TRANSLATED)


def test_people_are_named_or_described_by_what_only_one_has(episodes):
    assert set(words.PROFESSIONS) | set(words.FACES) <= set(BANK.concepts("background"))
    for cell, said in (
        ("people_professions", {key: key for key in words.PROFESSIONS}),
        ("people_faces", words.FACES),
    ):
        for episode in of(episodes, cell):
            text, shown = episode.task.instruction, names(episode.layout)
            assert [n for n in shown if _says(text, said.get(n, "\0"))] == [episode.about]
            tiles = {b.tile for b in episode.layout.blocks if b.name in said}
            assert "yellow" not in tiles


def test_a_relation_that_two_share_or_one_almost_has_does_not_fit():
    layout = draw_episode(CELLS[0], 0, 0, CONFIGS["full"], BANK).layout
    block = layout.blocks[0]

    def at(name: str, x: float, y: float):
        return dataclasses.replace(block, name=name, x=x, y=y)

    def fits(*more) -> bool:
        blocks = (at("check mark", 0, 0), at("duck", -0.1, 0.02), *more)
        return only_one("duck", "left of", "check mark")(Layout(blocks))

    assert fits(at("dog", 0.1, 0), at("cat", 0.01, 0.1))
    assert not fits(at("dog", -0.12, 0.0))
    assert not fits(at("dog", -0.08, 0.09))  # neither left of nor above
    with pytest.raises(ValueError, match="no relation 'under'"):
        only_one("duck", "under", "dog")


# Tables and rooms


def test_unseen_tables_are_none_that_training_draws(episodes):
    for cell in ("backgrounds_easy", "backgrounds_hard"):
        drawn = of(episodes, cell)
        assert not any(_like_training(e.layout) for e in drawn)
        assert len({(e.layout.table, e.layout.table_color) for e in drawn}) > 15
    hard = {e.layout.table for e in of(episodes, "backgrounds_hard")}
    assert hard == {"checks", "dots", "waves", "picture"}
    pictures = {e.layout.table_picture for e in of(episodes, "backgrounds_hard")} - {""}
    assert pictures <= set(BANK.concepts("background"))
    default = Layout(())
    for cell in ("seen", "objects_hard", "reasoning_math", "control"):
        for e in of(episodes, cell):
            assert _like_training(e.layout)
            assert (e.layout.clutter, e.layout.sun, e.layout.table_half_m) == (
                *((), default.sun, default.table_half_m),
            )


def test_unseen_rooms_are_beyond_what_training_varies(episodes):
    jitter = max(config.camera_jitter_m for config in CONFIGS.values())
    light = max(config.light_jitter for config in CONFIGS.values())
    for cell, turn, things in (("environments_easy", 5, 3), ("environments_hard", 14, 8)):
        for e in of(episodes, cell):
            layout = e.layout
            assert max(abs(v) for v in layout.camera_shift_m) > jitter
            assert abs(layout.light - 1) > light
            assert np.degrees(abs(layout.camera_turn_rad[0])) >= turn
            assert len(layout.clutter) == things
            assert layout.floor_rgb != Layout(()).floor_rgb
    hard = of(episodes, "environments_hard")
    assert not any(_like_training(e.layout) for e in hard)
    assert all(e.layout.sun != Layout(()).sun for e in hard)


# Seeds


def test_an_episode_follows_from_seed_cell_and_number_alone():
    config = CONFIGS["demo"]
    plans, cell_of = make_plans(CELLS, 3, 7, config)
    alone, _ = make_plans(cells_of(("control",)), 3, 7, config)
    mine = [plan for plan in plans if cell_of[plan.number].name == "control"]
    assert [(p.seed, p.options) for p in mine] == [(p.seed, p.options) for p in alone]
    assert len({plan.seed for plan in plans}) == len(plans)
    assert [plan.number for plan in plans] == list(range(len(plans)))
    assert episode_seed(7, "seen", 0) == 276523258240210
    cell = CELLS[-1]
    first = draw_episode(cell, 7, 0, config, PictureBank())
    assert first == draw_episode(cell, 7, 0, config, BANK)
    assert first != draw_episode(cell, 8, 0, config, BANK)
    assert first != draw_episode(cell, 7, 1, config, BANK)


def test_styles_change_pictures_that_no_episode_shows_and_nothing_else(episodes):
    for cell in CELLS:
        styles = set()
        for i, plain in enumerate(episodes["demo", cell.name][:16]):
            styled = draw_episode(cell, 5, i, CONFIGS["demo"], BANK, styles=5)
            assert styled.task == plain.task
            for a, b in zip(plain.layout.blocks, styled.layout.blocks, strict=True):
                assert dataclasses.replace(b, style=0) == a
                robot = BANK.concept(b.name).split == "robot"
                assert b.style == 0 or not (robot or styled.says_colors)
                styles.add(b.style)
        assert styles == ({0} if cell.concepts == "robot" else set(range(5)))


# Real simulators


@pytest.fixture(scope="module", params=WORLDS)
def acted(request):
    """Episodes of all cells by the expert and by chance, first views, and resets as in training."""
    world = request.param
    config = dataclasses.replace(CONFIGS[world], image_size=32, wrist_camera=False)
    plans, cell_of = make_plans(CELLS, 2, 3, config)
    first = {}

    def act(views):
        first.update({view.plan.number: view for view in views if view.step == 0})
        return expert_agent(views)

    with EnvPool(config, num_envs=8) as pool:
        trained = pool.reset({i: (i, None) for i in range(8)})
        expert = run_episodes(pool, plans, act, label="expert")
        few = plans[: len(CELLS)] if world == "demo" else []
        chance = run_episodes(pool, few, random_agent(config.action_spec), label="random")
    return plans, cell_of, expert, chance, first, config, trained


def test_the_expert_solves_every_cell_and_chance_none(acted):
    plans, cell_of, expert, chance, *_ = acted
    assert [cell_of[o.number].name for o in expert if not o.success] == []
    assert len(expert) == 2 * len(CELLS)
    assert [o.instruction for o in expert] == [p.options["task"].instruction for p in plans]
    assert sum(o.success for o in chance) <= 1


def test_training_resets_are_what_the_search_for_leaks_draws(acted):
    *_, config, trained = acted
    for seed, (_, info) in trained.items():
        rng, drawn = random.Random(seed), []
        for _ in range(20):  # some are refused: no room for what is asked
            layout = draw_layout(rng, config, BANK, BANK.concepts("robot"))
            task = draw_task(rng, layout, config.families)
            mats = [mat.name for mat in layout.mats]
            drawn.append((task.instruction, [*names(layout), *mats]))
        assert (info["instruction"], [o["name"] for o in info["objects"]]) in drawn


def test_all_blocks_are_in_the_picture(acted):
    first = acted[4]
    for view in first.values():
        for thing in view.info["objects"]:
            if not thing["name"].endswith(" mat"):
                assert min(thing["center_yx"]) > 0 and max(thing["center_yx"]) < 32


def test_relations_hold_in_the_picture_as_the_web_data_use_the_words(acted):
    plans, cell_of, _, _, first, *_ = acted
    checked = 0
    for plan in plans:
        if cell_of[plan.number].name != "symbols_relation":
            continue
        text = plan.options["task"].instruction
        things = {
            o["name"]: SimpleNamespace(center=o["center_yx"])
            for o in first[plan.number].info["objects"]
            if not o["name"].endswith(" mat")
        }
        [anchor] = [n for n in things if n in words.SYMBOLS and _says(text, n)]
        [asked] = [r for r in ("left of", "right of", "above", "below") if r in text]
        task = plan.options["task"]
        about = task.reference if task.family == "near" else task.target
        sides = {n: relation(things[anchor], o, 32) for n, o in things.items() if n != anchor}  # type: ignore[arg-type]
        assert [n for n, side in sides.items() if side == asked] == [about]
        checked += 1
    assert checked == 2


# The evaluator


class SuitePool(FakePool):
    """Tells the task's family and instruction, as the world does."""

    def _info(self, env, success):
        task = self._episodes[env][2]["task"]
        return {
            "instruction": task.instruction,
            "family": task.family,
            "success": success,
            "objects": [],
        }


def picks(instruction: str) -> np.ndarray:
    """Succeeds where the word "the" occurs: not in other languages."""
    return np.eye(8)[1] * (0.05 if " the " in instruction else -0.05)


def measure(num_envs: int, media=None, **settings):
    config = EvaluationConfig(suite_rollouts=6, seed=11, **settings)
    return SuiteEvaluator(config, lambda: SuitePool(num_envs)).measure(FakePolicy(act=picks), media)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    media = tmp_path_factory.mktemp("evaluation") / "media"
    media.mkdir()
    return measure(5, media), media


def test_result_has_all_cells_with_intervals_instructions_and_published_figures(measured, tmp_path):
    result, media = measured
    assert [c["cell"] for c in result["cells"]] == [c.name for c in CELLS]
    assert (result["n"], result["world"], result["seed"]) == (6, "demo", 11)
    rows = {c["cell"]: c for c in result["cells"]}
    for row in result["cells"]:
        assert sum(n for _, n in row["instructions"].values()) == row["n"] == 6
        assert sum(count for count, _ in row["instructions"].values()) == row["count"]
        assert {k: row[k] for k in ("count", "n", "share", "low", "high")} == share_of(
            row["count"], 6
        )
        assert row["baselines"]["expert"]["count"] == 6
    languages = rows["reasoning_languages"]
    english = [text for text in languages["instructions"] if " the " in text]
    assert languages["count"] == sum(languages["instructions"][text][1] for text in english) < 6
    assert rows["seen"]["count"] == 6
    assert rows["objects_hard"]["paper"] == {
        "RT-2-PaLI-X-55B": 62,
        "RT-2-PaLM-E-12B": 76,
        "RT-1": 43,
    }
    assert rows["control"]["paper"] == {}
    assert sum(row["seconds"] for row in result["cells"]) == pytest.approx(
        result["seconds"]["policy"]
    )
    assert result["scalars"]["reasoning_languages/policy"] == languages["share"]
    assert result["scalars"]["seen/expert"] == 1.0
    # One video of a success and one of a failure per cell, where there were any.
    for row in result["cells"]:
        kinds = [video["success"] for video in row["videos"]]
        assert sorted(kinds) == sorted({*([True] * row["count"]), *([False] * (6 - row["count"]))})
        for video in row["videos"]:
            assert (media.parent / video["path"]).is_file()
            assert set(video) == {
                *("path", "pool", "family", "success", "instruction", "steps", "seed")
            }
    write_result(tmp_path / "suites.json", result)
    assert json.loads((tmp_path / "suites.json").read_text())["averages"] == result["averages"]


def test_the_same_seeds_give_the_same_figures_whatever_the_number_of_simulators(measured):
    result, _ = measured

    def comparable(cells):
        return [{**c, "seconds": 0, "videos": 0} for c in cells]

    again = measure(1, suites=("unseen", "emergent"), baselines=False)
    kept = [{**c, "baselines": {}} for c in result["cells"] if c["suite"] in ("unseen", "emergent")]
    assert comparable(again["cells"]) == comparable(kept)
    assert [c["videos"] for c in again["cells"]] == [[]] * 15
    assert again["averages"] == result["averages"]


def test_averages_are_those_of_the_papers_tables():
    """The published shares of our cells give the published averages."""
    for model, unseen, symbols, reasoning, people, emergent in (
        ("RT-2-PaLI-X-55B", 62.33, 82, 45.75, 53, 60.25),
        ("RT-2-PaLM-E-12B", 62.5, 35.67, 42.5, 43, 40.39),
        ("RT-1", 32.33, 15.67, 16.25, 20, 17.31),
    ):
        cells = [
            {
                "group": cell.group,
                "concepts": cell.concepts,
                "count": cell.published.get(model, 0),
                "n": 100,
                "share": cell.published.get(model, 0) / 100,
            }
            for cell in CELLS
        ]
        averages = averages_of(cells)
        for name, percent in {
            "unseen": unseen,
            "symbols": symbols,
            "reasoning": reasoning,
            "people": people,
            "emergent": emergent,
        }.items():
            assert averages[name] == {"share": pytest.approx(percent / 100, abs=1e-4)}
        # Pooled: two cells of unseen objects and nine of emergent skills.
        web = [c.published[model] for c in CELLS if c.concepts == "web"]
        assert averages["web_only"] == share_of(sum(web), 1100)
        assert "unseen" not in averages_of([c for c in cells if c["group"] != "backgrounds"])
        assert set(averages_of([c for c in cells if c["concepts"] == "robot"])) == set()


def test_table_prints_every_cell_with_the_published_figures(measured):
    lines = table(measured[0]).splitlines()
    assert len(lines) == 1 + len(CELLS) + 6
    [row] = [line for line in lines if line.startswith("Symbols 3")]
    assert row.split("   ")[-1] == "93%, 20%, 0%"
    assert all(model in lines[0] for model in PAPER_MODELS) and "for orientation" in lines[0]
    [row] = [line for line in lines if line.startswith("Seen tasks")]
    assert "6/6" in row and "100%" in row and "61%-100%" in row  # Wilson: 0.6097
    [row] = [line for line in lines if line.startswith("Control")]
    assert row.endswith(" -")


def test_evaluate_runs_the_suites_that_the_config_asks_for(tmp_path, monkeypatch, capsys):
    config = Config(
        model=ModelConfig("tiny", image_size=28),
        data=DataConfig({"web": SourceConfig("python", "none.py:None_")}),
        optimizer=OptimizerConfig(1e-3, warmup_steps=1),
        train=TrainConfig(steps=1, batch_size=1),
    )
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    policy = FakePolicy(act=picks)
    policy.builder = SimpleNamespace(action_tokenizers={"tabletop": None})  # type: ignore[assignment]
    monkeypatch.setattr(
        vla_jax.build, "load_policy", lambda *_, **__: (policy, SimpleNamespace(step=1), config)
    )
    monkeypatch.setattr(
        "vla_jax.evaluation.suites.evaluator.make_pool", lambda config, episodes: SuitePool(4)
    )
    off = ["rollout_episodes=0", "pointing_views=0", "baselines=False"]
    out = evaluate(tmp_path, [*off, "suite_rollouts=1", "suites=emergent,control"])
    result = json.loads((out / "suites.json").read_text())
    assert {c["suite"] for c in result["cells"]} == {"emergent", "control"}
    assert "Symbols 1: a symbol" in capsys.readouterr().out
    assert evaluate(tmp_path, off) == out  # without them nothing is printed
    assert "Symbols" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"suite_rollouts": -1}, "evaluation.suite_rollouts must be at least 0"),
        ({"suite_styles": 0}, "evaluation.suite_styles must be at least 1"),
        ({"suite_styles": 6}, "there are 5 styles, plain"),
    ],
)
def test_config_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**bad)
