"""Trains a model: `python -m vla_jax.train --config=configs/demo_cotrain.py --workdir=out/run`.

Any config key can be overridden: `--config.train.steps=100`. Run again with the same --workdir to
resume after an interruption. On several hosts, start it on each: see `sharding.distributed`.

Exit codes: 0 done; 75 told to stop (SIGTERM, Ctrl-C) or left by another process of the job, start
it again to go on; 1 failed; 2 the command line, the config or the data are wrong.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax.build import TrainingRun, build_training
from vla_jax.checkpoints.manager import Checkpoints, CheckpointWriteError, Retention
from vla_jax.config import Config
from vla_jax.sharding.distributed import LostProcessError, join_processes, lost_process
from vla_jax.training.bad_batches import BadBatches
from vla_jax.training.flops import matmul_flops_per_s, train_flops_per_sample
from vla_jax.training.loop import TrainConfig, fit
from vla_jax.training.metrics import MetricWriter
from vla_jax.training.preemption import EXIT_CODE, Preempted, StopRequest
from vla_jax.training.step import TrainState, make_train_step
from vla_jax.types import Batch


def train(config: Config, workdir: str) -> TrainState:
    """Trains to `config.train.steps`, resuming from the newest checkpoint in `workdir`.

    Raises:
      ValueError, FileNotFoundError, PermissionError: naming what is wrong with config, data or
        workdir; a checkpoint already there is left as it is.
      Preempted: SIGTERM or Ctrl-C; all is saved.
      FloatingPointError: a batch whose loss is not finite, see `train.on_nan`.
      CheckpointWriteError: no room for checkpoints, or no permission.
      LostProcessError: another process of the job is gone.
    """
    directory = Path(workdir)
    _require_writable(directory)
    stop = StopRequest(config.train.stop_within_s)
    with stop, Checkpoints(directory, _retention(config.train)) as checkpoints:
        checkpoints.set_damaged_aside(_print_line)
        try:
            state = _train(config, directory, checkpoints, stop)
        except Exception as e:
            if not lost_process(e):
                raise
            checkpoints.abandon()
            raise LostProcessError(
                f"process {jax.process_index()}: another process of the job is gone, see its "
                f"output for why; start all again to go on. It was noticed by: {_first_line(e)}"
            ) from e
    if jax.process_index() == 0:
        _write_speed(config, directory)
    return state


def _train(
    config: Config, directory: Path, checkpoints: Checkpoints, stop: StopRequest
) -> TrainState:
    first = jax.process_index() == 0
    stored = None if checkpoints.latest is None else checkpoints.meta()
    run = build_training(config, stored)
    state = _newest_state(run, checkpoints)
    start = int(state["step"])
    if stored is None:
        count = sum(x.size for x in jax.tree.leaves(state["params"]))
        init_from = config.train.init_from
        _print_line(f"fresh run: {count / 1e6:.2f} M parameters, init_from={init_from!r}")
    else:
        _print_line(f"resumed {directory} at step {start}")
    if first:
        (directory / "config.json").write_text(config_lib.to_json(config))
    bad_batches = BadBatches(
        directory,
        run.mixture,
        config.samples_per_step,
        config.train.on_nan,
        config.train.max_bad_batches,
        () if stored is None else stored.bad_steps,
        active=first,
    )

    def save(step: int, state: TrainState, scalars: Mapping[str, float]) -> None:
        meta = dataclasses.replace(run.meta(step), bad_steps=tuple(bad_batches.steps))
        checkpoints.save(state, meta, scalars)

    def go_back(step: int) -> tuple[TrainState, Iterator[Batch]]:
        checkpoints.wait()
        state = _newest_state(run, checkpoints)
        found = int(state["step"])
        _print_line(f"step {step}: loss or gradient not finite, on with the state of step {found}")
        state["step"] = jax.device_put(np.int32(step), run.shardings["step"])
        return state, run.loader(step)

    train_step = make_train_step(run.optimizer, run.shardings, run.mesh, run.loss_fn)
    with MetricWriter(directory, start, active=first) as writer:
        return fit(
            state,
            train_step,
            run.loader(start),
            config.train,
            mesh=run.mesh,
            writer=writer,
            mixture=run.mixture,
            samples_per_step=config.samples_per_step,
            save=save,
            bad_batches=bad_batches,
            check_saves=checkpoints.check,
            go_back=go_back,
            told_to_stop=lambda: stop.asked,
            print_line=_print_line,
        )


def _newest_state(run: TrainingRun, checkpoints: Checkpoints) -> TrainState:
    """That of the newest checkpoint; a fresh one if there is none."""
    return run.fresh_state() if checkpoints.latest is None else run.restored_state(checkpoints)


def _retention(config: TrainConfig) -> Retention:
    return Retention(
        config.keep_checkpoints, config.keep_every, config.keep_best, config.keep_best_is
    )


def _print_line(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


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


def _train_with_exit_code(config: Config, workdir: str) -> None:
    """Runs `train`; ends the process with a code and a line that say what to do next."""
    try:
        train(config, workdir)
    except Preempted as e:
        _print_line(str(e))
        sys.exit(EXIT_CODE)
    except LostProcessError as e:
        _leave(str(e), EXIT_CODE)
    except (FloatingPointError, CheckpointWriteError) as e:
        _leave(f"error: {e}", 1)
    except Exception as e:
        if jax.process_count() == 1 or isinstance(e, FileNotFoundError | PermissionError):
            raise
        _leave(traceback.format_exc(), 1)


def _leave(message: str, code: int) -> None:
    """Ends the process at once, without waiting for other processes or for a failed save."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    """Parses the command line and trains."""
    join_processes()
    config_lib.run_main(
        _train_with_exit_code,
        workdir="directory for checkpoints, metrics and config; made if missing",
    )


if __name__ == "__main__":
    main()
