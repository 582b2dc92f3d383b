"""Throws what no robot would send at a server: `python tools/fuzz_serve.py --cases 10000`.

Malformed msgpack, JSON, protobuf and HTTP; wrong dtypes and shapes; arrays that claim to be huge;
connections that are slow or end in the middle. Every answer must be an error or an action within
the bounds, a hold of the position if it is flagged; no request may fail inside the server; a robot
that asks meanwhile must get its own actions; and afterwards sessions, open files and memory must be
what they were. Starts a server with a policy that needs no model. Cases are a function of --seed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import hypothesis
import msgpack
import numpy as np
from hypothesis import strategies as st
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 20.0
SETTINGS = {
    "port": 0,
    "grpc_port": 0,
    "session_idle_s": 1.0,
    "max_message_mib": 1.0,
    "max_sessions": 100_000,
    "max_requests_per_s": 1e9,
    "deadline_s": 5.0,
    "read_s": 2.0,
}


class Ports(NamedTuple):
    http: int
    grpc: int


# ---- what is sent


def array(data: bytes, dtype: Any, shape: Any) -> dict[bytes, Any]:
    """An array in openpi's form, whether it fits or not."""
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def good() -> dict[str, Any]:
    pixels = bytes(range(192))
    return {
        "observation/front": array(pixels, "|u1", (8, 8, 3)),
        "observation/wrist": array(pixels, "|u1", (8, 8, 3)),
        "prompt": "lift it",
    }


_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40)
)
_dtypes = st.sampled_from(
    [
        "|u1",
        "<f4",
        "<f8",
        "<i8",
        "|O",
        "|V8",
        "<c8",
        "<U4",
        "|S3",
        "<M8[s]",
        "f4,f4",
        "",
        "nonsense",
    ]
)
_shapes = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 8, 2**31, 2**40, 2**62]), max_size=10)
_arrays = st.builds(array, st.binary(max_size=64), _dtypes | _scalars, _shapes | _scalars)
_odd_pictures = st.builds(
    lambda sides, dtype: array(
        bytes(int(np.prod(sides)) * np.dtype(dtype).itemsize), dtype, list(sides)
    ),
    st.tuples(*[st.sampled_from([0, 1, 2, 3, 4, 8, 2050])] * 2, st.sampled_from([1, 3, 4])),
    st.sampled_from(["|u1", "<f4", "|i1", "|b1"]),
)
_values = st.recursive(
    _scalars | _arrays | _odd_pictures,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.binary(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
_names = st.sampled_from(
    [
        *("observation/front", "observation/wrist", "images", "image", "prompt", "instruction"),
        *("state", "session", "reset", "timestamp", "spec", "unnorm_key", "last_action"),
        *("temperature", "seed", "chunk", "encoded", "question"),
    ]
)
_fields = st.dictionaries(_names, _values, min_size=1, max_size=3)
_floods = st.sampled_from(
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1 entries
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xc6\xff\xff\xff\xff",  # bytes of as many
        b"\x91" * 5000,  # lists in lists
        b"\xc9\xff\xff\xff\xff\x05",  # an extension
        msgpack.packb({"prompt": "x" * 900_000}),
    ]
)


def _corrupt(data: bytes, seed: int, kind: str) -> bytes:
    rng, changed = random.Random(seed), bytearray(data)
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    if kind == "more":
        return data + rng.randbytes(rng.randrange(1, 30))
    for _ in range(rng.randrange(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


_corrupted = st.builds(
    _corrupt,
    st.just(msgpack.packb(good())),
    st.integers(0, 2**31),
    st.sampled_from(["cut", "more", "flip"]),
)
_frames = (
    _fields.map(lambda f: msgpack.packb({**good(), **f}))
    | _values.map(msgpack.packb)
    | _corrupted
    | _floods
    | st.binary(max_size=200)
    | st.text(max_size=50)
)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.builds(
        lambda d, t, s: {"__numpy__": d, "dtype": t, "shape": s},
        st.sampled_from(["", "AAAA", "????", "A" * 512]),
        _dtypes | st.integers(),
        _shapes | st.none(),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=8,
)
_bodies = (
    st.dictionaries(_names, _json, max_size=5).map(lambda v: json.dumps(v).encode())
    | _json.map(lambda v: json.dumps(v).encode())
    | st.binary(max_size=200)
    | st.just(b"[" * 100_000)
    | st.just(b'{"image": [' + b"9" * 5000 + b"]}")
)
CASES = st.one_of(
    st.tuples(st.just("frame"), _frames),
    st.tuples(st.just("frame"), _frames),
    st.tuples(st.just("body"), st.tuples(st.sampled_from(["/act", "/answer", "/reset"]), _bodies)),
    st.tuples(
        st.just("call"), st.tuples(st.sampled_from(["Act", "Answer"]), st.binary(max_size=99))
    ),
    st.tuples(st.just("bytes"), st.binary(max_size=300)),
    st.tuples(st.just("dropped frame"), st.integers(0, 300)),
    st.tuples(st.just("dropped answer"), st.integers(1, 3)),
    st.tuples(st.just("dropped body"), st.integers(0, 150)),
    st.tuples(st.just("slow body"), st.integers(2, 6)),
)


# ---- how it is sent


class Attacker:
    """Sends cases and judges what comes back."""

    def __init__(self, ports: Ports):
        self.ports, self.seen = ports, Counter()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{ports.grpc}")
        self._socket: Any = None
        self._sends: dict[str, Callable[[Any], str]] = {
            "frame": self._frame,
            "body": self._body,
            "call": self._call,
            "bytes": self._bytes,
            "dropped frame": self._dropped_frame,
            "dropped answer": self._dropped_answer,
            "dropped body": self._dropped_body,
            "slow body": self._slow_body,
        }

    def send(self, case: tuple[str, Any]) -> None:
        """Raises AssertionError for an answer that is neither an error nor a safe action."""
        kind, what = case
        self.seen[f"{kind}: {self._sends[kind](what)}"] += 1

    def close(self) -> None:
        self.hang_up()
        self._channel.close()

    def hang_up(self) -> None:
        """Ends its websocket; the next frame opens another."""
        if self._socket is not None:
            self._socket.__exit__(None, None, None)
            self._socket = None

    def _frame(self, message: bytes | str) -> str:
        if self._socket is None:
            made = connect(f"ws://127.0.0.1:{self.ports.http}", compression=None, max_size=None)
            self._socket = made.__enter__()
            self._socket.recv(TIMEOUT_S)
        try:
            self._socket.send(message)
            answer = self._socket.recv(TIMEOUT_S)
        except WebSocketException:
            self.hang_up()
            return "closed"
        if isinstance(answer, str):
            self.hang_up()
            return "error"
        fields = msgpack.unpackb(answer)
        written = fields["actions"]
        actions = np.frombuffer(written[b"data"], written[b"dtype"]).reshape(written[b"shape"])
        return judged(actions, fields["valid"], fields["why"])

    def _body(self, what: tuple[str, bytes]) -> str:
        path, body = what
        url = f"http://127.0.0.1:{self.ports.http}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, body, method="POST"), timeout=TIMEOUT_S
            ) as answer:
                valid, text = answer.headers["X-Action-Valid"], answer.read()
        except urllib.error.HTTPError as e:
            with e:
                status, text = e.code, e.read()
            require(status in (400, 408, 413) and json.loads(text)["error"], status)
            return "error"
        value = json.loads(text)
        if path != "/act":
            return "answer"
        if isinstance(value, dict) and "actions" in value:
            return judged(np.float32(value["actions"]), value["valid"], value["why"])
        return judged(None, valid == "true", "in the header")

    def _call(self, what: tuple[str, bytes]) -> str:
        method, data = what
        call = self._channel.unary_unary(f"/vla_jax.v1.Policy/{method}")
        try:
            call(data, timeout=TIMEOUT_S)
        except grpc.RpcError as e:
            # What is no protobuf is refused by gRPC itself.
            refused = e.code() == grpc.StatusCode.INVALID_ARGUMENT or "DecodeError" in str(e)
            require(refused, e)
            return "error"
        return "answer"

    def _bytes(self, data: bytes) -> str:
        with self._raw() as raw:
            raw.sendall(data)
        return "sent"

    def _dropped_frame(self, size: int) -> str:
        data = msgpack.packb(good())
        with self._raw() as raw:
            self._shake_hands(raw)
            header = struct.pack("!BBH4x", 0x82, 0x80 | 126, len(data))
            raw.sendall((header + data)[:size])
        return "sent"

    def _dropped_answer(self, times: int) -> str:
        data = msgpack.packb(good())
        with self._raw() as raw:
            self._shake_hands(raw)
            header = struct.pack("!BBH4x", 0x82, 0x80 | 126, len(data))
            raw.sendall((header + data) * times)
        return "sent"

    def _dropped_body(self, size: int) -> str:
        with self._raw() as raw:
            head = b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n"
            raw.sendall((head + b"{" * 100)[:size])
        return "sent"

    def _slow_body(self, pieces: int) -> str:
        with self._raw() as raw:
            size = 2 * pieces
            raw.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(pieces):
                raw.sendall(b"{{")
                time.sleep(0.003)
            answer = raw.recv(100)
        assert answer.startswith(b"HTTP/1.1 400"), answer
        return "error"

    @contextlib.contextmanager
    def _raw(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.ports.http), TIMEOUT_S) as raw:
            # Ends with a reset, as when the cable is drawn.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The server may be quicker to hang up.
            with contextlib.suppress(ConnectionError):
                yield raw

    def _shake_hands(self, raw: socket.socket) -> None:
        raw.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert raw.recv(1000).startswith(b"HTTP/1.1 101")


def require(fine: Any, what: Any) -> None:
    """Raises AssertionError, telling `what`, if it is not fine."""
    if not fine:
        raise AssertionError(what)


def judged(actions: np.ndarray | None, valid: bool, why: str) -> str:
    """Raises AssertionError for an action that could hurt."""
    if actions is not None:
        assert np.isfinite(actions).all() and (np.abs(actions) <= 1).all(), actions
        still = valid or not actions[:, :7].any()
        assert still, f"a hold that moves: {actions}"
    assert valid or why, "a hold without a reason"
    return "action" if valid else "hold"


class Bystander(threading.Thread):
    """A robot that behaves, and must notice nothing."""

    def __init__(self, ports: Ports):
        super().__init__(daemon=True)
        self._url, self._ended = f"ws://127.0.0.1:{ports.http}", threading.Event()
        self.answers, self.wrong, self.slowest_s = 0, [], 0.0

    def run(self) -> None:
        message = msgpack.packb(good())
        expected: Any = None
        try:
            with connect(self._url, compression=None) as robot:
                robot.recv(TIMEOUT_S)
                while not self._ended.wait(0.02):
                    started = time.perf_counter()
                    robot.send(message)
                    fields = msgpack.unpackb(robot.recv(TIMEOUT_S))
                    self.slowest_s = max(self.slowest_s, time.perf_counter() - started)
                    expected = expected or fields["actions"]
                    if not fields["valid"] or fields["actions"] != expected:
                        self.wrong.append(fields)
                    self.answers += 1
        except Exception as e:
            self.wrong.append(repr(e))

    def stop(self) -> None:
        self._ended.set()
        self.join(TIMEOUT_S)


def metric(ports: Ports, name: str) -> float:
    """The value of one line of /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{ports.http}/metrics", timeout=TIMEOUT_S) as f:
        found = re.search(rf"^{re.escape(name)} (\S+)$", f.read().decode(), re.M)
    assert found, f"no metric {name}"
    return float(found[1])


def fuzz(ports: Ports, cases: int, seed: int) -> dict[str, Any]:
    """Runs them all; raises AssertionError for the first that goes wrong, made small."""
    attacker, bystander = Attacker(ports), Bystander(ports)

    def attack(count: int, seed: int) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(CASES)
        def one(case: tuple[str, Any]) -> None:
            attacker.send(case)

        one()

    bystander.start()
    attack(max(cases // 10, 1), seed + 1)  # caches and pools fill once
    attacker.hang_up()
    before = _settled(ports)
    attack(cases, seed)
    attacker.close()
    after = _settled(ports)
    bystander.stop()
    assert not bystander.wrong, f"another robot noticed: {bystander.wrong[0]}"
    assert bystander.answers > 0
    internal = metric(ports, 'vla_holds_total{reason="internal"}')
    assert internal == 0, f"{internal:g} requests failed inside the server: see its log"
    seen = dict(sorted(attacker.seen.items()))
    others = {"answers": bystander.answers, "slowest_ms": round(1e3 * bystander.slowest_s, 1)}
    return {"seen": seen, "before": before, "after": after, "bystander": others}


def _settled(ports: Ports) -> dict[str, float]:
    """What the server holds once robots that have gone are forgotten."""
    for _ in range(100):
        time.sleep(0.1)
        if metric(ports, "vla_connections") == 1 == metric(ports, "vla_sessions"):
            break
    names = ("vla_connections", "vla_sessions", "vla_queue", "process_open_fds")
    held = {name: metric(ports, name) for name in names}
    held["memory_mib"] = metric(ports, "process_resident_memory_bytes") / 2**20
    return held


@contextlib.contextmanager
def fake_server() -> Iterator[Ports]:
    """A server with a policy that needs no model; fails if it does not end well."""
    path = ROOT / "tests" / "serving" / "fake_server.py"
    with subprocess.Popen(
        [sys.executable, str(path), json.dumps({"settings": SETTINGS})],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        found = re.search(r":(\d+), grpc on (\d+)", lines[0])
        assert found and lines[1].startswith("ready"), lines
        try:
            yield Ports(int(found[1]), int(found[2]))
            assert process.poll() is None, "the server is gone"
        finally:
            process.terminate()
        assert process.wait(30) == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    with fake_server() as ports:
        result = fuzz(ports, args.cases, args.seed)
    for name, count in result["seen"].items():
        print(f"  {name:24} {count}")
    for name, value in result["before"].items():
        print(f"  {name:24} {value:.1f} before, {result['after'][name]:.1f} after")
    print(f"  another robot            {result['bystander']}")
    print(f"{sum(result['seen'].values())} cases in {time.time() - started:.0f} s: all fine")


if __name__ == "__main__":
    main()
