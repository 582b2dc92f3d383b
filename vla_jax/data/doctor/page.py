"""The report as one HTML page."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from vla_jax.data.doctor.examine import BINS, Report, RobotFacts, SourceReport
from vla_jax.data.doctor.findings import SEVERITIES, Finding
from vla_jax.page.document import write_page
from vla_jax.page.markup import (
    Figures,
    Markup,
    cards,
    number,
    paragraph,
    percent,
    picture,
    section,
    table,
)
from vla_jax.page.plots import Line, histogram, line_plot, pie

_POINTS = 160  # of a trace
_INSTRUCTIONS = 15
_TEXT = 300


def write_report(report: Report, out: Path, *, title: str) -> Path:
    """Writes the page and returns its path. Style, plots and pictures are inside."""
    figures = Figures(out.parent)
    body = [_header(report, title), _findings(report), _mixture(report, figures)]
    navigation = [("findings", "Findings"), ("mixture", "Mixture")]
    for i, source in enumerate(report.sources):
        navigation.append((f"source-{i}", source.name))
        body.append(_source(source, f"source-{i}", figures))
    return write_page(out, title, navigation, body)


def _header(report: Report, title: str) -> Markup:
    tiles = [
        (str(report.count(severity)), f"{severity}{'' if report.count(severity) == 1 else 's'}")
        for severity in SEVERITIES
    ]
    tiles += [
        (str(len(report.sources)), "data set" if len(report.sources) == 1 else "data sets"),
        (f"{sum(source.records for source in report.sources):,}", "records"),
    ]
    inside = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in tiles
    )
    return Markup(
        f'<header><h1>{escape(title)}</h1><p class="lead">An error stops training or spoils it. A '
        "warning is for a person to judge. A note is worth knowing. Made in "
        f'{report.seconds:.0f} s.</p><div class="tiles">{inside}</div></header>'
    )


def _findings(report: Report) -> Markup:
    if not report.findings:
        return section("findings", "Findings", paragraph("Nothing was found."))
    return section("findings", "Findings", _finding_table(report.findings, with_source=True))


def _finding_table(findings: list[Finding], *, with_source: bool) -> Markup:
    rows = []
    for finding in findings:
        sure = "" if finding.confidence == "certain" else f" ({finding.confidence})"
        where = f'<div class="faint">{escape(_short(finding.where))}</div>'
        row = [
            Markup(f'<span class="badge {finding.severity}">{finding.severity}</span>'),
            *([finding.source] if with_source else []),
            finding.check + sure,
            Markup(f"{escape(_short(finding.seen))}{where}"),
            finding.remedy,
        ]
        rows.append(row)
    header = ["", *(["data set"] if with_source else []), "what", "seen", "what to do"]
    return Markup(f'<div class="prose">{table(header, rows, left=len(header))}</div>')


def _mixture(report: Report, figures: Figures) -> Markup:
    rows = [
        [
            source.name,
            source.config.kind,
            f"{source.records:,}",
            f"{source.robot.episodes:,}" if source.robot else "–",
            percent(source.share, 1),
            number(1e6 * source.share / source.records) if source.records else "–",
        ]
        for source in report.sources
    ]
    header = [
        "data set",
        "kind",
        "records",
        "episodes",
        "share of samples",
        "epochs per million samples",
    ]
    inside = f"<div>{table(header, rows, left=2)}</div>"
    if len(rows) > 1:
        shares = [(source.name, source.share) for source in report.sources]
        chart = pie(shares, title="shares of samples")
        inside += f"<div>{figures.figure(chart, 'Shares of the samples.')}</div>"
    return section("mixture", "Mixture", f'<div class="pair">{inside}</div>')


def _source(source: SourceReport, anchor: str, figures: Figures) -> Markup:
    facts = {"kind": source.config.kind, "path": source.config.path, "split": source.config.split}
    if source.robot is not None:
        spec = source.robot.spec
        facts |= {
            "actions": f"{spec.name}, {spec.control_hz:g} Hz, frame {spec.frame}",
            "rotation": spec.rotation,
            "gripper": spec.gripper,
            "state": f"{len(source.robot.state.names)} numbers"
            if source.robot.state
            else "not read",
        }
    if source.unchecked:
        facts["not checked"] = "; ".join(source.unchecked)
    parts = [
        "<dl class=facts>"
        + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
        + "</dl>"
    ]
    if source.findings:
        parts.append(_finding_table(source.findings, with_source=False))
    if source.pictures is not None and source.pictures.thumbnails:
        shown = [
            picture(thumbnail.jpeg, "image/jpeg", "sampled picture")
            + Markup(f"<p>{escape(_short(thumbnail.caption, 140))}</p>")
            for thumbnail in source.pictures.thumbnails
        ]
        parts.append("<h3>Sampled pictures</h3>" + cards(shown, "small"))
    if source.robot is not None:
        parts += _robot(source.robot, figures)
    return section(anchor, source.name, *parts)


def _robot(robot: RobotFacts, figures: Figures) -> list[str]:
    parts = ["<h3>Actions</h3>", _statistics(robot)]
    if robot.state is not None:
        rows = [
            [
                name,
                *(number(f[k], 4) for k in ("min", "q01", "median", "q99", "max", "mean", "std")),
            ]
            for name, f in robot.state.summary().items()
        ]
        header = ["state", "min", "1%", "median", "99%", "max", "mean", "std"]
        parts.append(f"<details><summary>Measured state</summary>{table(header, rows)}</details>")
    for i, dimension in enumerate(robot.spec.dimensions):
        low, width = dimension.low, dimension.high - dimension.low
        bars = histogram(
            robot.histogram[i].tolist(),
            low - width / 4,
            low + width * 5 / 4,
            x_label=f"{dimension.name} ({dimension.unit})",
            bounds=(dimension.low, dimension.high),
        )
        lines = [_trace(f"{n + 1}", trace[:, i]) for n, trace in enumerate(robot.traces)]
        curves = line_plot(
            lines,
            x_label="step",
            y_label=dimension.name,
            y_range=(low - width / 10, low + width * 11 / 10),
            bounds=(dimension.low, dimension.high),
            height=180,
        )
        parts.append(f'<div class="pair">{bars}{curves}</div>')
    caption = (
        f"Each dimension: values of all steps in {BINS} bins, and over the steps of "
        f"{len(robot.traces)} episodes. Broken lines are the bounds; what is further out than a "
        "quarter of their width is in the outermost bins. Percentiles in the table are to 0.1% of "
        "their value."
    )
    parts.append(figures.figure("", caption))
    if robot.lengths:
        shortest, longest = min(robot.lengths), max(robot.lengths)
        wide = -(-(longest + 1 - shortest) // 40)  # whole steps
        edges = np.arange(shortest, longest + wide + 1, wide)
        counts = np.histogram(robot.lengths, edges)[0].tolist()
        bars = histogram(counts, float(edges[0]), float(edges[-1]), x_label="steps")
        parts.append(
            "<h3>Episode length</h3>"
            + figures.figure(
                bars,
                f"{len(robot.lengths):,} episodes, {sum(robot.lengths):,} steps: "
                f"{shortest} to {longest}, median "
                f"{np.median(robot.lengths):g}.",
            )
        )
    rows = [
        [_short(text) or "(empty)", f"{count:,}", percent(count / max(1, len(robot.lengths)), 1)]
        for text, count in robot.instructions.most_common(_INSTRUCTIONS)
    ]
    title = f"<h3>Instructions</h3><p>{len(robot.instructions):,} different ones.</p>"
    head = ["instruction", "episodes", "share"]
    parts.append(f'{title}<div class="prose">{table(head, rows)}</div>')
    return parts


def _statistics(robot: RobotFacts) -> Markup:
    columns = ("min", "q01", "median", "q99", "max", "mean", "std")
    rows = []
    for dimension, facts in zip(robot.spec.dimensions, robot.actions.summary().values()):
        bad = int((facts["nan"] or 0) + (facts["infinite"] or 0))
        bounds = f"{dimension.low:g} .. {dimension.high:g}"
        figures = [number(facts[key], 3) for key in columns]
        rows.append([dimension.name, dimension.unit, bounds, *figures, bad])
    header = ["dimension", "unit", "bounds", "min", "1%", "median", "99%", "max", "mean", "std"]
    return table([*header, "not finite"], rows, left=2)


def _trace(label: str, values: np.ndarray) -> Line:
    """At most `_POINTS` of an episode's values, without those that are not finite."""
    steps = np.unique(np.linspace(0, len(values) - 1, min(len(values), _POINTS)).astype(int))
    steps = steps[np.isfinite(values[steps])]
    return Line(label, steps.tolist(), values[steps].tolist())


def _short(text: str, most: int = _TEXT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
