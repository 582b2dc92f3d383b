"""Converted data against the sources they are from, and conversions that are stopped or wrong."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from array_record.python import array_record_module
from PIL import Image

from tests.data.examples import LENGTHS, encoded, episode, pixels, rows
from tests.data.lerobot_test import CAMERAS, FPS, _write_v2
from tests.data.opening_test import _jsonl, _tar
from vla_jax.actions.spec import end_effector_spec
from vla_jax.data import convert as convert_lib
from vla_jax.data import convert_beam
from vla_jax.data.config import SourceConfig
from vla_jax.data.convert import convert
from vla_jax.data.loader import evaluation_batches
from vla_jax.data.sources.base import EpisodicSource, Track
from vla_jax.data.sources.opening import open_source
from vla_jax.data.tfds_writer import write_episodes, write_image_text
from vla_jax.text.prompts import PLAN_TEMPLATE, ROBOT_TEMPLATE, robot_prompt
from vla_jax.types import Example

ROOT = Path(__file__).parents[2]
VIEWS = ("steps/observation/wrist", "steps/observation/image")
STATE = ("steps/observation/state",)


@pytest.fixture(scope="session")
def configs(spec, tmp_path_factory) -> dict[str, SourceConfig]:
    """A source of every kind."""
    at = tmp_path_factory.mktemp("sources")
    two_views = []
    for number, steps in enumerate(LENGTHS):
        one = episode(number, steps)
        wrist = [encoded(9000 + 100 * number + t, "JPEG", 40) for t in range(steps)]
        two_views.append({**one, "images": {**one["images"], "wrist": wrist}, "split": "train"})
    write_episodes(two_views, at / "rlds", spec, name="rlds", description="")
    texts = {"train": rows("train", 11), "test": rows("test", 5)}
    write_image_text(texts, at / "tfds", name="tfds", description="")
    arm = end_effector_spec("arm", max_position_m=0.05, max_rotation_rad=0.1, control_hz=FPS)
    for kind in ("image", "video"):
        _write_v2(at / kind, arm, kind)
    (at / "tar").mkdir()
    _tar(at / "tar" / "00000.tar", range(6))
    _tar(at / "tar" / "00001.tar", range(6, 9))
    _jsonl(at / "jsonl", range(20, 27))
    return {
        "rlds": SourceConfig("episodes", str(at / "rlds"), cameras=VIEWS, state=STATE),
        "pictures": SourceConfig("lerobot", str(at / "image"), split="all", cameras=CAMERAS),
        "videos": SourceConfig("lerobot", str(at / "video"), split="all", cameras=CAMERAS),
        "tfds": SourceConfig("image_text", str(at / "tfds"), split="test"),
        "tar": SourceConfig(
            "webdataset",
            str(at / "tar"),
            prompt=("Q: caption in {language} A:", "Q: what is it in {language}? A:"),
            language="german",
        ),
        "lines": SourceConfig(
            "jsonl",
            str(at / "jsonl" / "all.jsonl"),
            prompt="Q: {q} A:",
            answer="a",
            image="file",
            image_root=str(at / "jsonl" / "images"),
        ),
    }


def _converted(out, split: str = "train", **options) -> SourceConfig:
    return SourceConfig("array_record", str(out), split=split, **options)


def _require_same(found: Example, expected: Example, decode: bool = False) -> None:
    """Every field; frames of videos by their pixels."""
    for field in dataclasses.fields(Example):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "images" and decode:
            assert all(image[:4] == b"\x89PNG" for image in a)
            a = tuple(pixels(image) for image in a)
        assert type(a) is type(b), field.name
        for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (a, b)), strict=True):
            np.testing.assert_array_equal(one, other, strict=True, err_msg=field.name)


def _files(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("kind", ["rlds", "pictures", "videos", "tfds", "tar", "lines"])
def test_every_example_is_that_of_the_source(configs, kind, tmp_path):
    config = configs[kind]
    convert(kind, config, tmp_path, shards=3)
    assert len(list((tmp_path / config.split).glob("*.array_record"))) == 3
    for chunk, frames in ((1, 1), (4, 3)):
        source = open_source(kind, config, chunk=chunk, frames=frames)
        converted = open_source(
            kind, _converted(tmp_path, config.split), chunk=chunk, frames=frames
        )
        assert len(converted) == len(source) > 3
        assert converted.action_spec == source.action_spec
        for index in np.random.default_rng(0).permutation(len(source)).tolist():
            _require_same(converted.read(index), source.read(index), decode=kind == "videos")
    assert isinstance(converted, EpisodicSource) == isinstance(source, EpisodicSource)
    if isinstance(converted, EpisodicSource) and isinstance(source, EpisodicSource):
        assert converted.num_episodes == source.num_episodes
        for number in range(source.num_episodes):
            mine, theirs = converted.track(number), source.track(number)
            np.testing.assert_array_equal(mine.actions, theirs.actions, strict=True)
            assert (mine.first, mine.instructions) == (theirs.first, theirs.instructions)
            assert (mine.state is not None) == (theirs.state is not None) == (kind == "rlds")
            np.testing.assert_array_equal(mine.state, theirs.state)


class _Talking:
    """Robot data with all that an example may have."""

    name, views = "talking", ("front",)

    def __init__(self, spec):
        self.action_spec, self.num_episodes = spec, 3
        rng = np.random.default_rng(3)
        self._actions = rng.uniform(-0.05, 0.05, (9, 8)).astype(np.float32)
        self._states = rng.normal(size=(9, 5)).astype(np.float32)

    def __len__(self):
        return 9

    def track(self, number):
        at = slice(3 * number, 3 * number + 3)
        texts = tuple(f"wave {number}" for _ in range(3))
        return Track("it", 3 * number, self._actions[at], texts, self._states[at])

    def read(self, index):
        return Example(
            images=(encoded(index),),
            prompt=robot_prompt(
                f"wave {index // 3}", PLAN_TEMPLATE if index % 2 else ROBOT_TEMPLATE
            ),
            action=self._actions[index][None],
            plan=f"lift {index}" if index % 2 else "",
            state=self._states[index],
        )


def test_plan_and_state_are_kept(spec, tmp_path, monkeypatch):
    source = _Talking(spec)
    with monkeypatch.context() as patch:
        patch.setattr(convert_lib, "open_source", lambda name, config, **_: source)
        convert("talking", SourceConfig("episodes", "x", plan="steps/plan"), tmp_path, shards=2)
    with pytest.raises(
        ValueError, match="was converted with plan='steps/plan', and the source say"
    ):
        open_source("talking", _converted(tmp_path))
    converted = open_source("talking", _converted(tmp_path, plan="steps/plan"))
    for index in range(9):
        _require_same(converted.read(index), source.read(index))
    assert isinstance(converted, EpisodicSource)
    np.testing.assert_array_equal(converted.track(2).state, source._states[6:])
    assert converted.track(2).instructions == ("wave 2",) * 3
    # A new field must be written too, and shown here.
    assert [field.name for field in dataclasses.fields(Example)] == [
        "images", "prompt", "answer", "action", "action_valid", "plan", "state"
    ]  # fmt: skip


def test_records_can_be_read_without_this_program(configs, tmp_path):
    convert("rlds", configs["rlds"], tmp_path, shards=2)
    spec = {
        "image/steps/observation/image": tf.io.FixedLenFeature([], tf.string),
        "image/steps/observation/wrist": tf.io.FixedLenFeature([], tf.string),
        "instruction": tf.io.FixedLenFeature([], tf.string),
        "action": tf.io.FixedLenFeature([8], tf.float32),
        "state": tf.io.FixedLenFeature([8], tf.float32),
        "episode": tf.io.FixedLenFeature([], tf.int64),
        "step": tf.io.FixedLenFeature([], tf.int64),
    }
    found = []
    for file in sorted((tmp_path / "train").glob("*.array_record")):
        reader = array_record_module.ArrayRecordReader(str(file))
        assert "group_size:1," in reader.writer_options_string()
        found += [tf.io.parse_single_example(r, spec) for r in reader.read_all()]
    places = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]
    assert [(int(f["episode"]), int(f["step"])) for f in found] == places
    for one, (e, t) in zip(found, places):
        written = episode(e, LENGTHS[e])
        assert one["image/steps/observation/image"].numpy() == written["images"]["image"][t]
        assert one["image/steps/observation/wrist"].numpy() == encoded(
            9000 + 100 * e + t, "JPEG", 40
        )
        assert written["instruction"] == one["instruction"].numpy().decode()
        np.testing.assert_array_equal(one["action"], written["action"][t])
        np.testing.assert_array_equal(one["state"], written["state"][t])


def test_frames_may_become_jpeg(configs, tmp_path):
    convert("videos", configs["videos"], tmp_path, shards=1, jpeg_quality=70)
    converted = open_source("videos", _converted(tmp_path, "all", cameras=CAMERAS[1:]))
    source = open_source("videos", configs["videos"])
    for index in (0, 20):
        buffer = io.BytesIO()
        frame = source.read(index).images[1]
        Image.fromarray(frame).save(buffer, "JPEG", quality=70, subsampling=0)
        assert converted.read(index).images == (buffer.getvalue(),)


def test_resized_images_are_what_the_loader_would_make_of_them(configs, builder, tmp_path):
    convert("rlds", configs["rlds"], tmp_path, shards=2, image_size=32)
    sources = {
        "stored": open_source("rlds", configs["rlds"]),
        "resized": open_source("rlds", _converted(tmp_path)),
    }
    made = {
        name: [
            batch["images"]
            for batch in evaluation_batches(source, builder, batch_size=5, image_size=32)
        ]
        for name, source in sources.items()
    }
    np.testing.assert_array_equal(made["resized"], made["stored"])
    wrist, image = sources["resized"].read(3).images
    assert pixels(wrist).shape == (32, 32, 3)  # it had 40 pixels
    assert image == encoded(100)
    # Converted data are a source like any other, with the same result.
    convert("stored", configs["rlds"], tmp_path / "stored", shards=3)
    convert("again", _converted(tmp_path / "stored"), tmp_path / "again", shards=2, image_size=32)
    found, expected = _files(tmp_path / "again/train"), _files(tmp_path / "train")
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if name != "metadata.json")


def test_a_store_holds_the_same_bytes(configs, tmp_path, memory):
    convert("rlds", configs["rlds"], tmp_path, shards=2)
    convert("rlds", configs["rlds"], "memory://bucket/rlds", shards=2)
    at = "/bucket/rlds/train/"
    found = {path.removeprefix(at): file.getvalue() for path, file in memory.store.items()}
    assert found == _files(tmp_path / "train")


SLOWLY = """
import sys, time
from vla_jax.data import shards
from vla_jax.data.config import SourceConfig
from vla_jax.data.convert import convert

encode = shards.converted.encode_example

def slowly(*arguments):
    time.sleep(0.05)
    return encode(*arguments)

shards.converted.encode_example = slowly  # workers run this file, too

if __name__ == "__main__":
    out, path, state, *cameras = sys.argv[1:]
    source = SourceConfig("episodes", path, state=(state,), cameras=tuple(cameras))
    convert("rlds", source, out, shards=5, workers=2)
"""


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_subprocess_a_killed_conversion_goes_on_where_it_was(configs, tmp_path):
    config = configs["rlds"]
    convert("rlds", config, tmp_path / "whole", shards=5)
    out, program = tmp_path / "killed" / "train", tmp_path / "slowly.py"
    program.write_text(SLOWLY)
    running = subprocess.Popen(
        [sys.executable, program, out.parent, config.path, *STATE, *VIEWS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        _wait_for(lambda: len(list(out.glob("unfinished/*.npz"))) >= 2)
        workers = _children(running.pid)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    assert len(workers) >= 2
    _wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    with pytest.raises(
        ValueError, match=r"killed/train.*not finished: run tools/convert\.py again"
    ):
        open_source("rlds", _converted(out.parent))
    done = {p.stem: out / p.stem for p in out.glob("unfinished/*.npz")}
    kept = {p: p.stat().st_mtime_ns for n in done for p in out.glob(f"records-{n}-*")}
    assert 2 <= len(kept) < 5
    convert("rlds", config, out.parent, shards=5)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert _files(out) == _files(tmp_path / "whole" / "train")
    assert not (out / "unfinished").exists()


def test_a_record_that_cannot_be_used_stops_it_and_it_goes_on_when_repaired(
    configs, tmp_path, capsys
):
    convert("lines", configs["lines"], tmp_path / "whole", shards=4)
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(Path(configs["lines"].path).parent, data)
    config = dataclasses.replace(
        configs["lines"], path=str(data / "all.jsonl"), image_root=str(data / "images")
    )
    (data / "images/24.png").rename(data / "away")
    with pytest.raises(ValueError, match=r"all\.jsonl line 5.*24\.png is not there"):
        convert("lines", config, out, shards=4)
    first, second = sorted((out / "train").glob("records-*"))
    written = first.stat().st_mtime_ns
    (data / "away").rename(data / "images/24.png")
    second.write_bytes(second.read_bytes()[:-1])  # a shard that was cut off is written again
    (out / "train/unfinished/00003.npz").write_bytes(b"")
    convert("lines", config, out, shards=4)
    assert first.stat().st_mtime_ns == written
    found, whole = (_files(at / "train") for at in (out, tmp_path / "whole"))
    metadata = [json.loads(files.pop("metadata.json")) for files in (found, whole)]
    assert found == whole
    assert metadata[0]["digest"] == metadata[1]["digest"]
    capsys.readouterr()
    convert("lines", config, out, shards=4)
    assert "is there already and whole" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written


def test_another_conversion_in_the_same_place_is_refused(configs, tmp_path):
    config = configs["tfds"]
    convert("tfds", config, tmp_path, shards=2)
    with pytest.raises(ValueError, match="test holds another conversion: shards was 2, is 3"):
        convert("tfds", config, tmp_path, shards=3)
    with pytest.raises(ValueError, match=r"image_size was 0, is 8\. Give it"):
        convert("tfds", config, tmp_path, shards=2, image_size=8)
    convert("tfds", dataclasses.replace(config, split="train"), tmp_path, shards=2)
    assert len(open_source("t", _converted(tmp_path, "train"))) == 11
    (tmp_path / "test/metadata.json").unlink()
    conversion, opened = convert_lib.prepare("tfds", config, tmp_path, shards=2)
    with pytest.raises(ValueError, match="2 of 2 shards are not written"):
        convert_lib.finish(conversion)
    with pytest.raises(ValueError, match="had 6 episodes or records and has 5 now"):
        convert_lib.write_shard(dataclasses.replace(conversion, units=6), 0, opened)
    for options in ({"jpeg_quality": 96}, {"image_size": -1}, {"shards": -1}):
        with pytest.raises(ValueError, match="quality is 1 to 95"):
            convert("tfds", config, tmp_path, **options)


def test_damaged_episodes_are_left_out_if_that_is_allowed(spec, tmp_path, capsys):
    data = tmp_path / "data"
    written = [{**episode(number, steps), "split": "train"} for number, steps in enumerate(LENGTHS)]
    write_episodes(written, data, spec, name="d", description="", file_format="tfrecord")
    [file] = data.glob("*.tfrecord-*")
    records = bytearray(file.read_bytes())
    (size,) = struct.unpack("<Q", records[:8])
    records[12 : 12 + size] = b"\xff" * size  # episode 0
    file.write_bytes(records)
    config = SourceConfig("episodes", str(data))
    with pytest.raises(ValueError, match=r"record 0 is damaged.*data\.max_bad_records"):
        convert("d", config, tmp_path / "out", shards=2)
    capsys.readouterr()
    convert("d", config, tmp_path / "out", shards=2, max_bad_records=1)
    assert "left out: data set 'd'" in capsys.readouterr().err
    source = open_source("d", config, max_bad_records=1)
    converted = open_source("d", _converted(tmp_path / "out"))
    assert len(converted) == len(source) == sum(LENGTHS[1:])
    for index in range(len(source)):
        _require_same(converted.read(index), source.read(index))
    assert isinstance(converted, EpisodicSource)
    assert [len(converted.track(n).actions) for n in range(5)] == [0, *LENGTHS[1:]]


def test_an_image_that_cannot_be_resized_is_named(configs, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(Path(configs["lines"].path).parent, data)
    config = dataclasses.replace(
        configs["lines"], path=str(data / "all.jsonl"), image_root=str(data / "images")
    )
    for damaged in (b"no image", encoded(3)[:300]):
        (data / "images/22.png").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"'lines' record 2: its image cannot be decoded"):
            convert("lines", config, tmp_path / "out", image_size=16)


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory):
    """Converted robot data, not to be changed."""
    path = tmp_path_factory.mktemp("whole")
    convert("rlds", configs["rlds"], path, shards=2)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def test_damaged_shards_are_named(copy):
    shard = copy / "train/records-00001-of-00002.array_record"
    data = shard.read_bytes()
    # The last byte of an image, so that nothing but a checksum shows it.
    last = episode(2, LENGTHS[2])["images"]["image"][0]
    at = data.index(last) + len(last) - 9
    shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    source = open_source("robot", _converted(copy))
    before = sum(LENGTHS[:2])
    source.read(before - 1)
    with pytest.raises(ValueError, match=r"'robot', .*records-00001-of.* record 0 cannot be read"):
        source.read(before)
    source.read(before + 1)
    shard.write_bytes(data[:-4])
    with pytest.raises(ValueError, match=r"records-00001-of.*bytes, metadata\.json says"):
        open_source("robot", _converted(copy))
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 files are missing, e\.g\. .*00001-of"):
        open_source("robot", _converted(copy))


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_tables_and_metadata_are_named(copy):
    at = copy / "train"
    steps = np.load(at / "steps.npy")
    steps["action"][4] += 1
    np.save(at / "steps.npy", steps)
    source = open_source("robot", _converted(copy))
    source.read(3)
    with pytest.raises(ValueError, match=r"record 4 has another action than steps\.npy for ep"):
        source.read(4)
    for data in (steps[:-1], steps[:0]):
        np.save(at / "steps.npy", data)
        with pytest.raises(ValueError, match=r"'robot'.*steps\.npy or episodes\.npy is missing"):
            open_source("robot", _converted(copy))
    (at / "steps.npy").unlink()
    with pytest.raises(ValueError, match=r"'robot'.*steps\.npy or episodes\.npy is missing"):
        open_source("robot", _converted(copy))
    _edit(at / "metadata.json", version=2)
    with pytest.raises(ValueError, match=r"train/metadata\.json is of format .* version 2; this"):
        open_source("robot", _converted(copy))
    _edit(at / "metadata.json", version=1, shards=None)
    with pytest.raises(ValueError, match=r"train/metadata\.json does not describe converted"):
        open_source("robot", _converted(copy))
    (at / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match=r"train/metadata\.json does not describe converted"):
        open_source("robot", _converted(copy))
    shutil.rmtree(at)
    with pytest.raises(FileNotFoundError, match=r"'robot' .*train.*: no metadata\.json there"):
        open_source("robot", _converted(copy))


def test_views_are_chosen_by_name(whole):
    with pytest.raises(ValueError, match=r"'robot' .*no view 'top'; it has steps/observation/wr"):
        open_source("robot", _converted(whole, cameras=("top",)))
    one = open_source("robot", _converted(whole, cameras=VIEWS[1:]))
    assert one.read(0).images == (encoded(0),)
    with pytest.raises(IndexError, match="step 19 of data set 'robot', which has 19"):
        one.read(19)


def _tool():
    spec = importlib.util.spec_from_file_location("convert_tool", ROOT / "tools/convert.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def command(configs, tmp_path, monkeypatch, capsys):
    """Runs the tool: its exit code, and what it said."""
    config = tmp_path / "config.py"
    sources = {
        name: {"kind": c.kind, "path": c.path, "cameras": c.cameras, "state": c.state}
        for name, c in configs.items()
        if name == "rlds"
    }
    config.write_text(
        (ROOT / "configs/demo_cotrain.py").read_text()
        + "demo = get_config\n"
        + "def get_config():\n"
        + "    config = demo()\n"
        + f"    config.data.sources = {sources}\n"
        + "    return config\n"
    )

    def run(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["convert.py", f"--config={config}", *options])
        code = _tool().main()
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_subprocess_the_command_with_workers(command, whole, tmp_path):
    out = tmp_path / "out"
    code, said = command("--source=rlds", f"--out={out}", "--shards=2", "--workers=2")
    assert (code, "rlds: 19 written to" in said) == (0, True), said
    assert _files(out / "train") == _files(whole / "train")


def test_mistakes_on_the_command_line(command, tmp_path):
    out = f"--out={tmp_path / 'out'}"
    assert command("--source=web", out) == (
        2, "error: the config has no source 'web'; it has rlds\n"
    )  # fmt: skip
    code, said = command("--source=rlds", "--split=none", out)
    assert code == 2 and "has no split 'none'" in said
    with pytest.raises(SystemExit):
        command("--source=rlds", out, "--runner=DirectRunner")


def test_beams_direct_runner_writes_the_same_bytes(command, configs, whole, tmp_path):
    reason = "apache-beam is not installed: it wants older protobuf and pyarrow than the lock has"
    pytest.importorskip("apache_beam", reason=reason)
    out = tmp_path / "out"
    options = ("--source=rlds", f"--out={out}", "--shards=2", "--beam", "--runner=DirectRunner")
    # It goes on with what was written without it.
    conversion, source = convert_lib.prepare("rlds", configs["rlds"], out, shards=2)
    convert_lib.write_shard(conversion, 1, source)
    [kept] = (out / "train").glob("records-*")
    written = kept.stat().st_mtime_ns
    code, said = command(*options)
    assert code == 0, said
    assert kept.stat().st_mtime_ns == written
    assert _files(out / "train") == _files(whole / "train")
    assert "is there already and whole" in command(*options)[1]


def test_a_missing_beam_is_named(configs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r"pip install 'vla_jax\[beam\]'"):
        convert_beam.convert("rlds", configs["rlds"], tmp_path)
    assert not list(tmp_path.iterdir())
