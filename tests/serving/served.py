"""Starts the fake server in a process of its own, and asks it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


class Served(NamedTuple):
    """A running server."""

    process: subprocess.Popen
    port: int
    grpc_port: int

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
        return self._open(urllib.request.Request(self._url(path), headers=headers or {}))

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self._url(path), data, headers or {}, method="POST")
        status, text = self._open(request)
        return status, json.loads(text)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one line of /metrics."""
        inside = ",".join(f'{k}="{v}"' for k, v in sorted(labels.items()))
        start = f"{name}{{{inside}}} " if labels else f"{name} "
        lines = [x for x in self.get("/metrics")[1].splitlines() if x.startswith(start)]
        assert len(lines) == 1, f"{start!r} stands {len(lines)} times in /metrics"
        return float(lines[0].removeprefix(start))

    def wait_for(self, path: str, status: int) -> None:
        for _ in range(600):
            if self.get(path)[0] == status:
                return
            time.sleep(0.05)
        raise AssertionError(f"{path} never answered {status}")

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @staticmethod
    def _open(request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read().decode()


@contextmanager
def served(
    policy: dict[str, Any] | None = None,
    wait: bool = True,
    program: str = "fake_server.py",
    **settings: Any,
) -> Iterator[Served]:
    """The fake server, or another program here; stopped at the end, by force if need be."""
    # Machines that run tests are slow.
    settings = {"deadline_s": 20.0, **settings}
    options = json.dumps({"policy": policy or {}, "settings": settings})
    path = str(Path(__file__).with_name(program))
    with started(path, options, wait=wait and "tls_key" not in settings) as server:
        yield server


@contextmanager
def started(*arguments: str, wait: bool = True) -> Iterator[Served]:
    """A server that Python runs with these arguments."""
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        while line and "http and websockets" not in line:
            line = process.stdout.readline()
        match = re.search(r":(\d+), grpc on (\d+|none)", line)
        assert match, f"the server did not start: {line!r}"
        grpc_port = 0 if match[2] == "none" else int(match[2])
        server = Served(process, int(match[1]), grpc_port)
        if wait:
            server.wait_for("/readyz", 200)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def picture(first: int, side: int = 8) -> np.ndarray:
    """uint8 [side, side, 3] that begins with `first`."""
    image = np.full((side, side, 3), 7, np.uint8)
    image[0, 0, 0] = first
    return image


def observation(front: int = 10, wrist: int = 20, prompt: str = "lift it") -> dict[str, Any]:
    """As openpi's clients write it."""
    return {
        "observation/front": picture(front),
        "observation/wrist": picture(wrist),
        "prompt": prompt,
    }
