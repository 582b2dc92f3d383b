"""`tools/speed.py serve`: robots that ask as fast as they are answered, on this machine.

The server is `python -m vla_jax.serve` with a bundle, that of the demo (`make serve` writes it)
unless another is named. Clients are websockets of openpi's protocol in this process, each with a
picture of its own. "overhead" is the round trip seen by a client less the wait for the model and
the model's call: the network, both ends' reading and writing, checks, limits, scheduling. "in
server" is the part of it from a message's arrival to its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import numpy as np

from vla_jax.serving import Observation, load

ROOT = Path(__file__).resolve().parents[1]
# (clients, most requests in one call of the model)
RUNS = ((1, 32), (8, 32), (16, 32), (32, 32), (16, 1))
LARGEST = 32


@contextlib.contextmanager
def server(bundle: Path, max_batch: int) -> Iterator[int]:
    """The port of a server that is warmed up."""
    settings = {"port": 0, "grpc_port": -1, "max_requests_per_s": 1e9, "max_batch": max_batch}
    command = [sys.executable, "-m", "vla_jax.serve", f"--bundle={bundle}"]
    command += [f"--max_batch_size={LARGEST}", *(f"--server.{k}={v}" for k, v in settings.items())]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = 0
            for line in process.stdout:
                if found := re.search(r"http and websockets on .*:(\d+), ", line):
                    port = int(found[1])
                if line.startswith("ready"):
                    break
            if process.poll() is not None or not port:
                raise RuntimeError("the server did not start")
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


async def _robot(
    session: aiohttp.ClientSession, port: int, number: int, until: float, warm: float
) -> list[dict[str, float]]:
    """Asks until then; what it saw of each request after `warm`."""
    rng = np.random.default_rng(number)
    seen = []
    async with session.ws_connect(f"ws://127.0.0.1:{port}", compress=0) as socket:
        served = msgpack.unpackb(await socket.receive_bytes())
        side = served["image_size"]
        fields: dict[str, Any] = {"prompt": "pick the apple"}
        for camera in served["cameras"]:
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8).tobytes()
            fields[f"observation/{camera}"] = {
                b"__ndarray__": True,
                b"data": pixels,
                b"dtype": "|u1",
                b"shape": (side, side, 3),
            }
        message = msgpack.packb(fields)
        while (started := time.perf_counter()) < until:
            await socket.send_bytes(message)
            reply = msgpack.unpackb(await socket.receive_bytes())
            total_ms = 1e3 * (time.perf_counter() - started)
            timing = reply["server_timing"]
            if started > warm:
                row = {"total": total_ms, "valid": reply["valid"], "batch": timing["batch"]}
                row |= {"queue": timing["queue_ms"], "model": timing["model_ms"]}
                row["server"] = timing["total_ms"] - row["queue"] - row["model"]
                seen.append(row)
    return seen


async def _drive(port: int, clients: int, seconds: float) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session:
        warm = time.perf_counter() + min(1.0, seconds / 4)
        robots = [_robot(session, port, n, warm + seconds, warm) for n in range(clients)]
        rows = [row for seen in await asyncio.gather(*robots) for row in seen]
    acted = [row for row in rows if row["valid"]]
    totals = sorted(row["total"] for row in rows)
    overhead = [row["total"] - row["queue"] - row["model"] for row in acted]
    return {
        "clients": clients,
        "actions_per_s": len(acted) / seconds,
        "p50_ms": statistics.median(totals),
        "p99_ms": totals[min(len(totals) - 1, int(0.99 * len(totals)))],
        "holds": len(rows) - len(acted),
        # Of calls, not of requests: a call of n is seen n times.
        "mean_batch": len(acted) / sum(1 / row["batch"] for row in acted),
        "model_p50_ms": statistics.median(row["model"] for row in acted),
        "queue_p50_ms": statistics.median(row["queue"] for row in acted),
        "overhead_p50_ms": statistics.median(overhead),
        "in_server_p50_ms": statistics.median(row["server"] for row in acted),
    }


def _model_alone(bundle: Path) -> dict[int, float]:
    """Milliseconds of one call for each number of robots, without a server."""
    policy = load(bundle, max_batch_size=LARGEST)
    policy.warm_up()
    image, found = np.zeros((policy.image_size, policy.image_size, 3), np.uint8), {}
    for size in policy.batch_sizes:
        seen = [Observation(dict.fromkeys(policy.cameras, image), "pick the apple")] * size
        found[size] = 1e3 * statistics.median(policy.act(seen)[0].latency_s for _ in range(9))
    return found


def measure(bundle: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Prints one line per number of clients, medians of rounds in turns; returns all figures."""
    load = os.getloadavg()
    print(f"{os.cpu_count()} cores, load {load[0]:.1f} before; deadline 1000 ms")
    alone = _model_alone(bundle)
    print("the model alone, ms a call:", {n: round(ms, 1) for n, ms in alone.items()})
    print(
        "so batches can give at most "
        f"{max(n * alone[1] / ms for n, ms in alone.items()):.1f} times the actions/s"
    )
    rows: dict[tuple[int, int], list[dict[str, Any]]] = {run: [] for run in RUNS}
    with contextlib.ExitStack() as stack:
        ports = {most: stack.enter_context(server(bundle, most)) for most in {m for _, m in RUNS}}
        for _ in range(rounds):
            for clients, most in RUNS:
                row = asyncio.run(_drive(ports[most], clients, seconds))
                rows[clients, most].append({**row, "load": os.getloadavg()[0]})
    print(
        "clients  max batch  actions/s  p50 ms  p99 ms  mean batch  model  queue  overhead  "
        "in server  holds"
    )
    for (clients, most), seen in rows.items():
        row = {key: statistics.median(r[key] for r in seen) for key in seen[0]}
        print(
            f"{clients:7} {most:10} {row['actions_per_s']:10.1f} {row['p50_ms']:7.1f} "
            f"{row['p99_ms']:7.1f} {row['mean_batch']:11.1f} {row['model_p50_ms']:6.1f} "
            f"{row['queue_p50_ms']:6.1f} {row['overhead_p50_ms']:9.2f} "
            f"{row['in_server_p50_ms']:10.2f} {row['holds']:6.0f}"
        )
    gains = [a["actions_per_s"] / b["actions_per_s"] for a, b in zip(rows[16, 32], rows[16, 1])]
    gain = statistics.median(gains)
    print(f"at 16 clients, batches give {gain:.2f} times the actions/s of batches of 1")
    print(f"load {os.getloadavg()[0]:.1f} after")
    runs = [{"max_batch": most, "rounds": seen} for (_, most), seen in rows.items()]
    return {"runs": runs, "gains_at_16": gains, "model_alone_ms": alone, "load_before": load[0]}
