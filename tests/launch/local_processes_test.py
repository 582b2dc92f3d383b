"""The launcher of processes on this machine: who ends whom, signals, restarts; how they join."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from vla_jax.sharding.distributed import join_processes

ROOT = Path(__file__).parents[2]
LAUNCHER = (sys.executable, "launch/local_processes.py")


def _launch(program: str, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*LAUNCHER, "-n", "2", *flags, "--", sys.executable, "-c", program],
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


def test_the_first_failure_ends_the_others():
    program = (
        "import os, sys, time; print('up', flush=True);"
        "sys.exit(7) if os.environ['JAX_PROCESS_ID'] == '1' else time.sleep(100)"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [*LAUNCHER, "-n", "3", "--", sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
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
