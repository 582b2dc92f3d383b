"""The one training loop, for every stage.

Order within a step, which resume relies on: take the batch of step s, update, look whether the
updates so far were finite, log if due, evaluate if due, save if due. A checkpoint at step s
therefore means "samples [0, s * samples_per_step) are used, and what was due up to s is measured",
and is never one of a state that is NaN.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vla_jax.sharding.mesh import to_global
from vla_jax.training.bad_batches import BadBatches
from vla_jax.training.config import TrainConfig
from vla_jax.training.monitor import Monitor
from vla_jax.training.preemption import Preempted
from vla_jax.training.step import Metrics, TrainState
from vla_jax.types import Batch

# Steps dispatched ahead of the one whose result is awaited: enough to hide the host's work.
_IN_FLIGHT = 2


class _Dispatched(NamedTuple):
    """A step that was given to the accelerator."""

    step: int
    metrics: Metrics


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
    monitor: Monitor,
    save: Callable[[int, TrainState, Mapping[str, float]], None],
    bad_batches: BadBatches,
    check_saves: Callable[[], dict[str, float]] = dict,
    go_back: Callable[[int], tuple[TrainState, Iterator[Batch]]] | None = None,
    told_to_stop: Callable[[], bool] = lambda: False,
    measure: Callable[[TrainState, dict[str, jax.Array]], Mapping[str, jax.Array]] | None = None,
    evaluate: Callable[[int, TrainState], Mapping[str, float]] | None = None,
) -> TrainState:
    """Trains from the state's step to `config.steps` and saves at the end.

    Args:
      batches: host-local batches, the first one that of the state's step.
      monitor: is told what happens.
      save: called with (step, state, newest value of each scalar logged) every `checkpoint_every`
        steps and after the last one.
      bad_batches: told of each step whose loss or gradient was not finite; it was not applied.
      check_saves: called every step; raises if a save failed in the background, else returns what
        it cost, for the log.
      go_back: called with a bad batch's step if `bad_batches` wants to go back; returns the newest
        checkpoint's state, with that step as its own, and the batches from there.
      told_to_stop: whether this process shall. As soon as all know of it, they save and raise.
      measure: called with (state, batch) before the updates that are logged; returns scalars for
        the log.
      evaluate: called with (step, state) every `evaluate_every` steps and after the last one, but
        not where the run is told to stop; returns scalars for the log. It must not keep the state.

    Raises:
      Preempted: it was told to stop, and has saved.
      FloatingPointError: a bad batch, and the policy is to stop.
    """
    step = start = int(state["step"])
    in_flight = _InFlight()
    newest: dict[str, float] = {}
    costs: dict[str, float] = {}
    applied, stopping = 0, False
    while step < config.steps:
        step += 1
        monitor.before_step(step)
        batch = next(batches)
        monitor.got_batch()
        stop = {"stop": np.full(len(batch["tokens"]), told_to_stop())}
        arrays = to_global({**batch, **stop}, mesh, config.batch_size)  # pyright: ignore
        monitor.transferred()
        first, last = step == start + 1, step == config.steps
        log, save_now = last or step % config.log_every == 0, step % config.checkpoint_every == 0
        every = config.evaluate_every
        evaluate_now = evaluate is not None and every > 0 and (last or step % every == 0)
        measured = measure(state, arrays) if measure is not None and log else {}
        state, metrics = train_step(state, arrays)
        monitor.dispatched(step, metrics, arrays)
        in_flight.add(_Dispatched(step, metrics))
        costs |= check_saves()

        # Nothing is logged or saved before it is known to be good.
        wait_for_all = first or log or save_now or evaluate_now
        done = in_flight.results(0 if wait_for_all else _IN_FLIGHT)
        if any(bool(d.metrics["stop"]) for d in done):
            stopping = True
            done += in_flight.results()
        back_to = None
        for d in done:
            if bool(d.metrics["finite"]):
                monitor.add(d.metrics)
                applied += 1
            elif bad_batches.report(d.step, d.metrics):
                back_to = d.step
                break
            else:
                monitor.tell(
                    "bad batch", f"loss or gradient of update {d.step} not finite, left out"
                )
        if back_to is not None and go_back is not None:
            in_flight.clear()
            state, batches = go_back(back_to)
            step, applied = back_to, 0
            continue

        if applied and (first or log):
            more = costs | {k: float(v) for k, v in measured.items()}
            newest |= monitor.log(more | {"bad_batches": float(len(bad_batches.steps))})
            applied, costs = 0, {}
        if evaluate_now and evaluate is not None and not stopping:
            with monitor.evaluating():
                scalars = evaluate(step, state)
            newest |= monitor.log_evaluation(scalars)
        if (save_now or stopping) and not last:
            with monitor.saving():
                save(step, state, newest)
        if stopping and not last:
            monitor.outcome = "preempted"
            raise Preempted(step)
    with monitor.saving():
        save(step, state, newest)
    return state
