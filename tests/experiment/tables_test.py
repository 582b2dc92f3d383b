"""Tables and page of an experiment whose results are known, against sums by hand."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest

from tests.evaluation.report_test import Page
from tests.experiment import fake_commands
from vla_jax.experiment import page as page_lib
from vla_jax.experiment import tables
from vla_jax.experiment.command import main
from vla_jax.experiment.description import Cell, ModelSize, Preparation
from vla_jax.experiment.page import write_experiment_page
from vla_jax.experiment.presets import PRESETS, SMOKE
from vla_jax.experiment.results import suite_measures
from vla_jax.page.share_plots import Point, share_map, trade_off_plot

FAKE = (sys.executable, str(Path(__file__).with_name("fake_commands.py")))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The smoke preset with one more point of the curve, run by commands that cost nothing."""
    root = tmp_path_factory.mktemp("experiment")
    cell = dataclasses.replace(
        SMOKE.cells[0],
        name="large_web_75",
        shares={"robot": 0.25, "web": 0.75},
        tables=("ratio",),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_TRACE", str(root / "trace"))
        patch.setitem(PRESETS, "smoke", dataclasses.replace(SMOKE, cells=(*SMOKE.cells, cell)))
        assert main(["--preset=smoke", f"--out={root / 'out'}"], launcher=FAKE) == 0
    return root / "out"


@pytest.fixture(scope="module")
def results(out) -> dict:
    return json.loads((out / "results.json").read_text())


@pytest.fixture(scope="module")
def page(out) -> Page:
    return Page((out / "experiment.html").read_text())


def markdown_rows(out: Path, title: str) -> list[list[str]]:
    text = (out / "tables.md").read_text()
    part = text[text.index(f"## {title}") :].split("\n\n")[1]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_table_6(out):
    rows = markdown_rows(out, "Unseen objects")
    assert rows[0][:3] == ["size", "training", "objects, easy"]
    # 16 of 20, Wilson 58.4 to 91.9; 14 of 20, 48.1 to 85.5; mean (16 + 5 x 14) / 120.
    assert rows[2][:4] == ["2.2M", "co-fine-tuning", "80% (58–92)", "70% (48–85)"]
    assert rows[2][8].startswith("72% (")
    assert rows[3][:3] == ["2.2M", "fine-tuning", "60% (39–78)"]  # 12 of 20
    assert rows[4][1] == "from scratch"
    assert rows[5] == [
        *("RT-2-PaLI-X-5B, paper", "from scratch"),
        *("0%", "10%", "46%", "0%", "0%", "0%", "9%"),
    ]
    assert len(rows) == 2 + 3 + 5


def test_table_5(out):
    rows = markdown_rows(out, "Emergent skills")
    assert rows[0][2:6] == [
        *("Symbols 1: a symbol", "Symbols 2: a picture", "Symbols 3: a symbol and a relation"),
        "symbols, average",
    ]
    ours = rows[2]
    # 12 of 20 in each cell, 11 of 20 in those about people; the mean of groups: 58.3%.
    assert ours[2] == "60% (39–78)" and ours[5].startswith("60% (")
    assert ours[-2].startswith("55% (") and ours[-1].startswith("58% (")
    assert rows[5][:3] == ["RT-2-PaLI-X-55B, paper", "", "60%"] and rows[5][-1] == "60%"
    assert rows[6][0] == "RT-1, paper" and set(rows[6][2:]) == {"21%"}


def test_means_of_a_suite():
    measures = suite_measures(fake_commands.suites("large_web_50"))
    assert measures["unseen"]["share"] == pytest.approx(86 / 120)
    # The mean of six shares is narrower than one: z sqrt(sum of variances) / 6, about.
    width = measures["unseen"]["high"] - measures["unseen"]["low"]
    assert width == pytest.approx(2 * 1.96 * (0.72 * 0.28 / 120) ** 0.5, rel=0.1)
    assert measures["emergent"]["share"] == pytest.approx((0.6 + 0.6 + 0.55) / 3)
    # Of the cells it would be 7 x 12 + 2 x 11 of 180, which is not what the paper's average is.
    assert measures["emergent"]["share"] != pytest.approx(106 / 180)
    assert measures["seen"]["share"] == 0.8 and measures["control"]["share"] == 0.2
    # Two columns of objects and nine emergent cells: 16 + 14 + 106 of 220.
    assert measures["web_only"]["share"] == pytest.approx(136 / 220)


def test_differences(results, out):
    found = {
        (entry["cell"], entry["baseline"], entry["measure"]): entry
        for entry in results["comparisons"]
    }
    headline = results["comparisons"][0]
    assert headline["measure"] == "web_only" and headline["baseline"] == "large_robot_only"
    # 136 of 220 against 74 of 220 (12 + 10 + 7 x 6 + 2 x 5): Newcombe's interval, by hand.
    one, other = 136 / 220, 74 / 220
    (low1, high1), (low2, high2) = (
        binomtest(k, 220).proportion_ci(method="wilson") for k in (136, 74)
    )
    assert headline["shares"] == pytest.approx([one, other])
    low = one - other - ((one - low1) ** 2 + (high2 - other) ** 2) ** 0.5
    high = one - other + ((high1 - one) ** 2 + (other - low2) ** 2) ** 0.5
    assert (headline["low"], headline["high"]) == pytest.approx((low, high))
    assert headline["excludes_zero"]
    assert headline["sentence"] == (
        "2.2M, web-only concepts: co-fine-tuning minus fine-tuning is +28 points (62% against 34%; "
        f"95% interval {100 * low:+.0f} to {100 * high:+.0f}), which excludes zero."
    )
    # Seen tasks: 16 against 15 of 20.
    seen = found["large_web_50", "large_robot_only", "seen"]
    assert not seen["excludes_zero"] and seen["sentence"].endswith("does not exclude zero.")
    assert ("large_robot_only", "large_scratch", "web_only") in found
    assert f"* {headline['sentence']}" in (out / "tables.md").read_text()


def test_every_cell_is_there_also_one_that_was_not_run(results, out):
    rows = markdown_rows(out, "Every cell")
    assert [row[1:4] for row in rows[2:]] == [
        ["co-fine-tuning", "50%", "12"],
        ["fine-tuning", "0%", "6"],
        ["from scratch", "0%", "6"],
        ["the VLM before", "0%", "6"],
        ["co-fine-tuning", "75%", "24"],
    ]
    changed = json.loads(json.dumps(results))
    changed["cells"][2] |= {"done": False, "measures": {}, "suites": []}
    row = tables.every_cell(changed).rows[2]
    assert row[1] == "from scratch, not run" and set(row[4:]) == {None}


def test_robot_samples_are_the_same(results):
    cells = [c for c in results["cells"] if c["name"] != "large_before"]
    assert {round(c["robot_samples"]) for c in cells} == {8 * 6}
    assert {c["name"]: c["samples"] for c in cells}["large_web_75"] == 8 * 24


def test_ratio_table(out):
    rows = markdown_rows(out, "Web share")
    assert [row[:2] for row in rows[2:]] == [
        ["the VLM before", ""],
        ["fine-tuning", "0%"],
        ["co-fine-tuning", "50%"],
        ["co-fine-tuning", "75%"],
    ]
    # Questions: 80 of 100 before, 32, 68 and 76 after.
    assert [row[-1] for row in rows[2:]] == ["100%", "40%", "85%", "95%"]


def test_page(page, results):
    assert set(page.sections) == {
        *("unseen", "emergent", "differences", "map", "cells", "ratio", "curves", "videos"),
        *("time", "again"),
    }
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert len(page.images) == 2 * 17  # a success and a failure of each of the suites' cells
    assert page.row("2.2M")[2] == "80% 58–92"
    assert results["comparisons"][0]["sentence"] in page.sections["differences"]
    assert page.sections["videos"].count("Symbols 1: a symbol") == 2
    assert page.sections["map"].count("Unseen objects, easy") == 1
    assert "missing" not in " ".join(page.sections.values())
    assert "1 x cpu (cpu)" in page.sections["time"]


def test_page_leaves_out_videos_that_do_not_fit(results, out, tmp_path, monkeypatch):
    size = (out / "cells/large_web_50/evaluation/media/seen_0.gif").stat().st_size
    monkeypatch.setattr(page_lib, "MAX_VIDEO_BYTES", 5 * size + 1)
    small = Page(write_experiment_page(results, out, tmp_path / "small.html").read_text())
    assert len(small.images) == 5
    assert "29 more in cells/large_web_50/evaluation/media." in small.sections["videos"]


def test_page_before_anything_is_done(results, out, tmp_path):
    cells = [c | {"done": False, "measures": {}, "suites": []} for c in results["cells"]]
    empty = {**results, "cells": cells, "comparisons": [], "stages": []}
    page = Page(write_experiment_page(empty, out, tmp_path / "empty.html").read_text())
    assert "No cell has measured this yet" in page.sections["unseen"]
    assert page.row("2.2M") == ["2.2M", "co-fine-tuning, not run", "50%", "12"]


def test_share_map_shades_and_names():
    svg = share_map(["a"], ["x", "y", "z"], [[0.0, 1.0, None]])
    fills = re.findall(r'<rect [^>]*fill="([^"]+)"', svg)
    assert fills == ["#f7f8fa", "#2f5d8a", "none"]
    assert [t for t in re.findall(r">([^<>]+)</text>", svg)] == ["x", "y", "z", "a", "0", "100"]


def test_trade_off_plot_places_points():
    point = Point("50%", (0.5, 0.25, 0.75), (1.0, 0.5, 1.0))
    svg = trade_off_plot([point], x_label="x", y_label="y", width=462, height=264)
    # The axes: 20% to 80% over 46 to 446 pixels across, 100% to 50% over 26 to 226 down.
    assert re.search(r'<circle cx="246.0" cy="26.0"', svg)
    assert re.search(r'd="M79.3 26.0H412.7M246.0 226.0V26.0"', svg)
    assert re.findall(r">(\d+%)</text>", svg)[:7] == [f"{k}%" for k in range(20, 90, 10)]


def test_description_refuses():
    with pytest.raises(ValueError, match="must sum to 1"):
        Cell("x", "large", "t", {"robot": 0.5, "web": 0.4})
    with pytest.raises(ValueError, match="either the file of its VLM or a recipe"):
        ModelSize("x", "demo", 1, 1)
    cell = dataclasses.replace(SMOKE.cells[0], shares={"robot": 0.7, "web": 0.3})
    with pytest.raises(ValueError, match=r"8.57143 rows, which must be a whole number"):
        dataclasses.replace(SMOKE, cells=(cell,), comparisons=())
    with pytest.raises(ValueError, match="named twice: large_web_50"):
        dataclasses.replace(SMOKE, cells=SMOKE.cells[:1] * 2, comparisons=())
    with pytest.raises(ValueError, match=r"comparison.large_robot_only: no such key"):
        dataclasses.replace(SMOKE, cells=SMOKE.cells[:1])
    cell = dataclasses.replace(SMOKE.cells[0], size="huge")
    with pytest.raises(ValueError, match=r"cell large_web_50.huge: no such key"):
        dataclasses.replace(SMOKE, cells=(cell,), comparisons=())


def test_description_refuses_what_is_no_evaluation_of_a_training():
    first = SMOKE.cells[0]
    again = dataclasses.replace(first, name="again", trained_by="large_web_50")

    def experiment(*cells: Cell):
        return dataclasses.replace(SMOKE, cells=(first, *cells), comparisons=())

    assert experiment(again).trainer(again) is first
    with pytest.raises(ValueError, match=r"cell again.large_web: no such key"):
        experiment(dataclasses.replace(again, trained_by="large_web"))
    with pytest.raises(ValueError, match="has other overrides: make the cell of it by"):
        experiment(dataclasses.replace(again, overrides=("train.seed=1",)))
    with pytest.raises(ValueError, match="has other trained_by"):
        experiment(again, dataclasses.replace(again, name="third", trained_by="again"))


def test_description_refuses_data_that_are_no_source():
    shares = {"robot": 0.5, "web": 0.5}
    with pytest.raises(ValueError, match="robot has a share, and is no source"):
        Cell("x", "large", "t", shares, sources={"web": "web"})
    with pytest.raises(ValueError, match="two data sets as one source"):
        Cell("x", "large", "t", shares, sources={"web": "web", "robot": "web"})
    cell = Cell("x", "large", "t", shares, sources={"web": "web", "robot": "robot", "moon": "m"})
    with pytest.raises(ValueError, match=r"cell x.moon: no such key"):
        dataclasses.replace(SMOKE, cells=(cell,), comparisons=(), main="x")
    made = Preparation("web", "t", (), makes="x", seconds=1)
    with pytest.raises(ValueError, match="data sets and preparations of one name"):
        dataclasses.replace(SMOKE, preparations=(made,))


def test_trade_off_labels_keep_off_the_line():
    spread = (0.0, 1.0)
    shares = ((0.2, 0.2), (0.5, 0.5), (0.8, 0.2))
    points = [Point(f"p{k}", (x, *spread), (y, *spread)) for k, (x, y) in enumerate(shares)]
    svg = trade_off_plot(points, x_label="x", y_label="y")
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>p\d<', svg)
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)
    (x0, y0), (x1, y1), (x2, y2) = (
        (float(a) - float(c), float(b) - 4 - float(d)) for (a, b), (c, d) in zip(found, dots)
    )
    assert x0 < 0 < y0  # the first: left and down, away from the second
    assert abs(x1) < 0.1 and y1 == pytest.approx(-16, abs=0.1)  # the peak: above
    assert x2 > 0 and y2 > 0
