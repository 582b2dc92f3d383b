"""Real processes: two that train as one, and one that fails and ends the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.training.conftest import data_sets  # noqa: F401
from vla_jax.build import load_policy
from vla_jax.sharding.distributed import join_processes

ROOT = Path(__file__).parents[2]
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""


def _run(count: int, *command: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "launch/local_processes.py", "-n", str(count), "--devices", "2"]
    return subprocess.run(
        [*launcher, "--", *command], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


def test_two_processes_train_as_one(data_sets, tmp_path):  # noqa: F811
    """Same losses, same parameters; metrics once; one restores what two have saved."""
    robot, web = map(str, data_sets)
    config = {
        "model": {"preset": "tiny", "image_size": 28, "compute_dtype": "float32"},
        "data": {
            "sources": {
                "robot": {"kind": "episodes", "path": robot, "weight": 2.0},
                "web": {"kind": "image_text", "path": web, "weight": 1.0},
            },
            "max_tokens": 40,
            "max_answer_tokens": 10,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1},
        "train": {"steps": 3, "batch_size": 8, "log_every": 1, "checkpoint_every": 3},
        "mesh": {"fsdp": 2},
    }
    (tmp_path / "config.py").write_text(CONFIG.format(config=config))
    losses, params = [], []
    for count in (1, 2):
        workdir = tmp_path / str(count)
        train = f"-m vla_jax.train --config={tmp_path / 'config.py'} --workdir={workdir}".split()
        done = _run(count, sys.executable, *train)
        assert done.returncode == 0, done.stdout
        assert "[0] step 3/3" in done.stdout and "[1] step" not in done.stdout
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        assert [r["step"] for r in records] == [1, 2, 3]
        losses.append([[r["loss"], r["robot/loss"], r["web/share_of_samples"]] for r in records])
        params.append(load_policy(workdir, batch_size=8)[0].params)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    a, b = (p["llm"]["embedder"]["input_embedding"] for p in params)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_first_failure_ends_the_others():
    program = (
        "import os, sys, time; print('up', flush=True);"
        "sys.exit(7) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(100)"
    )
    begun = time.monotonic()
    done = _run(3, sys.executable, "-c", program)
    assert done.returncode == 7 and time.monotonic() - begun < 60
    assert "[1] up" in done.stdout


def test_half_an_environment_is_refused():
    with pytest.raises(ValueError, match="JAX_PROCESS_ID set, but not JAX_COORDINATOR_ADDRESS"):
        join_processes({"JAX_PROCESS_ID": "0"})
    three = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    with pytest.raises(ValueError, match="whole numbers"):
        join_processes(dict.fromkeys(three, "x"))
    assert join_processes({k: v for k, v in os.environ.items() if k not in three}) is None
