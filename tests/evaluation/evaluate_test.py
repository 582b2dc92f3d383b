from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import vla_jax.build
from tests.data.examples import encoded
from tests.evaluation.fakes import SPEC, FakePolicy
from vla_jax import config as config_lib
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.config import Config
from vla_jax.data.config import DataConfig, SourceConfig
from vla_jax.data.convert import convert
from vla_jax.data.generate import ImageTextRow
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.opening import open_source
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.evaluate import evaluate, main
from vla_jax.evaluation.held_out import action_batches, vqa_batches
from vla_jax.models.presets import ModelConfig
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.training.config import TrainConfig
from vla_jax.training.optimizer import OptimizerConfig


def actions(steps: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.uniform(SPEC.low, SPEC.high, (steps, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, SourceConfig]:
    folder = tmp_path_factory.mktemp("data")
    episodes = [
        {
            "images": {"image": [encoded(10 * k + t) for t in range(5)]},
            "state": np.zeros((5, 8), np.float32),
            "action": actions(5),
            "instruction": f"pick the dog {k}",
            "success": True,
            "metadata": {"seed": k},
            "split": "test" if k else "train",
        }
        for k in range(3)
    ]
    write_episodes(episodes, folder / "robot", SPEC, name="robot", description="")  # type: ignore[arg-type]
    rows = [
        ImageTextRow(
            image=encoded(i),
            prompt=f"Q: what is number {i}? A:",
            answer=("a dog", "<012><200>")[i % 2],
            task=("name", "point")[i % 2],
            language="en",
        )
        for i in range(11)
    ]
    write_image_text(
        {"train": rows[:1], "test": rows[1:]}, folder / "web", name="web", description=""
    )
    return {
        "robot": SourceConfig("episodes", str(folder / "robot")),
        "web": SourceConfig("image_text", str(folder / "web"), weight=0.0),
    }


@pytest.fixture(scope="module")
def builder() -> SequenceBuilder:
    vocabulary = Vocabulary()
    tokenizer = UniformTokenizer(SPEC, vocabulary.integer_ids)
    return SequenceBuilder(vocabulary, tokenizer, max_tokens=48, max_answer_tokens=12)


def test_held_out_questions_come_once_and_without_template(sources, builder):
    source = open_source("web", sources["web"], split="test")
    start = vqa_batches(source, builder, batch_size=4, image_size=28, limit=100)  # type: ignore[arg-type]
    for _ in range(2):  # a second pass is the same
        batches = list(start())
        assert [len(b.questions) for b in batches] == [4, 4, 2]
        assert batches[0].images.shape == (4, 1, 28, 28, 3)
        questions = {q for b in batches for q in b.questions}
        assert questions == {f"what is number {i}?" for i in range(1, 11)}
        assert {(t, a) for b in batches for t, a in zip(b.tasks, b.answers)} == {
            ("name", "a dog"),
            ("point", "<012><200>"),
        }


def test_held_out_steps_have_their_actions(sources, builder):
    source = open_source("robot", sources["robot"], split="test")
    batches = list(action_batches(source, builder, batch_size=4, image_size=28, limit=100)())
    assert [len(b.instructions) for b in batches] == [4, 4, 2]
    np.testing.assert_array_equal(
        np.concatenate([b.actions for b in batches])[:, 0], np.concatenate([actions(5)] * 2)
    )
    assert batches[0].instructions[0] == "pick the dog 1"
    assert all(b.valid.all() for b in batches)


@pytest.fixture
def workdir(sources, tmp_path):
    config = Config(
        model=ModelConfig("tiny", image_size=28),
        data=DataConfig(sources),
        optimizer=OptimizerConfig(1e-3, warmup_steps=1),
        train=TrainConfig(steps=1, batch_size=1),
    )
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    return tmp_path


@pytest.fixture
def trained(workdir, builder, monkeypatch):
    """A workdir whose checkpoint is a fake policy."""
    sizes = []

    def load_policy(path, *, batch_size, checkpoint):
        assert checkpoint == "newest"
        sizes.append(batch_size)
        config = config_lib.from_json(Path(path, "config.json").read_text(), where="")
        policy = FakePolicy(answer=lambda q: "dog", act=lambda i: actions(1)[0])
        policy.builder = builder
        return policy, SimpleNamespace(step=17), config

    monkeypatch.setattr(vla_jax.build, "load_policy", load_policy)
    return workdir, sizes


OVERRIDES = ["rollout_episodes=0", "pointing_views=0", "batch_size=3", "action_steps=6"]


def test_evaluate_writes_results_for_every_source(trained):
    workdir, sizes = trained
    out = evaluate(workdir, OVERRIDES)
    assert sizes == [3]
    assert sorted(p.name for p in out.glob("*.json")) == [
        *("actions_robot.json", "run.json", "vqa_web.json")
    ]
    vqa = json.loads((out / "vqa_web.json").read_text())
    assert (vqa["naming"]["count"], vqa["naming"]["n"], vqa["points"]["count"]) == (5, 5, 0)
    robot = json.loads((out / "actions_robot.json").read_text())
    # Step 0 of each of the two episodes; 6 of 10 steps are asked, spread evenly: 0, 1, 3, 5, 6, 8.
    assert (robot["n"], robot["all_tokens"]["count"]) == (6, 2)
    run = json.loads((out / "run.json").read_text())
    assert run["step"] == 17
    assert run["settings"]["action_steps"] == 6
    assert set(run["seconds"]) == {"actions_robot", "vqa_web"}
    for example in vqa["examples"]:
        assert (out / example["image"]).is_file()


def test_results_go_where_they_are_wanted(trained, tmp_path, capsys):
    workdir, _ = trained
    kept = evaluate(workdir, OVERRIDES)
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    # Neither the directory nor the one above is there yet.
    out = tmp_path / "other" / "way"
    words = [f"--evaluation.{override}" for override in (*OVERRIDES, "action_steps=4")]
    assert main([f"--workdir={workdir}", f"--out={out}", *words]) == 0
    assert f"results: {out}" in capsys.readouterr().out
    assert json.loads((out / "actions_robot.json").read_text())["n"] == 4
    vqa = json.loads((out / "vqa_web.json").read_text())
    assert all((out / example["image"]).is_file() for example in vqa["examples"])
    assert before == {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}


def test_converted_robot_data_are_evaluated_on_as_the_original(trained, tmp_path, capsys):
    workdir, _ = trained
    config = config_lib.from_json((workdir / "config.json").read_text(), where="")
    robot = config.data.sources["robot"]
    for split, out in (("test", "both"), ("train", "both"), ("train", "train_only")):
        convert("robot", dataclasses.replace(robot, split=split), tmp_path / out)
    more = {
        out: SourceConfig("array_record", str(tmp_path / out)) for out in ("both", "train_only")
    }
    data = dataclasses.replace(config.data, sources={**config.data.sources, **more})
    (workdir / "config.json").write_text(config_lib.to_json(dataclasses.replace(config, data=data)))
    out = evaluate(workdir, [*OVERRIDES, "vqa_examples=0"])
    assert "source 'train_only' has no test split; not evaluated on" in capsys.readouterr().out
    assert sorted(p.name for p in out.glob("actions*.json")) == [
        *("actions_both.json", "actions_robot.json")
    ]
    one, two = (
        json.loads((out / f"actions_{name}.json").read_text()) for name in ("robot", "both")
    )
    assert one["scalars"] == two["scalars"] and one["n"] == two["n"] == 6


def test_evaluate_leaves_out_what_has_count_0(trained):
    out = evaluate(trained[0], [*OVERRIDES, "vqa_examples=0", "action_steps=0"])
    assert [p.name for p in out.glob("*.json")] == ["run.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluation.rollout_episode=5"], "did you mean 'rollout_episodes'?"),
        (["--evaluation.rollout_episodes=many"], "rollout_episodes"),
        (["--evaluation.pools=robot,moon"], "moon"),
        (["--evaluation.batch_size"], "expected --evaluation.key=value"),
    ],
)
def test_main_refuses_bad_settings(workdir, capsys, words, message):
    assert main([f"--workdir={workdir}", *words]) == 2
    assert message in capsys.readouterr().err


def test_main_names_a_missing_run(tmp_path, capsys):
    assert main([f"--workdir={tmp_path}"]) == 2
    assert f"no run in {tmp_path}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([f"--workdir={tmp_path}", "--rollouts=3"])
    assert "unknown argument '--rollouts=3'" in capsys.readouterr().err


def test_evaluation_has_a_place_in_the_config(workdir):
    config = config_lib.from_json((workdir / "config.json").read_text(), where="")
    assert config.evaluation.rollout_episodes == 50
    changed = dataclasses.replace(config.evaluation, pools=("web_only",))
    text = config_lib.to_json(dataclasses.replace(config, evaluation=changed))
    assert config_lib.from_json(text, where="").evaluation == changed


def test_subprocess_importing_the_main_loads_no_tensorflow():
    # Spawned simulators import the main module again, and must be able to render.
    code = "import sys, vla_jax.evaluate; print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
