"""The experiment's command line, with real processes that stand in for the long ones."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from vla_jax.experiment.command import main
from vla_jax.experiment.description import Pictures
from vla_jax.experiment.presets import PRESETS, SMOKE
from vla_jax.experiment.run import StageFailedError, Stages
from vla_jax.experiment.stages import stages_of

FAKE = (sys.executable, str(Path(__file__).with_name("fake_commands.py")))
# Two cells: what is run again or not shows with few processes.
CELLS = ("large_web_50", "large_robot_only")
TWO = f"--only={','.join(CELLS)}"
ALL_TWO = [f"{what} {cell}" for cell in CELLS for what in ("train", "evaluate")]


class Place:
    """An experiment's directory and the trace of what was called in it."""

    def __init__(self, root: Path):
        self.out, self.trace = root / "out", root / "trace.txt"

    def run(self, *arguments: str) -> int:
        return main(["--preset=smoke", f"--out={self.out}", *arguments], launcher=FAKE)

    def calls(self) -> list[str]:
        return self.trace.read_text().splitlines() if self.trace.exists() else []

    def stamp(self, name: str) -> dict:
        return json.loads((self.out / "stages" / f"{name}.json").read_text())


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    place = Place(tmp_path)
    monkeypatch.setenv("FAKE_TRACE", str(place.trace))
    return place


def test_runs_once_and_then_nothing(place, capsys):
    assert place.run(TWO) == 0
    assert place.calls() == ["episodes robot", "write robot", "write web", *ALL_TWO]
    assert not (place.out / "staged" / "robot").exists()
    printed = capsys.readouterr().out
    assert "=== 4 of 6: evaluating large_web_50" in printed and "to go]" in printed
    page = (place.out / "experiment.html").read_text()
    assert place.run(TWO) == 0
    assert len(place.calls()) == 7
    assert len((place.out / "experiment.html").read_text()) == len(page)
    results = json.loads((place.out / "results.json").read_text())
    assert [c["name"] for c in results["cells"] if c["done"]] == list(CELLS)
    assert len(results["cells"]) == 4  # the others are listed
    stage = next(s for s in results["stages"] if s["stage"] == "train/large_web_50")
    assert stage["state"] == "done" and stage["seconds"] > 0 and stage["attempts"] == 1
    assert stage["cpu"].endswith("cores")


def test_plan_runs_nothing(place, capsys):
    assert place.run("--plan") == 0
    printed = capsys.readouterr().out
    assert "train/large_scratch" in printed and "in all" in printed
    assert not place.calls() and not place.out.exists()


def test_other_settings_are_refused_or_made_again(place, monkeypatch, capsys):
    place.run(TWO)
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(SMOKE, updates=9))
    before = sorted((p, p.stat().st_mtime_ns) for p in place.out.rglob("*.json"))
    assert place.run(TWO) == 2
    assert "train/large_web_50" in (error := capsys.readouterr().err)
    assert "(train.steps: 8 -> 9)" in error and "--redo" in error
    assert sorted((p, p.stat().st_mtime_ns) for p in place.out.rglob("*.json")) == before
    assert place.run(TWO, "--redo") == 0
    # Training and evaluation are made again, the data is not.
    assert Counter(place.calls()) == Counter(
        ["episodes robot", "write robot", "write web", *ALL_TWO, *ALL_TWO]
    )
    config = json.loads((place.out / "cells" / CELLS[0] / "config.json").read_text())
    assert config["train"]["steps"] == 9


def test_other_data_is_refused_everywhere(place, monkeypatch, capsys):
    place.run(TWO)
    data = {**SMOKE.data, "web": Pictures(65, 40)}
    monkeypatch.setitem(PRESETS, "smoke", dataclasses.replace(SMOKE, data=data))
    assert place.run(TWO) == 2
    assert "data/web" in (error := capsys.readouterr().err) and "train: 64 -> 65" in error
    # With the data made again, the runs on it are made again, too.
    assert place.run(TWO, "--redo") == 0
    assert Counter(place.calls())["train large_web_50"] == 2
    assert Counter(place.calls())["episodes robot"] == 1


def test_what_changed_by_hand_is_refused(place, capsys):
    place.run(TWO)
    run = place.out / "cells" / "large_web_50"
    for file, named in (
        (place.out / "data" / "web" / "data", "data/web"),
        (run / "config.json", "train/large_web_50"),
        (run / "evaluation" / "run.json", "evaluate/large_web_50"),
    ):
        kept = file.read_text()
        file.write_text("{}")
        assert place.run(TWO) == 2
        assert f"{named} in {place.out} has changed since it was made" in capsys.readouterr().err
        file.write_text(kept)
    file.write_text("{}")
    assert place.run(TWO, "--redo") == 0
    assert Counter(place.calls())["evaluate large_web_50"] == 2
    assert Counter(place.calls())["train large_web_50"] == 1


def test_files_of_unknown_origin_are_refused(place, capsys):
    (place.out / "cells" / "large_web_50").mkdir(parents=True)
    (place.out / "cells" / "large_web_50" / "config.json").write_text("{}")
    assert place.run(TWO) == 2
    assert "nothing says what they were made with" in capsys.readouterr().err
    assert "train large_web_50" not in place.calls()


def test_a_moved_experiment_goes_on_cell_by_cell(place):
    assert place.run(f"--only={CELLS[0]}") == 0
    place.out.rename(place.out.with_name("moved"))
    place.out = place.out.with_name("moved")
    assert place.run(f"--only={CELLS[1]}") == 0
    assert place.calls() == ["episodes robot", "write robot", "write web", *ALL_TWO]
    results = json.loads((place.out / "results.json").read_text())
    assert [c["name"] for c in results["cells"] if c["done"]] == list(CELLS)


def test_goes_on_after_a_failure(place, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_FAIL", "evaluate large_web_50")
    assert place.run(TWO) == 1
    error = capsys.readouterr().err
    assert "evaluate/large_web_50 ended with exit code 3" in error and "to go on" in error
    monkeypatch.delenv("FAKE_FAIL")
    assert place.run(TWO) == 0
    assert Counter(place.calls())["train large_web_50"] == 1
    assert Counter(place.calls())["evaluate large_web_50"] == 2
    assert place.stamp("evaluate_large_web_50")["attempts"] == 2


def test_a_command_that_leaves_nothing_is_a_failure(tmp_path):
    stage = stages_of(SMOKE, tmp_path, CELLS[:1])[1]
    runner = Stages(tmp_path, [stage], launcher=(sys.executable, "-c", "pass"))
    with pytest.raises(StageFailedError, match="left no"):
        runner.run()
    assert not runner.done("data/web")


def test_killed_it_goes_on(place, monkeypatch):
    code = (
        "import sys; from vla_jax.experiment.command import main; "
        f"sys.exit(main({['--preset=smoke', f'--out={place.out}', TWO]!r}, launcher={FAKE!r}))"
    )
    monkeypatch.setenv("FAKE_HANG", "large_robot_only")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while "train large_robot_only" not in place.calls():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert place.stamp("train_large_robot_only")["state"] == "begun"
    # The training goes on alone; the next run waits for its end and never works beside it.
    monkeypatch.delenv("FAKE_HANG")
    said = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("waiting for a command of a run that was killed"):
            assert place.calls()[-1] == "train large_robot_only"
            (place.trace.parent / "release").touch()

    stages = stages_of(SMOKE, place.out, CELLS)
    Stages(place.out, stages, launcher=FAKE, say=say).run()
    assert sum(line.startswith("waiting") for line in said) == 1
    counts = Counter(place.calls())
    assert counts.pop("train large_robot_only") == 2  # started again, to find its end
    assert set(counts.values()) == {1}
    assert place.stamp("train_large_robot_only")["attempts"] == 2


def test_two_runs_never_share_a_directory(place, capsys):
    place.out.mkdir()
    with (place.out / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()}\n")
        file.flush()
        assert place.run(TWO) == 2
    assert f"process {os.getpid()} runs this experiment" in capsys.readouterr().err
    assert not place.calls()


def test_unknown_cell(place, capsys):
    assert place.run("--only=large_web_5") == 2
    assert "did you mean 'large_web_50'?" in capsys.readouterr().err


def test_a_real_command(tmp_path):
    data = {**SMOKE.data, "web": Pictures(8, 4)}
    experiment = dataclasses.replace(SMOKE, data=data, workers=1)
    stage = stages_of(experiment, tmp_path, CELLS[:1])[1]
    runner = Stages(tmp_path, [stage])
    runner.run()
    assert runner.done("data/web")
    info = json.loads((tmp_path / "data" / "web" / "dataset_info.json").read_text())
    assert {s["name"]: s["shardLengths"] for s in info["splits"]} == {"train": ["8"], "test": ["4"]}
