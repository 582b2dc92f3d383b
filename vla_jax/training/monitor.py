"""All that is seen of a run while it trains: lines, metrics, goodput, alarms, profiles, page."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import optax

from vla_jax.data.mixture import Mixture
from vla_jax.training.compile_once import CompileOnce
from vla_jax.training.flops import StepWork
from vla_jax.training.goodput import PRODUCTIVE, START_UP, TimeBook
from vla_jax.training.input_alarm import InputAlarm
from vla_jax.training.metrics import Event, MetricWriter, read_events, read_metrics
from vla_jax.training.profiler import Profiler
from vla_jax.training.progress import evaluation_line, progress_line, start_up_line
from vla_jax.training.run_page import RunPage, RunState
from vla_jax.training.step import Metrics
from vla_jax.training.window import Window


@dataclasses.dataclass(frozen=True)
class WatchConfig:
    """What is seen of a run.

    Attributes:
      wandb: project of Weights & Biases to write to, too; "" for none.
      profile_steps: (first, last) update to profile; () for none. See `profiler.Profiler`.
      input_alarm: share of the time that updates may wait for their batches before an alarm.
      page_every_s: seconds between two writings of `run.html`, at least.
    """

    wandb: str = ""
    profile_steps: tuple[int, ...] = ()
    input_alarm: float = 0.1
    page_every_s: float = 30.0

    def __post_init__(self):
        steps = self.profile_steps
        if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise ValueError(
                f"train.watch.profile_steps {steps}: the first and the last update to profile, "
                "counted from 1, such as (100, 104)"
            )
        if not 0 < self.input_alarm <= 1:
            raise ValueError(
                f"train.watch.input_alarm {self.input_alarm} is a share of the time: above 0, and "
                "1 for no alarm"
            )


class Monitor:
    """What the loop tells of itself, and where that goes. Use as a context.

    Args:
      workdir: existing directory.
      config: what is seen.
      mixture: whose sources the metrics are sums by.
      samples_per_step: samples that an update uses.
      start, steps: update that training (re)starts from, and the last one.
      train_step: jitted; an alarm is raised if it is compiled more than once.
      book: opened here; with what was spent before, if there is anything.
      work: what an update takes; without it there is no tokens/s and no MFU.
      schedule: update from 0 -> learning rate.
      stage_seconds: of the loader.
      facts: name -> what the run page says of the run.
      run_config: the run's config, plain values, for Weights & Biases.
      print_line: gets each line.
      active: False for all but one process of a job: it writes nothing.

    Attributes:
      outcome: what became of the run, set by a loop that leaves before its last update on purpose,
        with or without an exception.
    """

    def __init__(
        self,
        workdir: Path,
        config: WatchConfig,
        mixture: Mixture,
        *,
        samples_per_step: int,
        start: int,
        steps: int,
        train_step: Callable[..., Any],
        book: TimeBook | None = None,
        work: StepWork | None = None,
        schedule: optax.Schedule | None = None,
        stage_seconds: Callable[[], Mapping[str, float]] | None = None,
        facts: Mapping[str, str] | None = None,
        run_config: Mapping[str, Any] | None = None,
        print_line: Callable[[str], None] = print,
        active: bool = True,
    ):
        self._config, self._mixture, self._schedule = config, mixture, schedule
        self._start, self._steps, self._step = start, steps, start
        self.outcome: RunState | None = None
        self._first = True  # until the first update is logged
        self._print_line, self._active = print_line, active
        self._writer = MetricWriter(
            workdir, start, active=active, wandb=config.wandb, config=run_config
        )
        self._book = TimeBook() if book is None else book
        self._book.open(workdir, active=active)
        self._window = Window(mixture, samples_per_step, work)
        self._compiled = CompileOnce(train_step)
        self._alarm = stage_seconds and InputAlarm(config.input_alarm, stage_seconds)
        self._profiler = Profiler(
            workdir, config.profile_steps, lambda text: self.tell("profile", text)
        )
        self._page = RunPage(workdir / "run.html", str(workdir), facts or {}, mixture)
        self._page_written = -float("inf")
        if active:
            for record in read_metrics(workdir):
                self._page.add(record)
            for event in read_events(workdir):
                self._page.add_event(event)
        self.tell("start", f"goes on from update {start}" if start else "begins", printed=False)
        self.lap(START_UP + "log")
        self._book.resume(start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _) -> None:
        if kind is None:
            self._close(self.outcome or ("done" if self._step >= self._steps else "stopped"))
            return
        left = issubclass(kind, KeyboardInterrupt | SystemExit)
        with contextlib.suppress(OSError):  # a full disk may be what ended the run
            state: RunState = self.outcome or ("preempted" if left else "failed")
            self._close(state, f"{kind.__name__}: {error}")

    def lap(self, reason: str) -> float:
        """Books the time since the last call under `reason`; returns it in seconds."""
        return self._book.lap(reason)

    def tell(self, kind: str, text: str, *, printed: bool = True) -> None:
        """An event, for the log and the run page."""
        event = Event(time.time(), self._step, kind, text)
        self._writer.write_event(event)
        if self._active:
            self._page.add_event(event)
        if printed:
            self._print_line(f"{kind}: {text}")

    def before_step(self, step: int) -> None:
        """Called before the batch of update `step` (from 1) is taken."""
        self._profiler.before(step)
        self.lap(START_UP + "first batch" if self._first else PRODUCTIVE)

    def got_batch(self) -> None:
        """Called when the batch is there."""
        self._window.waited_s += self.lap(START_UP + "first batch" if self._first else "input wait")

    def transferred(self) -> None:
        """Called when the batch is on its way to the devices."""
        reason = START_UP + "first batch" if self._first else "input wait"
        self._window.transfer_s += self.lap(reason)

    def dispatched(self, step: int, metrics: Metrics, batch: dict[str, jax.Array]) -> None:
        """Called when update `step` is on its way to the devices."""
        self._step = step
        again = self._compiled.check(batch)
        if again is not None:
            self.lap("compiled again")
            self.tell("compiled again", again)
        self._profiler.after(step, metrics["loss"])

    def add(self, metrics: Metrics) -> None:
        """The metrics of an update that counts, in order."""
        self._window.add(metrics)

    def went_back(self, to: int) -> None:
        """Called when the updates after `to` have been undone: their time was for nothing."""
        self.lap(PRODUCTIVE)
        self._book.record(self._step)
        self._book.resume(to)
        self._window.forget()
        if self._alarm is not None:
            self._alarm.forget()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around what the loop does to save a checkpoint."""
        self.lap(START_UP + "compile" if self._first else PRODUCTIVE)
        yield
        seconds = self.lap("saving")
        self.tell("checkpoint", f"{seconds:.2f} s of the loop's time", printed=False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around what the loop does to evaluate."""
        self.lap(START_UP + "compile" if self._first else PRODUCTIVE)
        yield
        self._window.pause(self.lap("evaluation"))

    def log_evaluation(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """A line and a record, under "val/...", which it returns."""
        found = {f"val/{name}": float(value) for name, value in scalars.items()}
        if found:
            self._write(found)
            self._print_line(evaluation_line(self._step, scalars))
        self._book.record(self._step)
        self._window.pause(self.lap("evaluation"))
        return found

    def log(self, more: Mapping[str, float] | None = None) -> dict[str, float]:
        """Ends the window: a line, a record, perhaps the page. Every process calls it alike.

        The first call, after the update that this process compiles, tells how long the start took;
        the loop makes it right after that update.

        Args:
          more: scalars for the record.

        Raises FloatingPointError if a loss is not finite.
        """
        scalars = self._scalars() | dict(more or {})
        if self._first:
            self._log_first(scalars)
            return scalars
        self.lap(PRODUCTIVE)
        window, eta_s = self._window, self._window.eta_s(self._steps - self._step)
        self._write(scalars)
        self._print_line(progress_line(self._step, self._steps, scalars, self._mixture, eta_s))
        if self._alarm is not None:
            slow = self._alarm.check(window.waited_s, window.transfer_s, window.elapsed_s)
            if slow is not None:
                self.tell("slow input", slow)
        self._book.record(self._step)
        window.reset()
        if time.monotonic() - self._page_written >= self._config.page_every_s:
            self._write_page("running", eta_s)
        self.lap("logging")
        return scalars

    def _log_first(self, scalars: dict[str, float]) -> None:
        self.lap(START_UP + "compile")
        self._first = False
        start_up = self._book.start_up
        for key in [key for key in scalars if key.startswith("speed/")]:
            del scalars[key]  # the compilation makes it wrong
        scalars |= {f"start_up/{k.replace(' ', '_')}_s": s for k, s in start_up.items()}
        self._write(scalars)
        self._print_line(f"step {self._step}: {start_up_line(start_up)}")
        self._window.forget()
        if self._alarm is not None:
            self._alarm.forget()
        self._book.record(self._step)
        self._write_page("running", None)
        self.lap("logging")

    def _close(self, state: RunState, text: str = "") -> None:
        try:
            self._profiler.stop()
            self.lap("logging")
            self._book.record(self._step)
            self.tell(state, text or f"after update {self._step}", printed=False)
            self._write_page(state, None)
        finally:
            self._writer.close()

    def _scalars(self) -> dict[str, float]:
        scalars = self._window.scalars(self._step)
        if self._schedule is not None:
            scalars["learning_rate"] = float(np.asarray(self._schedule(self._step - 1)))
        memory = jax.local_devices()[0].memory_stats() or {}
        for name, key in (("peak", "peak_bytes_in_use"), ("limit", "bytes_limit")):
            if key in memory:
                scalars[f"memory/{name}_gib"] = memory[key] / 2**30
        return scalars

    def _write(self, scalars: dict[str, float]) -> None:
        scalars["goodput"] = self._book.goodput()
        self._writer.write(self._step, scalars)
        if self._active:
            self._page.add({"step": self._step, **scalars})

    def _write_page(self, state: RunState, eta_s: float | None) -> None:
        if not self._active:
            return
        self._page_written = time.monotonic()
        try:
            self._page.write(
                state=state, step=self._step, steps=self._steps, eta_s=eta_s,
                seconds=self._book.seconds(), now=time.time(),
            )  # fmt: skip
        except OSError as e:  # the run is worth more than its page
            self._print_line(f"the run page could not be written: {e}")
