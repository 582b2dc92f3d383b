from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla_jax.evaluation.base import write_result
from vla_jax.evaluation.media import Frame, save_rollout
from vla_jax.evaluation.report.__main__ import main
from vla_jax.evaluation.report.inputs import read_inputs
from vla_jax.evaluation.report.page import write_report
from vla_jax.evaluation.rollout import Outcome, summarize
from vla_jax.evaluation.statistics import share_of
from vla_jax.page.plots import Bar, Line, bar_plot, heat_map, line_plot

VOID = {"meta", "img"}


class Page(html.parser.HTMLParser):
    """What is on a page: tables as rows of cell texts, sections, images; checks that tags nest."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: list[str] = []
        self.sections: dict[str, str] = {}
        self.links: list[str] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = values["id"]
            self.sections[self._section] = ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.images.append(values["src"])
        self.links += [values[k] for k in ("href", "src") if k in values]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data
        if self._section and "section" in self._open:
            self.sections[self._section] += data

    def row(self, first: str) -> list[str]:
        return next([" ".join(c.split()) for c in r] for r in self.rows if r and r[0] == first)


def write_run(workdir: Path, sources=("robot", "web")) -> None:
    """A training run's files; at update s the loss of source k is 10 k + 1 / s."""
    workdir.mkdir(parents=True)
    config = {
        "model": {"preset": "tiny", "image_size": 112, "compute_dtype": "float32"},
        "data": {"seed": 3},
        "train": {"batch_size": 48, "log_every": 10, "seed": 4, "init_from": "<web>.npz"},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    speed = {
        "device": "cpu",
        "devices": 1,
        "train_flops_per_sample": 2e9,
        "matmul_flops_per_s": 4e11,
    }
    (workdir / "speed.json").write_text(json.dumps(speed))
    shares = np.full(len(sources), 1 / len(sources))
    with (workdir / "metrics.jsonl").open("w") as file:
        for step in (1, 10, 20, 30):
            record = {"step": step}
            if step > 1:
                record |= {
                    "speed/steps_per_s": 2.0,
                    "speed/samples_per_s": 96.0,
                    "speed/input_wait_share": 0.025,
                }
            for k, name in enumerate(sources):
                record |= {
                    f"{name}/loss": 10 * k + 1 / step,
                    f"{name}/token_accuracy": 0.5,
                    f"{name}/share_of_samples": shares[k] + (0.0012 if k else -0.0012),
                    f"{name}/share_of_tokens": 0.731 if k == 0 else 0.269,
                    f"{name}/share_configured": shares[k],
                }
            file.write(json.dumps(record) + "\n")
        file.write('{"step": 40, "loss"')  # cut off by a crash


def write_results(evaluation: Path) -> None:
    media = evaluation / "media"
    media.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(media / "a.png")
    frame = np.zeros((16, 16, 3), np.uint8)
    runs = []
    for pool, wins in (("robot", 31), ("web_only", 17)):
        for agent, count in (("policy", wins), ("random", 1), ("expert", 50)):
            outcomes = [
                Outcome(i, i, ("pick", "push")[i % 2], "x", i < count, 7, "goal held", 1)
                for i in range(50)
            ]
            run = {"pool": pool, "agent": agent, **summarize(outcomes), "videos": []}
            if agent == "policy":
                for i in range(2):
                    path = media / f"{pool}_{i}.gif"
                    frames = [Frame(frame, "0 1 2"), Frame(frame, "")]
                    save_rollout(path, frames, instruction="x", outcome="y", success=True)
                    run["videos"].append(
                        {
                            "path": f"media/{path.name}",
                            "family": "pick",
                            "success": i == 0,
                            "instruction": "pick the <dog> & cat",
                            "steps": 1,
                            "seed": i,
                        }
                    )
            runs.append(run)
    rollouts = {"n": 50, "world": "demo", "seed": 900, "max_steps": 18, "control_hz": 3.0}
    write_result(evaluation / "rollouts.json", {**rollouts, "runs": runs})
    dimension = {
        "name": "position_x",
        "unit": "m",
        "token_accuracy": share_of(123, 500),
        "mean_error": 0.01234,
        "median_error": 0.005,
        "p90_error": 0.03,
        "constant_error": 0.0456,
        "half_bin": 0.1 / 256,
    }
    flag = {k: share_of(9, 10) for k in ("accuracy", "found", "false_alarms")}
    example = {
        "image": "media/a.png",
        "instruction": "pick the dog",
        "said": "0 100 9",
        "truth": "0 109 9",
    }
    actions = {
        "n": 500,
        "token_accuracy": share_of(2000, 4000),
        "all_tokens": share_of(5, 500),
        "dimensions": [dimension],
        "flags": {"terminate": flag},
        "examples": [example],
    }
    write_result(evaluation / "actions_robot.json", actions)
    point = {"task": "point", "kind": "point", **share_of(80, 100), "malformed": 2}
    vqa = {
        "n": 300,
        "image_size": 112,
        "tolerance": 0.06,
        "questions": share_of(77, 100),
        "naming": share_of(60, 100),
        "names": share_of(130, 200),
        "points": share_of(80, 100),
        "boxes": share_of(0, 0),
        "right": share_of(217, 300),
        "tasks": [
            {"task": "count", "kind": "question", **share_of(77, 100)},
            {"task": "caption", "kind": "naming", **share_of(60, 100), "names": share_of(130, 200)},
            {**point, "median_px": 3.21, "mean_px": 4.0},
        ],
        "languages": [],
        "confusions": {"caption": [{"truth": "dog", "said": "<cat>", "count": 7}]},
        "matrix": {"count": {"labels": ["1", "2"], "counts": [[40, 9, 1], [13, 37, 0]]}},
        "examples": [
            {
                "image": "media/a.png",
                "task": "count",
                "question": "how many?",
                "truth": "1",
                "said": "2",
                "right": False,
            }
        ],
    }
    write_result(evaluation / "vqa_web.json", vqa)
    kind = {"inside": share_of(70, 120), "within": share_of(60, 120)}
    result = {"n": 120, **kind, "median_px": 6.54, "malformed": 0}
    pools = {"robot": {"blocks": result, "mats": {**result, "n": 0}, "examples": ["media/a.png"]}}
    write_result(evaluation / "pointing.json", {"pools": pools})
    run = {
        "date": "2026-01-02 03:04 UTC",
        "git": "abc123def456",
        "device": "1 x cpu (cpu)",
        "cpu": "a processor",
        "python": "3.11",
        "packages": {"jax": "0.10"},
        "step": 700,
        "settings": {"seed": 900},
        "wall_s": 75.0,
    }
    write_result(evaluation / "run.json", run)


@pytest.fixture
def workdir(tmp_path) -> Path:
    write_run(tmp_path / "web", sources=("web",))
    write_run(tmp_path / "run")
    write_results(tmp_path / "run" / "evaluation")
    return tmp_path / "run"


@pytest.fixture
def page(workdir) -> Page:
    inputs = read_inputs(workdir, before=[("Web stage", workdir.parent / "web")])
    return Page(write_report(inputs, workdir / "report.html").read_text())


def test_page_needs_nothing_from_elsewhere(page):
    assert page.links
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert sum(image.startswith("data:image/gif;base64,") for image in page.images) == 4
    assert set(page.sections) == {
        *("rollouts", "videos", "sees", "actions", "questions", "pointing"),
        *("curves", "mixture", "speed", "again"),
    }
    parts = {name: text for name, text in page.sections.items() if name != "again"}
    assert "vla_jax.evaluate" not in " ".join(parts.values())  # nothing is said to be missing


def test_success_table(page):
    assert page.row("task family")[1:4] == [
        "seen concepts, policy",
        "seen concepts, random",
        "seen concepts, expert",
    ]
    # 31 of 50: Wilson 48.2 to 74.1; 17 of 50: 22.4 to 47.8.
    assert page.row("all")[1:5] == ["62% 48–74", "2% 0–10", "100% 93–100", "34% 22–48"]
    assert page.row("episodes")[1] == "31/50"
    assert page.row("pick")[1] == "64% 45–80"  # 16 of 25
    assert "seeds 900–949" in page.sections["rollouts"]


def test_other_tables(page):
    assert page.row("position x") == [
        *("position x", "mm", "25% 21–29", "12.3", "5", "30", "45.6", "0.391")
    ]
    assert page.row("all questions")[2:4] == ["77% 68–84", "100"]
    assert page.row("point")[-1] == "median 3.21 px"
    assert page.row("pictures of “web”: point") == [
        *("pictures of “web”: point", "100", "–", "80% 71–87", "3.21", "2")
    ]
    assert page.row("camera views, seen concepts: blocks")[2:5] == [
        "58% 49–67",
        "50% 41–59",
        "6.54",
    ]
    assert page.row("caption")[:4] == ["caption", "exact match", "60% 50–69", "100"]
    assert page.row("Co-fine-tuning: robot")[1:] == ["50.00%", "49.88%", "73.10%"]
    assert page.row("Web stage: web")[1] == "100.00%"
    # 96 samples/s of 2 GFLOP each, against 400 GFLOP/s.
    assert page.row("Co-fine-tuning") == [
        *("Co-fine-tuning", "2", "96", "2%", "2", "192", "400", "48%")
    ]


def test_text_from_data_is_escaped(page, workdir):
    text = (workdir / "report.html").read_text()
    assert "pick the &lt;dog&gt; &amp; cat" in text
    assert "<dog>" not in text
    assert "&lt;cat&gt;" in text
    assert "<web>" not in text  # a path in the config


def test_header_says_where_it_comes_from(workdir):
    text = write_report(read_inputs(workdir), workdir / "r.html").read_text()
    header = text[: text.index("</header>")]
    for what in ("62%", "34%", "77%", "58%", "abc123def456", "1 x cpu (cpu)", "update 700"):
        assert what in header, what
    assert "parameters 4, data order 3, evaluation 900" in header
    assert "1 min 15 s" in header


def test_missing_parts_say_so(tmp_path):
    (tmp_path / "run").mkdir()
    page = Page(write_report(read_inputs(tmp_path / "run"), tmp_path / "r.html").read_text())
    for section in ("rollouts", "videos", "sees", "actions", "questions", "pointing"):
        assert f"python -m vla_jax.evaluate --workdir={tmp_path / 'run'}" in page.sections[section]
    for section in ("curves", "mixture", "speed"):
        assert "metrics.jsonl" in page.sections[section]


def test_a_picture_that_is_gone_is_named(workdir):
    (workdir / "evaluation" / "media" / "robot_0.gif").unlink()
    page = Page(write_report(read_inputs(workdir), workdir / "r.html").read_text())
    assert "no picture media/robot_0.gif" in page.sections["videos"]


def test_command_line(workdir, capsys):
    out = workdir.parent / "page.html"
    web = workdir.parent / "web"
    assert main([f"--web={web}", f"--cotrain={workdir}", f"--out={out}", "--title=A & B"]) == 0
    assert str(out) in capsys.readouterr().out
    assert "<title>A &amp; B</title>" in out.read_text()


def test_command_line_names_what_is_wrong(workdir, capsys):
    assert main([f"--workdir={workdir / 'nowhere'}"]) == 2
    assert "nowhere" in capsys.readouterr().err
    (workdir / "evaluation" / "pointing.json").write_text("{")
    assert main([f"--workdir={workdir}"]) == 2
    assert "pointing.json is not JSON" in capsys.readouterr().err


def test_line_plot_places_points():
    svg = line_plot([Line("a", [0, 50, 100], [0, 1, 2])], x_label="x", y_label="y")
    points = re.search(r'points="([^"]*)"', svg)
    assert points is not None
    places = [tuple(map(float, p.split(","))) for p in points[1].split()]
    # Left bottom, the middle, right top of the plot area.
    assert places == [(46, 192), (257, 109), (468, 26)]
    assert line_plot([Line("a", [], [])], x_label="x", y_label="y") == ""


def test_bar_plot_draws_intervals():
    svg = bar_plot([("g", [Bar("a", 0.5, 0.25, 1.0), Bar("b", None)])], y_label="y")
    bars = re.findall(r'<rect x="[\d.]+" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', svg)
    assert bars == [("133.0", "103.0")]  # half of 206, down to 236
    assert 'y1="30.0"' in svg  # the interval's upper end is 100%
    assert 'y2="184.5"' in svg  # its lower end 25%


def test_heat_map_shades_by_row():
    svg = heat_map(["a", "b"], ["a", "b"], [[10, 0], [1, 1]])
    fills = re.findall(r'fill="(#\w+)"/>', svg)
    assert fills[0] == "#2f5d8a"  # the whole row
    assert fills[1] == "#f7f8fa"  # nothing
    assert fills[2] == fills[3]
