"""Runs an experiment's stages. Killed anywhere, it goes on where it was; results never mix."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_jax.evaluation.base import write_result
from vla_jax.evaluation.provenance import cpu_name, git_commit
from vla_jax.experiment.stages import Stage
from vla_jax.training.progress import duration

_TOLD_TO_STOP = 75  # exit code of a training that has saved and wants to be started again
_HEARTBEAT_S = 5.0
_SMALL_BYTES = 100_000
_DIFFERENCES = 3  # named of settings that changed
# As `make demo` has it: TensorFlow is silent, and buffers are in large pages, which is quicker.
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

Stamp = dict[str, Any]


class StageFailedError(RuntimeError):
    """A command of a stage failed."""


def _print(line: str) -> None:
    print(line, flush=True)


class Stages:
    """Runs stages in a directory and keeps a stamp of each: settings, state, time, machine.

    A stage counts as done if its stamp says so, the settings in it (and those of all that it needs)
    are what is asked for now, and its result is as it was left.

    Args:
      out: of the experiment.
      stages: all that may be run, in order.
      launcher: what runs a command's words.
      say: gets the lines to print.
    """

    def __init__(
        self,
        out: Path,
        stages: Sequence[Stage],
        *,
        launcher: Sequence[str] = (sys.executable,),
        say: Callable[[str], None] = _print,
    ):
        self._out, self._stages, self._launcher, self._say = out, list(stages), launcher, say
        self._by_name = {stage.name: stage for stage in stages}

    def stamp(self, name: str) -> Stamp:
        """What is known of a stage; empty if it has never begun."""
        path = self._stamp_file(name)
        try:
            return json.loads(path.read_text()) if path.exists() else {}
        except json.JSONDecodeError as e:
            raise ValueError(f"{path} is not JSON ({e}): delete it") from e

    def done(self, name: str) -> bool:
        """Whether it has to be run no more. False if it, or what it needs, is of other settings."""
        stamp = self.stamp(name)
        return (
            stamp.get("state") == "done"
            and stamp["fingerprint"] == self._fingerprint(self._by_name[name])
            and stamp["contents"] == _contents(self._by_name[name].result)
            and all(self.done(needed) for needed in self._by_name[name].needs)
        )

    def run(self, *, redo: bool = False, after: Callable[[Stage], None] = lambda stage: None):
        """Runs what is not done, in order.

        Args:
          redo: what is there with other settings is deleted and made again.
          after: called with each stage that was run.

        Raises:
          ValueError: a stage was made with other settings, or its result has changed since.
          StageFailedError: a command failed.
          RuntimeError: another run is at work in the directory.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        machine = {"git": git_commit(), "cpu": f"{cpu_name()}, {os.cpu_count()} cores"}
        with _locked(self._out / "lock", self._say) as lock:
            for number, stage in enumerate(self._stages, 1):
                self._require_same(stage, redo)
                if not self.done(stage.name):
                    head = f"=== {number} of {len(self._stages)}: {stage.title}"
                    self._say(f"\n{head}  [{self._forecast(number - 1)}]")
                    self._run(stage, lock, machine)
                    after(stage)

    def forecast_s(self, begun: int = 0) -> tuple[float, float]:
        """Seconds taken so far by what is done, and estimated for the rest, from stage `begun` on.

        The estimate is scaled by what the stages that are done took against theirs.
        """
        stamps = [(stage, self.stamp(stage.name)) for stage in self._stages]
        done = [(s, t["seconds"]) for s, t in stamps if t.get("state") == "done"]
        taken, planned = sum(t for _, t in done), sum(s.seconds for s, _ in done)
        pace = taken / planned if planned else 1.0
        left = [s.seconds for s, t in stamps[begun:] if t.get("state") != "done"]
        return taken, pace * sum(left)

    def summary(self) -> list[Stamp]:
        """Of each stage: state, wall time over all attempts, and what is known of the machine."""
        keys = ("state", "seconds", "attempts", "date", "git", "cpu", "load_before")
        summary = []
        for stage in self._stages:
            stamp = self.stamp(stage.name)
            known = {key: stamp[key] for key in keys if key in stamp}
            summary.append({"stage": stage.name, "planned_s": stage.seconds, **known})
        return summary

    def _forecast(self, begun: int) -> str:
        taken, left = self.forecast_s(begun)
        return f"taken {duration(taken)}, about {duration(left)} to go"

    def _stamp_file(self, name: str) -> Path:
        return self._out / "stages" / f"{name.replace('/', '_')}.json"

    def _fingerprint(self, stage: Stage) -> str:
        """Of the settings, and of everything that the stage is made from."""
        inputs = {name: self.stamp(name).get("fingerprint") for name in stage.needs}
        inputs |= {f"{name} contents": self.stamp(name).get("contents") for name in stage.needs}
        text = json.dumps([stage.settings, inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _require_same(self, stage: Stage, redo: bool) -> None:
        stamp = self.stamp(stage.name)
        if not stamp:
            if stage.directory.exists() and any(stage.directory.iterdir()):
                raise ValueError(
                    f"{stage.directory} holds files, but nothing says what they were made with: "
                    "delete it, or choose another --out"
                )
            return
        problem = ""
        if stamp["fingerprint"] != self._fingerprint(stage):
            problem = f"was made with other settings ({self._difference(stage, stamp)})"
        elif stamp["state"] == "done" and stamp["contents"] != _contents(stage.result):
            problem = f"has changed since it was made: {stage.result}"
        if not problem:
            return
        if not redo:
            raise ValueError(
                f"{stage.name} in {self._out} {problem}. It is kept as it is: choose another "
                "--out, or give --redo to delete it and make it and what follows from it again"
            )
        self._say(f"{stage.name} {problem}: made again")
        # The stamp last: killed in between, the next run finds it and does the same.
        shutil.rmtree(stage.directory, ignore_errors=True)
        for leftover in stage.leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        self._stamp_file(stage.name).unlink()

    def _difference(self, stage: Stage, stamp: Stamp) -> str:
        now, before = _flat(stage.settings), _flat(stamp["settings"])
        changed = [k for k in sorted(now.keys() | before.keys()) if now.get(k) != before.get(k)]
        if not changed:
            return f"those of {', '.join(stage.needs)}"
        words = [f"{k}: {before.get(k)} -> {now.get(k)}" for k in changed[:_DIFFERENCES]]
        more = len(changed) - _DIFFERENCES
        return "; ".join(words) + (f"; and {more} more" if more > 0 else "")

    def _run(self, stage: Stage, lock: int, machine: Stamp) -> None:
        before = self.stamp(stage.name)
        stamp: Stamp = {
            "stage": stage.name,
            "state": "begun",
            "fingerprint": self._fingerprint(stage),
            "settings": stage.settings,
            "commands": [" ".join(command.words) for command in stage.commands],
            "seconds": before.get("seconds", 0.0),
            "attempts": before.get("attempts", 0) + 1,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            **machine,
            # Above 1 per core, others were at work on the machine.
            "load_before": round(os.getloadavg()[0], 2),
        }
        path = self._stamp_file(stage.name)
        path.parent.mkdir(exist_ok=True)
        write_result(path, stamp)
        spent, begun = stamp["seconds"], time.monotonic()

        def beat() -> None:
            stamp["seconds"] = spent + time.monotonic() - begun
            write_result(path, stamp)

        for command in stage.commands:
            if command.makes is not None and command.makes.exists():
                continue
            self._say(f"    python {' '.join(command.words)}")
            code = _call([*self._launcher, *command.words], lock, beat)
            beat()
            if code == _TOLD_TO_STOP:
                raise StageFailedError(f"{stage.name} was told to stop")
            if code:
                raise StageFailedError(f"{stage.name} ended with exit code {code}, see above")
        if not stage.result.exists():
            raise StageFailedError(f"{stage.name} ended well but left no {stage.result}")
        for leftover in stage.leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        beat()
        write_result(path, stamp | {"state": "done", "contents": _contents(stage.result)})
        self._say(f"    {duration(stamp['seconds'])}")


def _call(command: Sequence[str], lock: int, beat: Callable[[], None]) -> int:
    """Runs a command, which is told to stop when this process is."""
    process = subprocess.Popen(command, pass_fds=(lock,), env={**_ENVIRONMENT, **os.environ})
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait(_HEARTBEAT_S)
            except subprocess.TimeoutExpired:
                beat()
    except KeyboardInterrupt:  # the command has got it, too; a training saves before it ends
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Holds the lock of a directory. Commands inherit it: should this process be killed, the next
    one waits for the command that goes on alone, and two never write the same files."""
    with path.open("a+") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                if _alive(holder):
                    raise RuntimeError(
                        f"process {holder} runs this experiment in {path.parent}: wait for it or "
                        "stop it"
                    ) from None
                if not told:
                    say("waiting for a command of a run that was killed, which goes on alone ...")
                    told = True
                time.sleep(0.2)
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def _contents(result: Path) -> str | None:
    """Digest of a file's bytes, or of what is beneath a directory: of small files the bytes, of
    others name and size. Hidden ones do not count: readers keep their indices there."""
    if result.is_file():
        data = result.read_bytes()
    elif result.is_dir():
        files = sorted(p for p in result.rglob("*") if p.is_file() and p.name[0] != ".")
        data = b""
        for file in files:
            size = file.stat().st_size
            data += f"{file.relative_to(result).as_posix()} {size}\n".encode()
            data += file.read_bytes() if size <= _SMALL_BYTES else b""
    else:
        return None
    return hashlib.sha256(data).hexdigest()[:16]


def _flat(settings: Any, where: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    if not isinstance(settings, Mapping) or not settings:
        return {where: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{where}.{key}" if where else str(key))
    return flat
