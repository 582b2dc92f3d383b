"""Compiling for real, where the TPU compiler is installed; its reports, everywhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from tests.planning.toy import LAYERS
from vla_jax.planning.compile import DoesNotFit, Request, compile_program, parse_memory_report
from vla_jax.planning.program import bytes_per_device
from vla_jax.planning.schedule import simulate
from vla_jax.sharding.topology import parse_topology, require_libtpu

ROOT = Path(__file__).resolve().parents[2]
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
needs_compiler = pytest.mark.skipif(
    not HAS_COMPILER, reason="no TPU compiler here (make test-plan installs it)"
)

REPORT = """Memory Space: default (color=0)
Total bytes: 26624000 (25.39MiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
   12.00MiB(100%);   12.00MiB;            0;                2; 2xf32[3,256,4096]

  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
   12.00MiB(100%);   12.00MiB;            0;                2; 2xf32[3,1024,1024]
    1.00MiB(100%);    1.00MiB;            0;                1; bf16[4,128,1024]

Memory Space: vmem (color=1)
  ------------------------------------------------------------
   99.00MiB(100%);   99.00MiB;            0;                1; bf16[7]
"""


def test_memory_reports_are_read():
    total, buffers = parse_memory_report(REPORT)
    assert total == 26_624_000
    assert [b.bytes for b in buffers] == [12 * 2**20, 12 * 2**20, 2**20]
    assert buffers[2].arrays == "bf16[4,128,1024]"
    with pytest.raises(ValueError, match="not a memory-usage report"):
        parse_memory_report("hello")


def test_bytes_per_device_are_those_of_a_shard():
    mesh = AbstractMesh((4, 2), ("a", "b"))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))
    tree = {
        "x": jax.ShapeDtypeStruct((8, 3), "float32", sharding=split),
        "y": jax.ShapeDtypeStruct((5,), "bfloat16"),
    }
    assert bytes_per_device(tree) == 2 * 3 * 4 + 10


@pytest.mark.skipif(HAS_COMPILER, reason="the TPU compiler is here")
def test_without_a_compiler_the_remedy_is_said():
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[plan\]'"):
        require_libtpu()


def request(monkeypatch, settings: dict, **more) -> Request:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'planning'}")
    return Request(parse_topology("v5e:4x4"), "toy:toy_program", settings, **more)


SETTINGS = {"mesh": {"data": 4, "fsdp": 4}, "width": 1024, "inner": 4096, "rows": 64}


@needs_compiler
def test_a_quick_compilation_gives_schedule_and_memory(monkeypatch, tmp_path):
    made = compile_program(request(monkeypatch, SETTINGS, dump=str(tmp_path)))
    assert not isinstance(made, DoesNotFit)
    assert simulate(made.module, made.placement).flops == 7 * LAYERS * 2 * 512 * 1024 * 4096
    weights = LAYERS * 2 * 1024 * 4096 * 4
    assert made.argument_bytes == {"parameters": weights // 4, "batch": 64 * 128 * 1024 * 2 // 16}
    assert made.global_bytes["parameters"] == weights
    assert made.hbm_bytes > sum(made.argument_bytes.values())
    assert not made.has_estimates
    # It was ended before the compiler was through.
    assert not (tmp_path / "result.json").exists()
    assert list((tmp_path / "xla").glob("*jit_step*"))


@needs_compiler
def test_what_does_not_fit_is_said_in_numbers(monkeypatch):
    big = {**SETTINGS, "width": 32_768, "inner": 131_072}
    made = compile_program(request(monkeypatch, big))
    assert isinstance(made, DoesNotFit)
    assert made.budget_gib == parse_topology("v5e:4x4").chip.hbm_gib
    assert made.needed_gib > made.budget_gib
    assert made.argument_bytes["parameters"] == LAYERS * 2 * 32_768 * 131_072 * 4 // 4


@needs_compiler
def test_unknown_options_and_settings_are_refused(monkeypatch):
    options = {"xla_tpu_no_such_option": "true"}
    with pytest.raises(ValueError, match="xla_tpu_no_such_option"):
        compile_program(request(monkeypatch, SETTINGS, compiler_options=options))
    with pytest.raises(ValueError, match="needs 5 devices"):
        compile_program(request(monkeypatch, {**SETTINGS, "mesh": {"data": 5, "fsdp": 1}}))


@needs_compiler
def test_the_command_plans_training_and_serving(tmp_path):
    command = [sys.executable, "-m", "vla_jax.plan", "--config=configs/demo_cotrain.py",
               "--topology=v5e:2x2", "--mesh=2x2x1", "--config.model.preset=tiny",
               "--config.model.compute_dtype=bfloat16"]  # fmt: skip
    training = subprocess.run(
        [*command, f"--out={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert training.returncode == 0, training.stderr
    assert "predicted, not measured" in training.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert 0 < plan["hbm_gib"] < plan["hbm_budget_gib"]
    low, high = plan["predicted"]["mfu"]
    assert 0 < low < high < 1
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    serving = subprocess.run(
        [*command, "--serving", "--rows=8"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert serving.returncode == 0, serving.stderr
    assert "serving on v5e:2x2" in serving.stdout
    wrong = subprocess.run(
        [*command, "--mesh=3x1x1"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "needs 3 devices" in wrong.stderr
