"""The sections about how the model was trained."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from vla_jax.evaluation.report.inputs import ReportInputs, Stage
from vla_jax.page.markup import (
    Figures,
    Markup,
    missing,
    number,
    paragraph,
    percent,
    section,
    table,
)
from vla_jax.page.plots import Line, line_plot


def learning_curves(inputs: ReportInputs, figures: Figures) -> Markup:
    """Loss and token accuracy per source, for each stage."""
    parts: list[str] = []
    for stage in inputs.stages:
        parts.append(f"<h3>{escape(stage.title)}</h3>")
        if not stage.metrics:
            parts.append(missing("Nothing was logged in", str(stage.workdir / "metrics.jsonl")))
            continue
        names = stage.sources()
        loss = line_plot(
            [Line(name, *stage.series(f"{name}/loss")) for name in names],
            x_label="update",
            y_label="loss, nats per answer token",
            from_zero=True,
        )
        accuracy = line_plot(
            [Line(name, *stage.series(f"{name}/token_accuracy")) for name in names],
            x_label="update",
            y_label="answer tokens right",
            y_range=(0.0, 1.0),
        )
        every, batch = stage.value("train", "log_every"), stage.value("train", "batch_size")
        start = stage.value("train", "init_from")
        parts.append(
            figures.figure(
                f'<div class="pair">{loss}{accuracy}</div>',
                f"{stage.title}: training loss and greedy token accuracy by data set, means over "
                f"{every or '?'} updates of {batch or '?'} samples. Teacher-forced, on training "
                f"samples. Started from {start or 'fresh parameters'}.",
            )
        )
    if inputs.start is not None:
        parts.append(_start(inputs.start, figures))
    return section("curves", "Learning curves", *parts)


def _start(card: dict[str, Any], figures: Figures) -> str:
    """The small VLM that training started from."""
    held_out = card.get("held_out", {})
    rows = [
        [name.replace("_", " "), f"{value:.1f} px" if "_px/" in name else percent(value)]
        for name, value in held_out.items()
    ]
    if not rows:
        return ""
    settings = card.get("settings", {})
    return figures.figure(
        table(["measure", "value"], rows),
        f"The web-trained VLM that the last stage started from, on held-out pictures, before it "
        f"saw a robot: {card.get('samples', 0):,} samples ({card.get('step', '?')} updates of "
        f"{settings.get('batch_size', '?')}) on {card.get('device', '?')}; made by "
        f"{card.get('made_by', '?')}.",
    )


def mixture(inputs: ReportInputs, figures: Figures) -> Markup:
    """Realised ratio against the configured one."""
    rows = []
    for stage in inputs.stages:
        last = stage.metrics[-1] if stage.metrics else {}
        for name in stage.sources():
            tokens = last.get(f"{name}/share_of_tokens")
            rows.append(
                [
                    f"{stage.title}: {name}",
                    percent(last[f"{name}/share_configured"], 2),
                    percent(last.get(f"{name}/share_of_samples"), 2),
                    percent(tokens, 2),
                ]
            )
    if not rows:
        what = missing("No stage has logged its mixture in", "metrics.jsonl")
        return section("mixture", "Data mixture", what)
    samples = ", ".join(
        f"{stage.title} {stage.metrics[-1]['step'] * batch:,.0f}"
        for stage in inputs.stages
        if stage.metrics and (batch := stage.value("train", "batch_size"))
    )
    return section(
        "mixture",
        "Data mixture",
        figures.figure(
            table(["data set", "configured", "of samples", "of loss tokens"], rows),
            f"Share of each data set, configured and realised. Samples in all: {samples}. A robot "
            "sample has eight action tokens and an end, an answer often fewer: so the shares of "
            "loss tokens differ.",
        ),
    )


def speed(inputs: ReportInputs, figures: Figures) -> Markup:
    """Steps, samples and FLOP/s, against a plain matrix product."""
    rows = [row for stage in inputs.stages if (row := _speed_row(stage)) is not None]
    if not rows:
        return section("speed", "Speed", missing("No speed was logged in", "metrics.jsonl"))
    header = [
        *("stage", "updates/s", "samples/s", "input wait", "model GFLOP/sample"),
        *("model GFLOP/s", "jnp.dot GFLOP/s", "of that"),
    ]
    devices = sorted({s.speed["device"] for s in inputs.stages if s.speed and "device" in s.speed})
    return section(
        "speed",
        "Speed",
        figures.figure(
            table(header, rows),
            f"Medians over the log windows, compilation left out, on {', '.join(devices) or '?'}. "
            "Input wait: share of the time the update waited for data. Model FLOPs: matrix "
            "products of forward and backward. jnp.dot: the best of several square float products "
            "on the same machine.",
        ),
    )


def _speed_row(stage: Stage) -> list[Any] | None:
    updates, samples, wait = (
        _median(stage.series(f"speed/{name}")[1])
        for name in ("steps_per_s", "samples_per_s", "input_wait_share")
    )
    if updates is None or samples is None:
        return None
    speed = stage.speed or {}
    cost, ceiling = speed.get("train_flops_per_sample"), speed.get("matmul_flops_per_s")
    devices = speed.get("devices", 1)
    done = None if cost is None else samples * cost
    return [
        stage.title,
        number(updates),
        number(samples),
        percent(wait),
        number(None if cost is None else cost / 1e9),
        number(None if done is None else done / 1e9),
        number(None if ceiling is None else ceiling / 1e9),
        percent(None if done is None or ceiling is None else done / (ceiling * devices)),
    ]


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def training_seconds(stage: Stage) -> float:
    """Time in updates, without compilation, from the logged speeds."""
    total, before = 0.0, 0.0
    for record in stage.metrics:
        rate = record.get("speed/steps_per_s")
        if rate:
            total += (record["step"] - before) / rate
        before = record["step"]
    return total


def reproduce(inputs: ReportInputs) -> Markup:
    """The commands that lead here."""
    lines = [
        f"python -m vla_jax.train --config=FILE --workdir={stage.workdir}  # {stage.title}"
        for stage in inputs.stages
    ]
    lines.append(f"python -m vla_jax.evaluate --workdir={inputs.main.workdir}")
    before = f" --web={inputs.stages[0].workdir}" if len(inputs.stages) > 1 else ""
    lines.append(f"python -m vla_jax.evaluation.report{before} --workdir={inputs.main.workdir}")
    run = inputs.run or {}
    versions = ", ".join(f"{name} {v}" for name, v in run.get("packages", {}).items())
    parts = [f"<pre>{escape(chr(10).join(lines))}</pre>"]
    for stage in inputs.stages:
        settings = escape(json.dumps(stage.config, indent=2))
        parts.append(
            f"<details><summary>Every setting of: {escape(stage.title)}</summary>"
            f"<pre>{settings}</pre></details>"
        )
    if run:
        parts.append(
            paragraph(
                f"Code {run.get('git', '?')}; Python {run.get('python', '?')}; {versions}. "
                f"{run.get('cpu', '')}."
            )
        )
    return section(
        "again",
        "How to get the same",
        paragraph(
            Markup(
                "<code>make demo</code> does all of this on a fresh machine. The steps one by one; "
                "what FILE must say stands below:"
            )
        ),
        *parts,
    )
