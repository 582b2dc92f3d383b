"""Trains a model: `python -m vla_jax.train --config=configs/demo_cotrain.py --workdir=out/run`.

Any config key can be overridden: `--config.train.steps=100`. Run again with the same --workdir to
resume after an interruption. On several hosts, start it on each: see `sharding.distributed`.

Exit codes: 0 done; 75 told to stop (SIGTERM, Ctrl-C) or left by another process of the job, start
it again to go on; 1 failed; 2 the command line, the config or the data are wrong.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from vla_jax import config as config_lib
from vla_jax import schema
from vla_jax.build import TrainingRun, build_training
from vla_jax.checkpoints.manager import Checkpoints, CheckpointWriteError, Retention
from vla_jax.config import Config
from vla_jax.data.loader import Loader
from vla_jax.in_training import InTraining
from vla_jax.sharding.distributed import LostProcessError, join_processes, lost_process
from vla_jax.training.bad_batches import BadBatches
from vla_jax.training.config import TrainConfig
from vla_jax.training.flops import matmul_flops_per_s, step_work, train_flops_per_sample
from vla_jax.training.goodput import START_UP, TimeBook, process_start
from vla_jax.training.loop import fit
from vla_jax.training.monitor import Monitor
from vla_jax.training.optimizer import make_schedule
from vla_jax.training.preemption import EXIT_CODE, Preempted, StopRequest, say
from vla_jax.training.step import TrainState
from vla_jax.types import Batch


class SetupError(ValueError):
    """Config, data and checkpoint do not fit together; nothing was trained."""


def train(config: Config, workdir: str, book: TimeBook | None = None) -> TrainState:
    """Trains to `config.train.steps`, resuming from the newest checkpoint in `workdir`.

    Args:
      book: with the time that this process has taken so far.

    Raises:
      SetupError, FileNotFoundError, PermissionError: naming what is wrong with config, data or
        workdir; a checkpoint already there is left as it is.
      Preempted: SIGTERM or Ctrl-C; all is saved.
      FloatingPointError: a batch whose loss is not finite, see `train.on_nan`.
      CheckpointWriteError: no room for checkpoints, or no permission.
      LostProcessError: another process of the job is gone.
    """
    if "://" in workdir:
        raise PermissionError(
            f"cannot write to --workdir {workdir}: mount the bucket and give the directory, see "
            "launch/README.md"
        )
    directory = Path(workdir)
    book = TimeBook() if book is None else book
    _require_writable(directory)
    stop = StopRequest(config.train.stop_within_s)
    with stop, Checkpoints(directory, _retention(config.train)) as checkpoints:
        checkpoints.set_damaged_aside(_print_line)
        try:
            state = _train(config, directory, checkpoints, stop, book)
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
    config: Config, directory: Path, checkpoints: Checkpoints, stop: StopRequest, book: TimeBook
) -> TrainState:
    first = jax.process_index() == 0
    stored = None if checkpoints.latest is None else checkpoints.meta()
    try:
        run = build_training(config, stored)
        book.lap(START_UP + "data")
        state = _newest_state(run, checkpoints)
    except ValueError as e:
        raise SetupError("\n".join((str(e), *getattr(e, "__notes__", ())))) from e
    book.lap(START_UP + ("parameters" if stored is None else "restore"))
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
        checkpoints.save(state, meta, _with_unmeasured(config.train, scalars))

    def go_back(step: int) -> tuple[TrainState, Iterator[Batch]]:
        checkpoints.wait()
        state = _newest_state(run, checkpoints)
        found = int(state["step"])
        monitor.tell(
            "bad batch",
            f"loss or gradient of update {step} not finite, on with the state of update {found}",
        )
        monitor.went_back(found)
        state["step"] = jax.device_put(np.int32(step), run.shardings["step"])
        return state, open_loader(step)

    evaluate = None
    if config.train.evaluate_every:
        evaluate = InTraining(
            run, state["params"], lambda kind, text: monitor.tell(kind, text), lambda: stop.asked
        )
        book.lap(START_UP + "evaluation")
    train_step = run.make_step(run.loss_fn)
    opened: list[Loader] = []

    def open_loader(step: int) -> Loader:
        opened[:] = [run.loader(step)]
        return opened[0]

    loader = open_loader(start)
    book.lap(START_UP + "first batch")
    with _monitor(run, directory, start, train_step, book, lambda: opened[0]) as monitor:
        return fit(
            state,
            train_step,
            loader,
            config.train,
            mesh=run.mesh,
            monitor=monitor,
            save=save,
            bad_batches=bad_batches,
            check_saves=checkpoints.check,
            go_back=go_back,
            told_to_stop=lambda: stop.asked,
            measure=run.make_measure() if config.train.source_gradient_norms else None,
            evaluate=evaluate,
        )


def _monitor(
    run: TrainingRun,
    directory: Path,
    start: int,
    train_step: Callable[..., object],
    book: TimeBook,
    loader: Callable[[], Loader],
) -> Monitor:
    """Of a run that goes on after update `start`; `loader` gives the one in use."""
    config, data = run.config, run.config.data
    return Monitor(
        directory,
        config.train.watch,
        run.mixture,
        samples_per_step=config.samples_per_step,
        start=start,
        steps=config.train.steps,
        train_step=train_step,
        book=book,
        work=step_work(
            config.model, data.row_lengths, config.train.batch_size, data.examples_per_row
        ),
        schedule=make_schedule(config.optimizer, config.train.steps),
        stage_seconds=lambda: loader().stage_seconds(),
        facts=_facts(run),
        run_config=schema.to_plain(config),
        print_line=_print_line,
        active=jax.process_index() == 0,
    )


def _newest_state(run: TrainingRun, checkpoints: Checkpoints) -> TrainState:
    """That of the newest checkpoint; a fresh one if there is none."""
    return run.fresh_state() if checkpoints.latest is None else run.restored_state(checkpoints)


def _retention(config: TrainConfig) -> Retention:
    return Retention(
        config.keep_checkpoints, config.keep_every, config.keep_best, config.keep_best_is
    )


def _with_unmeasured(config: TrainConfig, scalars: Mapping[str, float]) -> Mapping[str, float]:
    """With the worst value of a `keep_best` that was not evaluated yet, or could not be."""
    if not config.keep_best.startswith("val/") or config.keep_best in scalars:
        return scalars
    return {**scalars, config.keep_best: np.inf if config.keep_best_is == "lowest" else -np.inf}


def _print_line(line: str) -> None:
    if jax.process_index() == 0:
        say(line, sys.stdout)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


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


def _train_with_exit_code(config: Config, workdir: str, book: TimeBook) -> None:
    """Runs `train`; ends the process with a code and a line that say what to do next."""
    try:
        train(config, workdir, book)
    except Preempted as e:
        _print_line(str(e))
        sys.exit(EXIT_CODE)
    except LostProcessError as e:
        _leave(str(e), EXIT_CODE)
    except SetupError as e:
        _leave(f"error: {e}", 2)
    except (FloatingPointError, CheckpointWriteError) as e:
        _leave(f"error: {e}", 1)
    except Exception as e:
        if jax.process_count() == 1 or isinstance(e, FileNotFoundError | PermissionError):
            raise
        _leave(traceback.format_exc(), 1)


def _leave(message: str, code: int) -> None:
    """Ends the process at once, without waiting for other processes or for a failed save."""
    say(message)
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    """Parses the command line and trains."""
    book = TimeBook(process_start())
    book.lap(START_UP + "imports")
    join_processes()
    book.lap(START_UP + "join")
    config_lib.run_main(
        functools.partial(_train_with_exit_code, book=book),
        workdir="directory for checkpoints, metrics and config; made if missing",
    )


if __name__ == "__main__":
    main()
