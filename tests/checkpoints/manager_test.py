"""Checkpoints on a real disk: what is kept, damage, full disks, other meshes and dtypes."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vla_jax.checkpoints.intact import FILE_LIST
from vla_jax.checkpoints.manager import (
    CheckpointMeta,
    Checkpoints,
    CheckpointWriteError,
    DamagedCheckpointError,
    Retention,
)
from vla_jax.sharding.mesh import FSDP, MeshConfig, make_mesh

NOBODY = 65534


def _state(step: int) -> dict:
    noise = np.random.default_rng(step).normal(size=(16, 4096)).astype(np.float32)
    return {"step": jnp.int32(step), "params": {"a": {"kernel": jnp.asarray(noise)}}}


def _meta(step: int, bad_steps=(), config: dict | None = None) -> CheckpointMeta:
    return CheckpointMeta(step, 8 * step, config or {}, (), "digest", bad_steps=bad_steps)


def _restored(checkpoints: Checkpoints, dtype=jnp.float32, sharding=None, **how) -> jax.Array:
    like = {"params": {"a": {"kernel": jax.ShapeDtypeStruct((16, 4096), dtype)}}}
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: sharding, like)
    return checkpoints.restore(like, places, **how)["params"]["a"]["kernel"]


def _save(workdir, steps, retention: Retention | None = None, metrics=()) -> None:
    retention = retention or Retention()
    config = {"train": {"keep_best": retention.best, "keep_best_is": retention.best_is}}
    with Checkpoints(workdir, retention) as checkpoints:
        for step, values in zip(steps, metrics or [None] * len(steps), strict=True):
            checkpoints.save(_state(step), _meta(step, config=config), values)


def _error_of_saving(checkpoints: Checkpoints) -> CheckpointWriteError | None:
    """Of step 2, noticed in the way that training does: by asking without waiting."""
    try:
        checkpoints.save(_state(2), _meta(2))
        while not checkpoints.check():
            time.sleep(0.01)
    except CheckpointWriteError as e:
        return e
    return None


def test_newest_every_and_best_are_kept(tmp_path):
    """The policy holds over a restart, and the best one is the one with the best metric."""
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 3.0, 5: 2.0, 6: 2.5}
    for best_is, kept in (("lowest", [2, 3, 5, 6]), ("highest", [1, 3, 5, 6])):
        workdir = tmp_path / best_is
        retention = Retention(newest=2, every=3, best="loss", best_is=best_is)
        for steps in ((1, 2, 3), (4, 5, 6)):
            _save(workdir, steps, retention, [{"loss": losses[s], "other": 0.0} for s in steps])
        with Checkpoints(workdir, retention) as checkpoints:
            assert checkpoints.steps == kept
            with pytest.raises(
                ValueError, match="keep_best 'loss' is not among what is logged: acc"
            ):
                checkpoints.save(_state(7), _meta(7), {"accuracy": 1.0})
        # As those find them who only read.
        reader = Checkpoints(workdir)
        assert [reader.find(which) for which in ("best", "newest", "5")] == [kept[0], 6, 5]
        with pytest.raises(FileNotFoundError, match=r"no checkpoint 4 in .*; there are"):
            reader.find("4")
        with pytest.raises(ValueError, match="checkpoint 'last': write newest, best or one of"):
            reader.find("last")
    _save(tmp_path / "plain", (1, 2, 3, 4))
    plain = Checkpoints(tmp_path / "plain")
    assert plain.steps == [3, 4] and plain.find("newest") == 4
    with pytest.raises(ValueError, match=r"did not keep its best .*: name one of \[3, 4\]"):
        plain.find("best")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        Checkpoints(tmp_path / "nothing").find("best")


def test_what_a_save_costs_is_told_once(tmp_path):
    with Checkpoints(tmp_path, Retention()) as checkpoints:
        checkpoints.save(_state(1), _meta(1, bad_steps=(3, 5)))
        costs = checkpoints.wait()
        assert set(costs) == {"checkpoint/blocking_s", "checkpoint/background_s"}
        assert costs["checkpoint/blocking_s"] > 0 and costs["checkpoint/background_s"] > 0
        assert checkpoints.check() == checkpoints.wait() == {}
        assert checkpoints.meta() == _meta(1, bad_steps=(3, 5))
        checkpoints.save(_state(2), _meta(2))
        checkpoints.save(_state(3), _meta(3))  # waits for the one before, and keeps what it cost
        assert checkpoints.check().keys() == costs.keys()
        checkpoints.wait()
        assert checkpoints.meta(2) == _meta(2)


def test_a_half_deleted_checkpoint_is_set_aside(tmp_path):
    """Each file that reading needs, missing or cut: on with the older one, and nothing deleted."""
    _save(tmp_path / "whole", (1, 2))
    newest = tmp_path / "whole/checkpoints/2"
    needed = [p for p in newest.rglob("*") if p.parent.name == "d" or p.name.startswith("manifest")]
    needed += [newest / "meta/metadata", newest / "state/_METADATA"]
    assert len(needed) >= 6
    for number, path in enumerate(needed):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", workdir)
        victim = workdir / "checkpoints/2" / path.relative_to(newest)
        victim.unlink() if number % 2 else os.truncate(victim, path.stat().st_size // 2)
        lines = []
        with Checkpoints(workdir, Retention()) as checkpoints:
            checkpoints.set_damaged_aside(lines.append)
            assert checkpoints.latest == 1
            assert np.array_equal(_restored(checkpoints), _state(1)["params"]["a"]["kernel"])
            checkpoints.save(_state(2), _meta(2))
        problem = "is missing" if number % 2 else "bytes, not"
        assert len(lines) == 1 and "checkpoint 2 is damaged" in lines[0] and problem in lines[0]
        (aside,) = (workdir / "damaged_checkpoints").iterdir()
        assert (aside / FILE_LIST).exists() and str(aside) in lines[0]
        with Checkpoints(workdir) as checkpoints:
            assert np.array_equal(_restored(checkpoints), _state(2)["params"]["a"]["kernel"])


def test_training_does_not_start_anew_over_damaged_checkpoints(tmp_path):
    _save(tmp_path, (1, 2))
    for path in (tmp_path / "checkpoints").rglob("_METADATA"):
        path.unlink()
    damaged = pytest.raises(DamagedCheckpointError, match="checkpoints/2 is damaged")
    with Checkpoints(tmp_path) as checkpoints, damaged:
        _restored(checkpoints)
    for _ in range(2):  # the second time all are set aside already
        checkpoints = Checkpoints(tmp_path, Retention())
        with checkpoints, pytest.raises(FileNotFoundError, match="damaged_checkpoints"):
            checkpoints.set_damaged_aside(lambda line: None)


def test_a_half_written_checkpoint_does_not_count_and_goes(tmp_path):
    _save(tmp_path, (1,))
    half = tmp_path / "checkpoints/2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints/1", half)
    assert Checkpoints(tmp_path).latest == 1 and half.exists()  # a reader touches nothing
    with Checkpoints(tmp_path, Retention()) as checkpoints:
        assert checkpoints.latest == 1
        checkpoints.save(_state(2), _meta(2))
    assert not half.exists() and Checkpoints(tmp_path).latest == 2


# Orbax leaves coroutines behind when it cannot write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_told_with_the_next_step(tmp_path):
    """A real write that fails: files may not grow as large as the arrays are."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, Retention()) as checkpoints:
        checkpoints.save(_state(1), _meta(1))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            caught = _error_of_saving(checkpoints)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        message = str(caught)
        assert f"cannot write checkpoint 2 to {tmp_path}/checkpoints" in message
        assert "File too large" in message and "Checkpoint 1 is complete" in message
        checkpoints.save(_state(3), _meta(3))  # there is room again
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [1, 3]
        assert np.array_equal(_restored(checkpoints), _state(3)["params"]["a"]["kernel"])


def test_a_directory_that_may_not_be_written():
    """As another user, since root may write anywhere."""
    workdir = Path(tempfile.mkdtemp(dir="/tmp"))
    user = os.geteuid()
    try:
        workdir.chmod(0o755)
        _save(workdir, (1,))
        directory = workdir / "checkpoints"
        directory.chmod(0o555)
        if user == 0:
            os.seteuid(NOBODY)
        with Checkpoints(workdir, Retention()) as checkpoints:
            caught = _error_of_saving(checkpoints)
        message = str(caught)
        assert "Permission denied" in message and "Checkpoint 1 is complete" in message
        assert f"cannot write checkpoint 2 to {directory}" in message
    finally:
        os.seteuid(user)
        shutil.rmtree(workdir)


def test_a_file_where_checkpoints_should_be(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointWriteError, match=f"{tmp_path}/checkpoints for checkpoints"):
        Checkpoints(tmp_path, Retention())


def test_restored_onto_other_meshes(tmp_path):
    """1 device -> 8 -> 2 x 4 -> 1, bit for bit."""
    want = np.asarray(_state(1)["params"]["a"]["kernel"])
    shardings = [
        NamedSharding(make_mesh(config, jax.devices()[:n]), PartitionSpec(FSDP, "tensor"))
        for n, config in ((1, MeshConfig(1)), (8, MeshConfig(1, 8)), (8, MeshConfig(1, 2, 4)))
    ]
    _save(tmp_path, (1,))
    for step, sharding in enumerate([*shardings[1:], shardings[0]], start=2):
        with Checkpoints(tmp_path, Retention()) as checkpoints:
            found = _restored(checkpoints, sharding=sharding)
            assert found.sharding == sharding and np.array_equal(found, want)
            params = {"a": {"kernel": found}}
            checkpoints.save({"step": jnp.int32(step), "params": params}, _meta(step))


def test_another_dtype_only_where_asked_for(tmp_path):
    want = _state(1)["params"]["a"]["kernel"]
    _save(tmp_path, (1,))
    with Checkpoints(tmp_path, Retention()) as checkpoints:
        with pytest.raises(ValueError, match="a/kernel is float32, expected bfloat16"):
            _restored(checkpoints, jnp.bfloat16)
        rounded = _restored(checkpoints, jnp.bfloat16, part=True)
        assert rounded.dtype == jnp.bfloat16 and np.array_equal(rounded, want.astype(jnp.bfloat16))
        params = {"a": {"kernel": rounded}}
        checkpoints.save({"step": jnp.int32(2), "params": params}, _meta(2))
    with Checkpoints(tmp_path) as checkpoints:
        back = _restored(checkpoints, jnp.float32, part=True)
        assert back.dtype == jnp.float32 and np.array_equal(back, rounded.astype(jnp.float32))
