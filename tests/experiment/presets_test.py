"""The presets: what they ask of the commands must exist, and fit its time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from vla_jax.config import load_config, parse
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.experiment.description import Experiment
from vla_jax.experiment.presets import LAPTOP, PRESETS
from vla_jax.experiment.stages import Stage, evaluation_settings, stages_of
from vla_jax.training.optimizer import make_schedule


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
    # 2 x 12 rows in 800 updates at 94 a second, and the start.
    assert found["train/large_web_50"].seconds == pytest.approx(22 + 19_200 / 94)
    # 17 cells of 20 rollouts at 2 a second, 600 questions and 200 steps at 50 a second.
    assert found["evaluate/large_web_50"].seconds == pytest.approx(22 + 340 / 2 + 800 / 50)


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
