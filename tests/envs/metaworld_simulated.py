"""What `metaworld_test.py` looks at, gathered in a process of its own and printed as JSON.

A test process may have loaded TensorFlow for other tests, and then must not render.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env

from vla_jax.envs.gl import choose_backend
from vla_jax.envs.metaworld.config import MetaworldConfig

choose_backend()

import metaworld  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402

from vla_jax.envs.metaworld.env import MetaworldEnv  # noqa: E402

TASK, SEED, STEPS = "coffee-button-v3", 11, 50


def published_protocol() -> dict[str, Any]:
    """Meta-World's own environment, set up and driven as published evaluations do."""
    benchmark = metaworld.MT1(TASK, seed=42)
    env = benchmark.train_classes[TASK](render_mode="rgb_array", camera_name="corner2")
    env.set_task(benchmark.train_tasks[0])
    env.model.cam_pos[2] = [0.75, 0.075, 0.7]
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env.seed(SEED)
    state, _ = env.reset()
    picture = np.flip(env.render(), (0, 1))
    expert, states, actions, successes = ENV_POLICY_MAP[TASK](), [state[:4]], [], []
    for _ in range(STEPS):
        actions.append(np.clip(expert.get_action(state), -1, 1))
        state, _, _, _, info = env.step(actions[-1])
        states.append(state[:4])
        successes.append(bool(info["success"]))
    env.close()
    return {
        "states": np.asarray(states),
        "actions": np.asarray(actions),
        "successes": successes,
        "picture": picture,
    }


def beside_ours() -> dict[str, Any]:
    """The same actions in ours, in metres."""
    theirs = published_protocol()
    env = MetaworldEnv(MetaworldConfig(image_size=120))
    observation, _ = env.reset(seed=SEED, options={"task": TASK})
    small = theirs["picture"].reshape(120, 4, 120, 4, 3).mean(axis=(1, 3))
    # Theirs is drawn with shadows and mirrors.
    turns = {"as it is": small, "upside down": small[::-1, ::-1], "mirrored": small[:, ::-1]}
    error = {k: float(np.abs(observation["image"] - v).mean()) for k, v in turns.items()}
    states, successes = [observation["state"]], []
    for action in theirs["actions"]:
        metres = action * [0.01, 0.01, 0.01, 1.0]
        observation, reward, terminated, truncated, info = env.step(metres)
        states.append(observation["state"])
        successes.append(bool(info["success"]))
        assert reward == info["success"] == terminated and not truncated
        if terminated:
            break
    env.close()
    count = len(states)
    return {
        "steps": count - 1,
        "moved_m": float(np.linalg.norm(np.diff(states, axis=0)[:, :3], axis=1).sum()),
        "difference": float(np.abs(np.asarray(states) - theirs["states"][:count]).max()),
        "successes": successes,
        "their_successes": theirs["successes"][: count - 1],
        "picture_error": error,
    }


def pixels(env: MetaworldEnv, task: str, seed: int) -> str:
    first, _ = env.reset(seed=seed, options={"task": task})
    second = env.step(np.full(4, 0.005, np.float32))[0]
    return hashlib.sha256(
        first["image"].tobytes() + second["image"].tobytes() + second["state"].tobytes()
    ).hexdigest()


def repeated() -> dict[str, Any]:
    """The same episode at first, after others and in an environment of its own."""
    env, other = (MetaworldEnv(MetaworldConfig(image_size=32)) for _ in range(2))
    found = {
        "first": pixels(env, "reach-v3", 5),
        "other seed": pixels(env, "reach-v3", 6),
        "other task": pixels(env, "door-close-v3", 5),
        "again": pixels(env, "reach-v3", 5),
        "elsewhere": pixels(other, "reach-v3", 5),
    }
    env.close()
    other.close()
    return found


def moved(noise: float, seed: int) -> dict[str, list[list[float]]]:
    """State before and after 20 steps of 5 mm to x, then 20 of closing, then 20 of opening."""
    env = MetaworldEnv(MetaworldConfig(image_size=16, noise=noise))
    observation, _ = env.reset(seed=seed, options={"task": "reach-v3"})
    states = [observation["state"].tolist()]
    for action in ([0.005, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, -1]):
        for _ in range(20):
            observation = env.step(np.asarray(action, np.float32))[0]
        states.append(observation["state"].tolist())
    env.close()
    return {"states": states}


def message(act) -> str:
    try:
        act()
    except ValueError as e:
        return str(e)
    return "no error"


def errors() -> dict[str, str]:
    """What is refused, and how."""
    env = MetaworldEnv(MetaworldConfig(image_size=16, tasks=("reach-v3",)))
    found = {"never reset": message(lambda: env.step(np.zeros(4)))}
    env.reset(seed=0)
    found |= {
        "unknown task": message(lambda: env.reset(seed=0, options={"task": "reach-v2"})),
        "size": message(lambda: env.step(np.zeros(8))),
        "NaN": message(lambda: env.step(np.full(4, np.nan))),
    }
    env.close()
    return found


def checked() -> str:
    """Gymnasium's own check."""
    env = MetaworldEnv(MetaworldConfig(image_size=16, tasks=("reach-v3",)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=True)
    env.close()
    return "ok"


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "experts": sorted(ENV_POLICY_MAP),
                "beside": beside_ours(),
                "repeated": repeated(),
                "exact": moved(0.0, 0)["states"],
                "noisy": moved(0.3, 0)["states"],
                "noisy again": moved(0.3, 0)["states"],
                "errors": errors(),
                "checked": checked(),
            }
        )
    )
