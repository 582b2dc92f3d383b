"""How far a long piece of work on data is."""

from __future__ import annotations

import os
import sys
import time


class Progress:
    """A line on stderr every few seconds.

    Args:
      name: of what is written.
      total: rows in all, if known.
      done: of them, those that an earlier run has written.
    """

    def __init__(self, name: str, total: int | None, *, done: int = 0, every_s: float = 5.0):
        self.done = self._before = done
        self._name, self._total, self._every_s = name, total, every_s
        self._start = self._printed = time.monotonic()

    def add(self, rows: int) -> None:
        self.done += rows
        now = time.monotonic()
        if now - self._printed < self._every_s:
            return
        self._printed = now
        rate = (self.done - self._before) / (now - self._start)
        left = f", {(self._total - self.done) / rate:.0f} s left" if self._total and rate else ""
        print(
            f"{self._name}: {self.done}{f'/{self._total}' if self._total else ''} written, "
            f"{rate:.0f}/s{left}",
            file=sys.stderr,
            flush=True,
        )

    def finish(self, out_dir: str | os.PathLike[str]) -> None:
        seconds = time.monotonic() - self._start
        print(f"{self._name}: {self.done} written to {out_dir} in {seconds:.0f} s", flush=True)
