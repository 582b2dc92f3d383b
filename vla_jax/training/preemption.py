"""Being told to stop: by SIGTERM, the notice of TPU pods, Kubernetes and Slurm, or by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import Self, TextIO

EXIT_CODE = 75
"""Of a run that was told to stop and has saved: start it again to go on. EX_TEMPFAIL of sysexits.h,
which nothing else here ends with."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A scheduler may signal a process and its group: what comes so soon after is the same notice.
_SAME_NOTICE_S = 1.0


class Preempted(Exception):
    """Training has stopped where it was told to, and has saved.

    Attributes:
      step: updates finished, and saved.
    """

    def __init__(self, step: int):
        super().__init__(f"told to stop: saved at step {step}, start again to go on")
        self.step = step


class StopRequest:
    """Whether this process was told to stop; use as a context.

    The first SIGTERM or SIGINT only sets `asked`. A second one, or `within_s` passing, ends the
    process at once, whatever it is waiting for: a thread does that, because Python runs no signal
    handler while its main thread is inside XLA, such as in a collective with a host that is gone.
    A checkpoint being written then does not count; the one before stands.

    In a thread other than the main one, where Python allows no handlers, it hears nothing.

    Args:
      within_s: seconds from the notice to the end.
    """

    def __init__(self, within_s: float):
        self._within_s = within_s
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def __enter__(self) -> Self:
        self._exit = contextlib.ExitStack()
        if threading.current_thread() is not threading.main_thread():
            return self
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        thread = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        thread.start()
        self._exit.callback(thread.join)
        self._exit.callback(os.close, writing)  # which ends the thread
        # Written to by the handler that Python has in C, so at once.
        self._exit.callback(
            signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        )
        for number in _SIGNALS:
            before = signal.signal(number, lambda *_: None)
            # None is a handler not set from Python, such as the one of `jax.distributed`.
            self._exit.callback(signal.signal, number, before or signal.SIG_DFL)
        return self

    def __exit__(self, *_) -> None:
        self._exit.close()

    def _watch(self, reading: int) -> None:
        noticed = None
        with open(reading, "rb", buffering=0) as pipe:
            while True:
                left = None
                if noticed is not None:
                    left = max(0.0, noticed + self._within_s - time.monotonic())
                if not select.select([pipe], [], [], left)[0]:
                    _leave(f"not done {self._within_s:g} s after being told to stop", EXIT_CODE)
                numbers = pipe.read(64)
                if not numbers:
                    return
                told = [number for number in numbers if number in _SIGNALS]
                now = time.monotonic()
                if told and noticed is None:
                    noticed = now
                    self._asked.set()
                    say(f"{signal.Signals(told[0]).name}: stopping after the step in flight")
                elif told and now - noticed > _SAME_NOTICE_S:  # pyright: ignore
                    _leave(f"{signal.Signals(told[0]).name} again", 128 + told[0])


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line, to stderr if nothing else is given, in one write.

    `print` makes two of it where output is unbuffered, and the thread that hears signals would
    write between those of another.
    """
    print(f"{line}\n", end="", file=file or sys.stderr, flush=True)


def _leave(why: str, code: int) -> None:
    say(f"{why}: leaving at once, the newest complete checkpoint stands")
    os._exit(code)
