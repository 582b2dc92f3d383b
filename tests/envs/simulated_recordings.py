"""What `recordings_test.py` looks at, gathered in a process of its own and printed as JSON.

A test process may have loaded TensorFlow for other tests, and then must not render.

    python tests/envs/simulated_recordings.py
"""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import numpy as np

from vla_jax.corpus.pictures import PictureBank
from vla_jax.envs.episodes import Recording, disturbed, record
from vla_jax.envs.gl import choose_backend
from vla_jax.envs.tabletop.config import TabletopConfig

choose_backend()

from vla_jax.envs.tabletop.env import TabletopEnv  # noqa: E402
from vla_jax.envs.tabletop.expert import Expert  # noqa: E402

BLANK = np.zeros((16, 16, 3), np.uint8)
SEEDS = range(40_000, 40_012)


def digest(episode: dict[str, Any] | None) -> str:
    """Of everything in an episode: names, types and bytes."""
    assert episode is not None
    parts = [(k, np.asarray(v).dtype.str, np.asarray(v).tobytes()) for k, v in episode.items()]
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()


def plain(env: TabletopEnv, expert: Expert, seed: int) -> dict[str, Any]:
    """An episode by a loop that knows of neither plans nor pushes."""
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    states, actions, done = [], [], False
    while not done:
        states.append(observation["state"])
        actions.append(expert.action(env))
        observation, _, terminated, truncated, _ = env.step(disturbed(actions[-1], rng))
        done = terminated or truncated
    return {
        "state": np.asarray(states, np.float32),
        "action": np.asarray(actions, np.float32),
        "instruction": env.task.instruction,
    }


def as_usual(env: TabletopEnv, expert: Expert) -> dict[str, Any]:
    """Recordings without the new flags, beside the plain loop's."""
    recorded = [record(env, expert, seed) for seed in SEEDS[:3]]
    looped = [plain(env, expert, seed) for seed in SEEDS[:3]]
    return {
        "keys": sorted(set().union(*(e or {} for e in recorded))),
        "same": [
            all(np.array_equal(looped[i][k], (recorded[i] or {})[k]) for k in looped[i])
            for i in range(3)
        ],
        # Plain instructions with plans are the same episodes.
        "planned": [
            digest({k: v for k, v in (episode or {}).items() if k != "plan"}) == digest(usual)
            for episode, usual in zip(
                (record(env, expert, s, recording=Recording(plans=0.0)) for s in SEEDS[:3]),
                recorded,
            )
        ],
    }


def watched(env: TabletopEnv, expert: Expert, seed: int) -> dict[str, Any]:
    """A pushed episode as recorded, and what the expert said at each of its states."""
    said = []

    class Spy:
        def action(self, env):
            said.append((expert.action(env), env.world.tool_position, len(env._mishaps)))
            return said[-1][0]

    episode = record(env, Spy(), seed, recording=Recording(recovery=1.0))
    if episode is None:
        return {"recorded": False}
    actions, tools, pushed = (np.asarray(column) for column in zip(*said))
    commanded = episode["action"][:, 1:4]
    jumps = np.linalg.norm((episode["state"][1:, :3] - episode["state"][:-1, :3]) - commanded[:-1],
                           axis=1)  # fmt: skip
    return {
        "recorded": True,
        "the expert's": bool(np.array_equal(actions, episode["action"])),
        "after the push": bool(np.allclose(tools, episode["state"][:, :3], atol=1e-6)),
        "pushes": episode["pushes"],
        "mishaps": list(env._mishaps),
        "jumps": jumps[np.diff(pushed) > 0].tolist(),
        "still": jumps[np.diff(pushed) == 0].tolist(),
        "again": digest(record(env, expert, seed, recording=Recording(recovery=1.0)))
        == digest(episode),
    }


def clean(env: TabletopEnv, expert: Expert, seed: int, options: dict) -> dict[str, Any]:
    """What the expert does without noise."""
    env.reset(seed=seed, options=options)
    scene, states, done = str(env.world.layout) + str(env.task), [], False
    while not done:
        observation, _, terminated, truncated, info = env.step(expert.action(env))
        states.append(observation["state"].tolist())
        done = terminated or truncated
    return {
        "scene": scene,
        "states": states,
        "mishaps": list(env._mishaps),
        "info pushes": info["pushes"],
        "success": info["success"],
    }


def recovery(env: TabletopEnv, expert: Expert) -> dict[str, Any]:
    runs = [
        [clean(env, expert, s, {"pushes": n, "family": f}) for n in (0, 1, 2)]
        for f in env.config.families
        for s in SEEDS[:5]
    ]
    twice = [clean(env, expert, SEEDS[0], {"pushes": 1}) for _ in range(2)]
    return {
        "same scene": all(len({run["scene"] for run in row}) == 1 for row in runs),
        "same start": all(row[0]["states"][0] == row[1]["states"][0] for row in runs),
        "pushes": [[len(run["mishaps"]) for run in row] for row in runs],
        "told": all(len(run["mishaps"]) == run["info pushes"] for row in runs for run in row),
        "changed": sum(row[0]["states"] != row[1]["states"] for row in runs),
        "success": [[run["success"] for run in row] for row in runs],
        "mishaps": sorted({m for row in runs for run in row for m in run["mishaps"]}),
        "again": twice[0] == twice[1],
    }


def reasoning(env: TabletopEnv, pool: str, count: int) -> list[dict[str, Any]]:
    bank, found = PictureBank(), []
    for seed in range(count):
        options = {"reasoning": True, "concepts": bank.concepts(pool)}
        _, info = env.reset(seed=50_000 + seed, options=options)
        layout = env.world.layout
        found.append(
            {
                "instruction": info["instruction"],
                "plan": info["plan"],
                "task": [env.task.family, env.task.target, env.task.reference, env.task.direction],
                "blocks": [[b.name, b.x, b.y, b.tile] for b in layout.blocks],
                "mats": [[m.name, m.x, m.y] for m in layout.mats],
            }
        )
    return found


def main() -> None:
    warnings.simplefilter("error")
    expert = Expert()
    small = TabletopEnv(TabletopConfig(image_size=16, families=("pick", "push")))
    every = TabletopEnv(TabletopConfig(image_size=16, max_steps=30))
    facts = {
        "as usual": as_usual(small, expert),
        "watched": [watched(small, expert, seed) for seed in SEEDS[:6]],
    }
    for env in (small, every):  # what follows looks at no picture
        env.world.render = lambda *_: BLANK
    facts |= {
        "recovery": recovery(every, expert),
        "reasoning": reasoning(every, "robot", 200),
        "of strangers": reasoning(every, "web_only", 30),
    }
    try:
        small.reset(seed=0, options={"pushes": -1})
    except ValueError as e:
        facts["error"] = str(e)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
