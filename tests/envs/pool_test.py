"""Environments in worker processes: with TensorFlow in the parent, killed, stopped, wrong."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vla_jax.envs.gl import choose_backend
from vla_jax.envs.pool import EnvPool
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.envs.tabletop.tasks import make_task

STAY = np.zeros(8, np.float32)


@pytest.fixture(autouse=True)
def any_backend(monkeypatch) -> None:
    """`choose_backend` sets the variable; it is what it was before after each test."""
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))


def start_pool(num_envs: int, num_workers: int) -> EnvPool:
    return EnvPool(CONFIGS["demo"], num_envs=num_envs, num_workers=num_workers, timeout_s=120)


def fingerprint(observation) -> str:
    return hashlib.sha256(observation["image"].tobytes()).hexdigest()


def test_subprocess_renders_below_a_parent_with_tensorflow():
    code = """
import hashlib
import sys
import tensorflow
from vla_jax.envs.pool import EnvPool
from vla_jax.envs.tabletop.config import CONFIGS
with EnvPool(CONFIGS["demo"], num_envs=2, num_workers=2) as pool:
    for _, (observation, _) in sorted(pool.reset({0: (5, None), 1: (6, None)}).items()):
        print(hashlib.sha256(observation["image"].tobytes()).hexdigest())
assert "mujoco" not in sys.modules
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with start_pool(num_envs=1, num_workers=1) as pool:
        here = [fingerprint(pool.reset({0: (seed, None)})[0][0]) for seed in (5, 6)]  # type: ignore
    assert done.stdout.split() == here


def test_the_expert_acts_in_the_worker_and_bad_requests_harm_nothing():
    with start_pool(num_envs=2, num_workers=1) as pool:
        missing = {"task": make_task("put", "apple", "loud mat")}
        with pytest.raises(ValueError, match="loud"):
            pool.reset({0: (1, missing), 1: (2, None)})
        with pytest.raises(ValueError, match="no environment 2: there are 2"):
            pool.reset({2: (1, None)})
        with pytest.raises(ValueError, match="environment 1 was never reset"):
            pool.step({1: STAY})
        [(_, info)] = pool.reset({0: (1, {"family": "pick"})}).values()  # type: ignore
        assert info["family"] == "pick"
        with pytest.raises(ValueError, match="NaN"):
            pool.step({0: STAY * np.nan})
        for _ in range(CONFIGS["demo"].max_steps):
            [transition] = pool.step({0: None}).values()
            assert transition is not None
            assert transition.action.shape == (8,)
            if transition.terminated:
                break
        assert transition.info["success"] and transition.reward == 1
        assert pool.render([0])[0].shape == (224, 224, 3)  # type: ignore
        assert pool.restarts == 0


def test_a_killed_worker_is_replaced_and_its_episodes_reported_lost(caplog):
    with start_pool(num_envs=3, num_workers=2) as pool:
        pool.reset({env: (env, None) for env in range(3)})
        begun = time.monotonic()
        os.kill(pool._workers[1][0].pid, signal.SIGKILL)  # type: ignore[arg-type]
        after = pool.step({env: STAY for env in range(3)})
        assert after[1] is None
        assert after[0] is not None and after[2] is not None
        assert pool.restarts == 1
        assert "exit code -9" in caplog.text and "lost environments [1]" in caplog.text
        assert pool.reset({1: (1, None)})[1] is not None
        assert all(pool.step({env: STAY for env in range(3)}).values())
        assert time.monotonic() - begun < 30
        assert pool.restarts == 1


def test_a_silent_worker_is_replaced():
    with start_pool(num_envs=2, num_workers=2) as pool:
        pool.reset({0: (0, None), 1: (1, None)})
        os.kill(pool._workers[0][0].pid, signal.SIGSTOP)  # type: ignore[arg-type]
        pool._timeout_s = 2.0
        begun = time.monotonic()
        after = pool.step({0: STAY, 1: STAY})
        assert time.monotonic() - begun < 15
        assert after[0] is None and after[1] is not None
        pool._timeout_s = 120.0
        assert pool.reset({0: (0, None)})[0] is not None


def test_no_library_for_rendering(monkeypatch):
    def missing(name, *args, **kwargs):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(RuntimeError, match=r"apt-get install .*libegl1"):
        choose_backend()
    with pytest.raises(RuntimeError, match=r"apt-get install .*libegl1"):
        start_pool(num_envs=1, num_workers=1)


def test_the_second_library_will_do(monkeypatch):
    def only_osmesa(name, *args, **kwargs):
        if "OSMesa" not in name:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", only_osmesa)
    monkeypatch.setenv("MUJOCO_GL", "")
    assert choose_backend() == "osmesa" == os.environ["MUJOCO_GL"]
    monkeypatch.setenv("MUJOCO_GL", "egl")  # asked for, and not there
    with pytest.raises(RuntimeError, match="apt-get"):
        choose_backend()


@pytest.mark.parametrize(("envs", "workers"), [(0, 1), (1, 0)])
def test_a_pool_needs_environments_and_workers(envs, workers):
    with pytest.raises(ValueError, match="at least one"):
        start_pool(envs, workers)
