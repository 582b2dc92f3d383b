"""The least used tokens of a real mixture, counted as a user counts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.data.examples import episodes, rows
from vla_jax.actions.spec import end_effector_spec
from vla_jax.data.mixture import Mixture
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.text.least_used import count_tokens, least_used, load_ids
from vla_jax.text.prompts import robot_prompt
from vla_jax.text.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "model": {{"preset": "tiny", "image_size": 28}},
        "data": {{"sources": {{
            "robot": {{"kind": "episodes", "path": "{robot}", "weight": 2.0}},
            "web": {{"kind": "image_text", "path": "{web}", "weight": 1.0}},
        }}}},
        "optimizer": {{"learning_rate": 1e-3, "warmup_steps": 1}},
        "train": {{"steps": 1, "batch_size": 8}},
    }})
"""


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools/least_used_tokens.py", *words]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=ROOT)


def test_counts_are_those_of_the_mixture(tmp_path):
    spec = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)
    robot, web, config = tmp_path / "robot", tmp_path / "web", tmp_path / "config.py"
    write_episodes(episodes(), robot, spec, name="robot", description="", test_every=5)
    web_rows = rows("train", 20)
    write_image_text({"train": web_rows}, web, name="web", description="")
    config.write_text(CONFIG.format(robot=robot, web=web))
    ran = _run(f"--config={config}", "--samples=90", f"--out={tmp_path / 'ids.json'}")
    assert ran.returncode == 0, ran.stderr

    texts = []
    source, record = Mixture({"robot": 2, "web": 1}, {"robot": 13, "web": 20}, 0).locate(
        np.arange(90)
    )
    for k, i in zip(source.tolist(), record.tolist()):
        episode = int(np.searchsorted([3, 8, 9], i, side="right"))
        name = ("dog", "cat", "Bär")[episode % 3]
        robot_texts = [robot_prompt(f"pick the {name}")]
        texts += [web_rows[i]["prompt"], web_rows[i]["answer"]] if k else robot_texts
    vocabulary = Vocabulary()
    counts = count_tokens(vocabulary, texts)
    assert f"{counts.sum()} tokens counted" in ran.stdout
    want = least_used(vocabulary, counts, 256)
    np.testing.assert_array_equal(load_ids(tmp_path / "ids.json", vocabulary), want)

    refused = _run(f"--config={config}", f"--out={tmp_path / 'x'}", "--config.data.sede=1")
    assert refused.returncode == 2 and "did you mean" in refused.stderr
    assert _run(f"--config={config}", "--out=x", "--seed=1").returncode == 2
