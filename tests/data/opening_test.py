"""From config to source, for every kind; robot and web data of four formats in one mixture."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile

import numpy as np
import pytest

from tests.data.examples import encoded, pixels
from tests.data.lerobot_test import CAMERAS, FPS, LENGTHS, _actions, _write_v2
from tests.data.oxe_test import CASES
from tests.data.oxe_test import _write as write_oxe
from vla_jax import schema
from vla_jax.actions.spec import end_effector_spec
from vla_jax.build_data import make_mixture, open_sources
from vla_jax.data import statistics
from vla_jax.data.config import DataConfig, SourceConfig
from vla_jax.data.loader import Loader
from vla_jax.data.oxe.record import measure
from vla_jax.data.oxe.records import find_record
from vla_jax.data.sources.opening import open_source
from vla_jax.data.sources.records import RecordFiles


def _tar(path, numbers) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            about = json.dumps({"question": f"how many are {number}?", "answer": str(number)})
            for suffix, data in (
                ("png", encoded(number)),
                ("txt", f"picture {number}".encode()),
                ("json", about.encode()),
            ):
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _jsonl(path, numbers) -> None:
    (path / "images").mkdir(parents=True)
    lines = []
    for number in numbers:
        (path / "images" / f"{number}.png").write_bytes(encoded(number))
        lines.append(json.dumps({"file": f"{number}.png", "q": f"which {number}?", "a": "that"}))
    (path / "all.jsonl").write_text("\n".join(lines))


@pytest.fixture
def web(tmp_path) -> dict[str, SourceConfig]:
    (tmp_path / "tar").mkdir()
    _tar(tmp_path / "tar" / "00000.tar", range(6))
    _tar(tmp_path / "tar" / "00001.tar", range(6, 9))
    _jsonl(tmp_path / "jsonl", range(20, 25))
    return {
        "captions": SourceConfig("webdataset", str(tmp_path / "tar"), language="german"),
        "questions": SourceConfig(
            "webdataset",
            str(tmp_path / "tar" / "{00000..00001}.tar"),
            prompt="Q: {question} A:",
            answer="answer",
        ),
        "lines": SourceConfig(
            "jsonl",
            str(tmp_path / "jsonl" / "all.jsonl"),
            prompt="Q: {q} A:",
            answer="a",
            image="file",
            image_root=str(tmp_path / "jsonl" / "images"),
        ),
    }


def test_web_sources_read_what_their_config_names(web):
    opened = {name: open_source(name, config) for name, config in web.items()}
    assert {name: len(source) for name, source in opened.items()} == {
        "captions": 9, "questions": 9, "lines": 5
    }  # fmt: skip
    got = {name: source.read(3) for name, source in opened.items()}
    texts = {name: (example.prompt, example.answer) for name, example in got.items()}
    assert texts == {
        "captions": ("Q: caption in german A:", "picture 3"),
        "questions": ("Q: how many are 3? A:", "3"),
        "lines": ("Q: which 23? A:", "that"),
    }
    assert got["captions"].images == got["questions"].images == (encoded(3),)
    assert got["lines"].images == (encoded(23),)


def test_lerobot_cameras_come_from_the_config(tmp_path):
    spec = end_effector_spec("arm", max_position_m=0.05, max_rotation_rad=0.1, control_hz=FPS)
    path = str(_write_v2(tmp_path / "arm", spec, "video"))
    config = SourceConfig("lerobot", path, split="all", cameras=CAMERAS[::-1])
    source = open_source("arm", config, chunk=2)
    example = source.read(LENGTHS[0])
    np.testing.assert_array_equal(example.action, _actions(1)[:2])
    front_first = open_source("arm", dataclasses.replace(config, cameras=CAMERAS))
    for a, b in zip(example.images, front_first.read(LENGTHS[0]).images[::-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_record_says_what_an_open_x_data_set_means(tmp_path, monkeypatch):
    write_oxe(tmp_path / "d", CASES["jaco_play"])
    source = open_source("jaco", SourceConfig("episodes", str(tmp_path / "d"), record="jaco_play"))
    record = find_record("jaco_play")
    quantiles = measure(record, tmp_path / "d")
    assert source.action_spec == record.spec(quantiles)
    # The second opening takes the statistics from the table beside the data.
    tables = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").glob(".index-*")}
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "measure_episodes", None)
        open_source("jaco", SourceConfig("episodes", str(tmp_path / "d"), record="jaco_play"))
    assert tables == {p: p.stat().st_mtime_ns for p in (tmp_path / "d").glob(".index-*")}
    with pytest.raises(ValueError, match="closest: jaco_play"):
        open_source("jaco", SourceConfig("episodes", str(tmp_path / "d"), record="jaco_pla"))


def test_a_damaged_episode_does_not_stop_an_open_x_data_set(tmp_path, monkeypatch):
    write_oxe(tmp_path / "one", CASES["jaco_play"])
    write_oxe(tmp_path / "two", CASES["jaco_play"], episodes=2)
    one = open_source("jaco", SourceConfig("episodes", str(tmp_path / "one"), record="jaco_play"))
    read = RecordFiles.read

    def fail_on_the_second(self, index):
        if index == 1:
            raise ValueError(f"{self.where(index)} cannot be read")
        return read(self, index)

    monkeypatch.setattr(RecordFiles, "read", fail_on_the_second)
    config = SourceConfig("episodes", str(tmp_path / "two"), record="jaco_play")
    with pytest.raises(ValueError, match=r"record 1 cannot be read .*1 of 2 episodes"):
        open_source("jaco", config)
    two = open_source("jaco", config, max_bad_records=1)
    assert len(two) == len(one) == 3
    assert two.action_spec == one.action_spec
    np.testing.assert_array_equal(two.read(2).action, one.read(2).action)


def test_four_formats_in_one_mixture(web, robot_data, web_data, builder):
    """Each format at its ratio; pixels, and answers by their tokens, of every row."""
    sources = {
        "robot": SourceConfig("episodes", str(robot_data), weight=3.0),
        "tfds": SourceConfig("image_text", str(web_data)),
        **{name: web[name] for name in ("questions", "lines")},
    }
    data = DataConfig(sources)
    opened = open_sources(data)
    mixture = make_mixture(data, opened)
    loader = Loader(mixture, opened, builder, batch_size=6, image_size=32)
    seen = []
    for step in range(6):
        batch = next(loader)
        source, record = mixture.locate(6 * step + np.arange(6))
        np.testing.assert_array_equal(batch["source"], source)
        seen += source.tolist()
        for row, (name, i) in enumerate(zip((mixture.names[k] for k in source), record)):
            example = opened[name].read(int(i))
            apart = np.abs(batch["images"][row, 0].astype(int) - pixels(example.images[0]))
            assert apart.max() <= (8 if example.images[0][:2] == b"\xff\xd8" else 0)  # JPEG
            np.testing.assert_array_equal(batch["tokens"][row], builder.build(example)["tokens"])
    loader.close()
    assert np.bincount(seen).tolist() == [18, 6, 6, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "jsonl", "record": "bridge"}, "'jsonl' .*no use for record; its options are"),
        ({"kind": "episodes", "prompt": "{x}", "image": "y"}, "no use for image, prompt"),
        ({"kind": "lerobot", "answer": "a"}, "its options are cameras"),
    ],
)
def test_options_of_another_kind_are_refused(options, message):
    plain = {"sources": {"it": {"path": "/data/it", **options}}}
    with pytest.raises(ValueError, match=message):
        schema.from_dict(DataConfig, plain)
