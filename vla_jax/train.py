"""Trains a model: `python -m vla_jax.train --config=configs/demo_cotrain.py --workdir=out/run`.

Any config key can be overridden: `--config.train.steps=100`. Run again with the same --workdir to
resume after an interruption. On several hosts, start it on each: see `sharding.distributed`.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax

from vla_jax import config as config_lib
from vla_jax.build import build_training
from vla_jax.checkpoints.manager import Checkpoints
from vla_jax.config import Config
from vla_jax.sharding.distributed import join_processes
from vla_jax.training.flops import matmul_flops_per_s, train_flops_per_sample
from vla_jax.training.loop import fit
from vla_jax.training.metrics import MetricWriter
from vla_jax.training.step import TrainState


def train(config: Config, workdir: str) -> TrainState:
    """Trains to `config.train.steps`, resuming from the newest checkpoint in `workdir`.

    Raises:
      ValueError, FileNotFoundError, PermissionError: naming what is wrong with config, data or
        workdir; a checkpoint already there is left as it is.
    """
    directory = Path(workdir)
    _require_writable(directory)

    def print_line(line: str) -> None:
        if jax.process_index() == 0:
            print(line, flush=True)

    with Checkpoints(directory, config.train.keep_checkpoints) as checkpoints:
        stored = None if checkpoints.latest is None else checkpoints.meta()
        run = build_training(config, stored)
        if stored is None:
            state = run.fresh_state()
            count = sum(x.size for x in jax.tree.leaves(state["params"]))
            print_line(
                f"fresh run: {count / 1e6:.2f} M parameters, init_from={config.train.init_from!r}"
            )
        else:
            state = run.restored_state(checkpoints)
            print_line(f"resumed {directory} at step {int(state['step'])}")
        start = int(state["step"])
        if jax.process_index() == 0:
            (directory / "config.json").write_text(config_lib.to_json(config))
        step = run.make_step(run.loss_fn)
        with MetricWriter(directory, start, active=jax.process_index() == 0) as writer:
            state = fit(
                state,
                step,
                run.loader(start),
                config.train,
                mesh=run.mesh,
                writer=writer,
                mixture=run.mixture,
                samples_per_step=config.samples_per_step,
                save=lambda step, state: checkpoints.save(state, run.meta(step)),
                print_line=print_line,
            )
    if jax.process_index() == 0:
        _write_speed(config, directory)
    return state


def _write_speed(config: Config, directory: Path) -> None:
    """`speed.json`: what the reports compare the measured steps with."""
    data = config.data
    speed = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "train_flops_per_sample": train_flops_per_sample(
            config.model, *data.row_lengths, samples=data.examples_per_row
        ),
        "matmul_flops_per_s": matmul_flops_per_s(config.model.compute_dtype),
    }
    (directory / "speed.json").write_text(json.dumps(speed, indent=2) + "\n")


def _require_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable.{jax.process_index()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise PermissionError(f"cannot write to --workdir {directory}: {e}") from e


def main() -> None:
    """Parses the command line and trains."""
    join_processes()
    config_lib.run_main(
        train, workdir="directory for checkpoints, metrics and config; made if missing"
    )


if __name__ == "__main__":
    main()
