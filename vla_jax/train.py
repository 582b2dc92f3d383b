"""Trains a model: `python -m vla_jax.train --config=configs/demo_cotrain.py --workdir=out/run`.

Any config key can be overridden: `--config.train.steps=100`. Run again with the same --workdir to
resume after an interruption. On several hosts, start it on each: see `sharding.distributed`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax

from vla_jax import config as config_lib
from vla_jax import schema
from vla_jax.build import TrainingRun, build_training
from vla_jax.checkpoints.manager import Checkpoints
from vla_jax.config import Config
from vla_jax.sharding.distributed import join_processes
from vla_jax.training.flops import matmul_flops_per_s, step_work, train_flops_per_sample
from vla_jax.training.goodput import START_UP, TimeBook, process_start
from vla_jax.training.loop import fit
from vla_jax.training.monitor import Monitor
from vla_jax.training.optimizer import make_schedule
from vla_jax.training.step import TrainState


def train(config: Config, workdir: str, book: TimeBook | None = None) -> TrainState:
    """Trains to `config.train.steps`, resuming from the newest checkpoint in `workdir`.

    Args:
      book: with the time that this process has taken so far.

    Raises:
      ValueError, FileNotFoundError, PermissionError: naming what is wrong with config, data or
        workdir; a checkpoint already there is left as it is.
    """
    directory = Path(workdir)
    book = TimeBook() if book is None else book
    _require_writable(directory)

    def print_line(line: str) -> None:
        if jax.process_index() == 0:
            print(line, flush=True)

    with Checkpoints(directory, config.train.keep_checkpoints) as checkpoints:
        stored = None if checkpoints.latest is None else checkpoints.meta()
        run = build_training(config, stored)
        book.lap(START_UP + "data")
        if stored is None:
            state = run.fresh_state()
            count = sum(x.size for x in jax.tree.leaves(state["params"]))
            book.lap(START_UP + "parameters")
            print_line(
                f"fresh run: {count / 1e6:.2f} M parameters, init_from={config.train.init_from!r}"
            )
        else:
            state = run.restored_state(checkpoints)
            book.lap(START_UP + "restore")
            print_line(f"resumed {directory} at step {int(state['step'])}")
        start = int(state["step"])
        if jax.process_index() == 0:
            (directory / "config.json").write_text(config_lib.to_json(config))
        step = run.make_step(run.loss_fn)
        loader = run.loader(start)
        book.lap(START_UP + "first batch")
        with Monitor(
            directory,
            config.train.watch,
            run.mixture,
            samples_per_step=config.samples_per_step,
            start=start,
            steps=config.train.steps,
            train_step=step,
            book=book,
            work=step_work(
                config.model,
                config.data.row_lengths,
                config.train.batch_size,
                config.data.examples_per_row,
            ),
            schedule=make_schedule(config.optimizer, config.train.steps),
            stage_seconds=loader.stage_seconds,
            facts=_facts(run),
            run_config=schema.to_plain(config),
            print_line=print_line,
            active=jax.process_index() == 0,
        ) as monitor:
            state = fit(
                state,
                step,
                loader,
                config.train,
                mesh=run.mesh,
                monitor=monitor,
                save=lambda step, state: checkpoints.save(state, run.meta(step)),
            )
    if jax.process_index() == 0:
        _write_speed(config, directory)
    return state


def _facts(run: TrainingRun) -> dict[str, str]:
    """What the run page says of the run."""
    model, config = run.config.model, run.config
    count = sum(x.size for x in jax.tree.leaves(run.abstract["params"]))
    devices, axes = jax.devices(), [f"{k} {n}" for k, n in run.mesh.shape.items() if n > 1]
    return {
        "Model": f"{model.preset}, {count / 1e6:,.1f} M parameters, {model.image_size} px, "
        f"{model.compute_dtype}",
        "Devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es)",
        "Mesh": ", ".join(axes) or "one device",
        "Update": f"{config.samples_per_step:,} samples in {config.train.batch_size:,} rows of "
        f"{config.data.row_lengths[0]} tokens",
        "Started from": config.train.init_from or "fresh parameters",
    }


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
    book = TimeBook(process_start())
    book.lap(START_UP + "imports")
    join_processes()
    book.lap(START_UP + "join")
    config_lib.run_main(
        functools.partial(train, book=book),
        workdir="directory for checkpoints, metrics and config; made if missing",
    )


if __name__ == "__main__":
    main()
