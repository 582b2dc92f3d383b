"""Profiles of a few updates, as the config asks or on demand while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax

TRIGGER = "profile_now"
_STEPS = 5
_POLL_S = 2.0


class Profiler:
    """Records updates with `jax.profiler` to `profile/<first step>` of a run directory.

    While the run goes on, `touch WORKDIR/profile_now` asks for the next 5; a number in the file,
    `echo 20 > WORKDIR/profile_now`, for as many; and `echo 20 all > ...` for those of every
    process, not the first alone. Look at them with TensorBoard's profile plugin or xprof.

    Args:
      workdir: existing directory, the same for all processes.
      steps: (first, last) update to profile in the first process, from 1; () for none.
      tell: called with what there is to say.
      poll_s: seconds between looks at the file.
    """

    def __init__(
        self,
        workdir: Path,
        steps: tuple[int, ...],
        tell: Callable[[str], None],
        poll_s: float = _POLL_S,
    ):
        self._workdir, self._trigger, self._tell = workdir, workdir / TRIGGER, tell
        self._first, self._last = steps if steps and jax.process_index() == 0 else (0, -1)
        self._poll_s, self._polled = poll_s, time.monotonic()
        # A file from before asks for nothing: it is never removed, as other processes look too.
        self._seen = self._touched()
        self.recording = False

    def before(self, step: int) -> None:
        """Called before update `step` (from 1)."""
        now = time.monotonic()
        if not self.recording and now - self._polled >= self._poll_s:
            self._polled = now
            self._look(step)
        # A run that resumes within the steps records those that are left.
        if not self.recording and self._first <= step <= self._last:
            self._start(step)

    def after(self, step: int, loss: jax.Array) -> None:
        """Called when update `step` is on its way to the devices; `loss` comes out of it."""
        if self.recording and step >= self._last:
            loss.block_until_ready()
            self.stop()

    def stop(self) -> None:
        """Ends a recording, if there is one."""
        if self.recording:
            self.recording = False
            try:
                jax.profiler.stop_trace()
                self._tell(f"profile written to {self._folder}")
            except (RuntimeError, OSError) as e:
                self._tell(f"no profile could be written to {self._folder}: {e}")

    def _start(self, step: int) -> None:
        self._folder = self._workdir / "profile" / str(step)
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each Python call would be slower, and the file large
        try:
            # Before JAX finds out at the end that it cannot: it would then never record again.
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self.recording = True
        except (RuntimeError, OSError) as e:
            self._last = -1
            self._tell(f"no profile could be begun in {self._folder}: {e}")

    def _look(self, step: int) -> None:
        touched = self._touched()
        if touched is None or touched == self._seen:
            return
        self._seen = touched
        try:
            words = self._trigger.read_text().split()
        except OSError:  # gone again
            return
        count = int(words[0]) if words and words[0].isdigit() else _STEPS
        if jax.process_index() == 0 or "all" in words:
            self._first, self._last = step, step + max(1, count) - 1

    def _touched(self) -> int | None:
        try:
            return self._trigger.stat().st_mtime_ns
        except OSError:
            return None
