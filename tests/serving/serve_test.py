"""The server's command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from tests.serving.conftest import noise
from tests.serving.served import started
from vla_jax import serving
from vla_jax.serve import main, read_mesh, read_settings
from vla_jax.serving.settings import DimensionLimits
from vla_jax.sharding.mesh import MeshConfig


def test_settings_come_from_a_file_and_the_command_line(tmp_path):
    path = tmp_path / "server.json"
    path.write_text(
        json.dumps({"port": 9000, "limits": {"position_x": {"max_change": 0.01}}, "max_queue": 3})
    )
    settings = read_settings(path, ["max_queue=5", "deadline_s=0.3", "limits.position_x.low=-0.2"])
    assert (settings.port, settings.max_queue, settings.deadline_s) == (9000, 5, 0.3)
    assert settings.limits == {"position_x": DimensionLimits(low=-0.2, max_change=0.01)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("deadlines=1", "did you mean 'deadline_s'"),
        ("max_queue=0", "max_queue must be above 0"),
        ("max_queue", "--server.max_queue=VALUE"),
        ("port=x", "port"),
    ],
)
def test_settings_that_do_not_exist_or_cannot_be_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        read_settings(None, [override])


def test_a_wrong_command_line_is_an_error_in_words(tmp_path, capsys):
    assert main(["--bundle", str(tmp_path / "nothing"), "--server.max_queue=0"]) == 2
    assert "max_queue must be above 0" in capsys.readouterr().err
    assert main(["--bundle", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        main(["--bundle", "x", "--port=9"])
    assert "settings are --server.key=value" in capsys.readouterr().err
    with pytest.raises(ValueError, match="did you mean 'fsdp'"):
        read_mesh(["fsdb=4"])
    assert read_mesh(["fsdp=4", "tensor=2"]) == MeshConfig(fsdp=4, tensor=2)


@pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager")  # openpi's
def test_subprocess_a_bundle_is_served(plain_bundle):
    """The whole way: from a run's files to the actions that openpi's client gets."""
    policy = serving.load(plain_bundle, max_batch_size=1)
    image = noise(0, 28, 28, 3)
    arguments = (f"--bundle={plain_bundle}", "--max_batch_size=1", "--server.deadline_s=20")
    ports = ("--server.port=0", "--server.grpc_port=-1")
    with started("-m", "vla_jax.serve", *arguments, *ports) as server:
        client = WebsocketClientPolicy("127.0.0.1", server.port)
        got = client.infer({"observation/image": image, "prompt": "pick the dog"})
        client._ws.close()
        want = policy(image, "pick the dog")
        assert got["valid"] and got["tokens"] == want.tokens.tolist()
        # float32 bounds of the ActionSpec against those of the tokens
        np.testing.assert_allclose(got["actions"], want.actions, rtol=1e-6)
        question = {"image": image.tolist(), "question": "what is number 1?"}
        assert server.post("/answer", question)[1] == {
            "answer": policy.answer([image], ["what is number 1?"])[0]
        }
        assert json.loads(server.get("/spec")[1])["bundle"] == policy.digest
        assert server.stop() == 0
