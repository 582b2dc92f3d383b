"""Kills a training run again and again, and compares what comes of it with one left in peace.

    python tools/kill_test.py --out=/tmp/kill_test --kills=20

Makes a tiny data set, trains a tiny model on it once, then a second time with `kill -9` at random
moments, every other one while a checkpoint is being written. At the end parameters and optimizer
must be the same, bit for bit, and each logged loss. Exit code 1 if they are not.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from vla_jax.checkpoints.manager import Checkpoints
from vla_jax.data.generate import ImageTextRow
from vla_jax.data.tfds_writer import write_image_text
from vla_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "model": {"preset": "tiny", "image_size": 28, "compute_dtype": "float32"},
        "data": {
            "sources": {"web": {"kind": "image_text", "path": PATH}},
            "max_tokens": 40,
            "max_answer_tokens": 10,
            "threads": 1,
        },
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 1, "decay": "constant"},
        "train": {"steps": STEPS, "batch_size": 8, "log_every": 1, "checkpoint_every": EVERY},
    })
"""
# Of a directory that Orbax is writing and has not renamed yet.
TMP = "*.orbax-checkpoint-tmp*"


class Kill(NamedTuple):
    """One kill and what it left behind."""

    wanted: str
    after_s: float
    newest: int | None
    half_written: int


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory; must not exist")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--checkpoint_every", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} exists: give a new directory")
    rng = random.Random(args.seed)
    _write_data(args.out / "data")
    values = {"PATH": repr(str(args.out / "data")), "STEPS": args.steps}
    text = CONFIG.replace("EVERY", str(args.checkpoint_every))
    for key, value in values.items():
        text = text.replace(key, str(value))
    (args.out / "config.py").write_text(text)

    begun = time.monotonic()
    _finish(args.out, "whole")
    print(f"left in peace: {args.steps} steps in {time.monotonic() - begun:.0f} s", flush=True)
    kills = []
    for number in range(args.kills):
        wanted = ("while saving", "any moment")[number % 2]
        kill = _start_and_kill(args.out, wanted, rng)
        if kill is None:
            print(f"the run was done before kill {number + 1}: give more --steps")
            return 1
        kills.append(kill)
        print(
            f"kill {number + 1:2}: {kill.wanted:12} after {kill.after_s:5.2f} s, newest checkpoint "
            f"{kill.newest}, half-written ones {kill.half_written}",
            flush=True,
        )
    _finish(args.out, "killed")
    cut = sum(kill.half_written > 0 for kill in kills)
    print(f"{len(kills)} kills, {cut} of them with a half-written checkpoint left behind")
    differences = _differences(args.out / "whole", args.out / "killed")
    print(
        "\n".join(differences) if differences else "same parameters, optimizer and losses, bitwise"
    )
    return 1 if differences else 0


def _write_data(directory: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(buffer, "PNG")
        rows.append(
            ImageTextRow(
                image=buffer.getvalue(),
                prompt=f"Q: what is number {i % 7}? A:",
                answer=("a dog", "a cat", "two birds")[i % 3],
                task="name",
                language="en",
            )
        )
    write_image_text({"train": rows[:50], "test": rows[50:]}, directory, name="web", description="")


def _start(out: Path, name: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(out / "xla")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "vla_jax.train", f"--config={out / 'config.py'}"]
    with (out / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [*command, f"--workdir={out / name}"], env=environment, stdout=log, stderr=log
        )


def _finish(out: Path, name: str) -> None:
    if code := _start(out, name).wait():
        sys.exit(f"training ended with exit code {code}; see {out / name}.log")


def _start_and_kill(out: Path, wanted: str, rng: random.Random) -> Kill | None:
    """None if training was done before it could be killed."""
    directory = out / "killed" / "checkpoints"
    # What an earlier kill left: the new process removes it.
    old = set(directory.glob(TMP))
    log = out / "killed.log"
    begun, size = time.monotonic(), log.stat().st_size if log.exists() else 0
    process = _start(out, "killed")
    if wanted == "any moment" and rng.random() < 0.3:
        time.sleep(rng.uniform(0, 5))  # while it starts
    elif wanted == "any moment":
        while process.poll() is None and b"start-up " not in log.read_bytes()[size:]:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
    else:
        skip = rng.randrange(3)  # saves that are let through
        seen: set[Path] = set()
        while process.poll() is None and len(seen) <= skip:
            seen |= set(directory.glob(TMP)) - old
        time.sleep(rng.uniform(0, 0.02))
    if process.poll() is not None:
        return None
    process.kill()
    process.wait()
    after_s = time.monotonic() - begun
    steps = [int(p.name) for p in directory.glob("*") if p.name.isdigit()]
    return Kill(wanted, after_s, max(steps, default=None), len(set(directory.glob(TMP)) - old))


def _differences(a: Path, b: Path) -> list[str]:
    """What differs between the newest checkpoints and the losses of two runs."""
    place = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    states = []
    for workdir in (a, b):
        with Checkpoints(workdir) as checkpoints:
            like = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), checkpoints.stored()
            )
            states.append(checkpoints.restore(like, jax.tree.map(lambda _: place, like)))
    lines = []
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    for (path, x), (_, y) in zip(*leaves, strict=True):
        if np.asarray(x).tobytes() != np.asarray(y).tobytes():
            lines.append(f"{jax.tree_util.keystr(path)} differs")
    losses = [{r["step"]: r["loss"] for r in read_metrics(w)} for w in (a, b)]
    lines += [
        f"loss of step {step}: {losses[0].get(step)!r} and {loss!r}"
        for step, loss in losses[1].items()
        if losses[0].get(step) != loss
    ]
    return lines


if __name__ == "__main__":
    sys.exit(main())
