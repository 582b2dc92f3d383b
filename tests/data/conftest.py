"""Small data sets, written once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.data.examples import episodes, rows
from vla_jax.actions.spec import ActionSpec, end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data import storage
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


class FlakyStore(MemoryFileSystem):
    """flaky://: files in memory; each request takes the next error of `errors`, if there is one."""

    protocol = "flaky"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    errors: ClassVar[list[Exception]] = []
    requests: ClassVar[list[tuple]] = []
    pauses: ClassVar[list[float]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _request(self, *what):
        self.requests.append(what)
        try:
            error = self.errors.pop(0)
        except IndexError:  # there is none, or another thread has taken it
            return
        raise error

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._request("cat", path, start, end)
        return super().cat_file(path, start=start, end=end, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        self._request("put", rpath)
        return super().put_file(lpath, rpath, **kwargs)

    def ls(self, path, **kwargs):
        self._request("ls", path)
        return super().ls(path, **kwargs)

    def info(self, path, **kwargs):
        self._request("info", path)
        return super().info(path, **kwargs)


@pytest.fixture
def flaky(monkeypatch) -> type[FlakyStore]:
    """An empty flaky:// store; pauses between tries are counted in `pauses`, not slept."""
    fsspec.register_implementation("flaky", FlakyStore, clobber=True)
    FlakyStore.store.clear()
    FlakyStore.pseudo_dirs[:] = [""]
    FlakyStore.errors.clear()
    FlakyStore.requests.clear()
    FlakyStore.pauses.clear()
    monkeypatch.setattr(storage.time, "sleep", FlakyStore.pauses.append)
    monkeypatch.setattr(storage, "_told", set())
    return FlakyStore


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """An empty memory:// store."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]
