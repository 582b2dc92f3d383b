"""Closed-loop success in every cell of the suites, all of their episodes in one pool."""

from __future__ import annotations

import collections
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_jax.envs.tabletop.config import CONFIGS, TabletopConfig
from vla_jax.evaluation.base import EvaluationConfig, Result, divided
from vla_jax.evaluation.media import Frame
from vla_jax.evaluation.rollout import Outcome, make_agents, run_episodes
from vla_jax.evaluation.statistics import share_of
from vla_jax.evaluation.suites.cells import Cell, cells_of, make_plans
from vla_jax.evaluation.tabletop import MakePool, make_pool
from vla_jax.evaluation.videos import Videos

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

_UNSEEN = ("objects", "backgrounds", "environments")
_EMERGENT = ("symbols", "reasoning", "people")


class SuiteEvaluator:
    """RT-2's evaluation suites: success per cell, and the averages of its tables.

    Args:
      config: how many episodes per cell, which suites, seed.
      start_pool: opens the simulators; None: those of the config.
    """

    name = "suites"

    def __init__(self, config: EvaluationConfig, start_pool: MakePool | None = None):
        self._config = config
        self._cells = cells_of(config.suites)
        episodes = config.suite_rollouts * len(self._cells)
        self._start_pool = start_pool or (lambda: make_pool(config, episodes))

    @property
    def world(self) -> TabletopConfig:
        return CONFIGS[self._config.world]

    def measure(self, policy: Policy, media: Path | None = None) -> Result:
        """See `Evaluator`. Raises ValueError if the policy's ActionSpec is not the world's.

        Returns:
          "cells": in the tables' order; "seconds" of a cell is its part of the wall time by steps.
          "averages": see `averages_of`.
        """
        config = self._config
        agents = make_agents(config, policy, self.world.action_spec)
        plans, cell_of = make_plans(
            self._cells, config.suite_rollouts, config.seed, self.world, config.suite_styles
        )
        videos: dict[str, Videos] = {}
        if media is not None and config.videos_per_outcome:
            videos = {
                cell.name: Videos(
                    *(media, f"suites_{cell.name}", config.videos_per_outcome), by_family=False
                )
                for cell in self._cells
            }

        def keep(outcome: Outcome, frames: list[Frame]) -> None:
            videos[cell_of[outcome.number].name].offer(outcome, frames)

        outcomes: dict[str, dict[str, list[Outcome]]] = {}
        seconds: dict[str, float] = {}
        with self._start_pool() as pool:
            for agent, act in agents.items():
                begun = time.monotonic()
                label = f"suites, {len(self._cells)} cells, {agent}"
                finished = keep if videos and agent == "policy" else None
                done = run_episodes(pool, divided(plans), act, label=label, finished=finished)
                done = policy.gather(done)
                seconds[agent] = time.monotonic() - begun
                outcomes[agent] = _by_cell(done, cell_of)
        steps = {name: sum(o.steps for o in found) for name, found in outcomes["policy"].items()}
        cells = []
        for cell in self._cells:
            row = _row(cell, outcomes["policy"].get(cell.name, []))
            part = steps.get(cell.name, 0) / max(1, sum(steps.values()))
            row["seconds"] = part * seconds["policy"]
            row["videos"] = videos[cell.name].saved if videos else []
            row["baselines"] = {
                agent: _share(by_cell.get(cell.name, []))
                for agent, by_cell in outcomes.items()
                if agent != "policy"
            }
            cells.append(row)
        averages = averages_of(cells)
        return {
            "world": config.world,
            "seed": config.seed,
            "n": config.suite_rollouts,
            "styles": config.suite_styles,
            "seconds": seconds,
            "cells": cells,
            "averages": averages,
            "scalars": _scalars(cells, averages),
        }


def averages_of(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the tables average, of cells as `SuiteEvaluator` gives them.

    "unseen": mean of the six cells, as in Table 6 of arXiv 2307.15818. "symbols", "reasoning",
    "people": means of their cells, and "emergent": mean of these three, as in Table 5. These are
    {"share"}. "web_only": all episodes about things that only the web data show, pooled, a `Share`.
    An average is left out if its cells are not all there.
    """
    by_group: dict[str, list[float]] = collections.defaultdict(list)
    for cell in cells:
        if cell["share"] is not None:
            by_group[cell["group"]].append(cell["share"])
    averages: dict[str, dict[str, Any]] = {}
    if all(group in by_group for group in _UNSEEN):
        averages["unseen"] = {"share": _mean([s for g in _UNSEEN for s in by_group[g]])}
    if all(group in by_group for group in _EMERGENT):
        groups = {group: _mean(by_group[group]) for group in _EMERGENT}
        averages |= {group: {"share": share} for group, share in groups.items()}
        averages["emergent"] = {"share": _mean(list(groups.values()))}
    web = [cell for cell in cells if cell["concepts"] == "web"]
    if web:
        count, n = sum(c["count"] for c in web), sum(c["n"] for c in web)
        averages["web_only"] = {**share_of(count, n)}
    return averages


def table(result: Result) -> str:
    """Lines for people: each cell's share and interval, the published ones beside it."""
    lines = [
        f"{'':34s} {'count':>7s} {'share':>6s}  {'95%':>9s}   for orientation, another robot: "
        "RT-2-PaLI-X-55B, RT-2-PaLM-E-12B, RT-1"
    ]
    for cell in result["cells"]:
        published = ", ".join(f"{value}%" for value in cell["paper"].values()) or "-"
        count = f"{cell['count']}/{cell['n']}"
        lines.append(f"{cell['title']:34s} {count:>7s} {_percent(cell)}   {published}")
    for name, average in result["averages"].items():
        count = f"{average['count']}/{average['n']}" if "n" in average else ""
        lines.append(f"{'average, ' + name:34s} {count:>7s} {_percent(average)}")
    return "\n".join(lines)


def _percent(share: Mapping[str, Any]) -> str:
    shown = "-" if share["share"] is None else f"{share['share']:.0%}"
    between = f"{share['low']:.0%}-{share['high']:.0%}" if "low" in share else ""
    return f"{shown:>6s}  {between:>9s}"


def _by_cell(outcomes: Sequence[Outcome], cell_of: Mapping[int, Cell]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = collections.defaultdict(list)
    for outcome in outcomes:
        found[cell_of[outcome.number].name].append(outcome)
    return dict(found)


def _row(cell: Cell, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    instructions: dict[str, list[int]] = {}
    for outcome in outcomes:
        counted = instructions.setdefault(outcome.instruction, [0, 0])
        counted[0] += outcome.success
        counted[1] += 1
    return {
        "suite": cell.suite,
        "group": cell.group,
        "cell": cell.name,
        "title": cell.title,
        "concepts": cell.concepts,
        "paper": cell.published,
        **_share(outcomes),
        "instructions": instructions,
    }


def _share(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {**share_of(sum(o.success for o in outcomes), len(outcomes))}


def _scalars(
    cells: Sequence[Mapping[str, Any]], averages: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """`CELL/policy`, `CELL/random`, `CELL/expert`, `average/NAME`."""
    scalars = {f"{cell['cell']}/policy": cell["share"] for cell in cells}
    scalars |= {
        f"{cell['cell']}/{agent}": share["share"]
        for cell in cells
        for agent, share in cell["baselines"].items()
    }
    scalars |= {f"average/{name}": average["share"] for name, average in averages.items()}
    return {name: value for name, value in scalars.items() if value is not None}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
