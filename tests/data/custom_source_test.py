"""A source of the user's own: the README's, as it stands there, and mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.data.examples import SIZE, encoded, pixels
from vla_jax.data.config import DataConfig, SourceConfig
from vla_jax.data.loader import Loader
from vla_jax.data.mixture import Mixture
from vla_jax.data.sources.opening import open_source

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The README's program and data for it, in the current directory."""
    [program] = re.findall(r"^    # my_data\.py\n(.*?)^$\n(?=\S)", README.read_text(), re.M | re.S)
    lines = program.splitlines()
    assert len(lines) <= 20 and all(line.startswith("    ") or not line for line in lines)
    (tmp_path / "my_data.py").write_text("\n".join(line[4:] for line in lines) + "\n")
    rows = [
        {"photo": f"{i}.jpg", "question": f"what is {i}?", "answer": f"it is {i}"} for i in range(6)
    ]
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(i))
    (tmp_path / "train.json").write_text(json.dumps(rows))
    monkeypatch.chdir(tmp_path)
    return rows


def test_the_readmes_source_trains(written, builder):
    data = DataConfig({"notes": SourceConfig("python", "my_data.py:Notes")})
    source = open_source("notes", data.sources["notes"])
    mixture = Mixture({"notes": 1}, {"notes": len(source)}, seed=0)
    loader = Loader(mixture, {"notes": source}, builder, batch_size=6, image_size=SIZE)
    batch = next(loader)
    loader.close()
    records = mixture.locate(np.arange(6))[1].tolist()
    assert sorted(records) == list(range(6))
    np.testing.assert_array_equal(batch["images"][:, 0], [pixels(encoded(i)) for i in records])
    for row, i in enumerate(records):
        text = builder.vocabulary.decode(batch["tokens"][row][batch["valid"][row]].tolist())
        assert written[i]["question"] in text and written[i]["answer"] in text


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("my_data.py", ValueError, r"'notes' \(my_data.py\): give a Python file or module"),
        ("other.py:Notes", FileNotFoundError, "there is no file other.py"),
        ("no.such.module:Notes", ValueError, "no.such.module cannot be imported"),
        ("my_data.py:Noted", ValueError, "no class or function 'Noted' in my_data.py"),
        ("os.path:join", ValueError, "what it makes has no read, action_spec"),
    ],
)
def test_mistakes_are_named(written, path, error, message):
    with pytest.raises(error, match=message):
        open_source("notes", SourceConfig("python", path))


def test_a_spec_of_another_type_is_refused(written):
    text = Path("my_data.py").read_text().replace("action_spec = None", "action_spec = 'RT-2'")
    Path("bad.py").write_text(text)
    with pytest.raises(ValueError, match="action_spec is str, not an ActionSpec or None"):
        open_source("notes", SourceConfig("python", "bad.py:Notes"))
