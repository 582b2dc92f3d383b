"""The presets: what they ask of the commands must exist, and fit its time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from vla_jax.config import load_config, parse
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.evaluation.suites.cells import cells_of, make_plans
from vla_jax.experiment.description import Experiment
from vla_jax.experiment.presets import LAPTOP, PRESETS
from vla_jax.experiment.stages import Stage, evaluation_settings, stages_of
from vla_jax.text.prompts import robot_prompt
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.training.optimizer import make_schedule

EVALUATION = {"suite_rollouts": "0", "suites": "seen,unseen,emergent,control"}
"""What an evaluation does that is told nothing else."""


def stages(experiment: Experiment, root: Path, only: Sequence[str] = ()) -> dict[str, Stage]:
    """With files in place of the VLMs, which only their digest counts of."""
    (root / "vlm.npz").write_bytes(b"parameters")
    sizes = {
        # One that is made, "{backbone}/...", needs no file now.
        key: dataclasses.replace(size, vlm=str(root / "vlm.npz"))
        if size.vlm and "{" not in size.vlm
        else size
        for key, size in experiment.sizes.items()
    }
    found = stages_of(dataclasses.replace(experiment, sizes=sizes), root, only)
    return {stage.name: stage for stage in found}


@pytest.mark.parametrize("name", PRESETS)
def test_the_training_that_each_command_asks_for(name, tmp_path):
    experiment, found = PRESETS[name], stages(PRESETS[name], tmp_path)
    updates, rows = experiment.updates, experiment.robot_rows
    for cell in experiment.cells:
        if cell.trained_by:
            assert f"train/{cell.name}" not in found
            continue
        words = found[f"train/{cell.name}"].commands[0].words
        prefix = "--config."
        overrides = [word.removeprefix(prefix) for word in words if word.startswith(prefix)]
        config = parse(load_config(experiment.config, overrides))
        make_schedule(config.optimizer, config.train.steps)  # it has its own conditions
        assert config.model.preset == experiment.sizes[cell.size].preset
        assert bool(config.train.init_from) == (cell.start == "vlm")
        assert not any("{" in override for override in overrides)
        weights = {key: source.weight for key, source in config.data.sources.items()}
        assert set(weights) == {"robot", "web"}  # both are evaluated on, whatever is trained on
        share = weights["robot"] / sum(weights.values())
        assert config.train.batch_size * share == pytest.approx(rows)
        if "reference" in cell.tables:
            assert config.train.steps == 2 and config.optimizer.learning_rate < 1e-9
        else:
            assert config.train.steps == updates
        assert (weights["web"] > 0) == ("web" in cell.shares)
        for needed in found[f"train/{cell.name}"].needs:
            assert list(found).index(needed) < list(found).index(f"train/{cell.name}")


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "gemma"])
def test_the_suites_prompts_fit_the_room(name, tmp_path):
    """One that does not would end an evaluation after hours of training. Gemma's vocabulary, which
    has fewer tokens a prompt, is not there."""
    experiment, found = PRESETS[name], stages(PRESETS[name], tmp_path)
    vocabulary = Vocabulary()
    asked = set()
    for cell in experiment.cells:
        settings = EVALUATION | evaluation_settings(experiment, cell)
        data = found[f"train/{experiment.trainer(cell).name}"].settings["data"]
        room = data["max_tokens"] - data["max_answer_tokens"]
        asked.add((room, int(settings["suite_rollouts"]), settings["suites"], settings["world"]))
    for room, count, suites, world in asked:
        cells = cells_of(suites.split(","))
        plans, _ = make_plans(cells, count, EvaluationConfig().seed, CONFIGS[world])
        prompts = {robot_prompt(plan.options["task"].instruction) for plan in plans}
        # With the token that begins a sequence.
        assert not [p for p in prompts if 1 + len(vocabulary.encode(p)) > room]


@pytest.mark.parametrize("name", PRESETS)
def test_the_evaluation_has_these_settings(name):
    known = {field.name for field in dataclasses.fields(EvaluationConfig)}
    for cell in PRESETS[name].cells:
        settings = evaluation_settings(PRESETS[name], cell)
        assert set(settings) <= known
        assert int(settings["vqa_examples"]) > 0  # also of cells that saw no web data
    assert PRESETS[name].world in ("demo", "full")


def test_the_ablation_and_the_curve():
    for name in ("laptop", "gpu"):
        cells = PRESETS[name].cells
        ablation = {(c.size, c.training) for c in cells if "ablation" in c.tables}
        assert ablation == {
            (size, training)
            for size in ("small", "large")
            for training in ("from scratch", "fine-tuning", "co-fine-tuning")
        }
        curve = [c for c in cells if "ratio" in c.tables]
        assert {c.size for c in curve} == {"small"}
        shares = sorted(c.shares.get("web", 0.0) for c in curve)
        assert shares == pytest.approx([0, 0.25, 0.5, 2 / 3, 0.75])
        rollouts = [s for s in PRESETS[name].evaluation if s.startswith("suite_rollouts=")]
        assert int(rollouts[0].partition("=")[2]) >= {"laptop": 20, "gpu": 50}[name]


def test_the_laptops_hour(tmp_path):
    found = stages(LAPTOP, tmp_path)
    assert sum(stage.seconds for stage in found.values()) <= 60 * 60
    # 2 x 12 rows in 1,400 updates at 94 a second, and the start.
    assert found["train/large_web_50"].seconds == pytest.approx(22 + 33_600 / 94)
    # 17 cells of 20 rollouts at 4.5 a second, 600 questions and 200 steps at 50 a second.
    assert found["evaluate/large_web_50"].seconds == pytest.approx(22 + 340 / 4.5 + 800 / 50)


@pytest.mark.parametrize("name", ["plans", "chunks", "recovery"])
def test_half_an_hour(name, tmp_path):
    found = stages(PRESETS[name], tmp_path)
    assert sum(stage.seconds for stage in found.values()) <= 30 * 60


def test_the_plan_counts_the_suites_that_are_asked_for(tmp_path):
    found = stages(PRESETS["plans"], tmp_path)
    # 9 emergent cells of 40 and two pools of 100, at 1.6 a second; 400 answers at 50 a second.
    assert found["evaluate/plans_on"].seconds == pytest.approx(22 + 560 / 1.6 + 400 / 50)


def test_plans_are_all_that_differs(tmp_path):
    found = stages(PRESETS["plans"], tmp_path)
    one, other = (found[f"train/plans_{key}"].settings for key in ("on", "off"))
    assert one["data"]["sources"]["robot"].pop("plan") == "plan"
    assert other["data"]["sources"]["robot"].pop("plan") == ""
    assert one == other
    assert found["evaluate/plans_on"].settings == found["evaluate/plans_off"].settings
    assert found["evaluate/plans_on"].settings["reasoning"] == "true"
    assert "--plans=0.5" in found["data/robot"].commands[0].words


def test_chunks_need_the_tokens_and_bins_do_not(tmp_path):
    found = stages(PRESETS["chunks"], tmp_path)
    tokens = found["prepare/tokens"]
    assert tokens.needs == ("data/robot",)
    assert {f"--data={tmp_path / 'data/robot'}", f"--out={tokens.directory}"} <= set(
        tokens.commands[0].words
    )
    fast = found["train/fast_all"]
    assert f"--config.data.actions.tokenizer={tokens.result}" in fast.commands[0].words
    needing = {s.name for s in found.values() if "prepare/tokens" in s.needs}
    assert needing == {"train/fast_all"}
    assert list(found).index("prepare/tokens") < list(found).index("train/fast_all")
    # What differs between the trainings is the actions' tokens, not room nor smoothing.
    one, other = (found[f"train/{key}"].settings for key in ("fast_all", "bins_1"))
    assert one["data"].pop("actions") != other["data"].pop("actions")
    assert one == other
    ways = {n: found[f"evaluate/fast_{n}"].settings for n in ("all", "1", "ensemble")}
    assert [w["execute_steps"] for w in ways.values()] == ["4", "1", "1"]
    assert [w.get("ensemble_decay") for w in ways.values()] == [None, None, "0.1"]


def test_a_cell_alone_brings_the_training_and_what_that_needs(tmp_path):
    found = stages(PRESETS["chunks"], tmp_path, ["fast_1"])
    assert list(found) == [
        *("data/robot", "data/web", "prepare/tokens", "train/fast_all", "evaluate/fast_1")
    ]
    words = found["evaluate/fast_1"].commands[0].words
    assert f"--workdir={tmp_path / 'cells/fast_all'}" in words
    assert f"--out={tmp_path / 'cells/fast_1/evaluation'}" in words
    assert found["evaluate/fast_1"].result == tmp_path / "cells/fast_1/evaluation/run.json"
    assert "prepare/tokens" not in stages(PRESETS["chunks"], tmp_path, ["bins_1"])
    assert "prepare/backbone" in stages(PRESETS["gemma"], tmp_path, ["gemma_scratch"])


def test_settings_say_nothing_of_the_place(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("chunks", "recovery", "gemma"):
        one, other = (stages(PRESETS[name], root) for root in (tmp_path, tmp_path / "elsewhere"))
        assert [s.settings for s in one.values()] == [s.settings for s in other.values()]
        assert [s.commands for s in one.values()] != [s.commands for s in other.values()]


def test_recoveries_are_the_robot_data_of_their_cells(tmp_path):
    found = stages(PRESETS["recovery"], tmp_path)
    one, other = (found[f"train/{key}"] for key in ("recovery", "usual"))
    path = "--config.data.sources.robot.path="
    assert f"{path}{tmp_path / 'data/recovery'}" in one.commands[0].words
    assert f"{path}{tmp_path / 'data/robot'}" in other.commands[0].words
    assert one.needs == ("data/recovery", "data/web") and other.needs == ("data/robot", "data/web")
    assert one.settings["data"]["sources"]["robot"].pop("path") == "data/recovery"
    assert other.settings["data"]["sources"]["robot"].pop("path") == "data/robot"
    assert one.settings == other.settings
    commands = [found[f"data/{key}"].commands[0].words for key in ("recovery", "robot")]
    assert set(commands[0]) - set(commands[1]) == {
        *("--recovery=0.3", f"--out={tmp_path / 'staged/recovery'}")
    }
    pushes = {key: found[f"evaluate/{key}"].settings["pushes"] for key in ("usual", "usual_pushed")}
    assert pushes == {"usual": "0", "usual_pushed": "1"}
    assert (
        "--workdir=" + str(tmp_path / "cells/usual")
        in found["evaluate/usual_pushed"].commands[0].words
    )


def test_the_backbone_that_gemma_starts_from(tmp_path):
    found = stages(PRESETS["gemma"], tmp_path)
    backbone = tmp_path / "prepared" / "backbone"
    start = f"{backbone}/dinov2_s14.npz,{backbone}/gemma-3-270m-q4_k_m.gguf"
    for name in ("gemma_web_50", "gemma_robot_only", "gemma_scratch"):
        stage = found[f"train/{name}"]
        given = "" if name == "gemma_scratch" else start
        assert f"--config.train.init_from={given}" in stage.commands[0].words
        assert f"--config.data.vocabulary={backbone}/gemma3.model" in stage.commands[0].words
        # Also from scratch the vocabulary is Gemma's.
        assert {"prepare/backbone", "prepare/token_ids"} <= set(stage.needs)
    ids = found["prepare/token_ids"]
    assert set(ids.needs) == {"data/robot", "data/web", "prepare/backbone"}
    assert f"--out={ids.result}" in ids.commands[0].words
    scratch = found["train/gemma_scratch"].settings["optimizer"]
    assert scratch["groups"] == [] and scratch["learning_rate"] == 3e-4


def test_a_vlm_that_the_experiment_makes(tmp_path):
    found = stages(PRESETS["gpu"], tmp_path)
    patches, answers = found["vlm/large"].commands
    assert "--stage=patches" in patches.words and "--stage=answers" in answers.words
    assert f"--init_from={tmp_path / 'vlm' / 'large' / 'patches' / 'vlm.npz'}" in answers.words
    made = tmp_path / "vlm" / "large" / "answers" / "vlm.npz"
    assert found["vlm/large"].result == made
    assert f"--config.train.init_from={made}" in found["train/large_web_50"].commands[0].words
    assert "vlm/large" in found["train/large_web_50"].needs
    assert "vlm/large" not in found["train/large_scratch"].needs


def test_a_vlm_that_is_not_there(tmp_path):
    sizes = {
        key: dataclasses.replace(size, vlm="nowhere/vlm.npz") for key, size in LAPTOP.sizes.items()
    }
    experiment = dataclasses.replace(LAPTOP, sizes=sizes)
    with pytest.raises(FileNotFoundError, match=r"nowhere/vlm.npz.*train it with"):
        stages_of(experiment, tmp_path)
    # What starts from nothing needs none.
    assert len(stages_of(experiment, tmp_path, ["large_scratch"])) == 4


def test_other_parameters_are_other_settings(tmp_path):
    before = stages(LAPTOP, tmp_path)["train/large_web_50"].settings
    (tmp_path / "vlm.npz").write_bytes(b"others")
    sizes = {
        k: dataclasses.replace(s, vlm=str(tmp_path / "vlm.npz")) for k, s in LAPTOP.sizes.items()
    }
    after = stages_of(dataclasses.replace(LAPTOP, sizes=sizes), tmp_path)[2].settings
    assert before["train"].pop("init_from") != after["train"].pop("init_from")
    assert before == after
