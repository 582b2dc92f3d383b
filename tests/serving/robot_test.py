"""What vla_jax/serving/README.md tells the owner of a robot, done as it says."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from PIL import Image

from tests.serving.fake_server import SPEC, FakePolicy
from tests.serving.served import ROOT, Served, picture, served
from vla_jax.serve import read_settings
from vla_jax.serving.contract import Observation
from vla_jax.serving.metrics import Metrics
from vla_jax.serving.protocols.policy_pb2_grpc import PolicyStub
from vla_jax.serving.safety import REASONS, Safety

# By openpi's client, which has no other way.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")

README = (ROOT / "vla_jax/serving/README.md").read_text()
TOKEN = "s3cret"
STATE = np.float32([0.4, 0.0, 0.2])


def block(language: str, containing: str) -> str:
    """The one block of code of the README that has this."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [code for code in blocks if containing in code]
    return found


def table(first: str) -> list[str]:
    """What stands in code in the first column of the table with this heading."""
    rows = README.split(f"\n| {first} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])]


def said(front: int, wrist: int = 20, prompt: str = "lift it") -> np.ndarray:
    images = {"front": picture(front), "wrist": picture(wrist)}
    return FakePolicy().act([Observation(images, prompt, STATE)])[0].actions


class Robot:
    """Its looks are given; it remembers what it was told."""

    def __init__(self, looks: list[Any]):
        self._looks = iter(looks)
        self.commands: list[tuple[np.ndarray, np.ndarray, float]] = []
        # Its tool points down, so that turning about its axes and the base's are not the same.
        self._pose = np.float64([0.4, 0.0, 0.2]), np.diag([1.0, -1.0, -1.0])

    def look(self):
        look = next(self._looks)
        if isinstance(look, BaseException):
            raise look
        image, age_s = look
        return {"front": image, "wrist": picture(20)}, time.time() - age_s

    def measure(self):
        return STATE

    def pose(self):
        return self._pose

    def move(self, position, rotation, closedness):
        self._pose = position, rotation
        self.commands.append((position, rotation, closedness))


def turned(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Rz Ry Rx, [3, 3]."""
    (a, b, c), (d, e, f) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    x = [[1, 0, 0], [0, a, -d], [0, d, a]]
    y = [[b, 0, e], [0, 1, 0], [-e, 0, b]]
    z = [[c, -f, 0], [f, c, 0], [0, 0, 1]]
    return np.array(z) @ y @ x


def require_commands(robot: Robot, actions: list[np.ndarray], *, tool: bool = False) -> None:
    """That these actions, one after the other, were commanded from where it began."""
    position, rotation = np.float64([0.4, 0.0, 0.2]), np.diag([1.0, -1.0, -1.0])
    assert len(robot.commands) == len(actions)
    for action, commanded in zip(np.float64(actions), robot.commands):
        step, turn = action[1:4], turned(*action[4:7])
        position = position + (rotation @ step if tool else step)
        rotation = rotation @ turn if tool else turn @ rotation
        np.testing.assert_allclose(commanded[0], position, atol=1e-9)
        np.testing.assert_allclose(commanded[1], rotation, atol=1e-9)
        assert commanded[2] == action[7]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    token = tmp_path_factory.mktemp("server") / "token.txt"
    token.write_text(TOKEN)
    # A small limit, so that a picture that breaks the connection is small, too.
    settings = {"max_message_mib": 1 / 16, "max_frame_age_s": 30.0, "token_file": str(token)}
    # What was done last decides whether this changes anything: see the loop's last two looks.
    limits = {"position_z": {"max_change": 0.0015}}
    with served({"states": 3}, grpc_port=0, limits=limits, **settings) as running:
        yield running


@pytest.fixture
def loop() -> Iterator[dict[str, Any]]:
    """The README's program, with connections that are closed at the end."""
    program: dict[str, Any] = {}
    exec(block("python", "def run("), program)
    clients = []

    def connected(*args, **more) -> WebsocketClientPolicy:
        clients.append(WebsocketClientPolicy(*args, **more))
        return clients[-1]

    program["WebsocketClientPolicy"] = connected
    program["clients"] = clients
    yield program
    for client in clients:
        client._ws.close()


def test_the_loop_moves_a_robot_and_holds_it(server, loop, capsys):
    looks = [
        (picture(10), 0),
        (picture(30), 100),  # too old
        (picture(40), 0),
        (np.zeros((150, 150, 3), np.uint8), 0),  # too large: the server hangs up
        (picture(50), 0),
        (picture(60), 0),
        KeyboardInterrupt(),
    ]
    robot = Robot(looks)
    where = {"port": server.port, "token": TOKEN}
    ended = loop["run"](robot, "lift it", SPEC.digest, **where, steps=2)
    assert ended == "stopped" and len(loop["clients"]) == 2
    hold = np.float32([0, 0, 0, 0, 0, 0, 0, 0.25])
    done = [*said(10)[:2], hold, *said(40)[:2], *said(50)[:2], *said(60)[:2]]
    # At last, the pose it was commanded already.
    require_commands(robot, [*done, hold])
    assert "hold: stale: the pictures are of 100." in capsys.readouterr().out
    metrics = server.get("/metrics", {"Authorization": f"Bearer {TOKEN}"})[1]
    assert 'vla_holds_total{reason="stale"} 1.0' in metrics.splitlines()
    with pytest.raises(Exception, match="401"):
        loop["run"](robot, "lift it", SPEC.digest, port=server.port, token="wrong")


def test_the_loop_ends_where_the_policy_says_so(server, loop):
    robot = Robot([(picture(10), 0)])
    where = {"port": server.port, "token": TOKEN}
    assert loop["run"](robot, "finish it", SPEC.digest, **where, steps=4) == "done"
    require_commands(robot, [*said(10, prompt="finish it")[:2], np.float32([0] * 7 + [0.25])])


def test_the_loop_gives_up_on_a_server_of_another_robot(server, loop, capsys):
    robot = Robot([(picture(10), 0)] * 9)
    where = {"port": server.port, "token": TOKEN}
    ended = loop["run"](robot, "lift it", "0" * 16, **where, most_holds=2)
    assert ended == "held too often" and capsys.readouterr().out.count("hold: spec: ") == 2
    require_commands(robot, [np.zeros(8)] * 2)  # the hold that was done, and to stay


def test_the_loop_knows_deltas_in_the_tools_frame(loop):
    class Client:
        def __init__(self, *args, **more):
            pass

        def get_server_metadata(self):
            spec = json.loads(SPEC.to_json())
            return {"action_spec": {**spec, "frame": "tool, delta", "control_hz": 1000.0}}

        def infer(self, request):
            return {"actions": said(10), "valid": True}

    loop["WebsocketClientPolicy"] = Client
    robot = Robot([(picture(10), 0), KeyboardInterrupt()])
    assert loop["run"](robot, "lift it", SPEC.digest, steps=4) == "stopped"
    require_commands(robot, [*said(10), np.float32([0] * 7 + [0.25])], tool=True)


def test_curl_gets_the_action_for_now(server, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    for name, first in (("front", 10), ("wrist", 20)):
        Image.fromarray(picture(first)).save(tmp_path / f"{name}.png")
    address = f"http://127.0.0.1:{server.port}"
    environment = {"PATH": "/usr/bin:/bin", "SERVER": address, "TOKEN": TOKEN}
    code = block("bash", "curl").replace("[0.4, 0.0, 0.2]", str(STATE.tolist()))
    got = subprocess.run(
        ["bash", "-ec", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answer = json.loads(got.stdout)
    assert answer["valid"]
    np.testing.assert_array_equal(np.float32(answer["action"]), said(10)[0])


def test_grpc_gets_the_action_for_now(server):
    program: dict[str, Any] = {}
    exec(block("python", "def ask("), program)

    def file(first: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(picture(first)).save(buffer, "PNG")
        return buffer.getvalue()

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = PolicyStub(channel)
        action, valid = program["ask"](
            stub, {"front": file(60), "wrist": file(20)}, "close it", STATE.tolist(), TOKEN
        )
        assert valid
        np.testing.assert_array_equal(np.float32(action), said(60, prompt="close it")[0])
        action, valid = program["ask"](stub, {"front": file(60)}, "close it", STATE.tolist(), TOKEN)
        assert not valid and action == [0, 0, 0, 0, 0, 0, 0, 1]


def test_every_reason_and_metric_is_explained():
    assert sorted(table("reason")) == sorted(REASONS)
    told = Metrics().text().decode()
    kinds = dict(re.findall(r"^# TYPE (vla_\w+) (\w+)$", told, re.MULTILINE))
    names = {name for name in kinds if not name.endswith("_created")}
    assert set(table("metric")) - {"bounds", "change", "workspace"} == names


def test_the_limits_are_such_as_the_server_takes(tmp_path: Path):
    path = tmp_path / "server.json"
    path.write_text(block("json", '"limits"'))
    settings = read_settings(path, [])
    safety = Safety(SPEC, settings.limits)
    far = np.float32([[0, 0.05, 0.05, -0.05, 0.2, 0, 0, 1]] * 2)
    got, clipped = safety.apply(far, None, np.float32([0.635, 0, 0.015]))
    want = [[0, 0.015, 0.02, -0.005, 0.1, 0, 0, 0.5], [0, 0, 0.02, 0, 0.1, 0, 0, 1]]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert clipped == ("bounds", "change", "workspace")
