"""The page: `python -m vla_jax.evaluation.report --workdir=out/run`."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from vla_jax.evaluation.report import metaworld, results, training
from vla_jax.evaluation.report.inputs import ReportInputs
from vla_jax.page.document import write_page
from vla_jax.page.markup import Figures, Markup, percent

_NAVIGATION = (
    ("metaworld", "Meta-World"),
    ("rollouts", "Closed loop"),
    ("videos", "Videos"),
    ("sees", "Examples"),
    ("actions", "Actions"),
    ("questions", "Questions"),
    ("pointing", "Pointing"),
    ("curves", "Training"),
    ("mixture", "Mixture"),
    ("speed", "Speed"),
    ("again", "Reproduce"),
)


def write_report(inputs: ReportInputs, out: Path) -> Path:
    """Writes the page, whole or not at all, and returns its path.

    Nothing in it comes from elsewhere: style, plots and pictures are inside.
    """
    figures = Figures(inputs.evaluation)
    # A run is of one world; of the table-top if it was never evaluated.
    tabletop = inputs.metaworld is None or inputs.rollouts is not None
    body = [
        _header(inputs),
        *metaworld.sections(inputs, figures),
        *([results.closed_loop(inputs, figures)] if tabletop else []),
        *([results.videos(inputs, figures)] if tabletop else []),
        results.seen_by_the_model(inputs, figures),
        results.actions(inputs, figures),
        results.questions(inputs, figures),
        *([results.pointing(inputs, figures)] if tabletop else []),
        training.learning_curves(inputs, figures),
        training.mixture(inputs, figures),
        training.speed(inputs, figures),
        training.reproduce(inputs),
    ]
    page = "".join(body)
    navigation = [(a, name) for a, name in _NAVIGATION if f'<section id="{a}">' in page]
    return write_page(out, inputs.title, navigation, body)


def _header(inputs: ReportInputs) -> Markup:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _facts(inputs)
    )
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span>'
        f"<small>{escape(detail)}</small></div>"
        for name, value, detail in _key_figures(inputs)
    )
    return Markup(
        f"<header><h1>{escape(inputs.title)}</h1>"
        '<p class="lead">A vision-language-action model: one network that answers questions about '
        "pictures and writes robot actions as text tokens, trained on web data and robot episodes "
        f'together.</p><div class="tiles">{tiles}</div><dl class="facts">{facts}</dl></header>'
    )


def _facts(inputs: ReportInputs) -> list[tuple[str, str]]:
    run, stage = inputs.run or {}, inputs.main
    model = stage.config.get("model", {})
    settings = run.get("settings", {})
    step = f"checkpoint at update {run['step']}, " if "step" in run else ""
    last = stage.metrics[-1]["step"] if stage.metrics else None
    seeds = [
        f"{name} {seed}"
        for name, seed in (
            ("parameters", stage.value("train", "seed")),
            ("data order", stage.value("data", "seed")),
            ("evaluation", settings.get("seed")),
        )
        if seed is not None
    ]
    trained = "; ".join(
        f"{s.title} {_duration(training.training_seconds(s))}" for s in inputs.stages if s.metrics
    )
    evaluated = f"; evaluation {_duration(run['wall_s'])}" if "wall_s" in run else ""
    facts = [
        ("Evaluated", f"{step}{run.get('date', 'not yet')}"),
        (
            "Model",
            f"preset {model.get('preset', '?')}, {model.get('image_size', '?')} px, "
            f"{model.get('compute_dtype', '?')}",
        ),
        (
            "Training",
            f"{last if last is not None else '?'} updates of "
            f"{stage.value('train', 'batch_size') or '?'} samples",
        ),
        ("Started from", stage.value("train", "init_from") or "fresh parameters"),
        ("Device", f"{run.get('device', '?')}; {run.get('cpu', '?')}"),
        ("Code", run.get("git", "?")),
        ("Seeds", ", ".join(seeds) or "?"),
        ("Time", f"{trained or '?'}{evaluated}"),
    ]
    return facts


def _key_figures(inputs: ReportInputs) -> list[tuple[str, str, str]]:
    """(what, figure, detail) of the tiles at the top."""
    tiles: list[tuple[str, str, str]] = []
    tiles += metaworld.tiles(inputs)
    runs = {(r["pool"], r["agent"]): r for r in (inputs.rollouts or {}).get("runs", [])}
    for pool in dict.fromkeys(pool for pool, _ in runs):
        if (pool, "policy") in runs:
            detail = _interval(runs[pool, "policy"]["total"], "episodes")
            if (pool, "random") in runs:
                detail += f"; random {percent(runs[pool, 'random']['total']['share'])}"
            share = runs[pool, "policy"]["total"]["share"]
            tiles.append((f"success, {results.pool_name(pool)}", percent(share), detail))
    if not tiles:
        tiles.append(("success in closed loop", "–", "no rollouts run"))
    for name, result in inputs.vqa:
        share = result["questions"]
        tiles.append(
            (f"questions right, {name}", percent(share["share"]), _interval(share, "questions"))
        )
    pools: dict[str, Any] = (inputs.pointing or {}).get("pools", {})
    if "robot" in pools:
        share = pools["robot"]["blocks"]["inside"]
        tiles.append(
            ("points inside the block, camera", percent(share["share"]), _interval(share, "blocks"))
        )
    for name, result in inputs.actions:
        share = result["token_accuracy"]
        tiles.append(
            (f"action tokens right, {name}", percent(share["share"]), _interval(share, "tokens"))
        )
    return tiles


def _interval(share: dict[str, Any], what: str) -> str:
    if not share["n"]:
        return f"no {what}"
    return f"95% {100 * share['low']:.0f}–{100 * share['high']:.0f}, n = {share['n']} {what}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
