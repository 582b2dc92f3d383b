"""Config files, overrides, config.json and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import pytest

from vla_jax import config as config_lib
from vla_jax.data.oxe.mixtures import MIXTURES, find_mixture
from vla_jax.data.oxe.records import RECORDS, find_record
from vla_jax.data.packing import Packing
from vla_jax.data.shares import starting_shares

ROOT = Path(__file__).parents[1]
CONFIG = """
import ml_collections

def get_config(arg="12"):
    c = ml_collections.ConfigDict()
    c.model = ml_collections.ConfigDict({"preset": "tiny", "image_size": 14 * int(arg)})
    c.data = ml_collections.ConfigDict(
        {"sources": {"robot": {"kind": "episodes", "path": "data/robot"}}}
    )
    c.train = ml_collections.ConfigDict({"steps": 100, "batch_size": 8})
    c.optimizer = ml_collections.ConfigDict({"learning_rate": 1e-3, "warmup_steps": 10})
    return c
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_every_config_that_ships_can_be_read(file):
    config = config_lib.parse(config_lib.load_config(file))
    assert config_lib.from_json(config_lib.to_json(config), where="") == config


@pytest.mark.parametrize("mixture", MIXTURES)
def test_open_x_mixtures_beside_the_web(mixture):
    config = config_lib.parse(
        config_lib.load_config(f"{ROOT / 'configs/oxe_cotrain.py'}:{mixture}")
    )
    shares = starting_shares(config.data)
    assert shares["captions"] == Fraction(1, 2)
    weights = find_mixture(mixture)
    for name, weight in weights.items():
        assert find_record(config.data.sources[name].record).name in RECORDS
        expected = weight / sum(weights.values()) / 2
        assert float(shares[name]) == pytest.approx(expected, abs=2e-4)


def test_defaults_and_overrides(config_file):
    raw = config_lib.load_config(
        config_file,
        [
            "optimizer.learning_rate=0.5",
            "mesh.fsdp=2",
            "model.compute_dtype=float32",
            "data.sources.robot.weight=3",
        ],
    )
    config = config_lib.parse(raw)
    assert config.optimizer.learning_rate == 0.5
    assert config.optimizer.b2 == 0.95
    assert config.mesh.fsdp == 2
    assert config.model.compute_dtype == "float32"
    assert config.model.image_size == 168
    assert config.data.sources["robot"].weight == 3.0
    assert config.data.sources["robot"].split == "train"
    # The raw config holds what the run really uses.
    assert raw.optimizer.b2 == 0.95
    with pytest.raises(AttributeError, match="fdsp"):
        raw.mesh.fdsp = 3


def test_later_overrides_win_and_the_file_takes_an_argument(config_file):
    config = config_lib.parse(
        config_lib.load_config(f"{config_file}:2", ["mesh.data=1", "mesh.data=4"])
    )
    assert config.model.image_size == 28
    assert config.mesh.data == 4


def test_json_round_trip(config_file):
    config = config_lib.parse(config_lib.load_config(config_file))
    text = config_lib.to_json(config)
    assert config_lib.from_json(text, where="config.json") == config
    with pytest.raises(ValueError, match=r"config\.json: not a config .* unknown: no such key"):
        config_lib.from_json('{"unknown": 1}', where="config.json")
    with pytest.raises(ValueError, match=r"run/config\.json: not a config"):
        config_lib.from_json("{", where="run/config.json")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.learning_rat=1"], "optimizer.learning_rat: .*did you mean 'learning_rate'"),
        (["optimiser.learning_rate=1"], "optimiser: no such key; did you mean 'optimizer'"),
        (["optimizer.warmup_steps=ten"], "optimizer.warmup_steps: expected int, got str 'ten'"),
        (["data.sources.robt.weight=1"], "data.sources.robt: no such key; did you mean 'robot'"),
        (["mesh"], "override 'mesh': expected key=value"),
    ],
)
def test_bad_overrides_are_refused(config_file, overrides, message):
    with pytest.raises(ValueError, match=message):
        config_lib.load_config(config_file, overrides)


def test_typo_in_the_file_is_refused(tmp_path):
    path = tmp_path / "typo.py"
    path.write_text(CONFIG.replace('"warmup_steps"', '"warmup_step"'))
    with pytest.raises(ValueError, match=r"optimizer\.warmup_step: .*did you mean 'warmup_steps'"):
        config_lib.parse(config_lib.load_config(path))


def test_a_value_the_section_refuses_names_the_section(config_file):
    raw = config_lib.load_config(config_file, ["model.preset=tiney"])
    with pytest.raises(ValueError, match=r"model: .*tiney.*did you mean 'tiny'"):
        config_lib.parse(raw)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.examples_per_row=0"], "data.examples_per_row must be at least 1, got 0"),
        (["data.examples_per_row=2"], "data.row_tokens 0 must hold at least one example of .* 64"),
        (["data.row_tokens=80"], "data.row_tokens is for data.examples_per_row above 1"),
        (["data.row_answer_tokens=80"], "data.row_answer_tokens is for data.examples_per_row"),
        (["data.row_answer_tokens=8"], "data.row_answer_tokens 8 must hold at least one answer"),
        (["data.robot_prompts=()"], "needs at least one template"),
        (["data.robot_prompts=('do {x}',)"], r"'do \{x\}' has the fields \('x',\): it needs"),
        (["data.state.low=(1,)"], "data.state has bounds but is of kind 'none'"),
        (["data.state.kind=tokens"], "a low and a high bound for each"),
        (
            ["data.state.kind=vector", "data.state.low=(0,)", "data.state.high=(1,)"],
            "model.state_size is 0, and data.state gives 1 numbers",
        ),
        (["model.state_size=3"], "model.state_size is 3, and data.state gives 0 numbers"),
        (["model.state_size=-1"], "model.state_size must be at least 0"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(config_file, overrides, message):
    with pytest.raises(ValueError, match=message):
        config_lib.parse(config_lib.load_config(config_file, overrides))


def test_packing_states_and_phrasings_come_from_the_config(config_file):
    overrides = [
        "data.examples_per_row=4",
        "data.row_tokens=100",
        "data.robot_prompts=('do {instruction}', 'please {instruction}')",
        "data.state.kind=vector",
        "data.state.low=(-1, 0)",
        "data.state.high=(1, 2)",
        "model.state_size=2",
    ]
    config = config_lib.parse(config_lib.load_config(config_file, overrides))
    assert config.data.packing == Packing(4, 100, 64) and config.data.row_lengths == (100, 64)
    assert config.data.robot_prompts == ("do {instruction}", "please {instruction}")
    assert config_lib.from_json(config_lib.to_json(config), where="there") == config
    fewer = [*overrides, "data.row_answer_tokens=30"]
    fewer = config_lib.parse(config_lib.load_config(config_file, fewer))
    assert fewer.data.packing == Packing(4, 100, 30) and fewer.data.row_lengths == (100, 30)
    plain = config_lib.parse(config_lib.load_config(config_file))
    assert plain.data.packing is None and plain.data.row_lengths == (64, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "no function get_config"),
        ("def get_config():\n    return {}", "returned dict, not ml_collections.ConfigDict"),
    ],
)
def test_not_a_config_file(tmp_path, text, message):
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        config_lib.load_config(path)


def test_missing_file_names_the_closest(config_file):
    with pytest.raises(FileNotFoundError, match=r"smal\.py; did you mean .*small\.py"):
        config_lib.load_config(config_file.with_name("smal.py"))


PROGRAM = """
from vla_jax.config import run_main

def main(config, *, workdir):
    print(workdir, config.optimizer.warmup_steps, config.model.unroll_layers)

if __name__ == "__main__":
    run_main(main, workdir="folder of the run")
"""


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
    root = Path(__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "program.py", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_line(config_file):
    done = _run(
        config_file.parent,
        "--config=small.py",
        "--workdir",
        "out",
        "--config.optimizer.warmup_steps=77",
        "--config.model.unroll_layers",
        "true",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out 77 True\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optimizer.warmup_stps=1"], "did you mean 'warmup_steps'?"),
        (["--config.model.unroll_layers"], "--config.model.unroll_layers needs a value"),
        (["extra"], "unexpected argument 'extra'"),
        (["--config=smal.py"], "no config file smal.py; did you mean small.py?"),
    ],
)
def test_command_line_mistakes_get_one_line(config_file, arguments, message):
    done = _run(config_file.parent, "--config=small.py", "--workdir=out", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=small.py"], "--workdir must have a value"),
        (["--config=small.py", "--wrkdir=out"], "Did you mean: workdir"),
    ],
)
def test_mistaken_flags_get_no_traceback(config_file, arguments, message):
    done = _run(config_file.parent, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
