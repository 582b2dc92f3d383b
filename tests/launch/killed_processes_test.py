"""Real processes that train as one: one is killed, one is told to stop, and the job goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.examples import encoded, episodes
from vla_jax.actions.spec import end_effector_spec
from vla_jax.build import load_policy
from vla_jax.build_data import build_data
from vla_jax.config import load_config, parse
from vla_jax.data.generate import ImageTextRow
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.train import train
from vla_jax.training.metrics import read_metrics
from vla_jax.tree import flatten

ROOT = Path(__file__).parents[2]
BATCH, STEPS, EVALUATED = 8, 12, 6
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
            process = os.environ.get("JAX_PROCESS_ID", "0")
            with open(f"{os.environ['READS']}.{process}.{os.getpid()}", "a") as file:
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


# Training, in which process 1 first kills itself after step 5, then gets SIGTERM after step 7.
PROGRAM = """
import os, pathlib, signal
import jax
from vla_jax.data.loader import Loader
from vla_jax.train import main

FOLDER = pathlib.Path({folder!r})
read = Loader.__next__

def meddle(loader):
    if jax.process_index() == 1:
        for step, mark, number in ((5, "killed", signal.SIGKILL), (7, "told", signal.SIGTERM)):
            if loader.step == step and not (FOLDER / mark).exists():
                (FOLDER / mark).touch()
                os.kill(os.getpid(), number)
    return read(loader)

Loader.__next__ = meddle
main()
"""


def test_subprocess_job_of_processes_goes_on_after_a_kill_and_a_notice(
    tmp_path, capsys, monkeypatch
):
    """Two processes, one of which is killed and later told to stop, then one on eight devices;
    against one on eight devices all the way."""
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
        "train": {
            "steps": STEPS,
            "batch_size": BATCH,
            "log_every": 1,
            "checkpoint_every": 2,
            "evaluate_every": EVALUATED,
        },
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
    (tmp_path / "program.py").write_text(PROGRAM.format(folder=str(tmp_path)))
    resumed, stopped = _killed_and_told(tmp_path)

    # What two processes began, one on eight devices ends.
    parsed = parse(load_config(tmp_path / "config.py"))
    for name in ("job", "alone"):
        monkeypatch.setenv("READS", str(tmp_path / f"reads_{name}_ended"))
        train(parsed, str(tmp_path / name))
    assert f"resumed {tmp_path}/job at step {stopped}" in capsys.readouterr().out

    data = build_data(parsed)
    [killed, told] = zip(*(_reads(tmp_path / f"reads_job.{p}") for p in range(2)), strict=True)
    _require_own_rows(killed, data.mixture, 0, 5)
    _require_own_rows(told, data.mixture, resumed, stopped)
    for name, first in (("job", stopped), ("alone", 0)):
        _require_own_rows(_reads(tmp_path / f"reads_{name}_ended.0"), data.mixture, first, STEPS)

    alone, job = (_without_speeds(tmp_path / name) for name in ("alone", "job"))
    assert [r["step"] for r in alone] == [r["step"] for r in job] == list(range(1, STEPS + 1))
    tokens = _tokens_by_source(data)
    for record, expected in zip(job, alone, strict=True):
        # Shares of tokens are counted from a process's start.
        step = int(record["step"])
        since = 0 if step <= resumed else resumed if step <= stopped else stopped
        sums = tokens[since:step].sum(0)
        shares = {f"{s}/share_of_tokens": x for s, x in zip(("robot", "web"), sums / sums.sum())}
        groups = {k: record[k] for k in record if k.startswith("group/")}
        assert record == pytest.approx(expected | groups | shares, rel=1e-4), record

    # Two processes find what one does.
    found = {name: _validation(tmp_path / name) for name in ("alone", "job")}
    assert list(found["alone"]) == list(found["job"]) == [EVALUATED, STEPS]
    for step, record in found["job"].items():
        assert {"val/web/loss", "val/actions_arm/error/position_x"} <= set(record)
        assert record == pytest.approx(found["alone"][step], rel=1e-4, abs=1e-6), step
    ours, theirs = (_params(tmp_path / name) for name in ("job", "alone"))
    for key, value in theirs.items():
        # No key bias changes the loss: its gradient is rounding, which Adam makes steps of.
        if not key.endswith("key/bias"):
            np.testing.assert_allclose(ours[key], value, atol=1e-4, err_msg=key)


def _killed_and_told(folder: Path) -> tuple[int, int]:
    """Runs the program; -> the steps at which it was resumed and stopped."""
    flags = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'job'}"]
    launcher = [sys.executable, "launch/local_processes.py", "-n", "2", "--restarts", "1"]
    done = subprocess.run(
        [*launcher, "--", sys.executable, str(folder / "program.py"), *flags],
        cwd=ROOT,
        # Compiles in half the time.
        env={
            **os.environ,
            "READS": str(folder / "reads_job"),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        capture_output=True,
        text=True,
        timeout=400,
    )
    out = done.stdout
    assert done.returncode == 75, out + done.stderr
    for text in (
        "process 1 was killed by SIGKILL: ending the others",
        "[0] process 0: another process of the job is gone",
        "exit code 137: restart 1 of 1",
        # Process 1 alone is told; both stop after the same step, with all saved.
        "[1] SIGTERM: stopping after the step in flight",
    ):
        assert text in out, out
    # Of step 4, unless that was not written yet.
    resumed = re.search(rf"\[0\] resumed {folder}/job at step ([24])\n", out)
    stopped = re.findall(r"told to stop: saved at step (\d+),", out)
    assert resumed and len(stopped) == 1 and 7 < int(stopped[0]) < STEPS, out
    assert "[1] step" not in out
    return int(resumed[1]), int(stopped[0])


def _reads(prefix: Path) -> list[list[tuple[str, int]]]:
    """(source, record) of one process, of each time that it was started."""
    files = sorted(prefix.parent.glob(f"{prefix.name}.*"), key=lambda file: file.stat().st_mtime)
    lines = [file.read_text().splitlines() for file in files]
    return [[(name, int(i)) for name, i in map(str.split, of_one)] for of_one in lines]


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
