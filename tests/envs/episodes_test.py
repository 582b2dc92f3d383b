"""Generating expert episodes: what is stored, and a run that is killed."""

from __future__ import annotations

import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.staged import StagedEpisodes
from vla_jax.envs.episodes import generate, staged_metadata
from vla_jax.envs.tabletop.config import CONFIGS

EPISODES, SEED = 20, 3


@pytest.fixture(autouse=True)
def any_backend(monkeypatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", ""))
        generate(out, episodes=EPISODES, workers=2, seed=SEED)
    return out


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def running(group: int) -> list[str]:
    """Processes of a group that still do something."""
    found = []
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(stat.parent.name)
    return found


def test_what_is_stored(uninterrupted):
    config = CONFIGS["demo"]
    spec = config.action_spec
    episodes = list(StagedEpisodes(uninterrupted))
    assert len(episodes) == EPISODES
    assert {episode["metadata"]["family"] for episode in episodes} == set(config.families)
    assert len({episode["metadata"]["seed"] for episode in episodes}) == EPISODES
    for episode in episodes:
        n = len(episode["images"]["image"])
        assert 2 <= n <= config.max_steps
        assert episode["state"].shape == episode["action"].shape == (n, 8)
        assert episode["state"].dtype == episode["action"].dtype == np.float32
        assert (episode["action"] >= spec.low).all() and (episode["action"] <= spec.high).all()
        assert not episode["action"][:-1, 0].any()  # the expert terminates once, at the end
        assert episode["metadata"]["target"] in episode["instruction"]
        assert episode["metadata"]["reference"] in episode["instruction"]
        pixels = np.asarray(Image.open(io.BytesIO(episode["images"]["image"][-1])))
        assert pixels.shape == (112, 112, 3) and pixels.std() > 5
    ended = [episode["action"][-1, 0] for episode in episodes]
    assert np.mean(ended) > 0.7  # or the goal held for two steps, or time was up


def test_what_was_done_differs_from_the_labels(uninterrupted):
    """The expert's clean action is stored; what was carried out had noise on it."""
    wide = np.concatenate(
        [
            episode["state"][1:, :2] - episode["state"][:-1, :2] - episode["action"][:-1, 1:3]
            for episode in StagedEpisodes(uninterrupted)
        ]
    )
    assert 0.005 < np.median(np.abs(wide)) + wide.std() < 0.05


def test_metadata(uninterrupted):
    metadata = staged_metadata(uninterrupted)
    assert ActionSpec.from_json(metadata["action_spec"]) == CONFIGS["demo"].action_spec
    assert metadata["seed"] == SEED
    assert metadata["config"]["control_hz"] == 3


def test_a_killed_run_goes_on_to_the_same_files(uninterrupted, tmp_path):
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "vla_jax.envs.episodes", f"--out={out}", f"--episodes={EPISODES}",
        f"--seed={SEED}", "--workers=2",
    ]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("episode_*.npz"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while running(process.pid):  # its workers do not live on
        assert time.monotonic() < deadline
        time.sleep(0.1)
    files = sorted(out.glob("episode_*.npz"))
    assert 2 <= len(files) < EPISODES
    before = {path: path.stat().st_mtime_ns for path in files}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"{len(files)} of {EPISODES} episodes are there already" in done.stdout
    assert f"episodes {EPISODES - len(files)}/{EPISODES - len(files)}" in done.stdout
    assert contents(out) == contents(uninterrupted)
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_one_directory_holds_one_kind_of_episodes(uninterrupted):
    before = contents(uninterrupted)
    with pytest.raises(ValueError, match="another config or seed"):
        generate(uninterrupted, episodes=1, workers=1, seed=SEED + 1)
    with pytest.raises(ValueError, match="another config or seed"):
        generate(uninterrupted, episodes=1, workers=1, seed=SEED, config="full")
    assert contents(uninterrupted) == before


def test_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no world 'demi'; .*'demo'"):
        generate(tmp_path / "out", episodes=1, workers=1, config="demi")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match=r"python -m vla_jax\.envs\.episodes"):
        StagedEpisodes(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="not a staging directory"):
        staged_metadata(tmp_path)
