"""Expert episodes, generated in parallel and resumably.

    python -m vla_jax.envs.episodes --out=DIR --episodes=1000 --workers=2 --config=demo

Staging layout, what `vla_jax.data.staged` reads:

    DIR/metadata.json          {"action_spec": ..., "config": ..., "seed": ...}
    DIR/episode_000042.npz     images: object [n] of PNG bytes -> stored as uint8 `image_bytes` and
                               int64 `image_ends` [n]; state float32 [n, 8]; action float32 [n, 8];
                               instruction, family, target, reference: str; seed: int

The action of step t is what the expert would do in the state of picture t. What is carried out has
noise on it (DART, arXiv 1703.09327), so the data shows how to come back from mistakes. Only
successful episodes are kept; number k is always made from seed (seed, k), so a killed run goes on
where it was and ends with the same files.
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
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_jax.envs.gl import choose_backend
from vla_jax.envs.tabletop.config import CONFIGS

_CHUNK = 8
_NOISE_M = (0.010, 0.010, 0.004)
_STUMBLE_SHARE, _STUMBLE_M = 0.08, 0.05
_MAX_TRIES = 20


def generate(
    out: str | Path, *, episodes: int, workers: int, config: str = "demo", seed: int = 0
) -> None:
    """Makes episodes 0 .. `episodes` - 1 in `out`; those already there are kept.

    Raises:
      ValueError: `out` holds episodes of another config or seed, or an unknown config.
      RuntimeError: no OpenGL library, or a worker died.
    """
    if config not in CONFIGS:
        raise ValueError(f"no table-top config {config!r}; there are {tuple(CONFIGS)}")
    choose_backend()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _write_metadata(out, config, seed)
    for partial in out.glob(".episode_*"):  # of a run that was killed
        partial.unlink()
    missing = [k for k in range(episodes) if not _file(out, k).exists()]
    if len(missing) < episodes:
        print(f"{episodes - len(missing)} of {episodes} episodes are there already")
    chunks = [missing[i : i + _CHUNK] for i in range(0, len(missing), _CHUNK)]
    begun, done, tried, told = time.monotonic(), 0, 0, 0.0
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_follow_parent, initargs=(os.getpid(),)
    ) as pool:
        try:
            futures = [pool.submit(_make, str(out), config, seed, chunk) for chunk in chunks]
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


def _write_metadata(out: Path, config: str, seed: int) -> None:
    metadata = {
        "action_spec": CONFIGS[config].action_spec.to_json(),
        "config": json.loads(json.dumps(dataclasses.asdict(CONFIGS[config]))),
        "seed": seed,
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


def _make(out: str, config: str, seed: int, numbers: list[int]) -> tuple[int, int]:
    """Worker: makes some episodes; returns (made, tried)."""
    # Rendering belongs to this process only; the parent may hold TensorFlow.
    from vla_jax.envs.tabletop.env import TabletopEnv
    from vla_jax.envs.tabletop.expert import Expert

    env, expert = TabletopEnv(CONFIGS[config]), Expert()
    tried = 0
    for number in numbers:
        for attempt in range(_MAX_TRIES):
            tried += 1
            episode_seed = (seed * 1_000_003 + number) * _MAX_TRIES + attempt
            episode = record(env, expert, episode_seed)
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


def record(env: Any, expert: Any, seed: int, *, noisy: bool = True) -> dict[str, Any] | None:
    """One expert episode as stored, or None if it failed."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
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
    parser.add_argument("--config", default="demo", choices=sorted(CONFIGS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generate(
        args.out, episodes=args.episodes, workers=args.workers, config=args.config, seed=args.seed
    )


if __name__ == "__main__":
    main()
