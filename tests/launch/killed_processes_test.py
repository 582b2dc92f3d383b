"""Real processes: one is killed, one is told to stop, the job goes on; signals are handed on."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.training.conftest import data_sets  # noqa: F401
from vla_jax.config import load_config, parse
from vla_jax.train import train
from vla_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
LAUNCHER = (sys.executable, "launch/local_processes.py", "-n", "2")
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""
# Training, in which process 1 first kills itself after step 5, then gets SIGTERM after step 8.
PROGRAM = """
import os, pathlib, signal
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # compiles in half the time
import jax
from vla_jax.data.loader import Loader
from vla_jax.train import main

FOLDER = pathlib.Path({folder!r})
read = Loader.__next__

def meddle(loader):
    if jax.process_index() == 1:
        for step, mark, number in ((5, "killed", signal.SIGKILL), (8, "told", signal.SIGTERM)):
            if loader.step == step and not (FOLDER / mark).exists():
                (FOLDER / mark).touch()
                os.kill(os.getpid(), number)
    return read(loader)

Loader.__next__ = meddle
main()
"""


def test_subprocess_job_goes_on_after_a_kill_and_a_notice(data_sets, tmp_path, capsys):  # noqa: F811
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
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1, "decay": "constant"},
        "train": {"steps": 14, "batch_size": 8, "log_every": 1, "checkpoint_every": 2},
    }
    (tmp_path / "config.py").write_text(CONFIG.format(config=config))
    (tmp_path / "program.py").write_text(PROGRAM.format(folder=str(tmp_path)))
    flags = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'job'}"]
    done = subprocess.run(
        [*LAUNCHER, "--restarts", "1", "--", sys.executable, str(tmp_path / "program.py"), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    out = done.stdout
    assert done.returncode == 75, out + done.stderr
    assert "process 1 was killed by SIGKILL: ending the others" in out
    assert "[0] process 0: another process of the job is gone" in out
    assert "exit code 137: restart 1 of 1" in out
    # Of step 4, unless that was not written yet.
    assert re.search(rf"\[0\] resumed {tmp_path}/job at step [24]\n", out)
    # Process 1 alone is told; both stop after the same step, with all saved.
    assert "[1] SIGTERM: stopping after the step in flight" in out
    (stopped,) = (line for line in out.splitlines() if "told to stop: saved at step" in line)
    step = int(stopped.split("step ")[1].split(",")[0])
    assert 8 < step < 14 and out.count("told to stop") == 1

    # What two processes began, one on eight devices ends.
    for name in ("job", "alone"):
        train(parse(load_config(tmp_path / "config.py")), str(tmp_path / name))
    assert f"resumed {tmp_path}/job at step {step}" in capsys.readouterr().out
    job, alone = (read_metrics(tmp_path / name) for name in ("job", "alone"))
    assert [r["step"] for r in job] == [r["step"] for r in alone] == list(range(1, 15))
    np.testing.assert_allclose([r["loss"] for r in job], [r["loss"] for r in alone], rtol=1e-4)


def _launch(program: str, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*LAUNCHER, *flags, "--", sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_signal_to_the_launcher_is_handed_on_once():
    """Nothing is started again, and the processes' own exit code is the launcher's."""
    program = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(75)))
print("up", flush=True)
time.sleep(100)
"""
    process = _launch(program, "--restarts", "5")
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"[0] up\n", "[1] up\n"}
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[0]
    assert sorted(rest.splitlines()) == ["[0] told", "[1] told"] and process.returncode == 75


def test_restarts_end_and_a_wrong_command_is_not_tried_again():
    for code, tries in ((3, 3), (2, 1)):
        process = _launch(f"import sys; print('up', flush=True); sys.exit({code})", "--restarts=2")
        out = process.communicate(timeout=60)[0]
        assert process.returncode == code
        assert out.count("ending the others") == tries and out.count(": restart ") == tries - 1
