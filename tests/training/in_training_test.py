"""Evaluation while a run trains: figures against NumPy, its place in the log, what goes wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time

import jax
import numpy as np
import pytest

from tests.training.mixture_in_runs_test import step_metrics
from tests.training.training_test import make_config
from tests.training.watch_test import TWO, Clock
from vla_jax.build import load_policy
from vla_jax.build_data import build_data
from vla_jax.data.loader import evaluation_batches
from vla_jax.data.sources.opening import open_source
from vla_jax.evaluation.actions import ActionEvaluator
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.models.vla import Vla, init_params
from vla_jax.sharding.mesh import MeshConfig, make_mesh
from vla_jax.sharding.rules import param_shardings
from vla_jax.train import train
from vla_jax.training.goodput import TimeBook, read_goodput
from vla_jax.training.held_out_loss import HeldOutLoss
from vla_jax.training.metrics import read_events, read_metrics
from vla_jax.training.progress import COLUMNS, evaluation_line
from vla_jax.training.window import Window


def evaluated(data_sets, in_training=("loss", "actions"), **changes):
    config = make_config(data_sets, **{"train__evaluate_every": 2, **changes})
    settings = EvaluationConfig(in_training=in_training, in_training_examples=5, batch_size=4)
    return dataclasses.replace(config, evaluation=settings)


def validation(workdir) -> dict[int, dict[str, float]]:
    """Step -> what was found, without what depends on the clock."""
    records = [r for r in read_metrics(workdir) if any(key.startswith("val/") for key in r)]
    return {int(r["step"]): {k: v for k, v in r.items() if k != "goodput"} for r in records}


def _numpy_scalars(config, data, sources, params) -> dict[str, float]:
    """Row after row, the whole vocabulary at every position."""
    apply, table = jax.jit(Vla(config.model).apply), params["llm"]["embedder"]["input_embedding"]
    scalars = {}
    for name, source in sources.items():
        (batch,) = evaluation_batches(source, data.builder, batch_size=len(source), image_size=28)
        columns = (batch[k] for k in ("images", "tokens", "attend_causal", "valid"))
        hidden, _ = apply({"params": params}, *columns)
        logits = np.asarray(hidden, np.float64) @ np.asarray(table, np.float64).T
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        places = np.argwhere(batch["in_loss"])
        tokens = batch["tokens"][tuple(places.T)]
        before = log_p[places[:, 0], places[:, 1] - 1]
        right = before.argmax(-1) == tokens
        scalars[f"{name}/loss"] = -before[np.arange(len(tokens)), tokens].mean()
        scalars[f"{name}/token_accuracy"] = right.mean()
        if source.action_spec is not None:  # 8 tokens of one action, and EOS
            for d, dimension in enumerate(source.action_spec.dimensions):
                mine = right.reshape(-1, 9)[:, d]
                scalars[f"{name}/token_accuracy/{dimension.name}"] = mine.mean()
    return scalars


def test_held_out_loss_equals_numpy_on_any_mesh_and_in_any_batches(data_sets):
    """11 steps and 5 texts; parameters whole on one device, and in parts on eight."""
    config = evaluated(data_sets)
    data = build_data(config)
    sources = {n: open_source(n, c, split="test") for n, c in config.data.sources.items()}
    params = jax.jit(lambda: init_params(config.model, jax.random.key(0)))()
    # So that some tokens are the likeliest.
    rows = data.builder.vocabulary.integer_ids
    params["llm"]["final_norm"]["scale"] += 20.0
    params["llm"]["embedder"]["input_embedding"] *= np.where(np.isin(np.arange(4096), rows), 3, 1)[
        :, None
    ]
    expected = _numpy_scalars(config, data, sources, params)
    found = []
    for mesh, batch_size in (
        (make_mesh(MeshConfig(), jax.devices()[:1]), 3),
        (make_mesh(MeshConfig(data=2, fsdp=4)), 5),
    ):
        shardings = param_shardings(params, mesh)
        if found:
            sources.pop("web")  # compiles half as much
        measure = HeldOutLoss(
            sources, data.builder, config.model, mesh, shardings, batch_size=batch_size, limit=99
        )
        found.append(measure(jax.device_put(params, shardings)))
    assert found[0] == pytest.approx(expected, rel=1e-5)
    assert found[1] == pytest.approx(
        {k: v for k, v in found[0].items() if k.startswith("robot/")}, rel=1e-6
    )
    assert len(expected) == 2 + 8 + 2


def test_a_run_is_evaluated_when_due_and_alike_after_a_resume(data_sets, tmp_path, monkeypatch):
    """Every 2 updates and after the last one; an evaluator that fails ends nothing."""
    config = evaluated(
        data_sets, train__steps=5, train__keep_best="val/robot/loss", train__keep_checkpoints=9
    )
    working = [True] * 4 + [False]  # of each call: three in the whole run, two after the resume

    def measure(self, policy, media=None) -> dict:
        """A figure of the parameters that needs no decoder to be compiled."""
        if not working.pop(0):
            raise RuntimeError("the simulator died")
        total = sum(float(np.abs(x).sum()) for x in jax.tree.leaves(policy.params))
        return {"scalars": {"error/position_x": total}}

    monkeypatch.setattr(ActionEvaluator, "measure", measure)
    began = time.time()
    train(config, str(tmp_path / "whole"), TimeBook(began))
    whole = validation(tmp_path / "whole")
    assert list(whole) == [2, 4, 5]
    assert {
        "val/robot/loss",
        "val/web/token_accuracy",
        "val/actions_robot/error/position_x",
    } <= set(whole[2])
    assert whole[2]["val/robot/loss"] > whole[5]["val/robot/loss"]
    assert len({found["val/actions_robot/error/position_x"] for found in whole.values()}) == 3
    page = (tmp_path / "whole/run.html").read_text()
    assert "action error, mm" in page and page.count("val/") == 0

    seconds = read_goodput(tmp_path / "whole")
    last = json.loads((tmp_path / "whole/goodput.jsonl").read_text().splitlines()[-1])["time"]
    assert sum(seconds.values()) == pytest.approx(last - began, rel=1e-6)
    assert seconds["evaluation"] > 0

    # Each checkpoint can be had, and its parameters are those that were measured then.
    losses = {step: found["val/robot/loss"] for step, found in whole.items()}
    best = min(losses, key=losses.__getitem__)
    for which, step in (("newest", 5), ("best", best), ("2", 2)):
        policy, meta, _ = load_policy(tmp_path / "whole", batch_size=1, checkpoint=which)
        total = sum(float(np.abs(x).sum()) for x in jax.tree.leaves(policy.params))
        assert meta.step == step
        assert total == pytest.approx(whole[step]["val/actions_robot/error/position_x"], rel=1e-6)

    # From the checkpoint of update 2 it goes on as if never stopped.
    halves = tmp_path / "halves"
    shutil.copytree(tmp_path / "whole", halves)
    for step in (4, 5):
        shutil.rmtree(halves / f"checkpoints/{step}")

    train(config, str(halves))
    found = validation(halves)
    assert list(found) == [2, 4, 5]
    assert found[2] == whole[2] and found[4] == whole[4]
    assert found[5] == {k: v for k, v in whole[5].items() if "actions" not in k}
    (failed,) = [e for e in read_events(halves) if e.kind == "evaluation failed"]
    assert (failed.step, failed.text) == (5, "actions_robot: RuntimeError: the simulator died")


@pytest.mark.parametrize(
    ("in_training", "changes", "message"),
    [
        (("rollouts",), {}, "that of world .demo."),
        (("captions",), {}, "no source has held-out data for it"),
        (("loss",), {"train__keep_best": "val/loss", "train__evaluate_every": 0}, "evaluate_every"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_the_start(
    data_sets, tmp_path, in_training, changes, message
):
    with pytest.raises(ValueError, match=message):
        train(evaluated(data_sets, in_training, **changes), str(tmp_path))
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_an_evaluation_counts_in_no_rate_but_in_the_time_to_go():
    clock = Clock()
    window = Window(TWO, 16, None, clock)
    for _ in range(2):
        window.add(step_metrics(TWO, 0, np.asarray([9, 2])))
    clock.now = 4.0
    window.pause(3.0)
    assert window.scalars(2)["speed/steps_per_s"] == 2 / 1.0
    assert window.eta_s(10) == 10 * 4.0 / 2
    window.reset()
    assert window.elapsed_s == 0 and window.eta_s(10) == 10 * 4.0 / 2


def test_the_line_of_an_evaluation_begins_with_what_says_most():
    scalars = {f"robot/token_accuracy/{n}": 0.5 for n in range(9)} | {"web/loss": 1.23456}
    line = evaluation_line(200, scalars)
    assert line.startswith("val 200  web/loss 1.235  robot/") and len(line) <= COLUMNS
    assert line.endswith("  +5 more")
    assert evaluation_line(2, {"a/loss": 1.0}) == "val 2  a/loss 1"
