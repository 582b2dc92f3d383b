"""Runs one program as N JAX processes on this machine, as a pod runs it on N hosts.

    python launch/local_processes.py -n 2 -- python -m vla_jax.train --config=... --workdir=...

Each process gets `--devices` fake CPU devices, and together they see N times as many. The first
process that fails ends the others, and its exit code is this program's. Output lines begin with the
number of the process.
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

_GRACE_S = 10.0


def run(command: Sequence[str], count: int, devices: int = 1) -> int:
    """Starts `count` processes of `command` and waits for all of them.

    Returns:
      0 if all ended well, else the exit code of the first that did not.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, printers = [], []
    for index in range(count):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        printer = threading.Thread(target=_print_lines, args=(index, process.stdout))
        printer.start()
        processes.append(process)
        printers.append(printer)
    try:
        code = _wait(processes)
    finally:
        _end(processes)
        for printer in printers:
            printer.join()
    return code


def _wait(processes: list[subprocess.Popen]) -> int:
    while True:
        codes = [process.poll() for process in processes]
        if failed := [code for code in codes if code]:
            # A signal, -9, reads 137 in a shell.
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(0.1)


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
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if args.n < 1 or args.devices < 1 or not command:
        parser.error("give a number of processes, and the command after --")
    return run(command, args.n, args.devices)


if __name__ == "__main__":
    sys.exit(main())
