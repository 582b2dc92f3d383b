"""The experiment's tables, once as data, then as Markdown or HTML. Every cell is in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from vla_jax.evaluation.base import Result
from vla_jax.experiment.paper import GROUPS, TABLE_6, UNSEEN
from vla_jax.experiment.results import FIGURES, MEASURES, NAMES
from vla_jax.page import markup
from vla_jax.page.markup import Markup
from vla_jax.training.progress import duration

ORIENTATION = (
    "Rows of the paper are for orientation only: other robots, tasks, data and model sizes."
)
INTERVALS = (
    "Small figures: 95% intervals, Wilson's of a share; of a mean of shares the square-and-add "
    "interval that follows from theirs."
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text, numbers, shares with an interval (dicts), and None for what is not measured.

    Attributes:
      left: columns of text.
      note: below it.
      faint: numbers of the rows that are not ours.
    """

    title: str
    header: tuple[str, ...]
    rows: list[list[Any]]
    note: str
    left: int = 2
    faint: frozenset[int] = frozenset()


def all_tables(results: Result) -> list[Table]:
    """In the order of the page."""
    tables = [
        *own_tables(results),
        unseen_table(results),
        emergent_table(results),
        every_cell(results),
        differences(results),
        ratio_table(results),
        wall_times(results),
    ]
    return [table for table in tables if table.rows]


def own_tables(results: Result) -> list[Table]:
    """Of measures that the experiment names: all of its cells."""
    tables = []
    for asked in results["tables"]:
        header = [NAMES.get(name) or FIGURES[name][0] for name in asked["measures"]]
        rows = [
            [
                *(cell["size"], cell["training"] + ("" if cell["done"] else ", not run")),
                *(_value(cell, name) for name in asked["measures"]),
            ]
            for cell in results["cells"]
        ]
        note = f"{asked['note']} {INTERVALS}"
        tables.append(Table(asked["title"], ("size", "training", *header), rows, note))
    return tables


def _value(cell: dict[str, Any], name: str) -> Any:
    if name in FIGURES and name in cell["figures"]:
        return FIGURES[name][1].format(cell["figures"][name])
    return cell["measures"].get(name)


def unseen_table(results: Result) -> Table:
    """The paper's table 6."""
    rows: list[list[Any]] = []
    entering = _entering(results, "ablation")
    for cell in entering:
        found = {c["cell"]: c for c in cell["suites"] if c["suite"] == "unseen"}
        shares = [found.get(column) for column in UNSEEN]
        rows.append([cell["size"], cell["training"], *shares, cell["measures"].get("unseen")])
    ours, measured = len(rows), any(cell["suites"] for cell in entering)
    for size, training, shares, average in TABLE_6:
        rows.append([f"RT-2-PaLI-X-{size}, paper", training, *(f"{s}%" for s in shares)])
        rows[-1].append(f"{average}%")
    return Table(
        "Unseen objects, backgrounds and environments (as table 6 of RT-2)",
        ("size", "training", *UNSEEN.values(), "average"),
        rows if measured else [],
        f"Share of successful rollouts. {_rollouts(results, 'unseen')}{ORIENTATION} {INTERVALS}",
        faint=frozenset(range(ours, len(rows))),
    )


def emergent_table(results: Result) -> Table:
    """The paper's table 5."""
    ours = _entering(results, "ablation", "emergent")
    # The columns are those of the evaluation, which may be not of all cells yet.
    cells = next(
        ([c for c in o["suites"] if c["suite"] == "emergent"] for o in ours if o["done"]), []
    )
    columns = {group: [c for c in cells if c["group"] == group] for group in GROUPS}
    rows: list[list[Any]] = []
    for cell in ours:
        found = {c["cell"]: c for c in cell["suites"] if c["suite"] == "emergent"}
        row: list[Any] = [cell["size"], cell["training"]]
        for group, members in columns.items():
            row += [found.get(member["cell"]) for member in members]
            row.append(cell["measures"].get(group))
        rows.append([*row, cell["measures"].get("emergent")])
    models = list(dict.fromkeys(model for c in cells for model in c["paper"]))
    for model in models:
        row, averages = [f"{model}, paper", ""], []
        for members in columns.values():
            values = [member["paper"].get(model) for member in members]
            averages.append(_mean(values))
            row += [_whole(value) for value in (*values, averages[-1])]
        rows.append([*row, _whole(_mean(averages))])
    header = ["size", "training"]
    for group, members in columns.items():
        header += [*(member["title"] for member in members), f"{GROUPS[group]}, average"]
    return Table(
        "Emergent skills (as table 5 of RT-2)",
        (*header, "average"),
        rows if cells else [],
        f"Share of successful rollouts. {_rollouts(results, 'emergent')}The average is the mean of "
        f"the three groups'. {ORIENTATION} {INTERVALS}",
        faint=frozenset(range(len(ours), len(rows))),
    )


def every_cell(results: Result) -> Table:
    """All cells, whatever they show."""
    measured = [m for m in MEASURES if any(m in cell["measures"] for cell in results["cells"])]
    rows = [
        [
            *(cell["size"], cell["training"] + ("" if cell["done"] else ", not run")),
            *(f"{cell['web_share']:.0%}", cell["batch_size"]),
            *(cell["measures"].get(name) for name in measured),
        ]
        for cell in results["cells"]
    ]
    updates, robot = results["updates"], results["updates"] * results["robot_rows"]
    but = " but the VLM before" if _entering(results, "reference") else ""
    return Table(
        "Every cell",
        ("size", "training", "web share", "batch", *(MEASURES[name] for name in measured)),
        rows,
        f"Robot samples are the same in every training{but}: "
        f"{results['robot_rows']} rows in each of {updates:,} updates, {robot:,} in all; web data "
        "comes on top, so batches grow with its share. Questions are of held-out pictures, in data "
        f"that some cells were not trained on; action tokens of held-out episodes. {INTERVALS}",
    )


def differences(results: Result) -> Table:
    """Comparisons, with whether the interval excludes zero."""
    rows = [
        [
            *(entry["size"], " minus ".join(entry["trainings"]), NAMES[entry["measure"]]),
            *(_percent(share) for share in entry["shares"]),
            *(f"{100 * entry[key]:+.0f}" for key in ("share", "low", "high")),
            "yes" if entry["excludes_zero"] else "no",
        ]
        for entry in results["comparisons"]
    ]
    return Table(
        "Differences",
        (
            *("size", "training", "measure", "of the first", "of the second"),
            *("difference, points", "95% from", "to", "excludes zero"),
        ),
        rows,
        "Of two shares: Newcombe's hybrid score interval; of two averages the same square-and-add. "
        "Both take the two as independent, though layouts and tasks are the same. Each interval is "
        "on its own: of many, one in twenty misses.",
        left=3,
    )


def ratio_table(results: Result) -> Table:
    """Retained answers against success, by the share of web data."""
    before, cells = ratio_cells(results)
    start = before and before["measures"].get("vqa")
    names = [n for n in MEASURES if any(n in c["measures"] for c in cells) and n != "action_tokens"]
    rows: list[list[Any]] = []
    for cell in [*([before] if before else []), *cells]:
        own = cell["measures"].get("vqa")
        kept = own["share"] / start["share"] if own and start and start["share"] else None
        share = "" if cell is before else f"{cell['web_share']:.0%}"
        rows.append([cell["training"], share, *(cell["measures"].get(n) for n in names)])
        rows[-1].append(_percent(kept))
    return Table(
        "Web share: retained knowledge against success",
        ("training", "web share", *(MEASURES[name] for name in names), "of the VLM's questions"),
        rows if cells else [],
        "Last column: questions right, as a share of what the web-trained VLM got right before it "
        f"saw a robot, on the same pictures. {INTERVALS}",
    )


def ratio_cells(results: Result) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """The VLM before, if it is there, and the cells of the curve by their web share."""
    before = [c for c in results["cells"] if "reference" in c["tables"] and c["done"]]
    cells = [c for c in results["cells"] if "ratio" in c["tables"] and c["done"]]
    return (before[0] if before else None), sorted(cells, key=lambda c: c["web_share"])


def wall_times(results: Result) -> Table:
    """What each stage took, on what."""
    rows: list[list[Any]] = []
    for stage in results["stages"]:
        load = stage.get("load_before")
        took = duration(stage["seconds"]) if "seconds" in stage else None
        rows.append([stage["stage"], stage.get("cpu", ""), stage.get("date", "")])
        rows[-1] += [took, duration(stage["planned_s"]), stage.get("attempts"), load]
    total = [sum(s.get(key, 0.0) for s in results["stages"]) for key in ("seconds", "planned_s")]
    rows.append(["all", "", "", *(duration(t) for t in total), None, None])
    devices = sorted({c["device"] for c in results["cells"] if "device" in c})
    return Table(
        "Wall time",
        ("stage", "processor", "begun", "took", "planned", "attempts", "load before"),
        rows,
        f"Models ran on: {', '.join(devices) or '?'}. Load: runnable processes in the minute "
        "before; with more than one per core others were at work, and times are longer than on a "
        "quiet machine. Time of attempts that were interrupted is in it.",
        left=3,
    )


def to_markdown(table: Table) -> str:
    """A heading, the table and its note."""
    lines = [f"## {table.title}", "", _line(table.header)]
    lines.append(_line("---" if i < table.left else "---:" for i in range(len(table.header))))
    lines += [_line(_plain(value) for value in row) for row in table.rows]
    return "\n".join([*lines, "", table.note, ""])


def to_html(table: Table) -> Markup:
    """The table alone; a figure's caption gives title and note."""
    rows = []
    for number, row in enumerate(table.rows):
        values: list[Any] = [_rich(value) for value in row]
        if number in table.faint:
            values = [Markup(f'<span class="faint">{markup.text(v)}</span>') for v in values]
        rows.append(values)
    return markup.table(table.header, rows, left=table.left)


def _entering(results: Result, *tables: str) -> list[dict[str, Any]]:
    return [cell for cell in results["cells"] if set(tables) & set(cell["tables"])]


def _rollouts(results: Result, suite: str) -> str:
    """How many there were of each share."""
    cells = [c for cell in results["cells"] for c in cell["suites"] if c["suite"] == suite]
    counts = sorted({c["n"] for c in cells})
    return f"{' or '.join(map(str, counts))} rollouts each. " if counts else ""


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _whole(percent: float | None) -> str | None:
    return None if percent is None else f"{math.floor(percent + 0.5)}%"


def _percent(share: float | None) -> str | None:
    return None if share is None else markup.percent(share)


def _line(values: Any) -> str:
    return f"| {' | '.join(str(value).replace('|', '/') for value in values)} |"


def _plain(value: Any) -> str:
    if not isinstance(value, dict):
        return "–" if value is None else str(value)
    if value["share"] is None:
        return "–"
    return f"{markup.percent(value['share'])} ({100 * value['low']:.0f}–{100 * value['high']:.0f})"


def _rich(value: Any) -> Any:
    if value is None:
        return Markup('<span class="faint">–</span>')
    return markup.share_cell(value) if isinstance(value, dict) else value
