"""A real server in a process of its own, asked by the clients that robots have."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import trustme
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.msgpack_numpy import packb
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.serving.fake_server import SPEC, FakePolicy
from tests.serving.served import ROOT, Served, observation, picture, served
from vla_jax.serving.contract import Observation
from vla_jax.serving.protocols import policy_pb2 as messages
from vla_jax.serving.protocols.policy_pb2_grpc import PolicyStub

# By openpi's client, which has no other way.
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")

# What is true of a robot of SPEC that stands still, its gripper open.
STILL = np.zeros(8, np.float32)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    # One process for all tests that only ask; 64 KiB a message, so that "too large" is small.
    with served(grpc_port=0, max_message_mib=1 / 16, max_frame_age_s=30.0) as running:
        yield running


@pytest.fixture
def robot() -> Iterator[Callable[..., WebsocketClientPolicy]]:
    """Connects openpi's client, which cannot hang up itself."""
    clients = []

    def connected(server: Served, **more) -> WebsocketClientPolicy:
        clients.append(WebsocketClientPolicy("127.0.0.1", server.port, **more))
        return clients[-1]

    yield connected
    for client in clients:
        client._ws.close()


def direct(front: int = 10, wrist: int = 20, prompt: str = "lift it") -> np.ndarray:
    """What the policy says when it is called without a server."""
    images = {"front": picture(front), "wrist": picture(wrist)}
    return FakePolicy().act([Observation(images, prompt)])[0].actions


def pictures(front: int = 10, wrist: int = 20) -> dict:
    return {"front": picture(front).tolist(), "wrist": picture(wrist).tolist()}


def json_numpy(array: np.ndarray) -> dict:
    data = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}


def from_json_numpy(value: dict) -> np.ndarray:
    data = base64.b64decode(value["__numpy__"])
    return np.frombuffer(data, value["dtype"]).reshape(value["shape"])


def file(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


# ---- protocols


def test_openpi_client_gets_what_the_policy_says(server, robot):
    client = robot(server)
    described = client.get_server_metadata()
    assert described["spec"] == SPEC.digest and described["chunk"] == 4
    assert described["cameras"] == ["front", "wrist"] and described["bundle"] == "f00d"
    for front in (10, 200):
        answer = client.infer(observation(front))
        np.testing.assert_array_equal(answer["actions"], direct(front))
        assert answer["actions"].dtype == np.float32
        assert answer["valid"] and answer["why"] == "" and answer["clipped"] == []
        assert answer["tokens"] == list(range(32)) and answer["plan"] == "plan: lift"
        timing = answer["server_timing"]
        assert 0 < timing["model_ms"] <= timing["infer_ms"] <= timing["total_ms"]
    assert timing["prev_total_ms"] > 0
    assert server.get("/healthz") == (200, "OK\n")


def test_openpi_broker_carries_a_chunk_out(server, robot):
    broker = ActionChunkBroker(robot(server), action_horizon=3)
    got = [broker.infer(observation(n))["actions"] for n in (1, 2, 3, 4)]
    # Three of the first picture's chunk, then the fourth picture's.
    np.testing.assert_array_equal(got, [*direct(1)[:3], direct(4)[0]])


def test_a_policy_of_several_frames_gets_those_before(robot):
    def earlier(answer) -> float:
        """What the policy saw of earlier frames, both cameras."""
        assert answer["valid"], answer["why"]
        return round(float(answer["actions"][0, 6]) * 1e4)

    with served({"frames": 3, "chunk": 1}) as server:
        client = robot(server)
        asked = [client.infer(observation(n, 10 * n)) for n in (1, 2, 3)]
        # The first stands for those before it.
        assert [earlier(a) for a in asked] == [11 + 11, 11 + 11, 11 + 22]
        assert earlier(client.infer({**observation(5, 5), "reset": True})) == 20
    with served({"frames": 2}) as server:
        client = robot(server)
        assert earlier(client.infer(observation(1, 10))) == 11
        # The robot has done steps since that the server has not seen.
        refused = client.infer(observation(2, 20))
        assert refused["reason"] == "image" and "sends uint8 [2, h, w, 3]" in refused["why"]
        names = ("observation/front", "observation/wrist")
        both = {n: np.stack([picture(7), picture(8)]) for n in names}
        for _ in range(2):
            assert earlier(client.infer({**both, "prompt": "lift it"})) == 14
        three = {n: np.stack([picture(7)] * 3) for n in names}
        assert client.infer({**three, "prompt": "lift it"})["reason"] == "image"


@pytest.mark.parametrize(
    "message",
    [
        "text",
        b"\xc1",
        b"",
        packb([1, 2]),
        packb({b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "|O", b"shape": [1]}),
        packb({"a": {b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "|V8", b"shape": [1]}}),
        packb({"a": {b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "<c8", b"shape": [1]}}),
        packb({"a": {b"__ndarray__": True, b"data": b"x" * 8, b"dtype": "|u1", b"shape": [9]}}),
        packb({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "|u1", b"shape": [-1]}}),
        packb({"a": {b"__npgeneric__": True, b"data": 1, b"dtype": "O"}}),
        packb({**observation(), "session": 7}),
    ],
)
def test_what_is_no_observation_gets_openpis_error(server, message):
    before = server.metric("vla_errors_total", protocol="openpi")
    with connect(f"ws://127.0.0.1:{server.port}", compression=None) as socket:
        socket.recv()
        socket.send(message)
        error = socket.recv()
        assert isinstance(error, str) and error.startswith("NotUnderstoodError: ")
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
        assert closed.value.rcvd.code == 1011
    assert server.metric("vla_errors_total", protocol="openpi") == before + 1


def test_openvla_clients_get_an_array(server):
    """Whose request form is {"image", "instruction", "unnorm_key"}, arrays by json-numpy."""
    with served({"cameras": ["only"]}) as one:
        body = {
            "image": json_numpy(picture(30)),
            "instruction": "lift it",
            "unnorm_key": "fake_arm",
        }
        status, answer = one.post("/act", body)
        action = from_json_numpy(answer)
        assert status == 200 and action.shape == (8,) and action.dtype == np.float64
        np.testing.assert_array_equal(action.astype(np.float32), direct(30, 30)[0])
        status, answer = one.post("/act", {"encoded": json.dumps(body)})
        np.testing.assert_array_equal(from_json_numpy(json.loads(answer)), action)
        # Another data set's key is another robot.
        _, answer = one.post("/act", {**body, "unnorm_key": "bridge_orig"})
        np.testing.assert_array_equal(from_json_numpy(answer), [*STILL[:7], action[7]])
        assert one.metric("vla_holds_total", reason="spec") == 1


@pytest.mark.parametrize("form", ["lists", "png", "data url", "json-numpy"])
def test_rest_takes_pictures_in_four_forms(server, form):
    write = {
        "lists": lambda image: image.tolist(),
        "png": lambda image: base64.b64encode(file(image)).decode(),
        "data url": lambda i: "data:image/png;base64," + base64.b64encode(file(i)).decode(),
        "json-numpy": json_numpy,
    }[form]
    images = {"front": write(picture(10)), "wrist": write(picture(20))}
    body = {"images": images, "instruction": "lift it", "session": form, "chunk": True}
    status, answer = server.post("/act", body)
    assert status == 200 and answer["valid"] and answer["batch"] == 1
    np.testing.assert_array_equal(np.float32(answer["actions"]), direct())
    np.testing.assert_array_equal(np.float32(answer["action"]), direct()[0])


def test_rest_refuses_what_is_no_request(server):
    for body in (b"{", b"[]", b'{"session": ""}', b'{"encoded": 1}', b'{"x": NaN}'):
        status, answer = server.post("/act", body)
        assert status == 400 and answer["error"], body
    refused = json.dumps({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}).encode()
    status, answer = server.post("/act", refused)
    assert status == 400 and "unsupported dtype" in answer["error"]
    assert server.post("/act", b" " * 70_000)[0] == 413


def test_questions_are_answered_in_words(server):
    image = picture(9)
    said = f"what is it 8x8 {int(image.sum())}"
    status, answer = server.post("/answer", {"image": image.tolist(), "question": "what is it"})
    assert (status, answer) == (200, {"answer": said})
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = messages.AnswerRequest(
            image=messages.Image(file=file(image)), question="what is it"
        )
        assert PolicyStub(channel).Answer(request).answer == said
    status, answer = server.post("/answer", {"image": "???", "question": "what is it"})
    assert status == 400 and answer["reason"] == "image"
    status, answer = server.post("/answer", {"image": image.tolist()})
    assert status == 400 and answer["reason"] == "instruction"


def grpc_request(**more) -> messages.ActRequest:
    front = messages.Pixels(height=8, width=8, rgb=picture(10).tobytes())
    images = {
        "front": messages.Image(pixels=front),
        "wrist": messages.Image(file=file(picture(20))),
    }
    return messages.ActRequest(images=images, **{"instruction": "lift it", **more})


def test_grpc_gets_what_the_policy_says(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = PolicyStub(channel)
        reply = stub.Act(grpc_request(whole_chunk=True))
        np.testing.assert_array_equal(np.float32([r.values for r in reply.actions]), direct())
        assert reply.valid and list(reply.tokens) == list(range(32)) and reply.batch == 1
        held = stub.Act(grpc_request(spec="0123456789abcdef"))
        assert not held.valid and held.reason == "spec"
        assert json.loads(stub.Describe(messages.DescribeRequest()).json)["bundle"] == "f00d"
        wrong = messages.Pixels(height=9, width=8, rgb=b"123")
        with pytest.raises(grpc.RpcError) as error:
            stub.Act(messages.ActRequest(images={"front": messages.Image(pixels=wrong)}))
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_the_generated_code_is_that_of_the_proto(tmp_path):
    # In a process of its own: TensorFlow's protocol buffers and the compiler's do not mix.
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}"]
    path = "vla_jax/serving/protocols/policy.proto"
    subprocess.run([*command, f"--grpc_python_out={tmp_path}", path], cwd=ROOT, check=True)
    for name in ("policy_pb2.py", "policy_pb2_grpc.py"):
        folder = tmp_path / "vla_jax/serving/protocols"
        with (ROOT / f"vla_jax/serving/protocols/{name}").open() as committed:
            assert (folder / name).read_text() == committed.read()


# ---- many robots


def test_sixteen_robots_share_calls_and_each_gets_its_own_answer(robot):
    with served({"call_s": 0.05, "batch": 16}, batch_wait_s=0.2) as server:
        clients = [robot(server) for _ in range(16)]
        together = threading.Barrier(16)

        def ask(n: int) -> list[dict]:
            together.wait()
            return [clients[n].infer(observation(n, 100 + n)) for _ in range(4)]

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(16)))
        for n, mine in enumerate(answers):
            for answer in mine:
                assert answer["valid"]
                np.testing.assert_array_equal(answer["actions"], direct(n, 100 + n))
        calls = server.metric("vla_batch_size_count")
        assert server.metric("vla_batch_size_sum") == 64
        assert calls <= 12, "16 robots that ask at once must share calls"
        assert server.metric("vla_connections") == 16 == server.metric("vla_sessions")
        assert server.metric("vla_actions_total", protocol="openpi") == 64


def test_one_bad_request_does_not_spoil_the_batch(robot):
    with served({"call_s": 0.02}, batch_wait_s=0.3) as server:
        clients = [robot(server) for _ in range(4)]
        prompts = ["lift it", "crash now", "nan now", "lift it"]
        together = threading.Barrier(4)

        def ask(n: int) -> dict:
            together.wait()
            return clients[n].infer(observation(prompt=prompts[n]))

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(4)))
        assert [a["reason"] for a in answers] == ["", "policy", "nan", ""]
        np.testing.assert_array_equal(answers[0]["actions"], direct())
        np.testing.assert_array_equal(answers[3]["actions"], direct())


@pytest.mark.parametrize(
    ("policy", "settings"),
    [({}, {"execute_steps": 3}), ({"execute_steps": 3}, {})],
    ids=["by its settings", "as the policy says"],
)
def test_the_server_carries_chunks_out(policy, settings):
    with served(policy, **settings) as server:

        def ask(session: str, front: int, **more) -> np.ndarray:
            body = {"images": pictures(front), "instruction": "lift it", "session": session}
            return np.float32(server.post("/act", {**body, **more})[1]["action"])

        got = [ask("a", 1), ask("b", 5), ask("a", 2), ask("a", 3), ask("a", 4), ask("b", 6)]
        want = [direct(1)[0], direct(5)[0], direct(1)[1], direct(1)[2], direct(4)[0], direct(5)[1]]
        np.testing.assert_array_equal(got, want)
        assert server.metric("vla_batch_size_count") == 3
        # A new episode, or another instruction, is a new look.
        np.testing.assert_array_equal(ask("a", 7, reset=True), direct(7)[0])
        assert server.post("/reset", {"session": "b"}) == (200, {})
        np.testing.assert_array_equal(ask("b", 8), direct(8)[0])
        np.testing.assert_array_equal(
            ask("b", 9, instruction="close it"), direct(9, prompt="close it")[0]
        )


# ---- failures


def failing() -> dict[str, tuple[dict, str]]:
    """What is wrong -> fields that differ from a good observation, and the reason to hold."""
    return {
        "NaN": ({"prompt": "nan now"}, "nan"),
        "illegal tokens": ({"prompt": "illegal now"}, "illegal"),
        "wrong shape": ({"prompt": "shape now"}, "illegal"),
        "the policy fails": ({"prompt": "crash now"}, "policy"),
        "no instruction": ({"prompt": " "}, "instruction"),
        "another robot": ({"spec": "0123456789abcdef"}, "spec"),
        "no picture": ({"observation/wrist": 5}, "image"),
        "float picture": ({"observation/wrist": np.zeros((8, 8, 3))}, "image"),
        "gray picture": ({"observation/wrist": np.zeros((8, 8, 1), np.uint8)}, "image"),
        "long picture": ({"observation/wrist": np.zeros((1, 2049, 3), np.uint8)}, "image"),
        "old pictures": ({"timestamp": time.time() - 60}, "stale"),
        "time is NaN": ({"timestamp": float("nan")}, "stale"),
        "state of text": ({"state": "x"}, "state"),
        "seed": ({"seed": -1}, "request"),
    }


@pytest.mark.parametrize("what", failing())
def test_a_failure_holds_the_position_and_is_counted(server, what, robot):
    change, reason = failing()[what]
    client = robot(server)
    closed = client.infer(observation(prompt="close it"))
    assert closed["actions"][-1, 7] == 1.0
    before = server.metric("vla_holds_total", reason=reason)
    held = client.infer({**observation(), **change})
    assert (held["valid"], held["reason"]) == (False, reason) and held["why"]
    # Nothing moves, nothing ends, and what the gripper holds it does not drop.
    still = STILL.copy()
    still[7] = 1.0
    np.testing.assert_array_equal(held["actions"], np.tile(still, (4, 1)))
    assert server.metric("vla_holds_total", reason=reason) == before + 1
    # The next good request is served.
    assert client.infer(observation())["valid"]


def test_a_missing_camera_holds(server, robot):
    fields = observation()
    del fields["observation/wrist"]
    held = robot(server).infer(fields)
    assert held["reason"] == "camera" and "wrist" in held["why"]
    np.testing.assert_array_equal(held["actions"], np.zeros((4, 8)))


def test_pictures_that_go_back_in_time_hold(server, robot):
    client, now = robot(server), time.time()
    assert client.infer({**observation(), "timestamp": now})["valid"]
    assert client.infer({**observation(), "timestamp": now - 0.1})["reason"] == "stale"


def test_overload_holds_at_once(robot):
    with served({"call_s": 1.0, "batch": 1}, max_queue=2) as server:
        clients = [robot(server) for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda c: c.infer(observation()), clients))
        reasons = sorted(a["reason"] for a in answers)
        # One is in the model and two wait; what reads the first message may take the first call.
        assert reasons.count("overload") >= 2 and set(reasons) == {"", "overload"}
        assert all(a["valid"] == (a["reason"] == "") for a in answers)
        held = server.metric("vla_holds_total", reason="overload")
        assert held == reasons.count("overload")


def test_rates_and_numbers_of_robots_are_bounded():
    with served(max_requests_per_s=0.001, max_sessions=2, session_idle_s=30.0) as server:

        def ask(name: str) -> str:
            body = {"images": pictures(), "instruction": "lift it", "session": name}
            return server.post("/act", body)[1]["reason"]

        assert [ask("a"), ask("a")] == ["", "rate"]
        assert [ask("b"), ask("c")] == ["", "overload"]


def test_too_large_messages_end_the_connection(server, robot):
    with connect(f"ws://127.0.0.1:{server.port}", compression=None) as socket:
        socket.recv()
        socket.send(b"x" * 70_000)
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv()
        assert closed.value.rcvd.code == 1009
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        with pytest.raises(grpc.RpcError) as error:
            PolicyStub(channel).Reset(messages.ResetRequest(session="x" * 70_000))
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert robot(server).infer(observation())["valid"]


def test_limits_are_enforced_and_told(robot):
    limits = {
        "position_x": {"high": 0.002, "workspace": [-0.1, 0.1], "state": "0"},
        "rotation_x": {"max_change": 0.004},
    }
    with served(limits=limits) as server:
        client = robot(server)
        answer = client.infer({**observation(100), "state": np.float32([0.097])})
        # 0.01 m is bounded to 0.002; from 0.097 m one such step and half a one reach the wall.
        np.testing.assert_allclose(answer["actions"][:, 1], [0.002, 0.001, 0, 0], atol=1e-7)
        # 0.007 rad in a first step from standing still is too sudden; the second gets there.
        np.testing.assert_allclose(answer["actions"][:, 4], [0.004, 0.007, 0.007, 0.007])
        assert answer["valid"] and answer["clipped"] == ["bounds", "change", "workspace"]
        for limit in answer["clipped"]:
            assert server.metric("vla_clipped_total", limit=limit) == 1
        assert client.infer(observation())["reason"] == "state"


# ---- life of the process


def test_it_is_ready_after_warming_up_and_holds_before(robot):
    with served({"warm_s": 1.5}, wait=False) as server:
        assert server.get("/healthz")[0] == 200
        assert server.get("/readyz") == (503, "starting\n")
        client = robot(server)
        assert client.infer(observation())["reason"] == "starting"
        server.wait_for("/readyz", 200)
        assert client.infer(observation())["valid"]


def test_sigterm_finishes_requests_in_flight(robot):
    with served(grpc_port=0, batch_wait_s=0) as server:
        idle = robot(server)
        client = robot(server)
        with (
            grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
            ThreadPoolExecutor(3) as pool,
        ):
            slow = pool.submit(client.infer, observation(prompt="sleep 2"))
            while server.metric("vla_sessions") < 1:
                time.sleep(0.05)
            time.sleep(0.2)
            body = {"images": pictures(), "instruction": "lift it"}
            rest = pool.submit(server.post, "/act", body)
            remote = pool.submit(PolicyStub(channel).Act, grpc_request())
            for _ in range(30):
                if server.metric("vla_queue") == 2:  # beside the one that the model works on
                    break
                time.sleep(0.05)
            assert server.stop() == 0
            assert slow.result()["valid"]
            assert rest.result()[1]["valid"] and remote.result().valid
        with pytest.raises(ConnectionClosed) as closed:
            idle.infer(observation())
        assert closed.value.rcvd.code == 1001


def test_a_hanging_model_makes_robots_hold_and_does_not_keep_the_process(robot):
    with served(deadline_s=0.5, drain_s=0.5) as server:
        client = robot(server)
        last = np.float32([0.9, 0.01, 0, 0, 0, 0, 0, 0.75])
        fields = {**observation(prompt="sleep 600"), "last_action": last}
        for count in (1, 2):
            held = client.infer(fields)
            assert (held["valid"], held["reason"]) == (False, "timeout")
            np.testing.assert_array_equal(held["actions"], [[0, 0, 0, 0, 0, 0, 0, 0.75]] * 4)
            assert server.metric("vla_holds_total", reason="timeout") == count
        assert server.stop() == 1


def test_only_who_knows_the_token_may_ask(tmp_path, robot):
    path = tmp_path / "token.txt"
    path.write_text("s3cret\n")
    with served(grpc_port=0, token_file=str(path)) as server:
        assert server.get("/healthz")[0] == server.get("/readyz")[0] == 200
        for headers in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "s3cret"}):
            assert server.get("/metrics", headers)[0] == 401
            assert server.post("/act", {}, headers)[0] == 401
        right = {"Authorization": "Bearer s3cret"}
        body = {"images": pictures(), "instruction": "lift it"}
        assert server.post("/act", body, right)[1]["valid"]
        client = robot(server, api_key="s3cret")
        assert client.infer(observation())["valid"]
        with pytest.raises(Exception, match="401"):
            robot(server, api_key="wrong")
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = PolicyStub(channel)
            with pytest.raises(grpc.RpcError) as error:
                stub.Act(grpc_request())
            assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
            metadata = (("authorization", "Bearer s3cret"),)
            assert stub.Act(grpc_request(), metadata=metadata).valid


def test_tls_on_both_ports(tmp_path):
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1", "localhost")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    made.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    import ssl

    context = ssl.create_default_context()
    authority.configure_trust(context)
    keys = {
        "tls_key": str(tmp_path / "key.pem"),
        "tls_certificate": str(tmp_path / "certificate.pem"),
    }
    with served(grpc_port=0, **keys) as server:
        root = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", root) as channel:
            stub = PolicyStub(channel)
            # "starting" until it is ready.
            replies = (stub.Act(grpc_request(), wait_for_ready=True) for _ in range(1000))
            assert next(r for r in replies if r.reason != "starting").valid
        with connect(f"wss://127.0.0.1:{server.port}", ssl=context, compression=None) as socket:
            assert isinstance(socket.recv(), bytes)
            socket.send(packb(observation()))
            assert isinstance(socket.recv(), bytes)
        with pytest.raises(ssl.SSLError):
            connect(f"wss://127.0.0.1:{server.port}", ssl=ssl.create_default_context())
