"""`experiment.html`: everything about an experiment on one page."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from vla_jax.evaluation.base import Result
from vla_jax.evaluation.report.inputs import Stage, read_stage
from vla_jax.experiment import tables
from vla_jax.experiment.results import MEASURES, NAMES
from vla_jax.page.document import write_page
from vla_jax.page.markup import Figures, Markup, cards, missing, paragraph, percent, section
from vla_jax.page.plots import Line, line_plot
from vla_jax.page.share_plots import Point, share_map, trade_off_plot

MAX_VIDEO_BYTES = 12_000_000
"""Of all videos together; those that do not fit are named."""
_STYLE = Path(__file__).parent / "page.css"
_AGAIN = "python tools/rt2_experiment.py --preset=NAME --out=DIR"
_NAVIGATION = {
    "unseen": "Unseen",
    "emergent": "Emergent",
    "differences": "Differences",
    "map": "Success by cell",
    "cells": "Every cell",
    "ratio": "Web share",
    "curves": "Learning",
    "videos": "Videos",
    "time": "Time",
    "again": "Reproduce",
}


def write_experiment_page(results: Result, root: Path, out: Path) -> Path:
    """Writes the page, whole or not at all, and returns its path.

    Args:
      results: of `results.collect`.
      root: the experiment's directory.
    """
    figures = Figures(root)
    runs = {
        cell["name"]: read_stage(cell["name"], root / cell["directory"])
        for cell in results["cells"]
        if cell["done"] and cell["trained_by"] == cell["name"]
    }
    own = {f"own-{number}": table for number, table in enumerate(tables.own_tables(results))}
    sections: dict[str, Callable[[], Markup]] = {
        **{key: partial(_table, key, table, figures) for key, table in own.items()},
        "unseen": lambda: _table("unseen", tables.unseen_table(results), figures),
        "emergent": lambda: _table("emergent", tables.emergent_table(results), figures),
        "differences": lambda: _differences(results, figures),
        "map": lambda: _map(results, figures),
        "cells": lambda: _table("cells", tables.every_cell(results), figures),
        "ratio": lambda: _ratio(results, figures),
        "curves": lambda: _curves(results, runs, figures),
        "videos": lambda: _videos(results, root, figures),
        "time": lambda: _table("time", tables.wall_times(results), figures),
        "again": lambda: _reproduce(results, runs),
    }
    links = {key: table.title for key, table in own.items()} | _NAVIGATION
    shown = [key for key in sections if key not in _not_asked(results)]
    body = [_header(results), *(sections[key]() for key in shown)]
    navigation = [(key, links[key]) for key in shown]
    style = f"<style>{_STYLE.read_text()}</style>"
    return write_page(out, results["title"], navigation, body, head=style)


def _not_asked(results: Result) -> set[str]:
    """Sections that the experiment has nothing for, now or later."""
    entered = {table for cell in results["cells"] for table in cell["tables"]}
    needs = {
        "unseen": {"ablation"},
        "emergent": {"ablation", "emergent"},
        "map": {"ablation", "emergent"},
        "ratio": {"ratio"},
    }
    return {key for key, of in needs.items() if not entered & of}


def _header(results: Result) -> Markup:
    cells, done = results["cells"], [c for c in results["cells"] if c["done"]]
    headline = results["comparisons"][0] if results["comparisons"] else None
    tiles = []
    if headline:
        one, other = headline["trainings"]
        low, high = (f"{100 * headline[key]:+.0f}" for key in ("low", "high"))
        tiles.append(
            (
                f"{100 * headline['share']:+.0f} points",
                f"{NAMES[headline['measure']]}: {one} minus {other}, {headline['size']}",
                f"95% interval {low} to {high}",
            )
        )
    main = next(c for c in cells if c["name"] == results["main"])
    rollouts = ("rollouts_robot", "rollouts_web_only")
    for name in ("seen", "unseen", "emergent", "web_only", *rollouts, "vqa"):
        if found := main["measures"].get(name):
            interval = f"95% {100 * found['low']:.0f}–{100 * found['high']:.0f}"
            what = f"{MEASURES[name]}, {main['training']}, {main['size']}"
            tiles.append((percent(found["share"]), what, interval))
    boxes = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span>'
        f"<small>{escape(interval)}</small></div>"
        for figure, what, interval in tiles
    )
    seeds = done[0]["seeds"] if done else {}
    facts = [
        ("Preset", f"{results['experiment']}, {len(done)} of {len(cells)} cells done"),
        ("World", f"table-top, “{results['world']}”"),
        (
            "Training",
            f"{results['updates']:,} updates with {results['robot_rows']} robot rows each, in "
            "every cell; web rows come on top",
        ),
        ("Device", ", ".join(sorted({c["device"] for c in done})) or "?"),
        ("Code", results["git"]),
        ("Seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items()) or "?"),
        ("Written", results["date"]),
    ]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return Markup(
        f"<header><h1>{escape(results['title'])}</h1>"
        f'<p class="lead">{escape(results["lead"])}</p>'
        f'<div class="tiles">{boxes}</div><dl class="facts">{rows}</dl></header>'
    )


def _table(anchor: str, table: tables.Table, figures: Figures) -> Markup:
    if not table.rows:
        return section(
            anchor, table.title, missing("No cell has measured this yet. Run or go on:", _AGAIN)
        )
    return section(anchor, table.title, figures.figure(tables.to_html(table), table.note))


def _differences(results: Result, figures: Figures) -> Markup:
    table = tables.differences(results)
    if not table.rows:
        return _table("differences", table, figures)
    items = "".join(
        f'<li class="{"yes" if entry["excludes_zero"] else "no"}">{escape(entry["sentence"])}</li>'
        for entry in results["comparisons"]
        if entry["measure"] == results["comparisons"][0]["measure"]
    )
    return section(
        "differences",
        table.title,
        Markup(f'<ul class="findings">{items}</ul>'),
        figures.figure(tables.to_html(table), table.note),
    )


def _map(results: Result, figures: Figures) -> Markup:
    title = "Success by cell"
    shown = [cell for cell in results["cells"] if cell["suites"]]
    columns = list(dict.fromkeys((c["cell"], c["title"]) for cell in shown for c in cell["suites"]))
    if not columns:
        return section("map", title, missing("The suites were not run yet. Run or go on:", _AGAIN))
    shares = []
    for cell in shown:
        found = {c["cell"]: c["share"] for c in cell["suites"]}
        shares.append([found.get(key) for key, _ in columns])
    names = [_label(cell) for cell in shown]
    plot = share_map(names, [_short(name) for _, name in columns], shares)
    caption = "Percent of successful rollouts: trainings down, the evaluation's cells across."
    return section("map", title, figures.figure(plot, caption))


def _ratio(results: Result, figures: Figures) -> Markup:
    table = tables.ratio_table(results)
    before, cells = tables.ratio_cells(results)
    if not table.rows:
        return _table("ratio", table, figures)
    shares = [100 * cell["web_share"] for cell in cells]
    lines = []
    for name in ("web_only", "rollouts_web_only", "seen", "rollouts_robot", "vqa"):
        values = [cell["measures"].get(name) for cell in cells]
        if all(values):
            lines.append(Line(MEASURES[name], shares, [v["share"] for v in values if v]))
            if len(lines) == 1:  # of all, they would hide the lines
                lines += [Line("", shares, [v[k] for v in values if v]) for k in ("low", "high")]
    start = before and before["measures"].get("vqa")
    plots = line_plot(
        lines,
        x_label="web data, % of samples",
        y_label="",
        y_range=(0.0, 1.0),
        bounds=[start["share"]] if start else [],
        height=300,
    )
    success = "web_only" if any("web_only" in c["measures"] for c in cells) else "rollouts_web_only"
    points = [
        Point(f"{cell['web_share']:.0%}", _triple(x), _triple(y))
        for cell in cells
        if (x := cell["measures"].get("vqa")) and (y := cell["measures"].get(success))
    ]
    if points:
        plots += trade_off_plot(
            points,
            x_label="questions right",
            y_label=f"success, {MEASURES[success]}",
            x_bound=start["share"] if start else None,
        )
    return section(
        "ratio",
        table.title,
        figures.figure(
            f'<div class="pair">{plots}</div>',
            "Left: shares by the part of web data in a batch; broken lines: 95% interval of the "
            "first. Right: the same cells, questions against success, labelled with the part of "
            "web data; crosses: 95% intervals. Red: questions right before any robot data.",
        ),
        figures.figure(tables.to_html(table), table.note),
    )


def _curves(results: Result, runs: dict[str, Stage], figures: Figures) -> Markup:
    title = "Learning curves"
    if not runs:
        return section("curves", title, missing("No training has ended yet. Run or go on:", _AGAIN))
    names = list(dict.fromkeys(name for run in runs.values() for name in run.sources()))
    labels = {c["name"]: _label(c) for c in results["cells"] if "reference" not in c["tables"]}
    parts = []
    for name in names:
        plots = "".join(
            line_plot(
                [
                    Line(labels[key], *run.series(f"{name}/{scalar}"))
                    for key, run in runs.items()
                    if key in labels and len(run.series(f"{name}/{scalar}")[0]) > 1
                ],
                x_label="update",
                y_label=words,
                y_range=(0.0, 1.0) if scalar == "token_accuracy" else None,
                height=270,
            )
            for scalar, words in (("loss", "loss, nats"), ("token_accuracy", "tokens right"))
        )
        if plots:
            what = f"Training loss and greedy token accuracy on “{name}” by training."
            parts.append(figures.figure(f'<div class="pair">{plots}</div>', what))
    return section("curves", title, *parts)


def _videos(results: Result, root: Path, figures: Figures) -> Markup:
    main = next(c for c in results["cells"] if c["name"] == results["main"])
    items, room, left_out = [], MAX_VIDEO_BYTES, 0
    for part in main["videos"]:
        for success in (True, False):
            clips = [v for v in part["clips"] if v["success"] is success]
            if not clips:
                continue
            path = f"{main['directory']}/evaluation/{clips[0]['path']}"
            size = (root / path).stat().st_size if (root / path).is_file() else 0
            if size > room:
                left_out += 1
                continue
            room -= size
            verdict = ("good", "success") if success else ("bad", "failure")
            items.append(
                figures.image(path, clips[0]["instruction"])
                + f'<div class="tags"><b class="{verdict[0]}">{verdict[1]}</b>'
                f"<span>{escape(part['title'])}</span>"
                f"<span>seed {clips[0]['seed']}</span></div>"
            )
    title = f"Videos of {_label(main)}"
    if not items:
        return section("videos", title, missing("There are none yet. Run or go on:", _AGAIN))
    more = f" {left_out} more in {main['directory']}/evaluation/media." if left_out else ""
    caption = (
        f"{len(items)} rollouts: of each part of the evaluation a success and a failure, where "
        f"there was one.{more}"
    )
    return section("videos", title, figures.figure(cards(items), caption))


def _reproduce(results: Result, runs: dict[str, Stage]) -> Markup:
    command = f"python tools/rt2_experiment.py --preset={results['experiment']} --out=DIR"
    settings = [
        f"<details><summary>Every setting of {escape(name)}</summary>"
        f"<pre>{escape(json.dumps(run.config, indent=1))}</pre></details>"
        for name, run in runs.items()
    ]
    return section(
        "again",
        "How to get the same",
        Markup(f"<pre>{escape(command)}</pre>"),
        paragraph("It prints each step's command, and goes on where it was when run again."),
        *settings,
    )


def _label(cell: dict[str, Any]) -> str:
    share = f", {cell['web_share']:.0%} web" if cell["web_share"] else ""
    return f"{cell['size']} {cell['training']}{share}"


def _short(title: str) -> str:
    return title if len(title) <= 28 else title[:27] + "…"


def _triple(estimate: dict[str, Any]) -> tuple[float, float, float]:
    return estimate["share"], estimate["low"], estimate["high"]
