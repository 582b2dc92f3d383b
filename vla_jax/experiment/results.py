"""`results.json`: what the cells of an experiment have measured, and the differences."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from vla_jax import schema
from vla_jax.evaluation.base import Result, read_result
from vla_jax.evaluation.provenance import git_commit
from vla_jax.evaluation.statistics import Estimate, Share, combine, mean_of, share_of
from vla_jax.experiment.description import COMPARED, Cell, Episodes, Experiment, Pictures
from vla_jax.experiment.paper import GROUPS
from vla_jax.experiment.run import Stages
from vla_jax.experiment.stages import cell_directory

MEASURES = {
    "seen": "seen tasks",
    "unseen": "unseen, average",
    "emergent": "emergent, average",
    "web_only": "web-only concepts",
    "control": "control",
    "rollouts_robot": "new layouts, seen concepts",
    "rollouts_web_only": "new layouts, web-only concepts",
    "vqa": "questions right",
    "vqa_all": "answers right",
    "action_tokens": "action tokens right",
}
"""In tables. "vqa": answered in words; "vqa_all": places, boxes, names and captions, too."""
NAMES = MEASURES | {
    "rollouts": "new layouts, all",
    "reasoning": "suite of reasoning, average",
    "plans_robot": "plans right, seen concepts",
    "plans_web_only": "plans right, web-only concepts",
}
"""Of all measures, also those that only some tables show."""
FIGURES = {
    "robot_actions_per_s": ("actions/s, one robot", "{:.1f}"),
    "actions_per_s": ("actions/s, all robots of a call", "{:.0f}"),
    "calls_per_action": ("model calls per action", "{:.2f}"),
}
"""What is no share -> what it is called, and how it is written."""


class CellResult(TypedDict):
    """One cell.

    Attributes:
      done: whether it is finished, with the settings asked for; the rest is there only then.
      suites: the suites' cells as they were measured.
      measures: name in `NAMES` or of a group -> share with its 95% interval.
      figures: name in `FIGURES` -> number.
      videos: of the suites' cells, or else of the rollouts: {"title", "clips"}, the clips as the
        evaluation lists them.
      trained_by: name of the cell whose training it is.
      samples, robot_samples: seen in training.
      parts: names of the stages.
    """

    name: str
    size: str
    training: str
    web_share: float
    batch_size: int
    tables: list[str]
    done: bool
    parts: list[str]
    directory: str
    suites: list[dict[str, Any]]
    measures: dict[str, Estimate | Share]
    figures: dict[str, float]
    videos: list[dict[str, Any]]
    trained_by: str
    samples: NotRequired[int]
    robot_samples: NotRequired[float]
    device: NotRequired[str]
    seeds: NotRequired[dict[str, Any]]


def collect(experiment: Experiment, out: Path, stages: Stages, names: Sequence[str]) -> Result:
    """Everything that `results.json` holds.

    Args:
      stages: with those of at least the cells in `names`.
      names: of cells; others are listed as not run.

    Raises ValueError for a result that is not JSON.
    """
    cells = [_cell(experiment, out, stages, c, c.name in names) for c in experiment.cells]
    by_name = {cell["name"]: cell for cell in cells}
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "lead": experiment.lead,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "git": git_commit(),
        "world": experiment.world,
        "updates": experiment.updates,
        "robot_rows": experiment.robot_rows,
        "main": experiment.main,
        "tables": schema.to_plain(experiment.tables),
        "cells": cells,
        "comparisons": [
            difference
            for c in experiment.comparisons
            for difference in compare(
                by_name[c.cell], by_name[c.baseline], measures=experiment.compared
            )
        ],
        "stages": stages.summary(),
    }


def compare(
    cell: CellResult, baseline: CellResult, *, measures: Sequence[str] = COMPARED
) -> list[dict[str, Any]]:
    """`cell` minus `baseline` in every one of these measures that both have.

    Of two plain shares this is Newcombe's hybrid score interval, see `statistics.combine`. It takes
    the two as independent; layouts and tasks are the same in both.
    """
    found = []
    for name in measures:
        pair = [side["measures"].get(name) for side in (cell, baseline)]
        parts = [part for part in pair if part is not None and part["share"] is not None]
        if len(parts) < 2:
            continue
        difference = combine((1, -1), parts)
        entry = {
            "cell": cell["name"],
            "baseline": baseline["name"],
            "size": cell["size"],
            "trainings": [cell["training"], baseline["training"]],
            "measure": name,
            "shares": [part["share"] for part in parts],
            **difference,
            "excludes_zero": difference["low"] > 0 or difference["high"] < 0,
        }
        found.append({**entry, "sentence": _sentence(entry)})
    return found


def _sentence(entry: dict[str, Any]) -> str:
    one, other = entry["trainings"]
    shares = " against ".join(f"{100 * share:.0f}%" for share in entry["shares"])
    points, low, high = (100 * entry[key] for key in ("share", "low", "high"))
    verdict = "excludes" if entry["excludes_zero"] else "does not exclude"
    return (
        f"{entry['size']}, {NAMES[entry['measure']]}: {one} minus {other} is {points:+.0f} "
        f"points ({shares}; 95% interval {low:+.0f} to {high:+.0f}), which {verdict} zero."
    )


def _cell(experiment: Experiment, out: Path, stages: Stages, cell: Cell, asked: bool) -> CellResult:
    directory, trainer = cell_directory(out, cell), experiment.trainer(cell)
    result = CellResult(
        name=cell.name,
        size=experiment.sizes[cell.size].label,
        training=cell.training,
        web_share=1 - experiment.robot_share(cell),
        batch_size=experiment.batch_size(cell),
        tables=list(cell.tables),
        done=asked and stages.done(f"evaluate/{cell.name}"),
        parts=[f"train/{trainer.name}", f"evaluate/{cell.name}"],
        directory=directory.relative_to(out).as_posix(),
        suites=[],
        measures={},
        figures={},
        videos=[],
        trained_by=trainer.name,
    )
    if not result["done"]:
        return result
    evaluation = directory / "evaluation"
    suites = _read(evaluation / "suites.json")
    if suites:
        result["suites"] = [c | _estimate(c) for c in suites["cells"]]
        result["measures"] |= suite_measures(suites)
    rollouts = _read(evaluation / "rollouts.json") or {}
    runs = {run["pool"]: run for run in rollouts.get("runs", ()) if run["agent"] == "policy"}
    result["measures"] |= _rollout_measures(runs)
    result["measures"] |= _answer_measures(experiment.data, experiment.sources(cell), evaluation)
    result["figures"] = _figures(rollouts.get("speed") or {})
    result["videos"] = [
        {"title": c["title"], "clips": c.get("videos", [])} for c in result["suites"]
    ] or [
        {"title": NAMES[f"rollouts_{pool}"], "clips": run.get("videos", [])}
        for pool, run in runs.items()
    ]
    config = _read(cell_directory(out, trainer) / "config.json")
    run = _read(evaluation / "run.json") or {}
    result["samples"] = config["train"]["steps"] * config["train"]["batch_size"]
    result["robot_samples"] = result["samples"] * experiment.robot_share(cell)
    result["device"] = run.get("device", "?")
    result["seeds"] = {
        "parameters": config["train"]["seed"],
        "data order": config["data"]["seed"],
        "evaluation": run.get("settings", {}).get("seed"),
    }
    return result


def suite_measures(suites: dict[str, Any]) -> dict[str, Estimate | Share]:
    """Averages of a `suites.json`, each with its interval.

    As in the paper: unseen is the mean of its six columns, emergent that of its three groups, each
    the mean of its cells.
    """

    def mean(chosen: Callable[[dict[str, Any]], bool]) -> Estimate:
        return mean_of([_estimate(cell) for cell in suites["cells"] if chosen(cell)])

    measures: dict[str, Estimate | Share] = {
        suite: mean(lambda cell, suite=suite: cell["suite"] == suite)
        for suite in ("seen", "unseen", "control")
    }
    groups = {
        group: mean(lambda c, group=group: c["suite"] == "emergent" and c["group"] == group)
        for group in GROUPS
    }
    measures |= groups | {"emergent": mean_of(list(groups.values()))}
    if web_only := suites["averages"].get("web_only"):
        measures["web_only"] = _estimate(web_only)
    return _measured(measures)


def _rollout_measures(runs: Mapping[str, dict[str, Any]]) -> dict[str, Estimate | Share]:
    """Of the policy's runs by pool of concepts."""
    measures: dict[str, Estimate | Share] = {}
    for pool, run in runs.items():
        measures[f"rollouts_{pool}"] = _estimate(run["total"])
        if plans := run.get("plans_right"):
            measures[f"plans_{pool}"] = _estimate(plans)
    totals = [run["total"] for run in runs.values()]
    if len(totals) > 1:
        measures["rollouts"] = share_of(*(sum(t[key] for t in totals) for key in ("count", "n")))
    return _measured(measures)


def _answer_measures(
    data: Mapping[str, Episodes | Pictures], sources: Mapping[str, str], evaluation: Path
) -> dict[str, Estimate | Share]:
    measures: dict[str, Estimate | Share] = {}
    for name, source in sources.items():
        kind, keys = "actions", {"action_tokens": "token_accuracy"}
        if isinstance(data[name], Pictures):
            kind, keys = "vqa", {"vqa": "questions", "vqa_all": "right"}
        found = _read(evaluation / f"{kind}_{source}.json") or {}
        for measure, key in keys.items():
            if key in found and measure not in measures:
                measures[measure] = _estimate(found[key])
    return _measured(measures)


def _figures(speed: dict[str, Any]) -> dict[str, float]:
    """Of the rollouts' `speed`, what could be measured."""
    figures = {name: speed.get(name) for name in FIGURES}
    if per_look := speed.get("actions_per_prediction"):
        figures["calls_per_action"] = 1 / per_look
    return {name: value for name, value in figures.items() if value is not None}


def _measured(measures: dict[str, Estimate | Share]) -> dict[str, Estimate | Share]:
    return {name: value for name, value in measures.items() if value["share"] is not None}


def _estimate(entry: dict[str, Any]) -> Estimate | Share:
    """With `count` and `n` the interval is made from them, whatever the file says."""
    if "count" in entry:
        return share_of(entry["count"], entry["n"])
    return Estimate(share=entry["share"], low=entry["low"], high=entry["high"])


def _read(path: Path) -> Any:
    return read_result(path, "delete it and run again with --redo")
