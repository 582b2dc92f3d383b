"""The tokenizer report on a real RLDS data set, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.examples import encoded
from vla_jax.actions import stored
from vla_jax.actions.report import measure
from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.staged import EpisodeRow
from vla_jax.data.tfds_writer import write_episodes

ROOT = Path(__file__).parents[2]
SPEC = end_effector_spec("test", max_position_m=0.1, max_rotation_rad=0.5, control_hz=10)


def _episodes(count: int):
    rng = np.random.default_rng(0)
    for _ in range(count):
        wave = np.sin(rng.uniform(0, 6, 8) + np.linspace(0, 3, 12)[:, None])
        unit = (wave + 1) / 2
        unit[:, 0] = np.arange(12) == 11
        yield EpisodeRow(
            images={"image": [encoded(0, size=16)] * 12},
            state=np.zeros((12, 8), np.float32),
            action=(SPEC.low + unit * (SPEC.high - SPEC.low)).astype(np.float32),
            instruction="pick the dog",
            success=True,
            metadata={"seed": 0, "family": "pick", "success": True},
        )


def test_measure_counts_by_hand():
    tokenizer = UniformTokenizer(SPEC, np.arange(256))
    actions = np.zeros((4, 1, 8), np.float32)
    actions[:2, 0, 1] = 0.05
    actions[3, 0, 2] = 0.2  # outside
    result = measure(tokenizer, actions)
    rows = {d["name"]: d for d in result["dimensions"]}
    assert result["tokens"] == {"mean": 8.0, "least": 8, "most": 8}
    # Of 32 tokens: 4 + 4 zeros (flag, gripper), 2 of +0.05, 1 of the top bin, 21 of the middle.
    share = np.array([8, 2, 1, 21]) / 32
    assert result["ids_used"] == 4 and result["ids_total"] == 256
    assert result["bits_per_chunk"] == pytest.approx(-8 * (share * np.log2(share)).sum())
    assert rows["position_y"]["clipped"] == 0.25 and rows["position_x"]["clipped"] == 0
    assert rows["position_x"]["max_error"] == pytest.approx(0.1 / 256, rel=1e-3)
    with pytest.raises(ValueError, match="at least one chunk"):
        measure(tokenizer, [])


def test_report_of_a_data_set(tmp_path):
    write_episodes(_episodes(20), tmp_path / "robot", SPEC, name="robot", description="")
    command = [sys.executable, ROOT / "tools/tokenizer_report.py", "--data", tmp_path / "robot"]
    command += ["--chunk", "4", "--vocabulary", "300", "--out", tmp_path / "out"]
    ran = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    results = json.loads((tmp_path / "out/report.json").read_text())
    assert list(results) == ["uniform", "quantile", "digits", "fast"]
    assert results["uniform"]["tokens"]["mean"] == 32
    assert results["fast"]["tokens"]["mean"] < 32 < results["digits"]["tokens"]["mean"]
    for dim in results["uniform"]["dimensions"][1:]:
        half_bin = {"m": 0.1, "rad": 0.5, "closedness": 0.5}[dim["unit"]] / 256
        assert 0.5 * half_bin < dim["max_error"] <= half_bin * 1.001
    assert "position_x (m)" in ran.stdout
    for name in ("quantile", "fast"):
        tokenizer = stored.load(tmp_path / f"out/{name}.json")
        assert (tokenizer.kind, tokenizer.chunk, tokenizer.spec) == (name, 4, SPEC)
    assert (tmp_path / "out/report.png").read_bytes().startswith(b"\x89PNG")
