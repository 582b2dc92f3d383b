"""Measures the table-top world: the expert, the expert disturbed as in recording, a random policy.

    python tools/measure_tabletop.py [--config demo] [--episodes 100] [--random 60] [--seed 0]

Prints, per kind of instruction, the share of successes with its 95% interval (Wilson) and the
number of control steps per episode; then how many control steps a second one core makes, pictures
included.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np

from vla_jax.envs.episodes import disturbed
from vla_jax.envs.gl import choose_backend
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.evaluation.statistics import share_of

choose_backend()  # MuJoCo reads the choice when it is imported

from vla_jax.envs.tabletop.env import TabletopEnv  # noqa: E402
from vla_jax.envs.tabletop.expert import Expert  # noqa: E402

Act = Callable[[TabletopEnv, np.random.Generator], np.ndarray]

_EXPERT = Expert()


def clean(env: TabletopEnv, rng: np.random.Generator) -> np.ndarray:
    return _EXPERT.action(env)


def noisy(env: TabletopEnv, rng: np.random.Generator) -> np.ndarray:
    return disturbed(_EXPERT.action(env), rng)


def at_random(env: TabletopEnv, rng: np.random.Generator) -> np.ndarray:
    """Uniform in the action's bounds, but never terminates."""
    action = rng.uniform(env.action_spec.low, env.action_spec.high).astype(np.float32)
    action[0] = 0
    return action


def episode(env: TabletopEnv, act: Act, family: str, seed: int) -> tuple[bool, int]:
    """(success, control steps)."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed, options={"family": family})
    steps, done = 0, False
    while not done:
        _, _, terminated, truncated, info = env.step(act(env, rng))
        steps, done = steps + 1, terminated or truncated
    return info["success"], steps


def measure(env: TabletopEnv, name: str, act: Act, episodes: int, seed: int) -> float:
    """Prints a line per family; returns control steps per second of processor time."""
    total, begun = 0, time.process_time()
    for family in env.config.families:
        results = [episode(env, act, family, seed + k) for k in range(episodes)]
        total += sum(steps for _, steps in results)
        share = share_of(sum(success for success, _ in results), episodes)
        failed = [seed + k for k, (success, _) in enumerate(results) if not success]
        print(
            f"{name:8} {family:5} {share['count']:4}/{share['n']:<4} "
            f"{share['count'] / share['n']:6.1%}  [{share['low']:.1%}, {share['high']:.1%}]  "
            f"{np.mean([steps for _, steps in results]):5.1f} steps"
            + (f"   failed: {failed[:8]}" if failed and act is not at_random else ""),
            flush=True,
        )
    return total / (time.process_time() - begun)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="demo", choices=sorted(CONFIGS))
    parser.add_argument("--episodes", type=int, default=100, help="of the expert, per family")
    parser.add_argument("--random", type=int, default=60, help="of the random policy, per family")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env = TabletopEnv(CONFIGS[args.config])
    print(f"table-top {args.config!r}, seed {args.seed}")
    rates = []
    for name, act, episodes in (
        ("clean", clean, args.episodes),
        ("noisy", noisy, args.episodes),
        ("random", at_random, args.random),
    ):
        if episodes > 0:
            rates.append(measure(env, name, act, episodes, args.seed))
    print(f"{rates[0]:.0f} control steps a second of one core, pictures and resets included")
    env.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
