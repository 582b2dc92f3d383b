"""The sections about Meta-World."""

from __future__ import annotations

from html import escape
from typing import Any

from vla_jax.evaluation.report.inputs import ReportInputs
from vla_jax.evaluation.report.results import AGENTS, verdict
from vla_jax.page.markup import (
    Figures,
    Markup,
    cards,
    paragraph,
    percent,
    section,
    share_cell,
    table,
)
from vla_jax.page.plots import Bar, bar_rows

_TIERS = {"easy": "easy", "medium": "medium", "hard": "hard", "very_hard": "very hard"}


def tiles(inputs: ReportInputs) -> list[tuple[str, str, str]]:
    """(what, figure, detail) for the top of the page."""
    if inputs.metaworld is None:
        return []
    run = _policy_run(inputs.metaworld)
    tasks, trials = len(inputs.metaworld["tasks"]), inputs.metaworld["trials"]
    found = []
    for name, key in (("mean of the four tiers", "tier_mean"), ("mean of all tasks", "task_mean")):
        mean = run[key]
        if mean is not None:
            interval = f"95% {100 * mean['low']:.0f}–{100 * mean['high']:.0f}"
            detail = f"{interval}, {tasks} of 50 tasks, {trials} trials each"
            found.append((f"Meta-World, {name}", percent(mean["share"], 1), detail))
    return found


def sections(inputs: ReportInputs, figures: Figures) -> list[Markup]:
    """Tiers beside published policies, bars of each task, videos. None if it was not measured."""
    result = inputs.metaworld
    if result is None:
        return []
    return [
        section(
            "metaworld",
            "Meta-World",
            paragraph(
                "Tasks of Meta-World MT50 in closed loop. The policy sees one camera picture, the "
                "instruction and, if it was trained with it, the hand's position and opening. "
                "Objects and goal are drawn anew in each trial; a trial ends with the first "
                "success or fails at the time limit."
            ),
            figures.figure(_tier_table(result), _tier_caption(result)),
            figures.figure(
                bar_rows(_groups(result), x_label="success, % of trials"),
                f"Success of each task, n = {result['trials']} trials each. Lines: 95% Wilson "
                "intervals. At the right: the policy.",
            ),
            *_videos(result, figures),
        )
    ]


def _policy_run(result: dict[str, Any]) -> dict[str, Any]:
    return next(run for run in result["runs"] if run["agent"] == "policy")


def _tier_table(result: dict[str, Any]) -> Markup:
    header = ["policy", *_TIERS.values(), "mean of tiers", "mean of tasks"]
    rows: list[list[Any]] = [
        [row["policy"], *(f"{row[tier]:.1f}%" for tier in _TIERS), f"{row['average']:.1f}%", "–"]
        for row in result["published"]
    ]
    names = {"policy": "this policy", "random": "random actions", "expert": "scripted experts"}
    runs = sorted(result["runs"], key=lambda run: -AGENTS.index(run["agent"]))
    for run in runs:
        tiers = {row["tier"]: row for row in run["tiers"]}
        rows.append(
            [
                names[run["agent"]],
                *(_tier_cell(tiers.get(tier)) for tier in _TIERS),
                share_cell(run["tier_mean"]),
                share_cell(run["task_mean"]),
            ]
        )
    return table(header, rows, total_rows=len(runs))


def _tier_cell(row: dict[str, Any] | None) -> Markup:
    part = ""
    if row and row["tasks"] < row["of"]:
        part = f' <span class="faint">{row["tasks"]} of {row["of"]} tasks</span>'
    return Markup(share_cell(row) + part)


def _tier_caption(result: dict[str, Any]) -> str:
    last = result["seed"] + result["trials"] - 1
    tasks = len(result["tasks"])
    partly = (
        ""
        if tasks == 50
        else f"Only {tasks} of the 50 tasks were run: not comparable with the rows above. "
    )
    steps = ", ".join(f"{run['agent']} {run['mean_steps']:.0f}" for run in result["runs"])
    lost = sum(run["lost_and_rerun"] for run in result["runs"])
    return (
        f"{partly}Success in %. Above: as published, for orientation (SmolVLA, arXiv 2506.01844, "
        "table 2; Evo-1, arXiv 2511.04555): 10 trials a task, policies trained on 50 episodes a "
        "task. Their average is the mean of the four tiers, whatever number of tasks each has. "
        f"Below: this run, {result['trials']} trials of each task, seeds {result['seed']}–{last}, "
        f"pictures of {result['image_size']} px, at most {result['max_steps']} steps at "
        f"{result['control_hz']:g} Hz. Small figures: 95% Wilson intervals, those of means made "
        f"from them. Mean steps: {steps}. Trials lost with a worker and run again: {lost}."
    )


def _groups(result: dict[str, Any]) -> list[tuple[str, list[tuple[str, list[Bar]]]]]:
    runs = {run["agent"]: run for run in result["runs"]}
    agents = [agent for agent in AGENTS if agent in runs]
    shares = {a: {row["family"]: row for row in runs[a]["families"]} for a in agents}
    groups = []
    for tier, name in _TIERS.items():
        rows = [
            (
                task["name"].removesuffix("-v3"),
                [
                    Bar(a, share["share"], share["low"], share["high"])
                    for a in agents
                    if (share := shares[a].get(task["name"]))
                ],
            )
            for task in result["tasks"]
            if task["tier"] == tier
        ]
        if rows:
            groups.append((name, rows))
    return groups


def _videos(result: dict[str, Any], figures: Figures) -> list[Markup]:
    clips = sorted(_policy_run(result)["videos"], key=lambda c: (c["family"], not c["success"]))
    if not clips:
        return []
    items = [
        figures.image(clip["path"], clip["instruction"])
        + f'<div class="tags">{verdict(clip["success"])}<span>{escape(clip["family"])}</span>'
        f"<span>{clip['steps']} steps</span><span>seed {clip['seed']}</span></div>"
        for clip in clips
    ]
    return [
        figures.figure(
            cards(items, "large"),
            f"{len(clips)} trials: of each task the first success and the first failure that "
            "ended, where there was one. Each frame is the picture the policy saw, with the "
            "action tokens it answered.",
        )
    ]
