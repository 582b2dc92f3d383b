"""The presets beyond the ablation, run by commands that cost nothing: stages, tables, pages."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from scipy.stats import binomtest

from tests.evaluation.report_test import Page
from tests.experiment.tables_test import markdown_rows
from vla_jax.experiment.command import main
from vla_jax.experiment.presets import PRESETS

FAKE = (sys.executable, str(Path(__file__).with_name("fake_commands.py")))


class Done(NamedTuple):
    out: Path
    calls: list[str]
    results: dict
    page: Page


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> dict[str, Done]:
    found = {}
    for name in ("plans", "chunks", "recovery", "gemma"):
        root = tmp_path_factory.mktemp(name)
        out, trace = root / "out", root / "trace"
        # Few updates: the stand-in writes a line for each.
        short = dataclasses.replace(PRESETS[name], updates=4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FAKE_TRACE", str(trace))
            patch.setitem(PRESETS, name, short)
            assert main([f"--preset={name}", f"--out={out}"], launcher=FAKE) == 0
            calls = trace.read_text().splitlines()
            if name == "chunks":  # again: nothing is left to do
                assert main([f"--preset={name}", f"--out={out}"], launcher=FAKE) == 0
                assert trace.read_text().splitlines() == calls
        results = json.loads((out / "results.json").read_text())
        found[name] = Done(out, calls, results, Page((out / "experiment.html").read_text()))
    return found


def newcombe(one: tuple[int, int], other: tuple[int, int]) -> tuple[float, float]:
    """The interval of the difference of two shares, from scipy's Wilson intervals."""
    p, q = one[0] / one[1], other[0] / other[1]
    (l1, u1), (l2, u2) = (binomtest(*x).proportion_ci(method="wilson") for x in (one, other))
    low = p - q - ((p - l1) ** 2 + (u2 - q) ** 2) ** 0.5
    return low, p - q + ((u1 - p) ** 2 + (q - l2) ** 2) ** 0.5


def test_one_training_several_evaluations(done):
    assert done["chunks"].calls == [
        *("episodes robot", "write robot", "write web", "tokenizer_report tokens"),
        *("train fast_all", "evaluate fast_all", "train bins_1", "evaluate bins_1"),
        *("evaluate fast_1", "evaluate fast_ensemble"),
        *("train bins_1_smoothed", "evaluate bins_1_smoothed"),
    ]
    cells = {cell["name"]: cell for cell in done["chunks"].results["cells"]}
    assert cells["fast_1"]["done"] and cells["fast_1"]["trained_by"] == "fast_all"
    assert cells["fast_1"]["samples"] == 4 * 24
    assert not (done["chunks"].out / "cells" / "fast_1" / "config.json").exists()


def test_tokens_that_changed_are_refused(done, monkeypatch, capsys):
    out, calls = done["chunks"].out, done["chunks"].calls
    monkeypatch.setenv("FAKE_TRACE", str(out.parent / "trace"))
    monkeypatch.setitem(PRESETS, "chunks", dataclasses.replace(PRESETS["chunks"], updates=4))
    tokens = out / "prepared" / "tokens" / "fast.json"
    kept = tokens.read_text()
    tokens.write_text("{}")
    assert main(["--preset=chunks", f"--out={out}"], launcher=FAKE) == 2
    tokens.write_text(kept)
    assert f"prepare/tokens in {out} has changed since it was made" in capsys.readouterr().err
    assert (out.parent / "trace").read_text().splitlines() == calls


def test_success_and_rate(done):
    rows = markdown_rows(done["chunks"].out, "Success and rate")
    assert rows[0][-3:] == [
        *("actions/s, one robot", "actions/s, all robots of a call", "model calls per action")
    ]
    shown = {row[1]: row[2:] for row in rows[2:]}
    # 25 of 50, 22 of 40 and 47 of 90; 4 actions a look, 20 looks a second.
    assert shown["FAST, all 4 steps"] == [
        *("50% (37–63)", "55% (40–69)", "52% (42–62)", "80.0", "320", "0.25")
    ]
    assert shown["FAST, 1 step of 4"][-3:] == ["20.0", "80", "1.00"]
    assert len(shown) == 5
    headline = done["chunks"].results["comparisons"][0]
    assert (headline["cell"], headline["baseline"], headline["measure"]) == (
        *("fast_all", "bins_1", "rollouts"),
    )
    low, high = newcombe((47, 90), (54, 90))
    assert (headline["low"], headline["high"]) == pytest.approx((low, high))


def test_plans(done):
    rows = markdown_rows(done["plans"].out, "Instructions that take")
    on, off = rows[2], rows[3]
    assert on[1:] == [
        *("with plans", "60% (46–72)", "50% (35–65)", "56% (45–65)"),
        # The mean of four cells with 9 of 20 each.
        on[5],
        *("90% (79–96)", "90% (79–96)"),
    ]
    assert on[5].startswith("45% (")
    assert off[1] == "without plans" and off[-2:] == ["–", "–"]
    found = {e["measure"]: e for e in done["plans"].results["comparisons"]}
    assert list(found) == list(PRESETS["plans"].compared)
    assert found["rollouts_robot"]["shares"] == [30 / 50, 24 / 50]
    low, high = newcombe((30, 50), (24, 50))
    assert (found["rollouts_robot"]["low"], found["rollouts_robot"]["high"]) == pytest.approx(
        (low, high)
    )
    assert found["reasoning"]["share"] == pytest.approx(0.45 - 0.25)


def test_pushes(done):
    rows = markdown_rows(done["recovery"].out, "Success without and with")
    # 27 of 50, 19 of 40, 46 of 90 with a push.
    assert {row[1]: row[4] for row in rows[2:]} == {
        "with recoveries": "61% (51–71)",
        "with recoveries, pushed": "51% (41–61)",
        "usual episodes": "62% (52–72)",
        "usual episodes, pushed": "27% (19–37)",
    }
    headline = done["recovery"].results["comparisons"][0]
    assert headline["excludes_zero"]
    assert (headline["low"], headline["high"]) == pytest.approx(newcombe((46, 90), (24, 90)))
    assert done["recovery"].calls[:5] == [
        *("episodes robot", "write robot", "episodes recovery", "write recovery", "write web")
    ]


def test_gemma_has_the_tables_of_the_ablation(done):
    assert done["gemma"].calls[3:5] == [
        "fetch_backbone backbone",
        "least_used_tokens token_ids.json",
    ]
    rows = markdown_rows(done["gemma"].out, "Unseen objects")
    assert [row[:2] for row in rows[2:5]] == [
        ["Gemma 270M", training] for training in ("co-fine-tuning", "fine-tuning", "from scratch")
    ]
    headline = done["gemma"].results["comparisons"][0]
    assert headline["measure"] == "web_only"


def test_pages_show_what_is_compared_and_no_empty_section(done):
    rest = {"differences", "cells", "curves", "videos", "time", "again"}
    suites = {"emergent", "map"}
    assert {name: set(d.page.sections) - rest for name, d in done.items()} == {
        "plans": {"own-0", *suites},
        "chunks": {"own-0"},
        "recovery": {"own-0"},
        "gemma": {"unseen", *suites},
    }
    for name, finished in done.items():
        assert rest <= set(finished.page.sections)
        text = " ".join(finished.page.sections.values())
        assert "Run or go on" not in text  # what a section says that has nothing to show
        assert all(link.startswith(("#", "data:image/")) for link in finished.page.links)
        anchors = {link[1:] for link in finished.page.links if link.startswith("#")}
        assert anchors == set(finished.page.sections)
        assert PRESETS[name].lead in (finished.out / "experiment.html").read_text()
    # A success and a failure of each pool, or of each of the suites' cells.
    counts = {name: len(finished.page.images) for name, finished in done.items()}
    assert counts == {"plans": 2 * 9, "chunks": 4, "recovery": 4, "gemma": 2 * 17}
    # Only trainings have curves.
    curves = done["chunks"].page.sections["curves"]
    assert "FAST, all 4 steps" in curves and "FAST, 1 step" not in curves
    assert "Every setting of fast_all" in done["chunks"].page.sections["again"]
    assert "Every setting of fast_1" not in done["chunks"].page.sections["again"]
