"""The server's command line."""

from __future__ import annotations

import json

import pytest

from vla_jax.serve import main, read_settings
from vla_jax.serving.settings import DimensionLimits


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
