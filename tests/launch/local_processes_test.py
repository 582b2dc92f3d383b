"""Real processes: 1, 2 and 4 that train as one, and one that fails and ends the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.data.examples import encoded, episodes
from vla_jax.actions.spec import end_effector_spec
from vla_jax.build import load_policy
from vla_jax.build_data import build_data
from vla_jax.config import load_config, parse
from vla_jax.data.generate import ImageTextRow
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.sharding.distributed import join_processes
from vla_jax.training.metrics import read_metrics
from vla_jax.tree import flatten

ROOT = Path(__file__).parents[2]
BATCH, STEPS, SAVED = 8, 5, 3
EVALUATE = "--config.train.evaluate_every=2"
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""
# Sources that write down which records a process reads.
SOURCES = """
import io
import os

import numpy as np
from PIL import Image

from vla_jax.actions.spec import end_effector_spec
from vla_jax.types import Example


class Source:
    action_spec = None

    def __init__(self, name, split):
        self.name, self.split = name, split

    def __len__(self):
        return 1000

    def read(self, index):
        if "READS" in os.environ and self.split == "train":
            with open(f"{os.environ['READS']}.{os.environ['JAX_PROCESS_ID']}", "a") as file:
                file.write(f"{self.name} {index}\\n")
        rng = np.random.default_rng(index)
        picture = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(picture, "PNG")
        return Example(images=(picture.getvalue(),), **self.answer(rng, int(index)))


class Web(Source):
    def answer(self, rng, index):
        return {"prompt": f"Q: what is {index}? A:", "answer": "a " * (index % 5) + "dog"}


class Robot(Source):
    action_spec = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)

    def answer(self, rng, index):
        bounds = [[0.5, *[0.05] * 6, 1]]
        action = rng.uniform(0, 1, (1, 8)) * bounds
        return {"prompt": f"pick {index}", "action": action.astype(np.float32)}
"""


def _run(count: int, *command: str, **environment: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "launch/local_processes.py", "-n", str(count)]
    return subprocess.run(
        [*launcher, "--", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _train(
    folder: Path, workdir: str, count: int, steps: int, *more: str
) -> list[list[tuple[str, int]]]:
    """Trains with `count` processes of one device; -> (source, record) that each has read."""
    reads = folder / f"reads_{workdir}_{count}"
    options = [f"--config={folder}/config.py", f"--workdir={folder / workdir}"]
    train = ["-m", "vla_jax.train", *options, f"--config.train.steps={steps}", *more]
    # Compiles in half the time.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = _run(count, sys.executable, *train, READS=str(reads), **quick)
    assert done.returncode == 0, done.stdout
    assert f"[0] step {steps}/{steps}" in done.stdout and "[1] step" not in done.stdout
    lines = [Path(f"{reads}.{p}").read_text().splitlines() for p in range(count)]
    return [[(name, int(i)) for name, i in map(str.split, of_one)] for of_one in lines]


def test_processes_train_as_one(tmp_path):
    """4 processes to step 3; 1 and 2 of them from there to 5; against one process all the way."""
    source = {"kind": "python", "path": f"{tmp_path}/sources.py"}
    config = {
        "model": {"preset": "tiny", "image_size": 28, "compute_dtype": "float32"},
        "data": {
            "sources": {
                "robot": {**source, "path": f"{source['path']}:Robot", "weight": 2.0},
                "web": {**source, "path": f"{source['path']}:Web", "weight": 1.0},
                # Only evaluated on.
                "arm": {"kind": "episodes", "path": str(tmp_path / "arm"), "weight": 0.0},
                "quiz": {"kind": "image_text", "path": str(tmp_path / "quiz"), "weight": 0.0},
            },
            "max_tokens": 40,
            "max_answer_tokens": 10,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1, "decay": "constant"},
        "train": {"steps": STEPS, "batch_size": BATCH, "log_every": 1, "checkpoint_every": SAVED},
        "mesh": {"data": 1, "fsdp": -1},
        # 5 held-out samples in batches of 4: one process has none in the last.
        "evaluation": {
            "in_training": ("loss", "actions"),
            "in_training_examples": 5,
            "batch_size": 4,
        },
    }
    _write_held_out(tmp_path)
    (tmp_path / "sources.py").write_text(SOURCES)
    (tmp_path / "config.py").write_text(CONFIG.format(config=config))
    read = {
        "alone": _train(tmp_path, "alone", 1, STEPS, EVALUATE),
        "four": _train(tmp_path, "four", 4, SAVED),
    }
    for name, count in (("one", 1), ("two", 2)):
        shutil.copytree(tmp_path / "four", tmp_path / name)
        read[name] = _train(tmp_path, name, count, STEPS, *[EVALUATE] * (count == 2))

    data = build_data(parse(load_config(tmp_path / "config.py")))
    for name, first, last in (("four", 0, SAVED), ("two", SAVED, STEPS), ("one", SAVED, STEPS)):
        _require_own_rows(read[name], data.mixture, first, last)

    alone = _without_speeds(tmp_path / "alone")
    assert [r["step"] for r in alone] == [1, 2, 3, 4, 5]
    tokens = _tokens_by_source(data)
    for name, begins in (("alone", 0), ("one", SAVED), ("two", SAVED)):
        records = _without_speeds(tmp_path / name)
        assert len(records) == STEPS
        for record, expected in zip(records, alone, strict=True):
            # Shares of tokens are counted from a process's start.
            since = begins if record["step"] > begins else 0
            sums = tokens[since : int(record["step"])].sum(0)
            shares = {
                f"{s}/share_of_tokens": x for s, x in zip(("robot", "web"), sums / sums.sum())
            }
            groups = {k: record[k] for k in record if k.startswith("group/")}
            assert record == pytest.approx(expected | groups | shares, rel=1e-5), (name, record)

    # Two processes find what one does, at the same steps.
    found = {name: _validation(tmp_path / name) for name in ("alone", "two")}
    assert list(found["alone"]) == [2, 4, 5] and list(found["two"]) == [4, 5]
    for step, record in found["two"].items():
        assert {"val/web/loss", "val/actions_arm/error/position_x"} <= set(record)
        assert record == pytest.approx(found["alone"][step], rel=1e-5, abs=1e-6), step

    params = {name: _params(tmp_path / name) for name in ("alone", "one", "two")}
    for name in ("one", "two"):
        for key, value in params["alone"].items():
            # No key bias changes the loss: its gradient is rounding, which Adam makes steps of.
            if not key.endswith("key/bias"):
                np.testing.assert_allclose(params[name][key], value, atol=1e-5, err_msg=key)


def _require_own_rows(read, mixture, first: int, last: int) -> None:
    """Process p of P has read the p-th of P slices of each batch in order, and some batches ahead.

    The first record of each source is looked at by all, to know its pictures.
    """
    for p, mine in enumerate(read):
        steps = np.arange(first, last + 10)[:, None]
        share = BATCH // len(read)
        samples = (steps * BATCH + p * share + np.arange(share)).reshape(-1)
        sources, records = mixture.locate(samples)
        expected = [(mixture.names[s], int(r)) for s, r in zip(sources, records)]
        assert mine[:2] == [("robot", 0), ("web", 0)]
        assert mine[2:] == expected[: len(mine) - 2], f"process {p} of {len(read)}"
        assert len(mine) - 2 >= (last - first) * share


def _tokens_by_source(data) -> np.ndarray:
    """Tokens in the loss, int64 [steps, sources], of whole batches read here."""
    loader = data.loader(0)
    batches = [next(loader) for _ in range(STEPS)]
    loader.close()
    of = [[b["in_loss"][b["source"] == s].sum() for s in range(2)] for b in batches]
    return np.asarray(of, np.int64)


def _without_speeds(workdir: Path) -> list[dict[str, float]]:
    records = [r for r in read_metrics(workdir) if "loss" in r]
    own = ("speed/", "start_up/", "checkpoint/", "goodput")
    return [{k: v for k, v in r.items() if not k.startswith(own)} for r in records]


def _write_held_out(folder: Path) -> None:
    spec = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)
    write_episodes(episodes(), folder / "arm", spec, name="arm", description="", test_every=5)
    rows = [
        ImageTextRow(
            image=encoded(i),
            prompt=f"Q: what is {i}? A:",
            answer="a dog",
            task="name",
            language="en",
        )
        for i in range(8)
    ]
    splits = {"train": rows[:1], "test": rows[1:]}
    write_image_text(splits, folder / "quiz", name="quiz", description="")


def _validation(workdir: Path) -> dict[int, dict[str, float]]:
    records = [r for r in read_metrics(workdir) if "val/robot/loss" in r]
    return {int(r["step"]): {k: v for k, v in r.items() if k != "goodput"} for r in records}


def _params(workdir: Path) -> dict[str, np.ndarray]:
    return flatten(load_policy(workdir, batch_size=BATCH)[0].params)


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


def test_a_slurm_step_is_one_job():
    """What Slurm sets for two tasks of a step is enough to find each other."""
    program = (
        "import jax; from vla_jax.sharding.distributed import join_processes; join_processes();"
        "print(jax.process_index(), jax.process_count(), jax.device_count())"
    )
    step = {
        "SLURM_JOB_ID": str(os.getpid()),  # makes the port
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, **step, "SLURM_PROCID": task, "SLURM_LOCALID": task},
            stdout=subprocess.PIPE,
            text=True,
        )
        for task in "01"
    ]
    assert [task.communicate(timeout=120)[0].split() for task in tasks] == [
        ["0", "2", "2"],
        ["1", "2", "2"],
    ]


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({"VLA_JAX_JOIN": "1"}, True),  # a TPU VM
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, True),  # GKE
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, False),
        ({"SLURM_NTASKS": "1"}, False),
    ],
)
def test_which_clusters_are_joined(environment, joins, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: calls.append(given))
    join_processes(environment)
    assert calls == [()] * joins
