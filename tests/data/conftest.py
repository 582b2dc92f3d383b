"""Small data sets, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.examples import episodes, rows
from vla_jax.actions.spec import ActionSpec, end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.text.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def spec() -> ActionSpec:
    return end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary()


@pytest.fixture(scope="session")
def builder(vocabulary: Vocabulary, spec: ActionSpec) -> SequenceBuilder:
    tokenizer = UniformTokenizer(spec, vocabulary.integer_ids)
    return SequenceBuilder(vocabulary, tokenizer, max_tokens=48, max_answer_tokens=12)


@pytest.fixture(scope="session", params=["array_record", "tfrecord"])
def robot_data(request, spec: ActionSpec, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "robot" / "1.0.0"
    write_episodes(
        episodes(), path, spec, name="robot", description="", test_every=5,
        file_format=request.param,
    )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def web_data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("web") / "web" / "1.0.0"
    write_image_text(
        {"train": rows("train", 40), "test": rows("test", 5)}, path, name="web", description=""
    )
    return path
