"""What the inspection tool says about a batch, against the examples that are in it."""

from __future__ import annotations

import base64
import html
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.examples import episodes, rows
from tools import inspect_batch
from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.packing import Packing
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.state import StateInput
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.text.prompts import PLAN_TEMPLATE, robot_prompt
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.types import Example

ROOT = Path(__file__).parents[2]
SPEC = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)
EVIL = "<script>alert('x')</script>\x1b[31m"
ACTION = np.asarray([[1, 0.05, -0.05, 0, 0.1, -0.1, 0, 1]], np.float32)


@pytest.fixture(scope="module")
def builder() -> SequenceBuilder:
    vocabulary = Vocabulary()
    return SequenceBuilder(
        vocabulary,
        UniformTokenizer(SPEC, vocabulary.integer_ids),
        max_tokens=90,
        max_answer_tokens=24,
        state=StateInput([0, 0], [1, 2]),
    )


@pytest.fixture(scope="module")
def batch(builder):
    """One row: a text, a planned action with a padded dimension, a cut text, one left out."""
    valid = np.arange(8)[None] != 2
    plan = robot_prompt("I am hungry", PLAN_TEMPLATE)
    examples = [
        Example((b"",), f"Q: {EVIL} A:", "a dog"),
        Example(
            (b"",), plan, action=ACTION, action_valid=valid, plan="pick", state=np.ones(2) * 0.5
        ),
        Example((b"",), "Q: so? A:", "a dog, " * 30),
        Example((b"",), "Q: too long? " * 10 + "A:", "no"),
    ]
    columns = builder.build_rows(examples)
    packing = Packing(4, int(columns["valid"][:3].sum()), 96)
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 14, 14, 3), np.uint8)
    return {
        **packing.pack(columns),
        "images": images,
        "image_segment": packing.image_segments(1, 1),
        "source": np.asarray([[1, 0, 1, 1]]),
        "sample": np.asarray([[40, 41, 42, 43]]),
    }


@pytest.fixture(scope="module")
def shown(batch, builder):
    return list(inspect_batch.examples(batch, 0, builder, [("robot", SPEC.name), ("web", "")]))


def test_every_example_is_what_it_was_made_of(shown, batch, builder):
    text, robot, cut, left_out = shown
    assert [s.source for s in shown] == ["web", "robot", "web", "web"]
    assert [s.sample for s in shown] == [40, 41, 42, 43]
    assert [s.truncated for s in shown] == [False, False, True, False]
    assert [s.left_out for s in shown] == [False, False, False, True]
    assert text.answer == "a dog" and text.action is None and not left_out.tokens
    assert robot.prompt == "Instruction: I am hungry. Plan:"
    assert robot.answer.startswith("pick. Action:")
    assert (np.abs(robot.action - ACTION) <= (SPEC.high - SPEC.low) / 512 + 1e-6).all()
    assert robot.trained.tolist() == [[True, True, False, *[True] * 5]]
    assert robot.state.tolist() == [0, -0.5] and cut.state is None
    kinds = [token.kind for token in robot.tokens]
    said = 2 + len(builder.plan_end) + 8 + 1  # "pick", "."
    assert kinds.count("causal") == 1 and kinds.count("loss") == said - 1
    ids = [token.id for s in shown for token in s.tokens]
    assert ids == batch["tokens"][0].tolist()


def test_the_terminal_gets_values_with_units_and_no_control_characters(shown):
    said = [inspect_batch.as_text(s) for s in shown]
    assert "\x1b" not in "".join(said) and "<script>" in said[0]
    assert "position_x 0.0498 m," in said[1] and "position_y -0.0498 m (padded)" in said[1]
    assert "CUT" in said[2] and "LEFT OUT" in said[3] and "sample 43" in said[3]


def test_the_page_shows_pictures_and_masks_and_escapes_texts(shown, batch):
    row = inspect_batch.as_html(batch, 0, shown)
    page = inspect_batch.page(f"of {EVIL}", [row])
    assert "<script" not in page and "src=" in page and "http" not in page
    pictures = re.findall(r"base64,([^\"]+)", page)
    for data, image in zip(pictures, batch["images"][0], strict=True):
        got = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        np.testing.assert_array_equal(got, image)
    spans = re.findall(r'<span class="(\w+)" style="[^"]*" title="position (\d+)[^"]*">(.*?)<', row)
    tokens = [token for s in shown for token in s.tokens]
    assert [(t.kind, str(t.position), t.piece) for t in tokens] == [
        (kind, position, html.unescape(piece)) for kind, position, piece in spans
    ]
    assert "0.0498" in row and row.count("class=padded") == 1
    assert "0 of" in row and "left out" in row and "cut: longer" in row


CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "model": {{"preset": "tiny", "image_size": 28, "compute_dtype": "float32"}},
        "data": {{"sources": {{
            "robot": {{"kind": "episodes", "path": "{robot}", "weight": 2.0}},
            "web": {{"kind": "image_text", "path": "{web}", "weight": 1.0}},
        }}, "threads": 1}},
        "optimizer": {{"learning_rate": 1e-3, "warmup_steps": 1}},
        "train": {{"steps": 1, "batch_size": 4}},
    }})
"""


def test_the_tool_writes_a_page(tmp_path, monkeypatch, capsys):
    write_episodes(episodes(), tmp_path / "robot", SPEC, name="robot", description="", test_every=5)
    web = {"train": rows("train", 8), "test": rows("test", 8)}
    write_image_text(web, tmp_path / "web", name="web", description="")
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(robot=tmp_path / "robot", web=tmp_path / "web"))

    def run(*words: str) -> tuple[int, str, str]:
        command = ["inspect_batch.py", f"--config={config}", *words]
        monkeypatch.setattr(sys, "argv", command)
        return inspect_batch.main(), *capsys.readouterr()

    packed = ("--config.data.examples_per_row=2", "--config.data.row_tokens=70")
    code, said, _ = run("--step=1", f"--out={tmp_path / 'out'}", *packed)
    assert code == 0 and "4 rows of 8 image tokens and 70 text" in said
    samples = [int(n) for n in re.findall(r"sample (\d+):", said)]
    assert samples == list(range(8, 16))
    assert (tmp_path / "out/batch.html").read_text().count("<img") == 8
    code, said, _ = run("--rows=2", f"--out={tmp_path / 'few'}")
    assert code == 0 and (tmp_path / "few/batch.html").read_text().count("<img") == 2
    for words, message in (
        (("--step=-1",), "--step -1 must be at least 0"),
        (("--config.data.examples_per_row=2",), "data.row_tokens 0 must hold at least one example"),
        (("--config.data.nothing=2",), "no such key"),
    ):
        code, _, problem = run(*words)
        assert code == 2 and message in problem
