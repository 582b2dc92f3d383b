"""Two tiny runs and their bundles."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.examples import LENGTHS, encoded, episode, episodes, rows
from tests.training.conftest import save_fresh
from vla_jax.actions.spec import end_effector_spec
from vla_jax.config import Config
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.export import Options, export
from vla_jax.schema import from_dict
from vla_jax.train import train

SPEC = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)


def _config(at, robot: dict, data: dict, model: dict) -> Config:
    write_image_text({"train": rows("train", 12)}, at / "web", name="web", description="")
    plain = {
        "model": {"preset": "tiny", "image_size": 28, "compute_dtype": "float32", **model},
        "data": {
            "sources": {
                "robot": {"kind": "episodes", "path": str(at / "robot"), "weight": 2, **robot},
                "web": {"kind": "image_text", "path": str(at / "web")},
            },
            "max_tokens": 40,
            "max_answer_tokens": 10,
            **data,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1, "decay": "constant"},
        "train": {"steps": 3, "batch_size": 8, "log_every": 1, "checkpoint_every": 3},
    }
    return from_dict(Config, plain)


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory):
    """Of one camera, RT-2's tokens and pictures with text."""
    at = tmp_path_factory.mktemp("plain")
    write_episodes(episodes(), at / "robot", SPEC, name="robot", description="", test_every=5)
    train(_config(at, {}, {}, {}), str(at / "run"))
    return at / "run"


@pytest.fixture(scope="session")
def plain_bundle(plain_run, tmp_path_factory):
    at = tmp_path_factory.mktemp("bundles") / "plain"
    export(plain_run, at, Options(stablehlo=True, saved_model=True))
    return at


@pytest.fixture(scope="session")
def rich_run(tmp_path_factory):
    """Of two cameras, two frames, plans, a state in a vector and chunks of two; untrained."""
    at = tmp_path_factory.mktemp("rich")

    def richer(number: int, steps: int):
        one = episode(number, steps)
        wrist = [encoded(900 + 10 * number + t) for t in range(steps)]
        return {**one, "images": {**one["images"], "wrist": wrist}, "plan": "pick the dog"}

    found = (richer(i, n) for i, n in enumerate(LENGTHS))
    write_episodes(found, at / "robot", SPEC, name="robot", description="", test_every=5)
    cameras = ("steps/observation/image", "steps/observation/wrist")
    robot = {"cameras": cameras, "state": ("steps/observation/state",), "plan": "plan"}
    state = {"kind": "vector", "low": [-2.0] * 8, "high": [2.0] * 8}
    data = {"state": state, "actions": {"chunk": 2}, "frames": 2}
    data |= {"max_tokens": 60, "max_answer_tokens": 30}
    save_fresh(_config(at, robot, data, {"num_views": 4, "state_size": 8}), at / "run")
    return at / "run"


@pytest.fixture(scope="session")
def rich_bundle(rich_run, tmp_path_factory):
    at = tmp_path_factory.mktemp("bundles") / "rich"
    export(rich_run, at, Options(stablehlo=True, dtype="int8"))
    return at


def noise(seed: int, *shape: int) -> np.ndarray:
    """uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
