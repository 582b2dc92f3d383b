"""Meta-World MT50 in closed loop, by the protocol of published results.

So many trials of each task, 500 steps at most, ended by the first success; objects and goal are
drawn anew in each. Two means: over the tasks, and over the four tiers, which is what published
tables call the average.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from vla_jax.envs.metaworld.config import MetaworldConfig
from vla_jax.envs.metaworld.tasks import TASKS, TIERS, find_tasks
from vla_jax.envs.pool import EnvPool
from vla_jax.evaluation.base import EvaluationConfig, Result, divided, read_lines
from vla_jax.evaluation.media import Frame
from vla_jax.evaluation.rollout import (
    Agent,
    Outcome,
    Plan,
    Pool,
    make_agents,
    run_episodes,
    summarize,
)
from vla_jax.evaluation.statistics import Share, mean_of, share_of
from vla_jax.evaluation.videos import Videos
from vla_jax.types import Params

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

TRIALS_FILE = "metaworld_trials.jsonl"

# Settings that a trial's outcome depends on.
_DECISIVE = ("seed", "action_temperature", "execute_steps", "ensemble_decay")


class Published(NamedTuple):
    """Success in % per tier as printed, 10 trials a task, policies trained on 50 episodes a task.

    `average` is of the four tiers.
    """

    policy: str
    easy: float
    medium: float
    hard: float
    very_hard: float
    average: float


PUBLISHED = (
    # SmolVLA (arXiv 2506.01844), table 2.
    Published("Diffusion Policy", 23.1, 10.7, 1.9, 6.1, 10.5),
    Published("TinyVLA", 77.6, 21.5, 11.4, 15.8, 31.6),
    Published("π0 3.5B, trained on robots before", 71.8, 48.2, 41.7, 30.0, 47.9),
    Published("π0 3.5B, from PaliGemma", 80.4, 40.9, 36.7, 44.0, 50.5),
    Published("SmolVLA 0.24B", 86.43, 46.36, 35.0, 60.0, 56.95),
    Published("SmolVLA 0.45B", 82.5, 41.8, 45.0, 60.0, 57.3),
    Published("SmolVLA 2.25B", 87.14, 51.82, 70.0, 64.0, 68.24),
    # Evo-1 (arXiv 2511.04555).
    Published("Evo-1 0.77B", 89.2, 76.8, 77.2, 79.2, 80.6),
)


def score_tiers(shares: Mapping[str, Share]) -> Result:
    """The two means over the shares of tasks, by name.

    Returns:
      "tiers": one share per tier that has tasks, all its trials together, with the number of
      "tasks" and how many the tier has ("of"). "tier_mean": the mean of the four tiers with its
      interval; None unless each has tasks. "task_mean": of all tasks, as `mean_of` has it.
    """
    rows: list[dict[str, Any]] = []
    for tier in TIERS:
        mine = [share for name, share in shares.items() if TASKS[name].tier == tier]
        if not mine:
            continue
        together = share_of(sum(s["count"] for s in mine), sum(s["n"] for s in mine))
        size = sum(task.tier == tier for task in TASKS.values())
        rows.append({"tier": tier, "tasks": len(mine), "of": size, **together})
    return {
        "tiers": rows,
        "tier_mean": mean_of([_share(row) for row in rows]) if len(rows) == len(TIERS) else None,
        "task_mean": mean_of(list(shares.values())),
    }


def _share(row: dict[str, Any]) -> Share:
    return share_of(row["count"], row["n"])


class MetaworldEvaluator:
    """Closed-loop success per task and tier.

    An evaluation that was killed goes on with the trials that are missing: each is written to
    `metaworld_trials.jsonl`, beside the results, as soon as it ends. Trials of another policy or
    of other settings there are replaced.

    Attributes:
      world: of the simulators.

    Args:
      config: which tasks, how many trials, seeds. Trial e of each task has seed + e.
      image_size: of the pictures that the policy is shown, pixels.
      start_pool: opens the simulators; None: those of the config.
    """

    name = "metaworld"

    def __init__(
        self,
        config: EvaluationConfig,
        image_size: int,
        start_pool: Callable[[], AbstractContextManager[Pool]] | None = None,
    ):
        self._config = config
        self._tasks = find_tasks(config.tasks)
        self.world = MetaworldConfig(image_size=image_size)
        self._start_pool = start_pool or self._open

    def _open(self) -> EnvPool:
        episodes = len(self._tasks) * self._config.trials
        return EnvPool(
            self.world,
            num_envs=min(self._config.rollout_envs, episodes),
            num_workers=self._config.rollout_workers,
        )

    def plans(self) -> list[Plan]:
        """Round by round through the tasks, so that the first figures shown are of all of them.

        Numbers and seeds do not depend on which tasks are asked for.
        """
        order, config = list(TASKS), self._config
        return [
            Plan(
                order.index(task.name) + trial * len(order),
                config.seed + trial,
                {"task": task.name},
            )
            for trial in range(config.trials)
            for task in self._tasks
        ]

    def measure(self, policy: Policy, media: Path | None = None) -> Result:
        """See `Evaluator`. Raises ValueError if the policy's ActionSpec is not the world's."""
        config = self._config
        agents = make_agents(config, policy, self.world.action_spec)
        log = _Trials(media and media.parent / TRIALS_FILE, self._key(policy))
        runs = [self._run(agent, act, policy, log, media) for agent, act in agents.items()]
        scalars = {
            f"{run['agent']}/{name}": share["share"]
            for run in runs
            for name, share in [
                ("tier_mean", run["tier_mean"]),
                ("task_mean", run["task_mean"]),
                *((row["tier"], row) for row in run["tiers"]),
                *((row["family"], row) for row in run["families"]),
            ]
            if share is not None
        }
        return {
            "trials": config.trials,
            "tasks": [dataclasses.asdict(task) for task in self._tasks],
            "seed": config.seed,
            "image_size": self.world.image_size,
            "max_steps": self.world.max_steps,
            "control_hz": self.world.control_hz,
            "runs": runs,
            "published": [row._asdict() for row in PUBLISHED],
            "scalars": scalars,
        }

    def _run(
        self, agent: str, act: Agent, policy: Policy, log: _Trials, media: Path | None
    ) -> dict[str, Any]:
        plans = self.plans()
        done, clips = log.done(agent, plans)
        # Process 0 alone keeps a file.
        done = {o.number: o for o in policy.gather(list(done.values()))}
        missing = [plan for plan in plans if plan.number not in done]
        label = f"Meta-World, {agent}"
        if done:
            print(f"{label}: {len(done)} of {len(plans)} trials are done already", flush=True)
        videos = None
        if media is not None and agent == "policy" and self._config.videos_per_outcome:
            step_ms = 1000 / self.world.control_hz
            per_outcome = self._config.videos_per_outcome
            videos = Videos(media, "metaworld", per_outcome, step_ms=step_ms, saved=clips)

        def finished(outcome: Outcome, frames: list[Frame]) -> None:
            before = len(videos.saved) if videos else 0
            if videos:
                videos.offer(outcome, frames)
            log.add(agent, outcome, videos.saved[before:] if videos else [])

        begun = time.monotonic()
        if missing:
            with self._start_pool() as pool:
                found = run_episodes(pool, divided(missing), act, label=label, finished=finished)
            done |= {o.number: o for o in policy.gather(found)}
        summary = summarize([done[plan.number] for plan in plans])
        return {
            "agent": agent,
            **summary,
            **score_tiers({row["family"]: _share(row) for row in summary["families"]}),
            "seconds": time.monotonic() - begun,
            "videos": videos.saved if videos else [],
        }

    def _key(self, policy: Policy) -> Result:
        """What trials depend on."""
        sums = [int(x) for x in jax.tree.leaves(_bit_sums(policy.params))]
        return {
            "policy": hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16],
            "image_size": self.world.image_size,
            **{name: getattr(self._config, name) for name in _DECISIVE},
        }


@jax.jit
def _bit_sums(params: Params) -> Params:
    """A number that depends on every bit of each leaf, wherever its parts lie; uint32."""

    def of(leaf: jax.Array) -> jax.Array:
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32).reshape(-1)
        return (bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)

    return jax.tree.map(of, params)


class _Trials:
    """The file of finished trials: a line that says what they depend on, then one line each.

    Args:
      path: None: keeps none.
      key: see `MetaworldEvaluator`.
    """

    def __init__(self, path: Path | None, key: Result):
        self._path = path
        self._lines: list[dict[str, Any]] = []
        if path is None:
            return
        head = json.loads(json.dumps(key))
        lines = read_lines(path)
        if lines and lines[0] == head:
            self._lines = lines[1:]
        elif lines:
            print(f"{path.name}: of another policy or other settings; replaced", flush=True)
        # Also drops a line that was cut off.
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in [head, *self._lines]))
        partial.replace(path)

    def done(self, agent: str, plans: Sequence[Plan]) -> tuple[dict[int, Outcome], list[Any]]:
        """Outcomes of these trials by number, and videos of any trial of their tasks."""
        numbers = {plan.number for plan in plans}
        tasks = {plan.options["task"] for plan in plans}
        mine = [line for line in self._lines if line["agent"] == agent]
        outcomes = [Outcome(**line["outcome"]) for line in mine]
        clips = [clip for line in mine for clip in line["videos"] if clip["family"] in tasks]
        return {o.number: o for o in outcomes if o.number in numbers}, clips

    def add(self, agent: str, outcome: Outcome, videos: list[dict[str, Any]]) -> None:
        if self._path is None:
            return
        line = {"agent": agent, "outcome": dataclasses.asdict(outcome), "videos": videos}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
