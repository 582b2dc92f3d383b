"""Two tiny data sets for training tests, and runs that have not begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.examples import encoded, episodes
from vla_jax.actions.spec import end_effector_spec
from vla_jax.build import build_training
from vla_jax.checkpoints.manager import Checkpoints, Retention
from vla_jax.config import Config
from vla_jax.data.generate import ImageTextRow
from vla_jax.data.tfds_writer import write_episodes, write_image_text


def save_fresh(config: Config, workdir: Path) -> None:
    """Leaves what a run does that was stopped before its first update."""
    run = build_training(config)
    with Checkpoints(workdir, Retention()) as checkpoints:
        checkpoints.save(run.fresh_state(), run.meta(0))


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory):
    """(robot, web) directories."""
    folder = tmp_path_factory.mktemp("training")
    spec = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)
    write_episodes(episodes(), folder / "robot", spec, name="robot", description="", test_every=5)
    rows = [
        ImageTextRow(
            image=encoded(i),
            prompt=f"Q: what is number {i % 7}? A:",
            answer=("a dog", "a cat", "<012><200>")[i % 3],
            task="name",
            language="en",
        )
        for i in range(30)
    ]
    splits = {"train": rows[:25], "test": rows[25:]}
    write_image_text(splits, folder / "web", name="web", description="")
    return folder / "robot", folder / "web"
