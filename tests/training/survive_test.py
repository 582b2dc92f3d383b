"""Being stopped, bad batches, and kill -9: what comes of it equals a run left in peace, bitwise."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.training_test import make_config
from vla_jax.build import TrainingRun, build_training
from vla_jax.checkpoints.manager import Checkpoints
from vla_jax.config import Config
from vla_jax.sharding.mesh import to_global
from vla_jax.train import train
from vla_jax.training.config import TrainConfig
from vla_jax.training.guard import guarded
from vla_jax.training.metrics import MetricWriter, read_metrics
from vla_jax.training.preemption import Preempted

ROOT = Path(__file__).parents[2]
BAD_STEP, BAD_SAMPLE = 4, 26  # of 8 samples a step


def _step(state, batch):
    grad = batch["x"].mean()
    new = {k: jax.tree.map(lambda x: x - grad, v) for k, v in state.items() if k != "step"}
    return {**new, "step": state["step"] + 1}, {"loss": batch["x"][0], "grad_norm": grad}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_left_out(bad):
    state = {"step": jnp.int32(4), "params": {"a": jnp.array([0.1, -0.0, np.nan])}, "ema": 7.0}
    step = jax.jit(guarded(_step))
    for x in ([bad, 1.0], [1.0, bad]):  # the loss, and only the gradient
        new, metrics = step(state, {"x": jnp.array(x)})
        assert not metrics["finite"] and new["step"] == 5 and "stop" not in metrics
        assert (
            np.asarray(new["params"]["a"]).tobytes() == np.asarray(state["params"]["a"]).tobytes()
        )
        assert new["ema"] == 7.0
    new, metrics = step(state, {"x": jnp.array([1.0, 2.0]), "stop": jnp.array([False, True])})
    assert metrics["finite"] and metrics["stop"] and new["step"] == 5
    np.testing.assert_allclose(new["params"]["a"][:2], [-1.4, -1.5])
    assert not step(state, {"x": jnp.ones(2), "stop": jnp.zeros(2, bool)})[1]["stop"]


@pytest.fixture
def poisoned(monkeypatch):
    """The loss of every batch that holds BAD_SAMPLE is NaN."""
    loss_fn = TrainingRun.loss_fn.fget

    def with_nan(run: TrainingRun):
        loss = loss_fn(run)

        def of_batch(params, batch, **more):
            value, sums = loss(params, batch, **more)
            return jnp.where((batch["sample"] == BAD_SAMPLE).any(), jnp.nan, value), sums

        return of_batch

    monkeypatch.setattr(TrainingRun, "loss_fn", property(with_nan))


def _config(data_sets, **changes) -> Config:
    config = make_config(data_sets)
    settings = {"steps": 6, "checkpoint_every": 2, **changes}
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


def _state(workdir) -> list[np.ndarray]:
    """Parameters and optimizer of the newest checkpoint."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(workdir) as checkpoints:
        like = {k: v for k, v in checkpoints.stored().items() if k != "step"}
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        found = checkpoints.restore(like, jax.tree.map(lambda _: place, like))
    return jax.tree.map(np.asarray, jax.tree.leaves((found["params"], found["opt"])))


def _after(config: Config, steps: tuple[int, ...]) -> list[np.ndarray]:
    """Parameters and optimizer after the updates of these steps alone, without a loop."""
    run = build_training(config)
    step = run.make_step(run.loss_fn)
    state, loader = run.fresh_state(), run.loader(0)
    for number in range(1, max(steps) + 1):
        batch = {**next(loader), "stop": np.zeros(8, bool)}
        if number in steps:
            state, _ = step(state, to_global(batch, run.mesh, 8))
    return jax.tree.map(np.asarray, jax.tree.leaves((state["params"], state["opt"])))


def _same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return len(a) == len(b) > 20 and all(x.tobytes() == y.tobytes() for x, y in zip(a, b))


@pytest.mark.usefixtures("poisoned")
def test_stop_then_skip(data_sets, tmp_path):
    """It stops with the samples written down; told to skip, it goes on from the checkpoint."""
    config = _config(data_sets, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match=f"step {BAD_STEP}: the loss is nan.*intact"):
        train(config, str(tmp_path))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest == BAD_STEP - 1
    (line,) = map(json.loads, (tmp_path / "bad_batches.jsonl").read_text().splitlines())
    run = build_training(config)
    batch = next(run.loader(BAD_STEP - 1))
    assert (line["step"], line["loss"]) == (BAD_STEP, "nan")
    assert line["samples"] == batch["sample"].tolist() and BAD_SAMPLE in line["samples"]
    counts = np.bincount(batch["source"], minlength=2)
    assert [len(line["records"].get(name, ())) for name in run.mixture.names] == counts.tolist()
    assert set(line["loss_by_source"]) == set(line["records"]) == {"robot", "web"}

    config = _config(data_sets, checkpoint_every=1, on_nan="skip")
    train(config, str(tmp_path))
    assert _same(_state(tmp_path), _after(config, (1, 2, 3, 5, 6)))
    records = {r["step"]: r["bad_batches"] for r in read_metrics(tmp_path)}
    assert records == {1: 0, 2: 0, 3: 0, 5: 1, 6: 1}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.meta().bad_steps == (BAD_STEP,)
    assert len((tmp_path / "bad_batches.jsonl").read_text().splitlines()) == 1


@pytest.mark.usefixtures("poisoned")
def test_roll_back_and_sigterm(data_sets, tmp_path, monkeypatch, capsys):
    """Updates since the checkpoint are forgotten; also in a run stopped and started in between."""
    config = _config(data_sets, on_nan="roll_back")
    write, handlers = MetricWriter.write, [signal.getsignal(n) for n in (2, 15)]

    def write_and_signal(self, step, scalars):
        write(self, step, scalars)
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write", write_and_signal)
        # Of 6 steps, so it is told too late to do anything but finish them.
        train(config, str(tmp_path / "six"))
        longer = _config(data_sets, on_nan="roll_back", steps=12)
        with pytest.raises(Preempted) as stopped:
            train(longer, str(tmp_path / "twelve"))
    assert [signal.getsignal(n) for n in (2, 15)] == handlers
    assert _same(_state(tmp_path / "six"), _after(config, (1, 2, 5, 6)))
    with Checkpoints(tmp_path / "twelve") as checkpoints:
        assert checkpoints.latest == stopped.value.step and 6 <= stopped.value.step < 12
    train(longer, str(tmp_path / "twelve"))
    assert _same(_state(tmp_path / "twelve"), _after(longer, (1, 2, *range(5, 13))))
    out = capsys.readouterr().out
    assert f"loss or gradient of update {BAD_STEP} not finite, on with the state of update 2" in out
    assert f"resumed {tmp_path}/twelve at step {stopped.value.step}" in out


@pytest.mark.usefixtures("poisoned")
def test_bad_batches_have_a_limit(data_sets, tmp_path):
    config = _config(data_sets, on_nan="skip", max_bad_batches=0)
    with pytest.raises(FloatingPointError, match=r"one more than train\.max_bad_batches 0"):
        train(config, str(tmp_path))


WAITER = """
import hashlib, sys
from vla_jax.training.preemption import StopRequest

with StopRequest(float(sys.argv[1])) as stop:
    print("up", flush=True)
    # Inside C, where Python runs no handlers, as in a collective with a host that is gone.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize(("within_s", "code"), [("0.2", 75), ("100", 143)])
def test_subprocess_that_cannot_stop_is_ended(within_s, code):
    """By the deadline, or by a second SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITER, within_s],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "SIGTERM: stopping after the step in flight\n"
    if code != 75:
        # At once it would be the same notice.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.1)
        process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == code and "the newest complete checkpoint stands" in message


def test_lines_of_two_threads_do_not_mix():
    """Unbuffered, as jobs run; a line in two writes is broken within a few hundred."""
    program = """
import sys, threading
from vla_jax.training.preemption import say
def talk(letter, file):
    for _ in range(3000):
        say(10 * letter, file)
threads = [threading.Thread(target=talk, args=a) for a in [("a", None), ("b", sys.stdout)]]
[thread.start() for thread in threads]
"""
    done = subprocess.run(
        [sys.executable, "-u", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert sorted(done.stdout.splitlines()) == [10 * c for c in "ab" for _ in range(3000)]


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match=r"keep_every 7 must be a multiple of train\.check"):
        TrainConfig(10, 8, checkpoint_every=5, keep_every=7)
    with pytest.raises(ValueError, match="max_bad_batches must be at least 0, got -1"):
        TrainConfig(10, 8, max_bad_batches=-1)


def test_subprocess_kill_9_changes_nothing(tmp_path):
    """One kill while a checkpoint is written; `tools/kill_test.py` does as many as asked for."""
    command = [sys.executable, "tools/kill_test.py", f"--out={tmp_path / 'kills'}"]
    done = subprocess.run(
        [*command, "--kills=1", "--steps=60", "--checkpoint_every=3"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            # One device, which takes the last of the flags.
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "same parameters, optimizer and losses, bitwise" in done.stdout
    assert "1 kills, " in done.stdout and "kill  1: while saving" in done.stdout
