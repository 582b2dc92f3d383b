"""Evaluation while a run trains: figures against NumPy, its place in the log, and what goes wrong."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.training.training_test import make_config
from vla_jax.build import build_training, load_policy
from vla_jax.data.loader import evaluation_batches
from vla_jax.data.sources.opening import open_source
from vla_jax.evaluation.actions import ActionEvaluator
from vla_jax.evaluation.base import EvaluationConfig
from vla_jax.in_training import InTraining
from vla_jax.models.vla import Vla
from vla_jax.train import train
from vla_jax.training.goodput import read_goodput
from vla_jax.training.held_out_loss import HeldOutLoss
from vla_jax.training.metrics import read_events, read_metrics
from vla_jax.training.window import Window

SETTINGS = EvaluationConfig(
    in_training=("loss", "actions", "vqa"), in_training_examples=6, batch_size=4
)


def evaluated(data_sets, settings=SETTINGS, **changes):
    config = make_config(data_sets, **{"train__evaluate_every": 2, **changes})
    return dataclasses.replace(config, evaluation=settings)


def validation(workdir) -> dict[int, dict[str, float]]:
    records = read_metrics(workdir)
    return {int(r["step"]): r for r in records if any(key.startswith("val/") for key in r)}


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)])
def test_held_out_loss_equals_numpy(data_sets, mesh):
    """Whatever the mesh and the batch: 5 or 6 samples in batches of 4, 8 or 1."""
    config = evaluated(data_sets)
    run = build_training(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh)))
    print(run, mesh)


def test_a_run_is_evaluated_when_due_and_again_alike_after_a_resume(data_sets, tmp_path, capsys):
    config = evaluated(data_sets)
    train(config, str(tmp_path))
    for r in validation(tmp_path).values():
        print(json.dumps(r, indent=0))
    print(read_goodput(tmp_path), read_events(tmp_path))
    assert 0
