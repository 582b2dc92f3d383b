"""Runs one program as N JAX processes on this machine, as a pod runs it on N hosts.

    python launch/local_processes.py -n 2 -- python -m vla_jax.train --config=... --workdir=...

Each process gets `--devices` fake CPU devices, and together they see N times as many. The first
process that fails ends the others, and its exit code is this program's. With `--restarts K` all are
then started again, up to K times; not if the code is 2, which says that the command line or the
config is wrong. Output lines begin with the number of the process.

SIGTERM or Ctrl-C is handed on to the processes, which `vla_jax.train` answers with a checkpoint and
exit code 75, and nothing is started again. A second one ends them at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from vla_jax.training.preemption import EXIT_CODE

_WRONG_COMMAND = 2
_GRACE_S = 10.0


def run(command: Sequence[str], count: int, devices: int = 1, restarts: int = 0) -> int:
    """Runs `count` processes of `command`, if they fail up to `restarts` times more.

    Returns:
      0 if all ended well, else the exit code of the first that did not.
    """
    told = _Told()
    attempt = 0
    while True:
        code = _run_once(command, count, devices, told)
        if code in (0, _WRONG_COMMAND) or told.count or attempt == restarts:
            return code
        attempt += 1
        print(f"exit code {code}: restart {attempt} of {restarts}", flush=True)


class _Told:
    """Counts SIGTERM and Ctrl-C, from now on."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._add)

    def _add(self, *_) -> None:
        self.count += 1


def _run_once(command: Sequence[str], count: int, devices: int, told: _Told) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    processes, printers = [], []
    for index in range(count):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
            "XLA_FLAGS": flags,  # the last one counts
            "PYTHONUNBUFFERED": "1",
            # Only process 0 writes to it: it would find its program there and wait in the first
            # collective, which gives up after 30 s, for others that compile theirs again.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C comes here alone, and is handed on once
        )
        printer = threading.Thread(target=_print_lines, args=(index, process.stdout))
        printer.start()
        processes.append(process)
        printers.append(printer)
    try:
        code = _wait(processes, told)
    finally:
        _end(processes)
        for printer in printers:
            printer.join()
    return code


def _wait(processes: list[subprocess.Popen], told: _Told) -> int:
    handed_on = 0
    while True:
        codes = [process.poll() for process in processes]
        failed = [(code == EXIT_CODE, index, code) for index, code in enumerate(codes) if code]
        if failed:
            # A process whose neighbour has died ends as resumable: that is not what happened first.
            return _first_failure(processes, *min(failed)[1:])
        if None not in codes:
            return 0
        if told.count > handed_on:
            handed_on = told.count
            for process in processes:
                process.send_signal(signal.SIGTERM)
        time.sleep(0.1)


def _first_failure(processes: list[subprocess.Popen], index: int, code: int) -> int:
    if code == EXIT_CODE:
        # All of them save at the same step, so the others are about to end as well.
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline and any(p.poll() is None for p in processes):
            time.sleep(0.1)
        return code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed, exit code {code}"
    print(f"process {index} {how}: ending the others", flush=True)
    return code if code > 0 else 128 - code  # a signal, -9, reads 137 in a shell


def _end(processes: list[subprocess.Popen]) -> None:
    """Asks those still running to stop, then makes them."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _print_lines(index: int, lines) -> None:
    for line in lines:
        print(f"[{index}] {line}", end="", flush=True)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], usage="%(prog)s -n N -- command ..."
    )
    parser.add_argument("-n", type=int, required=True, help="processes")
    parser.add_argument("--devices", type=int, default=1, help="fake CPU devices of each")
    parser.add_argument("--restarts", type=int, default=0, help="times to start all again")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.n < 1 or args.devices < 1 or args.restarts < 0 or not command:
        parser.error("give a number of processes, and the command after --")
    return run(command, args.n, args.devices, args.restarts)


if __name__ == "__main__":
    sys.exit(main())
