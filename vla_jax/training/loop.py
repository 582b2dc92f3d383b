"""The one training loop, for every stage.

Order within a step, which resume relies on: take the batch of step s, update, look whether the
updates so far were finite, log if due, save if due. A checkpoint at step s therefore means "samples
[0, s * samples_per_step) are used", and is never one of a state that is NaN.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vla_jax.data.mixture import Mixture
from vla_jax.sharding.mesh import to_global
from vla_jax.training.augment import AugmentConfig
from vla_jax.training.bad_batches import BadBatches, Policy
from vla_jax.training.hosts import compare_hosts
from vla_jax.training.metrics import MetricWriter
from vla_jax.training.preemption import Preempted
from vla_jax.training.step import Metrics, TrainState
from vla_jax.training.window import Window, progress_line
from vla_jax.types import Batch

# Steps dispatched ahead of the one whose result is awaited: enough to hide the host's work.
_IN_FLIGHT = 2


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One stage of training.

    Attributes:
      steps: updates in all.
      batch_size: rows per update, over all hosts.
      seed: of the fresh parameters.
      log_every, checkpoint_every: steps between.
      keep_checkpoints: newest ones kept.
      keep_every: checkpoints at multiples of so many steps are kept for ever; 0 for none.
      keep_best: name of a scalar in the log, such as "robot/token_accuracy"; the checkpoint with
        its best value, over the last log line before the checkpoint, is kept too. Empty for none.
      keep_best_is: what the best value is.
      on_nan: what becomes of a batch whose loss or gradient is not finite, see
        `bad_batches.BadBatches`; its update is never applied.
      max_bad_batches: of a run; with one more it stops.
      stop_within_s: seconds that a run told to stop has to save before it ends all the same.
      integer_smoothing: see `losses.answer_loss`; in bins, 0 for one-hot targets.
      augment: how images of robot samples are changed.
      init_from: parameter file (`.npz`) or run directory to start from; empty for fresh ones.
    """

    steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    keep_every: int = 0
    keep_best: str = ""
    keep_best_is: Literal["lowest", "highest"] = "lowest"
    on_nan: Policy = "stop"
    max_bad_batches: int = 10
    stop_within_s: float = 300.0
    integer_smoothing: float = 0.0
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    init_from: str = ""

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("keep_every", "max_bad_batches", "stop_within_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} must be at least 0, got {getattr(self, name)}")
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"train.keep_every {self.keep_every} must be a multiple of train.checkpoint_every "
                f"{self.checkpoint_every}: others are not saved"
            )
        if self.integer_smoothing < 0:
            raise ValueError(
                f"train.integer_smoothing must be at least 0, got {self.integer_smoothing}"
            )


class _Dispatched(NamedTuple):
    """A step that was given to the accelerator."""

    step: int
    metrics: Metrics
    input_wait: float


class _InFlight:
    """Steps given to the accelerator whose results nobody has looked at yet."""

    def __init__(self) -> None:
        self._steps: collections.deque[_Dispatched] = collections.deque()

    def add(self, dispatched: _Dispatched) -> None:
        for name in ("finite", "stop"):
            dispatched.metrics[name].copy_to_host_async()
        self._steps.append(dispatched)

    def results(self, leave: int = 0) -> list[_Dispatched]:
        """The oldest ones, in order, after waiting for them; all but `leave`."""
        done = [self._steps.popleft() for _ in range(len(self._steps) - leave)]
        if done:
            done[-1].metrics["loss"].block_until_ready()
        return done

    def clear(self) -> None:
        self._steps.clear()


def fit(
    state: TrainState,
    train_step: Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]],
    batches: Iterator[Batch],
    config: TrainConfig,
    *,
    mesh: Mesh,
    writer: MetricWriter,
    mixture: Mixture,
    samples_per_step: int,
    save: Callable[[int, TrainState, Mapping[str, float]], None],
    bad_batches: BadBatches,
    check_saves: Callable[[], dict[str, float]] = dict,
    go_back: Callable[[int], tuple[TrainState, Iterator[Batch]]] | None = None,
    told_to_stop: Callable[[], bool] = lambda: False,
    print_line: Callable[[str], None] = print,
) -> TrainState:
    """Trains from the state's step to `config.steps` and saves at the end.

    Args:
      batches: host-local batches, the first one that of the state's step.
      mixture: that they are made from.
      samples_per_step: samples that an update uses.
      save: called with (step, state, newest value of each scalar logged) every `checkpoint_every`
        steps and after the last one.
      bad_batches: told of each step whose loss or gradient was not finite; it was not applied.
      check_saves: called every step; raises if a save failed in the background, else returns what
        it cost, for the log.
      go_back: called with a bad batch's step if `bad_batches` wants to go back; returns the newest
        checkpoint's state, with that step as its own, and the batches from there.
      told_to_stop: whether this process shall. As soon as all know of it, they save and raise.

    Raises:
      Preempted: it was told to stop, and has saved.
      FloatingPointError: a bad batch, and the policy is to stop.
    """
    step = start = int(state["step"])
    window, in_flight = Window(mixture, samples_per_step), _InFlight()
    newest: dict[str, float] = {}
    costs: dict[str, float] = {}
    applied, stopping = 0, False
    begun = time.perf_counter()
    while step < config.steps:
        step += 1
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        stop = {"stop": np.full(len(batch["tokens"]), told_to_stop())}
        state, metrics = train_step(state, to_global({**batch, **stop}, mesh))  # pyright: ignore
        in_flight.add(_Dispatched(step, metrics, waited))
        costs |= check_saves()

        first, last = step == start + 1, step == config.steps
        log, save_now = last or step % config.log_every == 0, step % config.checkpoint_every == 0
        # Nothing is logged or saved before it is known to be good.
        done = in_flight.results(0 if first or log or save_now else _IN_FLIGHT)
        if any(bool(d.metrics["stop"]) for d in done):
            stopping = True
            done += in_flight.results()
        back_to = None
        for d in done:
            if bool(d.metrics["finite"]):
                window.add(d.metrics, d.input_wait)
                applied += 1
            elif bad_batches.report(d.step, d.metrics):
                back_to = d.step
                break
            else:
                print_line(f"step {d.step}: loss or gradient not finite, not applied")
        if back_to is not None and go_back is not None:
            in_flight.clear()
            state, batches = go_back(back_to)
            step, applied = back_to, 0
            window.reset()
            continue

        if applied and (first or log):
            scalars = window.scalars(step)
            if first:
                # The first step compiles; it would make every speed figure of this window wrong.
                scalars = {k: v for k, v in scalars.items() if not k.startswith("speed/")}
                print_line(f"step {step}: compiled in {time.perf_counter() - begun:.1f} s")
                begun = time.perf_counter()
            else:
                eta = (config.steps - step) * (time.perf_counter() - begun) / (step - start - 1)
                print_line(progress_line(step, config.steps, scalars, mixture.names, eta))
                hosts, alarm = compare_hosts(scalars["speed/input_wait_share"])
                scalars |= hosts
                if alarm:
                    print_line(alarm)
            scalars |= costs | {"bad_batches": float(len(bad_batches.steps))}
            writer.write(step, scalars)
            window.reset()
            newest |= scalars
            applied, costs = 0, {}
        if (save_now or stopping) and not last:
            save(step, state, newest)
        if stopping and not last:
            raise Preempted(step)
    save(step, state, newest)
    return state
