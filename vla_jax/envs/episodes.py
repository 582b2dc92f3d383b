"""Expert episodes, generated in parallel and resumably.

    python -m vla_jax.envs.episodes --out=DIR --episodes=1000 --workers=2 --config=demo
    python -m vla_jax.envs.episodes --out=DIR --episodes=2500 --config=metaworld --image_size=224

With `metaworld`, episodes go round its fifty tasks, or those of `--tasks`.

Staging layout, what `vla_jax.data.staged` reads:

    DIR/metadata.json          {"action_spec": ..., "config": ..., "seed": ...}
    DIR/episode_000042.npz     images: object [n] of PNG bytes -> stored as uint8 `image_bytes` and
                               int64 `image_ends` [n]; state float32 [n, S]; action float32 [n, A];
                               instruction, family, target, reference: str; seed: int;
                               with --plans also plan: str; with --recovery pushes: int

The action of step t is what the expert would do in the state of picture t. What is carried out has
noise on it (DART, arXiv 1703.09327), so the data shows how to come back from mistakes. Only
successful episodes are kept; number k is always made from seed (seed, k), so a killed run goes on
where it was and ends with the same files.

`--plans=0.5` says a plan in every episode, `pick the apple`, and phrases half of the instructions
so that they take a step of thought, see `tabletop.reasoning`. `--recovery=0.3` makes something go
wrong in three of ten episodes, see `tabletop.pushes`: the picture after it is recorded, and what
the expert does about it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import io
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_jax.envs.gl import choose_backend
from vla_jax.envs.metaworld.config import MetaworldConfig
from vla_jax.envs.worlds import WORLDS, WorldConfig, find_world, open_world

_CHUNK = 8
_NOISE_M = (0.010, 0.010, 0.004)
_STUMBLE_SHARE, _STUMBLE_M = 0.08, 0.05
_MAX_TRIES = 20


@dataclasses.dataclass(frozen=True)
class Recording:
    """What is special about the episodes.

    Attributes:
      plans: share of instructions that take a step of thought; episodes then say their plan. None:
        no plans.
      recovery: share of episodes in which something goes wrong once or twice.

    Raises ValueError for a share that is not in 0 .. 1.
    """

    plans: float | None = None
    recovery: float = 0.0

    def __post_init__(self):
        for name, share in (("plans", self.plans), ("recovery", self.recovery)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} is a share in 0 .. 1, got {share}")

    @property
    def asked_for(self) -> dict[str, float]:
        """What is not as usual, for the metadata."""
        usual = Recording()
        changed = dataclasses.asdict(self)
        return {k: v for k, v in changed.items() if v != getattr(usual, k)}

    def options(self, seed: int) -> dict[str, Any]:
        """Of `TabletopEnv.reset` for the episode of this seed."""
        reasons, goes_wrong, twice = np.random.default_rng((seed, 1)).random(3)
        options: dict[str, Any] = {}
        if self.plans is not None and reasons < self.plans:
            options["reasoning"] = True
        if goes_wrong < self.recovery:
            options["pushes"] = 2 if twice < 0.3 else 1
        return options


AS_USUAL = Recording()


def generate(
    out: str | Path,
    *,
    episodes: int,
    workers: int,
    config: str | WorldConfig = "demo",
    seed: int = 0,
    recording: Recording = AS_USUAL,
) -> None:
    """Makes episodes 0 .. `episodes` - 1 in `out`; those already there are kept.

    Args:
      config: of the world, or its name in `worlds.WORLDS`.

    Raises:
      ValueError: `out` holds episodes of another config or seed, or an unknown config.
      RuntimeError: no OpenGL library, or a worker died.
    """
    if isinstance(config, str):
        config = find_world(config)
    choose_backend()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _write_metadata(out, config, seed, recording)
    for partial in out.glob(".episode_*"):  # of a run that was killed
        partial.unlink()
    missing = [k for k in range(episodes) if not _file(out, k).exists()]
    if len(missing) < episodes:
        print(f"{episodes - len(missing)} of {episodes} episodes are there already")
    chunks = list(_chunks(config, missing))
    begun, done, tried, told = time.monotonic(), 0, 0, 0.0
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_follow_parent, initargs=(os.getpid(),)
    ) as pool:
        try:
            futures = [
                pool.submit(_make, str(out), of, seed, chunk, recording) for of, chunk in chunks
            ]
            for future in concurrent.futures.as_completed(futures):
                made, tries = future.result()
                done, tried = done + made, tried + tries
                elapsed = time.monotonic() - begun
                if elapsed - told > 5 or done == len(missing):
                    told = elapsed
                    rate = done / elapsed
                    left = (len(missing) - done) / rate
                    print(
                        f"episodes {done}/{len(missing)}  {rate:.1f}/s  "
                        f"expert success {done / tried:.1%}  ETA {left:.0f} s",
                        flush=True,
                    )
        except concurrent.futures.process.BrokenProcessPool as e:
            raise RuntimeError(
                f"a worker that generated episodes died ({e}); run the same command again to go on"
            ) from e


def staged_metadata(directory: str | Path) -> dict[str, Any]:
    """`metadata.json` of a staging directory."""
    path = Path(directory) / "metadata.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {directory} is not a staging directory")
    return json.loads(path.read_text())


def _file(out: Path, number: int) -> Path:
    return out / f"episode_{number:06d}.npz"


def _chunks(config: WorldConfig, numbers: list[int]) -> Iterator[tuple[WorldConfig, list[int]]]:
    """Episodes that a worker makes with one environment."""
    by_config: dict[WorldConfig, list[int]] = {}
    for number in numbers:
        of = config.of_episode(number) if isinstance(config, MetaworldConfig) else config
        by_config.setdefault(of, []).append(number)
    for of, mine in by_config.items():
        for i in range(0, len(mine), _CHUNK):
            yield of, mine[i : i + _CHUNK]


def _write_metadata(out: Path, config: WorldConfig, seed: int, recording: Recording) -> None:
    metadata = {
        "action_spec": config.action_spec.to_json(),
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "seed": seed,
        **recording.asked_for,
    }
    path = out / "metadata.json"
    if path.exists() and staged_metadata(out) != metadata:
        raise ValueError(f"{out} holds episodes of another config or seed: use a new directory")
    path.write_text(json.dumps(metadata, indent=2) + "\n")


def _follow_parent(parent: int) -> None:
    """Ends this worker soon after its parent, which may be killed without a chance to say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make(
    out: str, config: WorldConfig, seed: int, numbers: list[int], recording: Recording
) -> tuple[int, int]:
    """Worker: makes some episodes; returns (made, tried)."""
    env, expert = open_world(config)
    noisy = not isinstance(config, MetaworldConfig)  # which has noise of its own, by config
    tried = 0
    for number in numbers:
        for attempt in range(_MAX_TRIES):
            tried += 1
            episode_seed = (seed * 1_000_003 + number) * _MAX_TRIES + attempt
            episode = record(env, expert, episode_seed, noisy=noisy, recording=recording)
            if episode is not None:
                break
        else:
            raise RuntimeError(f"the expert failed {_MAX_TRIES} times at episode {number}")
        path = _file(Path(out), number)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with partial.open("wb") as file:
            np.savez(file, **episode)
        partial.rename(path)
    env.close()
    return len(numbers), tried


def record(
    env: Any, expert: Any, seed: int, *, noisy: bool = True, recording: Recording = AS_USUAL
) -> dict[str, Any] | None:
    """One expert episode as stored, or None if it failed."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed, options=recording.options(seed) or None)
    images, states, actions = [], [], []
    done = False
    while not done:
        action = expert.action(env)
        images.append(observation["image"])
        states.append(observation["state"])
        actions.append(action)
        executed = disturbed(action, rng) if noisy else action
        observation, _, terminated, truncated, info = env.step(executed)
        done = terminated or truncated
    if not info["success"]:
        return None
    encoded = [_png(image) for image in images]
    return {
        "image_bytes": np.frombuffer(b"".join(encoded), np.uint8),
        "image_ends": np.cumsum([len(e) for e in encoded]),
        "state": np.asarray(states, np.float32),
        "action": np.asarray(actions, np.float32),
        "instruction": env.task.instruction,
        "family": env.task.family,
        "target": env.task.target,
        "reference": env.task.reference,
        "seed": seed,
        **({} if recording.plans is None else {"plan": env.task.plan}),
        **({"pushes": info["pushes"]} if recording.recovery else {}),
    }


def disturbed(action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What is carried out in place of an expert action [8] while recording: with noise on it."""
    executed = action.copy()
    if not action[0]:
        executed[1:4] += rng.normal(0, _NOISE_M)
        if rng.random() < _STUMBLE_SHARE:
            executed[1:3] += rng.uniform(-_STUMBLE_M, _STUMBLE_M, 2)
    return executed


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def main() -> None:
    """Command line of `generate`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--config", default="demo", choices=sorted(WORLDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image_size", type=int, help="pixels; default: the config's")
    parser.add_argument("--tasks", help="of Meta-World, with commas between; default: all")
    parser.add_argument(
        "--plans", type=float, help="record plans, and so many instructions that take some thought"
    )
    parser.add_argument(
        "--recovery", type=float, default=0.0, help="share of episodes where something goes wrong"
    )
    args = parser.parse_args()
    is_metaworld = isinstance(WORLDS[args.config], MetaworldConfig)
    if args.tasks and not is_metaworld:
        parser.error(f"--tasks is for Meta-World, not for --config={args.config}")
    if is_metaworld and (args.plans is not None or args.recovery):
        parser.error("--plans and --recovery are for the table-top worlds, not for Meta-World")
    changed = {"image_size": args.image_size} if args.image_size else {}
    if args.tasks:
        changed["tasks"] = tuple(args.tasks.split(","))
    try:
        config = dataclasses.replace(WORLDS[args.config], **changed)
        recording = Recording(args.plans, args.recovery)
    except ValueError as e:
        parser.error(str(e))
    generate(
        args.out,
        episodes=args.episodes,
        workers=args.workers,
        config=config,
        seed=args.seed,
        recording=recording,
    )


if __name__ == "__main__":
    main()
