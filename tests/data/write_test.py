from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.examples import LENGTHS, encoded, episode, episodes, pixels
from vla_jax.actions.spec import ActionSpec
from vla_jax.corpus.dataset import Corpus
from vla_jax.data import tfds_writer
from vla_jax.data.encoding import encode_image
from vla_jax.data.generate import corpus_rows
from vla_jax.data.sources.episodes import EpisodeSource
from vla_jax.data.tfds_writer import write_episodes
from vla_jax.data.write import main
from vla_jax.envs.tabletop.config import CONFIGS


def test_plain_tfds_reads_the_episodes(robot_data, spec):
    builder = tfds.builder_from_directory(robot_data)
    assert (
        ActionSpec.from_json(json.loads((robot_data / "metadata.json").read_text())["action_spec"])
        == spec
    )
    assert builder.info.splits["train"].num_examples == 4
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        read = builder.as_data_source("train")
    else:
        read = tfds.as_numpy(builder.as_dataset("train"))
    for number, found in enumerate(read):
        written, steps = episode(number, LENGTHS[number]), list(found["steps"])
        success = number % 2 == 0
        assert len(steps) == LENGTHS[number]
        assert found["episode_metadata"]["seed"] == 1000 + number
        assert found["episode_metadata"]["family"] == b"pick"
        assert found["episode_metadata"]["success"] == success
        for t, step in enumerate(steps):
            last = t == LENGTHS[number] - 1
            image = written["images"]["image"][t]
            np.testing.assert_array_equal(step["observation"]["image"], pixels(image))
            np.testing.assert_array_equal(step["observation"]["state"], written["state"][t])
            np.testing.assert_array_equal(step["action"], written["action"][t])
            assert step["language_instruction"].decode() == written["instruction"]
            assert (step["is_first"], step["is_last"]) == (t == 0, last)
            assert step["is_terminal"] == (last and success)
            assert step["reward"] == (last and success)
            assert step["discount"] == (not (last and success))


def test_pixels_are_stored_without_loss_and_splits_can_be_named(tmp_path, spec):
    one = episode(0, 2)
    array = pixels(encoded(1))
    one["images"] = {"image": [array, encoded(2, "JPEG")], "wrist_image": [encoded(3), array]}
    write_episodes([{**one, "split": "val"}], tmp_path / "d", spec, name="d", description="")
    [found] = tfds.builder_from_directory(tmp_path / "d").as_data_source("val")
    steps = list(found["steps"])
    np.testing.assert_array_equal(steps[0]["observation"]["image"], array)
    np.testing.assert_array_equal(steps[1]["observation"]["wrist_image"], array)


def test_several_files_are_one_data_set(tmp_path, spec, monkeypatch):
    monkeypatch.setattr(tfds_writer, "EPISODES_PER_SHARD", 2)
    stale = tmp_path / ".d.unfinished" / "rubbish"
    stale.mkdir(parents=True)
    write_episodes(episodes(), tmp_path / "d", spec, name="d", description="", test_every=100)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert len(list((tmp_path / "d").glob("*array_record*"))) == 3
    builder = tfds.builder_from_directory(tmp_path / "d")
    assert builder.info.splits["train"].shard_lengths == [2, 2, 1]
    found = builder.as_data_source("train")
    assert [len(e["steps"]) for e in found] == list(LENGTHS)
    source = EpisodeSource("d", tmp_path / "d")
    steps = [(e, t) for e, n in enumerate(LENGTHS) for t in range(n)]
    assert [source.read(i).images[0] for i in range(len(source))] == [
        encoded(100 * e + t) for e, t in steps
    ]


def _broken_episodes():
    yield from episodes()
    raise RuntimeError("killed")


def test_a_failed_write_leaves_nothing_and_an_old_one_is_kept(tmp_path, spec):
    out = tmp_path / "d"
    with pytest.raises(RuntimeError, match="killed"):
        write_episodes(_broken_episodes(), out, spec, name="d", description="")
    assert list(tmp_path.iterdir()) == []
    write_episodes(episodes(), out, spec, name="d", description="")
    with pytest.raises(FileExistsError, match="is there already: remove it"):
        write_episodes(episodes(), out, spec, name="d", description="")
    with pytest.raises(RuntimeError, match="killed"):
        write_episodes(_broken_episodes(), out, spec, name="d", description="", overwrite=True)
    assert tfds.builder_from_directory(out).info.splits["train"].num_examples == 5
    write_episodes([episode(0, 2)], out, spec, name="d", description="", overwrite=True)
    assert tfds.builder_from_directory(out).info.splits["train"].num_examples == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": " "}, "episode 1: empty instruction"),
        ({"action": np.full((5, 8), np.nan)}, "episode 1: action is NaN"),
        ({"action": np.zeros((5, 7))}, r"episode 1: action of shape \(5, 7\)"),
        ({"action": np.zeros((4, 8))}, "episode 1: 4 actions, but {'state': 5, 'image': 5}"),
        ({"action": np.zeros(8)}, r"episode 1: actions of shape \(8,\)"),
        ({"images": {"image": [np.zeros((8, 8), np.uint8)] * 5}}, r"image of shape \(8, 8\)"),
    ],
)
def test_a_bad_episode_is_named(tmp_path, spec, change, message):
    bad = {**episode(1, 5), **change}
    with pytest.raises(ValueError, match=message):
        write_episodes([episode(0, 3), bad], tmp_path / "d", spec, name="d", description="")
    with pytest.raises(ValueError, match="no episodes"):
        write_episodes([], tmp_path / "d", spec, name="d", description="")


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_images_are_encoded_well(image_format):
    errors = []
    for i in range(9):
        image = Corpus(64).example(i)["image"]
        errors.append(np.abs(pixels(encode_image(image, image_format)).astype(int) - image))
    if image_format == "png":
        assert np.max(errors) == 0
    else:  # most pictures; noise costs more
        assert np.median([e.mean() for e in errors]) < 2


def test_corpus_rows_are_those_of_the_corpus_in_order():
    sizes = {"image_size": 40, "least_px": 16.0, "styles": 3}
    found = list(corpus_rows("test", 70, seed=3, workers=2, image_format="png", **sizes))
    corpus = Corpus(seed=3, split="test", **sizes)
    assert len(found) == 70 and not multiprocessing.active_children()
    for index in (0, 1, 63, 64, 69):
        expected, row = corpus.example(index), found[index]
        np.testing.assert_array_equal(pixels(row["image"]), expected["image"])
        assert {k: v for k, v in expected.items() if k != "image"} == {
            k: v for k, v in row.items() if k != "image"
        }


@pytest.fixture
def staged(tmp_path, spec):
    directory = tmp_path / "staged"
    directory.mkdir()
    (directory / "metadata.json").write_text(json.dumps({"action_spec": spec.to_json()}))
    for number, one in enumerate(episodes()):
        images = one["images"]["image"]
        np.savez(
            directory / f"episode_{number:06d}.npz",
            image_bytes=np.frombuffer(b"".join(images), np.uint8),
            image_ends=np.cumsum([len(i) for i in images]),
            state=one["state"],
            action=one["action"],
            instruction=one["instruction"],
            family="pick",
            seed=one["metadata"]["seed"],
        )
    # What a killed worker leaves.
    (directory / "episode_000009.partial.npz").write_bytes(b"half")
    return directory


def test_staged_episodes_become_a_data_set(staged, tmp_path, spec):
    out = tmp_path / "robot/1.0.0"
    assert main(["episodes", "--staged", str(staged), "--out", str(out), "--test_every", "5"]) == 0
    source = EpisodeSource("robot", out)
    assert source.action_spec == spec
    assert len(source) == sum(LENGTHS[:4])
    assert source.read(8).images == (encoded(200),)
    [found] = tfds.builder_from_directory(out).as_data_source("test")
    assert found["episode_metadata"] == {"seed": 1004, "family": b"pick"}
    assert [s["reward"] for s in found["steps"]] == [0, 0, 0, 0, 0, 1]


def test_the_table_tops_own_episodes_become_a_data_set(tmp_path):
    command = [
        sys.executable, "-m", "vla_jax.envs.episodes", "--out", str(tmp_path / "staged"),
        "--episodes", "2", "--workers", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "robot"
    assert main(["episodes", "--staged", str(tmp_path / "staged"), "--out", str(out)]) == 0
    source = EpisodeSource("robot", out)
    assert source.action_spec == CONFIGS["demo"].action_spec
    assert source.num_episodes == 2
    for index in range(len(source)):
        example = source.read(index)
        assert pixels(example.images[0]).shape == (112, 112, 3)
        last = index + 1 == len(source) or source.locate(index + 1)[1] == 0
        assert example.action[0, 0] == last  # terminate


def test_bad_staged_episodes_are_named(staged, tmp_path, capsys):
    def run(directory):
        return main(["episodes", "--staged", str(directory), "--out", str(tmp_path / "out")])

    (staged / "episode_000003.npz").write_bytes(b"PK\3\4 damaged")
    assert run(staged) == 2
    assert "episode_000003.npz cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (staged / "metadata.json").write_text("{}")
    assert run(staged) == 2
    assert "no ActionSpec under 'action_spec'" in capsys.readouterr().err
    assert run(tmp_path / "empty") == 2
    assert "holds no staged episodes: make them with" in capsys.readouterr().err


def test_the_command_writes_a_data_set(tmp_path, capsys):
    command = [
        sys.executable, "-m", "vla_jax.data.write", "image_text", "--out", str(tmp_path / "web"),
        "--train", "10", "--test", "3", "--image_size", "32", "--workers", "1",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "picture_corpus: 13 written to" in done.stdout
    info = tfds.builder_from_directory(tmp_path / "web").info
    assert {k: s.num_examples for k, s in info.splits.items()} == {"train": 10, "test": 3}
    assert main(command[3:]) == 2
    assert "is there already" in capsys.readouterr().err
