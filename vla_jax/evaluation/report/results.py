"""The sections about what the policy can do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from typing import Any

from vla_jax.evaluation.report.inputs import ReportInputs
from vla_jax.evaluation.vqa import OFFSET_UNITS
from vla_jax.page.markup import (
    Figures,
    Markup,
    cards,
    count_cell,
    missing,
    number,
    paragraph,
    percent,
    section,
    share_cell,
    table,
)
from vla_jax.page.plots import Bar, bar_plot, heat_map

EVALUATE = "python -m vla_jax.evaluate --workdir={}"
POOLS = {"robot": "seen concepts", "web_only": "web-only concepts"}
AGENTS = ("policy", "random", "expert")
_INTERVALS = "Small figures: 95% Wilson interval."


def pool_name(pool: str) -> str:
    return POOLS.get(pool, pool)


def closed_loop(inputs: ReportInputs, figures: Figures) -> Markup:
    """Success per family and concept pool, with the baselines."""
    title = "Closed loop"
    rollouts = inputs.rollouts
    if rollouts is None:
        remedy = EVALUATE.format(inputs.main.workdir)
        return section("rollouts", title, missing("No rollouts were run. Run them:", remedy))
    runs = {(r["pool"], r["agent"]): r for r in rollouts["runs"]}
    pools = list(dict.fromkeys(r["pool"] for r in rollouts["runs"]))
    agents = [a for a in AGENTS if any((pool, a) in runs for pool in pools)]
    columns = [(p, a) for p in pools for a in agents if (p, a) in runs]
    families = list(dict.fromkeys(f["family"] for r in rollouts["runs"] for f in r["families"]))
    rows = [
        [family, *(share_cell(_family(runs[key], family)) for key in columns)]
        for family in families
    ]
    rows.append(["all", *(share_cell(runs[key]["total"]) for key in columns)])
    rows.append(["episodes", *(count_cell(runs[key]["total"]) for key in columns)])
    header = ["task family", *(f"{pool_name(p)}, {a}" for p, a in columns)]
    lost = sum(r["lost_and_rerun"] for r in rollouts["runs"])
    last = rollouts["seed"] + rollouts["n"] - 1
    steps = ", ".join(
        f"{pool_name(p)} {runs[p, 'policy']['mean_steps']:.1f}"
        for p in pools
        if (p, "policy") in runs
    )
    return section(
        "rollouts",
        title,
        paragraph(
            "At each step the policy sees one camera picture and the instruction and answers with "
            "eight action tokens, chosen among the legal ones only. Seen concepts are pictures "
            "that occur in robot episodes; web-only ones occur only in the picture corpus. "
            "Layouts, tasks and seeds are new to training, and the same for all agents."
        ),
        figures.figure(
            table(header, rows, total_rows=2),
            f"Share of successful episodes by task family; {rollouts['n']} episodes per column, "
            f"seeds {rollouts['seed']}–{last}, world “{rollouts['world']}”, at most "
            f"{rollouts['max_steps']} steps at {rollouts['control_hz']:g} Hz. {_INTERVALS} Random "
            "acts uniformly within the bounds and never ends an episode; the expert sees the "
            f"simulator's state. Mean steps of the policy: {steps or '–'}. Episodes lost with a "
            f"worker and run again: {lost}.",
        ),
        figures.figure(
            bar_plot(_groups(runs, pools, families), y_label="success, % of episodes"),
            f"The same figures. Lines: 95% Wilson intervals; n = {rollouts['n']} episodes per "
            "agent and pool, a share of them in each family.",
        ),
    )


def _family(run: dict[str, Any], family: str) -> dict[str, Any] | None:
    return next((f for f in run["families"] if f["family"] == family), None)


def _groups(
    runs: dict[tuple[str, str], dict[str, Any]], pools: Sequence[str], families: Sequence[str]
) -> list[tuple[str, list[Bar]]]:
    """Bars of every agent, for each family of each concept pool and for all together."""
    groups = []
    for pool in pools:
        for family in (*families, "all"):
            bars = []
            for agent in AGENTS:
                run = runs.get((pool, agent))
                share = run and (run["total"] if family == "all" else _family(run, family))
                if share:
                    bars.append(Bar(agent, share["share"], share["low"], share["high"]))
            groups.append((f"{family}, {pool_name(pool).split()[0]}", bars))
    return groups


def videos(inputs: ReportInputs, figures: Figures) -> Markup:
    """Rollouts as moving pictures."""
    runs = inputs.rollouts["runs"] if inputs.rollouts else []
    clips = [(run, clip) for run in runs for clip in run["videos"]]
    if not clips:
        remedy = EVALUATE.format(inputs.main.workdir)
        return section("videos", "Rollout videos", missing("No videos were made. Run:", remedy))
    items = [
        figures.image(clip["path"], clip["instruction"])
        + f'<div class="tags">{verdict(clip["success"])}<span>{escape(clip["family"])}</span>'
        f"<span>{escape(pool_name(run['pool']))}</span><span>seed {clip['seed']}</span></div>"
        for run, clip in clips
    ]
    return section(
        "videos",
        "Rollout videos",
        figures.figure(
            cards(items, "large"),
            f"{len(clips)} rollouts: of each task family and concept pool the first success and "
            "the first failure, where there was one. Each frame is the picture the policy saw, "
            "with the action string it answered: terminate, x, y, z, three of rotation, gripper; "
            "bins 0–255 (terminate 0 or 1).",
        ),
    )


def verdict(right: bool) -> str:
    return f'<b class="{"good" if right else "bad"}">{"success" if right else "failure"}</b>'


def seen_by_the_model(inputs: ReportInputs, figures: Figures) -> Markup:
    """Robot pictures with prompt, decoded tokens and truth."""
    title = "What the model sees and says"
    items = [
        figures.image(e["image"], e["instruction"], "pixel")
        + f'<p class="ask">{escape(e["instruction"])}</p>'
        + _tokens(e["said"], e["truth"], result["dimensions"])
        for _, result in inputs.actions
        for e in result["examples"]
    ]
    if not items:
        remedy = EVALUATE.format(inputs.main.workdir)
        return section(
            "sees", title, missing("No held-out robot steps were measured. Run:", remedy)
        )
    orders = dict.fromkeys(
        ", ".join(d["name"].replace("_", " ") for d in result["dimensions"])
        for _, result in inputs.actions
    )
    return section(
        "sees",
        title,
        paragraph("Prompt: “Q: what action should the robot take to … ? A:”"),
        figures.figure(
            cards(items, "large"),
            f"{len(items)} held-out robot steps, taken at even distances. Said: the decoded "
            f"tokens; true: the expert's. Order: {'; '.join(orders)}. "
            "Bold: more than 8 of 256 bins apart.",
        ),
    )


def _tokens(said: str, truth: str, dimensions: Sequence[dict[str, Any]]) -> str:
    """Both strings of one or several actions, what differs in bold."""
    allowed = itertools.cycle(0 if d["unit"] == "flag" else 8 for d in dimensions)
    words = [
        f"<b>{a}</b>" if abs(int(a) - int(b)) > most else a
        for a, b, most in zip(said.split(), truth.split(), allowed)
    ]
    return (
        f'<dl class="tokens"><dt>said</dt><dd>{" ".join(words)}</dd>'
        f"<dt>true</dt><dd>{escape(truth)}</dd></dl>"
    )


_UNITS = {
    "m": ("mm", 1000.0),
    "rad": ("rad", 1.0),
    "closedness": ("of 0–1", 1.0),
    "effort": ("of −1–1", 1.0),
    "flag": ("", 1.0),
    "unknown": ("", 1.0),
}


def actions(inputs: ReportInputs, figures: Figures) -> Markup:
    """Error per dimension in its unit."""
    title = "Action error on held-out episodes"
    if not inputs.actions:
        remedy = EVALUATE.format(inputs.main.workdir)
        return section("actions", title, missing("Actions were not measured. Run:", remedy))
    parts: list[str] = []
    for name, result in inputs.actions:
        rows = []
        for d in result["dimensions"]:
            unit, scale = _UNITS[d["unit"]]
            errors = (d["mean_error"], d["median_error"], d["p90_error"], d["constant_error"])
            rows.append(
                [
                    d["name"].replace("_", " "),
                    unit,
                    share_cell(d["token_accuracy"]),
                    *(number(None if e is None else e * scale) for e in errors),
                    number(d["half_bin"] * scale),
                ]
            )
        header = ["dimension", "unit", "same token", "mean error", "median", "90th percentile"]
        flags = "; ".join(
            f"{flag.replace('_', ' ')}: {percent(f['accuracy']['share'], 1)} right, "
            f"{f['found']['count']} of {f['found']['n']} ones found, "
            f"{f['false_alarms']['count']} of {f['false_alarms']['n']} false alarms"
            for flag, f in result["flags"].items()
        )
        parts.append(
            figures.figure(
                table([*header, "constant action", "half a bin"], rows, left=2),
                f"Data set “{name}”, n = {result['n']} steps. Absolute error of decoded actions. "
                "Constant action: mean error of always answering the median. Half a bin: the "
                f"most that 256 bins cost. Same token in all dimensions: "
                f"{percent(result['all_tokens']['share'])} of steps. As decisions, above or below "
                f"the middle: {flags}.",
            )
        )
    return section("actions", title, *parts)


def questions(inputs: ReportInputs, figures: Figures) -> Markup:
    """VQA, captions and names, places; confusion."""
    title = "Questions about held-out pictures"
    if not inputs.vqa:
        remedy = EVALUATE.format(inputs.main.workdir)
        return section("questions", title, missing("Questions were not asked. Run:", remedy))
    parts: list[str] = []
    for name, result in inputs.vqa:
        parts.append(_task_table(name, result, figures))
        parts += _confusion(name, result, figures)
        if result["examples"]:
            parts.append(_question_grid(name, result, figures))
    return section("questions", title, *parts)


_KINDS = {
    "question": "exact match",
    "naming": "exact match",
    "point": "within 6%",
    "box": "IoU ≥ 0.5",
}


def _task_table(name: str, result: dict[str, Any], figures: Figures) -> str:
    rows: list[Sequence[Any]] = []
    for row in result["tasks"]:
        extra = ""
        if row["kind"] == "point":
            extra = f"median {number(row['median_px'])} px"
        elif row["kind"] == "box":
            extra = f"mean IoU {number(row['mean_iou'], 2)}"
        elif row["kind"] == "naming":
            extra = f"names right {percent(row['names']['share'])}"
        rows.append(
            [row["task"].replace("_", " "), _KINDS[row["kind"]], share_cell(row), row["n"], extra]
        )
    for label, key, kind in (
        ("all questions", "questions", "question"),
        ("names and captions", "naming", "naming"),
        ("all places", "points", "point"),
        ("everything", "right", ""),
    ):
        rows.append(
            [label, _KINDS.get(kind, "as above"), share_cell(result[key]), result[key]["n"], ""]
        )
    return figures.figure(
        table(["task", "right means", "right", "n", ""], rows, left=2, total_rows=4),
        f"Data set “{name}”, n = {result['n']} samples, images of {result['image_size']} × "
        f"{result['image_size']} px. Exact match ignores case, articles and punctuation. “All "
        "questions” are those answered in words other than names and captions. A place "
        f"is right within {percent(result['tolerance'])} of the image's side. Of the names in "
        f"captions and answers {percent(result['names']['share'])} were right "
        f"({result['names']['count']} of {result['names']['n']}). {_INTERVALS}",
    )


def _confusion(name: str, result: dict[str, Any], figures: Figures) -> list[str]:
    parts: list[str] = []
    maps = [
        f"<div><h4>{escape(task.replace('_', ' '))}</h4>"
        + heat_map(m["labels"], [*m["labels"], "other"], m["counts"])
        + "</div>"
        for task, m in result["matrix"].items()
    ]
    if maps:
        total = sum(sum(map(sum, m["counts"])) for m in result["matrix"].values())
        parts.append(
            figures.figure(
                f'<div class="maps">{"".join(maps)}</div>',
                f"Confusion in tasks with few different answers, n = {total} samples of “{name}”. "
                "Rows: true answer (the commonest ones); columns: the model's; shade: share of "
                "the row.",
            )
        )
    wrong = [
        [task.replace("_", " "), c["truth"], c["said"] or "(nothing)", c["count"]]
        for task, counts in result["confusions"].items()
        if task not in result["matrix"]
        for c in counts[:3]
    ]
    if wrong:
        parts.append(
            figures.figure(
                table(["task", "true", "said", "times"], wrong, left=3),
                "The commonest wrong answers of the other tasks, three each.",
            )
        )
    return parts


def _question_grid(name: str, result: dict[str, Any], figures: Figures) -> str:
    items = [
        figures.image(e["image"], e["question"], "pixel")
        + f'<p class="ask">{escape(e["question"])}</p><p class="say {_class(e["right"])}">'
        + f"{escape(e['said']) or '(nothing)'}</p>"
        + (
            ""
            if e["said"] == e["truth"]
            else f'<p class="say faint">true: {escape(e["truth"])}</p>'
        )
        for e in result["examples"]
    ]
    return figures.figure(
        cards(items, "small"),
        f"{len(items)} held-out samples of “{name}”: of each task the first right and the first "
        "wrong answer, where there is one. Numbers in brackets are places: y, x in 1/256 of the "
        "image; the marks, green for the true place and red for the model's, are not in the "
        "picture that the model sees.",
    )


def _class(right: bool) -> str:
    return "good" if right else "bad"


def pointing(inputs: ReportInputs, figures: Figures) -> Markup:
    """Pointing on held-out pictures and on the robot's own camera."""
    title = "Pointing"
    rows: list[Sequence[Any]] = []
    for name, result in inputs.vqa:
        rows += [
            [
                f"pictures of “{name}”: {task['task'].replace('_', ' ')}",
                task["n"],
                "–",
                share_cell(task),
                number(task["median_px"]),
                task["malformed"],
            ]
            for task in result["tasks"]
            if task["kind"] == "point" and task["task"] not in OFFSET_UNITS
        ]
    shots: list[str] = []
    if inputs.pointing is not None:
        for pool, result in inputs.pointing["pools"].items():
            rows += [
                [
                    f"camera views, {pool_name(pool)}: {kind}",
                    result[kind]["n"],
                    share_cell(result[kind]["inside"]),
                    share_cell(result[kind]["within"]),
                    number(result[kind]["median_px"]),
                    result[kind]["malformed"],
                ]
                for kind in ("blocks", "mats")
                if result[kind]["n"]
            ]
            shots += [figures.image(path, "table-top view") for path in result["examples"][:4]]
    parts: list[str] = []
    if rows:
        header = ["where", "n", "inside the object", "within 6%", "median px", "no point"]
        parts.append(
            figures.figure(
                table(header, rows),
                "Answers to “point to the …”. Inside: in the object's box as projected into the "
                "picture. Within 6%: of the image's side from its centre. Median distance in "
                f"pixels of the image the model sees. {_INTERVALS}",
            )
        )
    if inputs.pointing is None:
        remedy = EVALUATE.format(inputs.main.workdir)
        parts.append(missing("Pointing on camera views was not measured. Run:", remedy))
    elif shots:
        parts.append(
            figures.figure(
                cards(shots),
                "Table-top views as the camera sees them. Boxes: where each object is; crosses of "
                "the same colour: where the model points when asked for it.",
            )
        )
    return section("pointing", title, *parts)
