"""What `tabletop_test.py` looks at, gathered in a process of its own and printed as JSON.

A test process may have loaded TensorFlow for other tests, and then must not render.

    python tests/envs/simulated.py views | facts
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env

from vla_jax.corpus.pictures import COLORS, PictureBank
from vla_jax.envs.episodes import disturbed
from vla_jax.envs.gl import choose_backend
from vla_jax.envs.tabletop.config import CONFIGS, TabletopConfig
from vla_jax.envs.tabletop.tasks import Task, make_task

choose_backend()

from vla_jax.envs.tabletop.env import TabletopEnv  # noqa: E402
from vla_jax.envs.tabletop.expert import Expert  # noqa: E402
from vla_jax.envs.tabletop.layout import Block, Clutter, Layout, Mat  # noqa: E402

LAYOUT = Layout(
    (Block("red block", 0.05, 0.04), Block("apple", -0.08, -0.06)),
    (Mat("blue", -0.1, 0.09),),
    gripper=(0.05, 0.04, 0.1),
)
PICK = make_task("pick", "red block")
OPEN, CLOSED = 0.0, 1.0


def views(env: TabletopEnv, seeds: range) -> list[dict[str, Any]]:
    """What is seen and asked for at the start and after one step."""
    found = []
    for seed in seeds:
        first, _ = env.reset(seed=seed)
        second = env.step(np.full(8, 0.03, np.float32))[0]
        pixels = first["image"].tobytes() + second["image"].tobytes() + second["state"].tobytes()
        found.append(
            {
                "task": str(env.task),
                "layout": str(env.world.layout),
                "pixels": hashlib.sha256(pixels).hexdigest(),
            }
        )
    return found


def heights(env: TabletopEnv, moves: list[tuple[float, float]]) -> list[float]:
    """Height of the red block after each move (up, gripper), from above it."""
    env.reset(seed=0, options={"layout": LAYOUT, "task": PICK})
    found = []
    for up, grip in moves:
        env.step(np.array([0, 0, 0, up, 0, 0, 0, grip], np.float32))
        found.append(float(env.world.block_position(0)[2]))
    return found


def red_block(env: TabletopEnv, x: float, y: float, shift: float) -> dict[str, Any]:
    """Where a plain red block is said to be, and where its pixels are."""
    layout = Layout(
        (Block("red block", x, y), Block("blue block", 0.13, 0.11)),
        gripper=(-0.15, 0.14, 0.1),
        table_color=(150, 150, 150),
        camera_shift_m=(shift, -shift, 0.0),
    )
    observation, info = env.reset(seed=0, options={"layout": layout, "task": PICK})
    image = observation["image"].astype(int)
    brightest = image[..., 0] - image[..., 1:].max(axis=-1)
    # Only the top is lit from above; the front is darker.
    rows, columns = np.nonzero(brightest > 0.9 * brightest.max())
    [said] = [o for o in info["objects"] if o["name"] == "red block"]
    return {
        "said": [*said["center_yx"], *said["box_yxyx"]],
        "seen": [
            float(rows.mean() + 0.5),
            float(columns.mean() + 0.5),
            *map(float, (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)),
        ],
    }


def from_elsewhere(
    env: TabletopEnv, x: float, y: float, turn: float, up: float, away: float
) -> dict[str, Any]:
    """Likewise its centre (y, x) from a camera that is somewhere else."""
    layout = Layout(
        (Block("red block", x, y), Block("blue block", 0.13, 0.11)),
        gripper=(-0.15, 0.14, 0.1),
        camera_shift_m=(0.02, -0.03, 0.0),
        camera_turn_rad=(turn, up),
        camera_distance=away,
    )
    observation, info = env.reset(seed=0, options={"layout": layout, "task": PICK})
    [said] = [o["center_yx"] for o in info["objects"] if o["name"] == "red block"]
    top = np.nonzero((observation["image"] == COLORS["red"]).all(axis=-1))  # the sides are darker
    return {"said": said, "seen": [float(v.mean() + 0.5) for v in top], "pixels": len(top[0])}


def rooms(env: TabletopEnv) -> dict[str, Any]:
    """Mean colour of the picture's lower left corner and of a bare place on the table."""

    def look(**changes: Any) -> list[list[float]]:
        layout = dataclasses.replace(LAYOUT, mats=(), camera_distance=1.3, **changes)
        image = env.reset(seed=0, options={"layout": layout, "task": PICK})[0]["image"]
        corner, middle = image[-6:, :6], image[66:74, 70:78]
        return [part.reshape(-1, 3).mean(0).tolist() for part in (corner, middle)]

    thing = Clutter(-0.24, -0.24, (0.04, 0.04, 0.01), (250, 250, 250))
    plain = {"table_half_m": 0.2, "table_color": (100, 100, 100)}
    return {
        "plain": look(**plain),
        "floor": look(**plain, floor_rgb=(0.1, 0.8, 0.1)),
        "clutter": look(**plain, clutter=(thing,)),
        "large table": look(table_half_m=0.4, table_color=(100, 100, 100)),
        "dark": look(**plain, light=0.2, sun_rgb=(0.0, 0.0, 0.0)),
        "low red sun": look(**plain, light=0.2, sun=(0.0, 1.0, -1.0), sun_rgb=(0.9, 0.0, 0.0)),
        "picture": look(**plain | {"table": "picture", "table_picture": "france flag"}),
        "plain again": look(**plain),
    }


def message(act: Callable[[], Any]) -> str:
    try:
        act()
    except ValueError as e:
        return str(e)
    return "no error"


def errors(env: TabletopEnv) -> dict[str, str]:
    """What is refused, and how."""

    def reset(**options: Any) -> Callable[[], Any]:
        return lambda: env.reset(seed=0, options=options)

    def step(action: Any) -> Callable[[], Any]:
        env.reset(seed=0)
        return lambda: env.step(action)

    near_itself = Task("near", "apple", "apple", instruction="move the apple near the apple")
    on_it = Layout(LAYOUT.blocks, (Mat("blue", -0.08, -0.06),))
    return {
        "unknown object": message(reset(layout=LAYOUT, task=make_task("pick", "banana"))),
        "unknown mat": message(reset(layout=LAYOUT, task=make_task("put", "apple", "red mat"))),
        "no such concept": message(reset(task=make_task("pick", "no such thing"))),
        "no such concept in a layout": message(
            reset(layout=Layout((Block("no such thing", 0, 0), Block("apple", 0.1, 0.1))))
        ),
        "no such reference": message(reset(task=make_task("near", "apple", "no such thing"))),
        "no such colour": message(reset(task=make_task("put", "apple", "loud mat"))),
        "near itself": message(reset(layout=LAYOUT, task=near_itself)),
        "near itself, drawn": message(reset(task=near_itself)),
        "fulfilled": message(reset(layout=on_it, task=make_task("put", "apple", "blue mat"))),
        "table": message(reset(layout=dataclasses.replace(LAYOUT, table="lava"), task=PICK)),
        "table picture": message(reset(layout=dataclasses.replace(LAYOUT, table="picture"))),
        "small table": message(reset(layout=dataclasses.replace(LAYOUT, table_half_m=0.1))),
        "clutter": message(
            reset(
                layout=dataclasses.replace(
                    LAYOUT, clutter=9 * (Clutter(1, 1, (1, 1, 1), (0, 0, 0)),)
                )
            )
        ),
        "concepts": message(reset(concepts=("apple", "banana", "no such thing"))),
        "too few concepts": message(reset(concepts=("apple", "banana"))),
        "family": message(reset(family="juggle")),
        "nan": message(step(np.array([0, np.nan, 0, 0, 0, 0, 0, 0], np.float32))),
        "shape": message(step(np.zeros(7, np.float32))),
        "config": message(lambda: TabletopEnv(TabletopConfig(concepts=("no such thing",) * 3))),
    }


def successes(env: TabletopEnv, family: str, episodes: int, policy: str) -> int:
    """Of the expert ("clean", or "noisy" as in recording), or of random actions ("random")."""
    expert, count = Expert(), 0
    for seed in range(episodes):
        rng = np.random.default_rng(seed)
        _, info = env.reset(seed=seed, options={"family": family})
        done = False
        while not done:
            if policy == "random":
                action = rng.uniform(env.action_spec.low, env.action_spec.high).astype(np.float32)
                action[0] = 0
            else:
                action = expert.action(env)
                assert np.array_equal(action, expert.action(env))  # nothing is remembered
                assert env.action_space.contains(action)
            executed = disturbed(action, rng) if policy == "noisy" else action
            _, reward, terminated, truncated, info = env.step(executed)
            assert reward == info["success"]
            done = terminated or truncated
        count += info["success"]
    return count


def names(env: TabletopEnv, episodes: int, **options: Any) -> list[str]:
    found = set()
    for seed in range(episodes):
        env.reset(seed=seed, options=options)
        found |= {block.name for block in env.world.layout.blocks}
    return sorted(found)


def facts() -> dict[str, Any]:
    """All that the tests look at besides `views`."""
    env = TabletopEnv()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like actions in -1 .. 1
        check_env(env, skip_render_check=True)
    bank = PictureBank()
    strangers = bank.concepts("web_only")
    found: dict[str, Any] = {
        "closed": heights(env, [(-0.084, OPEN), (0, CLOSED), (0.084, CLOSED), (0, CLOSED)]),
        "opened": heights(env, [(-0.084, OPEN), (0, CLOSED), (0.084, CLOSED), (0, OPEN)]),
        "never closed": heights(env, [(-0.084, OPEN), (0, OPEN), (0.084, OPEN)]),
        "pointing": [
            red_block(env, x, y, shift)
            for x, y, shift in ((0, 0, 0), (0.12, -0.1, 0), (-0.1, 0.08, 0.01))
        ],
        "moved camera": [
            from_elsewhere(env, *where)
            for where in ((0.1, -0.05, 0.35, -0.1, 1.3), (-0.06, 0.05, -0.3, 0.1, 1.2))
        ],
        "rooms": rooms(env),
        "errors": errors(env),
        "names": names(env, 40),
        "names of strangers": names(env, 10, concepts=strangers),
        "successes": {
            policy: {family: successes(env, family, 3, policy) for family in env.config.families}
            for policy in ("clean", "noisy", "random")
        },
        "views again": views(env, range(2)),
    }
    env.close()
    env = TabletopEnv(dataclasses.replace(CONFIGS["full"], concepts=strangers))
    observation, _ = env.reset(seed=0)
    found["full"] = {
        "shapes": {key: list(value.shape) for key, value in observation.items()},
        "wrist colours": len(np.unique(observation["wrist_image"].reshape(-1, 3), axis=0)),
        "yaws": [block.yaw for block in env.world.layout.blocks],
        "names": names(env, 10),
        "render": list(env.render().shape),
        "successes": sum(successes(env, family, 2, "clean") for family in env.config.families),
    }
    env.close()
    return found


def main() -> None:
    if sys.argv[1] == "views":
        env = TabletopEnv()
        answer: Any = views(env, range(4))
        env.close()
    else:
        answer = facts()
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
