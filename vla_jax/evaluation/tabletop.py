"""The table-top evaluators: rollouts and pointing, per concept pool."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.pool import EnvPool
from vla_jax.envs.tabletop.config import CONFIGS, TabletopConfig
from vla_jax.evaluation.base import EvaluationConfig, Result, divided, finite
from vla_jax.evaluation.pointing import measure_pointing, render_views
from vla_jax.evaluation.rollout import (
    Pool,
    make_agents,
    make_plans,
    run_episodes,
    summarize,
)
from vla_jax.evaluation.speed import Speed
from vla_jax.evaluation.videos import Videos

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

MakePool = Callable[[], AbstractContextManager[Pool]]


def make_pool(config: EvaluationConfig, episodes: int) -> EnvPool:
    """Simulators for up to `episodes` episodes at once."""
    return EnvPool(
        CONFIGS[config.world],
        num_envs=max(1, min(config.rollout_envs, episodes)),
        num_workers=config.rollout_workers,
    )


class RolloutEvaluator:
    """Closed-loop success per concept pool and task family, a random policy and the expert beside.

    On several processes each runs its share of the episodes, in simulators of its own.

    Args:
      config: how many episodes, which pools, seeds.
      start_pool: opens the simulators; None: those of the config.
    """

    name = "rollouts"

    def __init__(self, config: EvaluationConfig, start_pool: MakePool | None = None):
        self._config = config
        self._start_pool = start_pool or (lambda: make_pool(config, config.rollout_episodes))

    @property
    def world(self) -> TabletopConfig:
        return CONFIGS[self._config.world]

    def measure(self, policy: Policy, media: Path | None = None) -> Result:
        """See `Evaluator`. Raises ValueError if the policy's ActionSpec is not the world's."""
        config, speed = self._config, Speed()
        agents = make_agents(config, policy, self.world.action_spec, speed)
        bank = PictureBank()
        runs: list[dict[str, Any]] = []
        with self._start_pool() as pool:
            for concepts in config.pools:
                plans = make_plans(
                    config.rollout_episodes,
                    config.seed,
                    self.world.families,
                    bank.concepts(concepts),
                    pushes=config.pushes,
                    reasoning=config.reasoning,
                )
                for agent, act in agents.items():
                    videos = None
                    if media is not None and agent == "policy" and config.videos_per_outcome:
                        videos = Videos(media, concepts, config.videos_per_outcome)
                    begun = time.monotonic()
                    outcomes = run_episodes(
                        pool,
                        divided(plans),
                        act,
                        label=f"rollouts, {concepts} concepts, {agent}",
                        finished=videos.offer if videos else None,
                    )
                    outcomes = sorted(policy.gather(outcomes), key=lambda o: o.number)
                    runs.append(
                        {
                            "pool": concepts,
                            "agent": agent,
                            **summarize(outcomes),
                            "seconds": time.monotonic() - begun,
                            "videos": videos.saved if videos else [],
                        }
                    )
        scalars = {
            f"{run['pool']}/{run['agent']}/{row}": share["share"]
            for run in runs
            for row, share in [
                ("success", run["total"]),
                *((family["family"], family) for family in run["families"]),
            ]
            if share["share"] is not None
        }
        scalars |= {
            f"{run['pool']}/policy/plans_right": run["plans_right"]["share"]
            for run in runs
            if run["plans_right"]["n"]
        }
        rate = speed.measured()
        scalars |= finite({f"policy/{k}": v for k, v in rate.items() if k.startswith("actions")})
        return {
            "n": config.rollout_episodes,
            "world": config.world,
            "seed": config.seed,
            "max_steps": self.world.max_steps,
            "control_hz": self.world.control_hz,
            "speed": rate,
            "runs": runs,
            "scalars": scalars,
        }


class PointingEvaluator:
    """Pointing to blocks and mats on rendered table-top views, per concept pool.

    Args: as for `RolloutEvaluator`.
    """

    name = "pointing"

    def __init__(self, config: EvaluationConfig, start_pool: MakePool | None = None):
        self._config = config
        self._start_pool = start_pool or (lambda: make_pool(config, config.pointing_views))

    def measure(self, policy: Policy, media: Path | None = None) -> Result:
        """See `Evaluator`. Distances are in pixels of the camera image."""
        config, bank = self._config, PictureBank()
        families = CONFIGS[config.world].families
        pools: dict[str, Any] = {}
        with self._start_pool() as pool:
            for concepts in config.pools:
                plans = make_plans(
                    config.pointing_views, config.seed, families, bank.concepts(concepts)
                )
                views = render_views(pool, plans)
                pools[concepts] = measure_pointing(policy, views, label=concepts, media=media)
        scalars = {
            f"{name}/{kind}_{measure}": result[kind][measure]["share"]
            for name, result in pools.items()
            for kind in ("blocks", "mats")
            for measure in ("inside", "within")
            if result[kind]["n"]
        }
        return {"world": config.world, "seed": config.seed, "pools": pools, "scalars": scalars}
