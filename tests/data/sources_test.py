from __future__ import annotations

import dataclasses
import os
import shutil
import struct

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tests.data.examples import LENGTHS, encoded, episode, episodes, pixels, rows
from vla_jax.actions.spec import end_effector_spec
from vla_jax.data import storage, tfds_writer
from vla_jax.data.config import SourceConfig
from vla_jax.data.sources.episodes import EpisodeLayout, EpisodeSource
from vla_jax.data.sources.image_text import ImageTextSource
from vla_jax.data.sources.opening import open_source
from vla_jax.data.sources.records import RecordFiles
from vla_jax.data.sources.texts import TextLayout
from vla_jax.data.tfds_writer import write_episodes
from vla_jax.text.prompts import (
    CAPTION_TEMPLATE,
    PLAN_TEMPLATE,
    QUESTION_TEMPLATE,
    ROBOT_TEMPLATE,
    robot_prompt,
)


def _steps_by_tfds(path, split):
    """Every step of a split, read by tfds alone."""
    builder = tfds.builder_from_directory(path)
    if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        read = builder.as_data_source(split)
    else:
        read = tfds.as_numpy(builder.as_dataset(split))
    return [step for one in read for step in one["steps"]]


def test_steps_equal_what_tfds_reads(robot_data, spec):
    source = EpisodeSource("robot", robot_data)
    expected = _steps_by_tfds(robot_data, "train")
    assert len(source) == len(expected) == sum(LENGTHS[:4])
    assert source.num_episodes == 4
    assert source.action_spec == spec
    for index in np.random.default_rng(0).permutation(len(source)).tolist():
        example, step = source.read(index), expected[index]
        np.testing.assert_array_equal(pixels(example.images[0]), step["observation"]["image"])
        np.testing.assert_array_equal(example.action, step["action"][None])
        assert example.prompt == robot_prompt(step["language_instruction"].decode())
        assert example.answer is None
    test = EpisodeSource("robot", robot_data, "test")
    assert len(test) == LENGTHS[4]
    assert test.read(0).images == (encoded(400),)


def test_chunks_end_with_the_episode(robot_data):
    """Of the steps that follow, and the last one again where there is none."""
    single, source = EpisodeSource("r", robot_data), EpisodeSource("r", robot_data, chunk=4)
    assert len(source) == len(single)
    for index in range(len(source)):
        number, step = source.locate(index)
        example, left = source.read(index), LENGTHS[number] - step
        want = [single.read(index + min(k, left - 1)).action[0] for k in range(4)]
        np.testing.assert_array_equal(example.action, want)
        assert example.images == single.read(index).images
        if left >= 4:
            assert example.action_valid is None
        else:
            np.testing.assert_array_equal(
                example.action_valid, np.repeat((np.arange(4) < left)[:, None], 8, axis=1)
            )


def test_images_stay_the_bytes_that_were_written(robot_data, web_data):
    source = EpisodeSource("robot", robot_data)
    assert [source.locate(i) for i in (0, 2, 3, 8, 9, 12)] == [
        (0, 0), (0, 2), (1, 0), (2, 0), (3, 0), (3, 3),
    ]  # fmt: skip
    assert source.read(3).images[0] == episode(1, 5)["images"]["image"][0]
    web = ImageTextSource("web", web_data)
    assert [web.read(i).images[0] for i in range(40)] == [r["image"] for r in rows("train", 40)]


def test_image_text_equals_what_tfds_reads(web_data):
    source = ImageTextSource("web", web_data, "test")
    read = tfds.builder_from_directory(web_data).as_data_source("test")
    assert len(source) == len(read) == 5
    for index, row in enumerate(read):
        example = source.read(index)
        assert (example.prompt, example.answer) == (row["prompt"].decode(), row["answer"].decode())
        np.testing.assert_allclose(pixels(example.images[0]), row["image"])
        assert source.texts(index)["task"] == "point"
        assert source.texts(index)["language"] == "en"


def test_the_cache_is_bounded_and_changes_nothing(robot_data):
    size = 20_000  # of a few episodes of five
    small, large = (EpisodeSource("r", robot_data, cache_bytes=n) for n in (size, 2**28))
    for index in [*range(13), *reversed(range(13))]:
        a, b = small.read(index), large.read(index)
        assert a.images == b.images
        np.testing.assert_array_equal(a.action, b.action)
        assert small._recent.num_bytes <= size
    actions = 4 * 8 * sum(LENGTHS[:4])
    records = [RecordFiles("r", robot_data, "train").read(number) for number in range(4)]
    whole = 0 if large._records.reads_parts else sum(map(len, records))
    assert large._recent.num_bytes == actions + whole


def test_the_step_index_is_what_the_records_hold(robot_data):
    """Against a parse of each episode, among them bytes that stand in a record twice."""
    source = EpisodeSource("robot", robot_data)
    for number in range(4):
        features = RecordFiles("robot", robot_data, "train").parse(number)
        track = source.track(number)
        stored = features["steps/action"].float_list.value
        np.testing.assert_array_equal(track.actions.ravel(), np.asarray(stored, np.float32))
        images = features["steps/observation/image"].bytes_list.value
        assert [source.read(track.first + t).images[0] for t in range(len(images))] == list(images)
        texts = features["steps/language_instruction"].bytes_list.value
        assert [text.encode() for text in track.instructions] == list(texts)


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_pictures_that_repeat_frames_states_and_plans(tmp_path, spec, file_format):
    """Equal pictures in a row and between views; frames before a step; what the robot measures."""

    def four(number: int):
        one = episode(number, 4)
        front = [encoded(k) for k in (1, 2, 1, 1)]
        return {**one, "images": {"image": front, "wrist": [encoded(k) for k in (2, 1, 3, 1)]}}

    path = tmp_path / "d"
    write_episodes(
        map(four, range(2)), path, spec, name="d", description="", file_format=file_format
    )
    layout = EpisodeLayout(
        images=("steps/observation/wrist", "steps/observation/image"),
        state=("steps/observation/state", "steps/reward"),
        plan="steps/language_instruction",
    )
    source = EpisodeSource("d", path, layout=layout, frames=3)
    front, wrist = four(0)["images"]["image"], four(0)["images"]["wrist"]
    for index in range(8):
        step = index % 4
        rows = [max(step - back, 0) for back in (2, 1, 0)]
        example = source.read(index)
        assert example.images == tuple(v[row] for row in rows for v in (wrist, front))
        expected = four(index // 4)
        reward = float(step == 3 and expected["success"])
        np.testing.assert_array_equal(example.state[:8], expected["state"][step])
        assert example.state[8] == reward
        assert example.plan == expected["instruction"]
        assert example.prompt == robot_prompt(expected["instruction"], PLAN_TEMPLATE)
    np.testing.assert_array_equal(source.track(1).state[:, :8], four(1)["state"])


def test_a_robots_prompt_in_several_phrasings(robot_data):
    config = SourceConfig("episodes", str(robot_data))
    plain = open_source("robot", config)
    both = open_source("robot", config, robot_prompts=("please {instruction}", ROBOT_TEMPLATE))
    planned = open_source(
        "robot",
        dataclasses.replace(config, plan="steps/language_instruction"),
        robot_prompts=("x",),
    )
    for index in range(len(plain)):
        instruction = plain.track(plain.locate(index)[0]).instructions[0]
        prompt = plain.read(index).prompt
        assert prompt == f"Q: what action should the robot take to {instruction}? A:"
        assert both.read(index).prompt == (f"please {instruction}", prompt)
        assert planned.read(index).plan == instruction
        assert planned.read(index).prompt == f"Instruction: {instruction}. Plan:"


def test_damaged_episodes_are_left_out_up_to_a_number(tmp_path, spec, capsys):
    def change(features):
        features["steps/action"].float_list.value.pop()

    _rewrite(tmp_path / "d", spec, change)
    with pytest.raises(ValueError, match=r"record 1 \(episode 1\).*1 of 5 episodes.*0 are allowed"):
        EpisodeSource("robot", tmp_path / "d")
    source = EpisodeSource("robot", tmp_path / "d", max_bad_records=1)
    assert capsys.readouterr().err.startswith("left out: data set 'robot'")
    assert len(source) == sum(LENGTHS) - LENGTHS[1]
    assert source.track(1).actions.shape == (0, 8)

    def convert(parts):  # fails without steps, as those of Open X data sets do
        return parts["steps/action"].reshape(len(parts["steps/action"]), -1)

    layout = EpisodeLayout(convert=convert)
    other = EpisodeSource("robot", tmp_path / "d", max_bad_records=1, layout=layout)
    assert [len(other.track(n).actions) for n in range(5)] == [3, 0, 1, 4, 6]
    expected = [encoded(100 * n + t) for n in (0, 2, 3, 4) for t in range(LENGTHS[n])]
    assert [source.read(i).images[0] for i in range(len(source))] == expected


def test_the_step_index_is_built_once(robot_data, monkeypatch):
    EpisodeSource("robot", robot_data)
    assert list(robot_data.glob(".index-*.npy"))

    def never(*_):
        raise AssertionError("the index was built again")

    monkeypatch.setattr(RecordFiles, "parse", never)
    assert len(EpisodeSource("robot", robot_data)) == 13


def test_the_index_of_read_only_data_goes_to_the_cache_directory(robot_data, tmp_path, monkeypatch):
    data = shutil.copytree(robot_data, tmp_path / "data", ignore=shutil.ignore_patterns(".index-*"))
    replace = os.replace

    def refuse_beside_the_data(source, target):
        if str(target).startswith(str(data)):
            raise PermissionError("read-only")
        return replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_beside_the_data)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(EpisodeSource("robot", data)) == 13
    assert list((tmp_path / "cache/vla_jax").glob(".index-*.npy"))
    assert not list(data.glob(".index-*"))


def _write_by_tfds(path, features, examples):
    path.mkdir(parents=True)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            path.parent.name, tfds.core.Version(path.name), path, ""
        ),
        features=features,
    )
    writer = tfds.core.SequentialWriter(info, 10)
    writer.initialize_splits(["train"])
    writer.add_examples({"train": examples})
    writer.close_all()


def test_another_layout_reads_another_robots_data(tmp_path, spec):
    """Several cameras, an action in parts, an instruction in the observation."""
    path = tmp_path / "arm/0.1.0"
    features = tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset(
                {
                    "observation": {
                        "front": tfds.features.Image(shape=(32, 32, 3), encoding_format="jpeg"),
                        "wrist": tfds.features.Image(shape=(None, None, 3)),
                        "text": tfds.features.Text(),
                    },
                    "action": {
                        "world_vector": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                        "open": tfds.features.Scalar(np.bool_),
                    },
                }
            )
        }
    )
    steps = [
        {
            "observation": {
                "front": encoded(t, "JPEG"), "wrist": encoded(50 + t, size=20), "text": "wave"
            },
            "action": {"world_vector": np.full(3, 0.01 * t, np.float32), "open": t == 1},
        }
        for t in range(3)
    ]  # fmt: skip
    _write_by_tfds(path, features, [{"steps": steps}])

    def convert(parts):
        move, opened = parts["steps/action/world_vector"], parts["steps/action/open"]
        still = np.zeros((len(move), 3))
        terminate = np.arange(len(move)) == len(move) - 1
        return np.concatenate([terminate[:, None], move, still, 1 - opened[:, None]], axis=1)

    layout = EpisodeLayout(
        images=("steps/observation/front", "steps/observation/wrist"),
        instruction="steps/observation/text",
        actions=("steps/action/world_vector", "steps/action/open"),
        convert=convert,
        spec=spec,
    )
    example = EpisodeSource("arm", path, layout=layout).read(1)
    assert example.images == (encoded(1, "JPEG"), encoded(51, size=20))
    assert example.prompt == robot_prompt("wave")
    np.testing.assert_allclose(example.action, [[0, 0.01, 0.01, 0.01, 0, 0, 0, 0]])

    with pytest.raises(ValueError, match="does not say what its actions mean"):
        EpisodeSource("arm", path, layout=EpisodeLayout(
            images=layout.images, instruction=layout.instruction, actions=layout.actions,
        ))  # fmt: skip
    with pytest.raises(ValueError, match=r"'arm'.*no feature 'steps/observation/image'.*front"):
        EpisodeSource("arm", path)
    with pytest.raises(ValueError, match="observation/text is Text of shape"):
        EpisodeSource("arm", path, layout=EpisodeLayout(images=("steps/observation/text",)))


def test_another_action_spec_is_refused(robot_data):
    other = end_effector_spec("test", max_position_m=0.02, max_rotation_rad=0.1, control_hz=5)
    with pytest.raises(ValueError, match=r"its EpisodeLayout .*data set 'robot'.*\n.*dimensions"):
        EpisodeSource("robot", robot_data, layout=EpisodeLayout(spec=other))


def _rewrite(path, spec, change):
    """A data set whose episode 1 is changed past the writer's own checks."""

    def serialize(row):
        features = row.features.feature
        change(features)

    write_episodes(episodes(), path, spec, name="robot", description="", file_format="tfrecord")
    file = next(path.glob("*train*"))
    records = [r.numpy() for r in tf.data.TFRecordDataset(str(file))]
    example = tf.train.Example.FromString(records[1])
    serialize(example)
    records[1] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records:
            writer.write(record)


def test_nan_action_names_data_set_episode_and_step(tmp_path, spec):
    def change(features):
        features["steps/action"].float_list.value[2 * 8 + 3] = float("nan")

    _rewrite(tmp_path / "d", spec, change)
    source = EpisodeSource("robot", tmp_path / "d")
    source.read(0)
    with pytest.raises(ValueError, match=r"'robot'.*\(episode 1\) step 2 .*repair.*position_z"):
        source.read(3 + 2)


def test_empty_instruction_names_data_set_episode_and_step(tmp_path, spec):
    def change(features):
        features["steps/language_instruction"].bytes_list.value[4] = b"  "

    _rewrite(tmp_path / "d", spec, change)
    with pytest.raises(ValueError, match=r"'robot'.*\(episode 1\) step 4.*empty instruction"):
        EpisodeSource("robot", tmp_path / "d").read(3 + 4)


def test_steps_of_different_number_are_named(tmp_path, spec):
    def change(features):
        features["steps/action"].float_list.value.pop()

    _rewrite(tmp_path / "d", spec, change)
    with pytest.raises(ValueError, match=r"\(episode 1\): steps/action has 39 numbers for 5 steps"):
        EpisodeSource("robot", tmp_path / "d").read(3)


def test_missing_data_is_named(tmp_path, robot_data):
    with pytest.raises(FileNotFoundError, match=r"'robot'.*no dataset_info.json.*data.write"):
        EpisodeSource("robot", tmp_path / "nothing")
    with pytest.raises(ValueError, match="no split 'val'; it has test, train"):
        EpisodeSource("robot", robot_data, "val")
    copy = shutil.copytree(robot_data, tmp_path / "copy")
    next(copy.glob("*train*-00000")).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 1 files are missing"):
        EpisodeSource("robot", copy)
    (copy / "features.json").write_text("{")
    with pytest.raises(ValueError, match=r"'robot' in .* cannot be opened by tfds"):
        EpisodeSource("robot", copy)


def test_index_out_of_range(robot_data, web_data):
    source = EpisodeSource("robot", robot_data)
    for index in (-1, len(source)):
        with pytest.raises(IndexError, match="'robot', which has 13"):
            source.read(index)
    with pytest.raises(IndexError, match="'web', which has 40"):
        ImageTextSource("web", web_data).read(40)


def test_a_truncated_file_is_named(tmp_path, robot_data):
    copy = shutil.copytree(robot_data, tmp_path / "copy", ignore=shutil.ignore_patterns(".index*"))
    file = next(copy.glob("*train*"))
    os.truncate(file, file.stat().st_size - 3000)
    with pytest.raises(ValueError, match=f"'robot', {file} record"):
        EpisodeSource("robot", copy).read(0)


@pytest.mark.parametrize("robot_data", ["tfrecord"], indirect=True)
def test_records_before_a_cut_are_used_if_so_many_may_be_missing(tmp_path, robot_data, capsys):
    copy = shutil.copytree(robot_data, tmp_path / "copy", ignore=shutil.ignore_patterns(".index*"))
    file = next(copy.glob("*train*"))
    spans = RecordFiles("robot", copy, "train")._shards._spans
    os.truncate(file, int(spans[2, 0]) + 5)  # episodes 2 and 3 of 4
    message = rf"{file} record 2: .* cut off or damaged from byte {spans[2, 0] - 12} \(2 rec.*1 may"
    with pytest.raises(ValueError, match=message):
        EpisodeSource("robot", copy, max_bad_records=1)
    source = EpisodeSource("robot", copy, max_bad_records=2)
    assert len(source) == LENGTHS[0] + LENGTHS[1]
    assert capsys.readouterr().err.count("left out: ") == 2
    whole = EpisodeSource("robot", robot_data)
    assert all(source.read(i).images == whole.read(i).images for i in range(len(source)))


def test_the_only_version_of_a_data_set_is_found(robot_data, tmp_path):
    whole = EpisodeSource("robot", robot_data)
    above = EpisodeSource("robot", robot_data.parent)
    assert len(above) == len(whole) and above.files == whole.files
    for version in ("1.0.0", "2.0.0"):
        shutil.copytree(robot_data, tmp_path / "robot" / version)
    with pytest.raises(ValueError, match=r"has several versions, name one: .*1\.0\.0.*2\.0\.0"):
        EpisodeSource("robot", tmp_path / "robot")


def test_a_missing_file_is_so_many_bad_records(tmp_path, spec, monkeypatch, capsys):
    for file_format in ("tfrecord", "array_record"):
        path = tmp_path / file_format
        monkeypatch.setattr(tfds_writer, "EPISODES_PER_SHARD", 2)
        write_episodes(episodes(), path, spec, name="d", description="", file_format=file_format)
        lost = sorted(path.glob("*train*"))[1]  # episodes 2 and 3 of 5
        lost.unlink()
        with pytest.raises(FileNotFoundError, match="1 of 3 files are missing"):
            EpisodeSource("d", path)
        with pytest.raises(ValueError, match=rf"{lost} record 0.* 1 (may be|are allowed)"):
            EpisodeSource("d", path, max_bad_records=1)
        source = EpisodeSource("d", path, max_bad_records=2)
        expected = [encoded(100 * n + t) for n in (0, 1, 4) for t in range(LENGTHS[n])]
        assert [source.read(i).images[0] for i in range(len(source))] == expected
        assert capsys.readouterr().err.count(f"left out: data set 'd', {lost}") == 2


def test_a_damaged_record_is_named(tmp_path, robot_data):
    copy = shutil.copytree(robot_data, tmp_path / "copy", ignore=shutil.ignore_patterns(".index*"))
    file = next(copy.glob("*train*"))
    records = RecordFiles("robot", copy, "train")
    raw = bytearray(file.read_bytes())
    if records.info.file_format == tfds.core.FileFormat.TFRECORD:
        start = 16 + struct.unpack("<Q", raw[:8])[0]  # the second record
        raw[start + 12 : start + 20] = b"\xff" * 8
    else:
        start = raw.index(encoded(100))
        raw[start : start + 100] = bytes(100)
    file.write_bytes(raw)
    damaged = RecordFiles("robot", copy, "train")
    damaged.parse(0)
    with pytest.raises(ValueError, match=f"'robot', {file} record 1 "):
        damaged.parse(1)


@pytest.fixture(scope="module")
def foreign_data(tmp_path_factory):
    """Captions as coco_captions has them, questions as VQAv2 has them, and more, as TFRecord."""
    path = tmp_path_factory.mktemp("foreign") / "mixed/1.0.0"
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "captions": tfds.features.Sequence({"id": np.int64, "text": text}),
            "question": text,
            "answers": tfds.features.Sequence({"answer": text, "answer_confidence": text}),
            "plain": tfds.features.Sequence(text),
            "nested": tfds.features.Sequence({"inner": tfds.features.Sequence(text)}),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
    )
    examples = [
        {
            "image": encoded(i, "JPEG"),
            "captions": [{"id": k, "text": f"Bär {i}.{k}"} for k in range(5)],
            "question": f"what is {i}?",
            "answers": [{"answer": f"{i}-{k}", "answer_confidence": "yes"} for k in range(10)],
            "plain": [] if i == 3 else ["one", "two"],
            "nested": [{"inner": ["a"]}],
            "label": 1,
        }
        for i in range(20)
    ]
    _write_by_tfds(path, features, examples)
    return path


@pytest.mark.parametrize(
    ("texts", "question", "answers"),
    [
        (
            TextLayout(CAPTION_TEMPLATE, "captions/text", language="english"),
            lambda row: "Q: caption in english A:",
            lambda row: row["captions"]["text"],
        ),
        (
            TextLayout(QUESTION_TEMPLATE, "answers/answer"),
            lambda row: f"Q: {row['question'].decode()} A:",
            lambda row: row["answers"]["answer"],
        ),
    ],
    ids=["coco_captions", "vqa_v2"],
)
def test_other_feature_names_equal_what_tfds_reads(foreign_data, texts, question, answers):
    source = ImageTextSource("web", foreign_data, texts=texts)
    rows_by_tfds = list(
        tfds.as_numpy(tfds.builder_from_directory(foreign_data).as_dataset("train"))
    )
    assert len(source) == len(rows_by_tfds) == 20
    for index, row in enumerate(rows_by_tfds):
        example, candidates = source.read(index), [a.decode() for a in answers(row)]
        assert example.images == (encoded(index, "JPEG"),)
        assert example.prompt == question(row)
        assert example.answer == tuple(candidates) and len(candidates) > 1


def test_wrong_feature_names_are_named(foreign_data):
    def texts(answer):
        return TextLayout("what?", answer)

    source = ImageTextSource("web", foreign_data, texts=texts("plain"))
    assert source.read(2).answer == ("one", "two")
    with pytest.raises(ValueError, match=r"'web'.*record 3 has an empty plain: fill it in or drop"):
        source.read(3)
    with pytest.raises(ValueError, match=r"'web'.*no feature 'task'"):
        source.texts(0)
    with pytest.raises(ValueError, match=r"'web'.*no feature 'answer': at 'answer'.*captions"):
        ImageTextSource("web", foreign_data, texts=texts("answer"))
    with pytest.raises(ValueError, match=r"no feature 'captions/txt': at 'txt'.*'id', 'text'"):
        ImageTextSource("web", foreign_data, texts=texts("captions/txt"))
    for key in ("label", "captions", "captions/id", "nested/inner", "image"):
        with pytest.raises(ValueError, match=f"feature {key} is neither a text nor one list of"):
            ImageTextSource("web", foreign_data, texts=texts(key))
    with pytest.raises(ValueError, match="feature question is Text of shape"):
        ImageTextSource("web", foreign_data, image="question", texts=texts("question"))


def _upload(directory, place):
    for file in directory.glob("[!.]*"):
        storage.write_file(storage.join(place, file.name), file.read_bytes())


def test_records_in_a_store_equal_those_on_disk(foreign_data, robot_data, flaky):
    texts = TextLayout(QUESTION_TEMPLATE, "answers/answer")
    _upload(foreign_data, "flaky://b/mixed/1.0.0")
    flaky.errors[:] = [TimeoutError("slow")] * 3
    remote = ImageTextSource("web", "flaky://b/mixed/1.0.0", texts=texts)
    local = ImageTextSource("web", foreign_data, texts=texts)
    flaky.errors[:] = [TimeoutError("slow")] * 3
    assert [remote.read(i) for i in range(20)] == [local.read(i) for i in range(20)]

    _upload(robot_data, "flaky://b/robot/1.0.0")
    remote, local = EpisodeSource("r", "flaky://b/robot/1.0.0"), EpisodeSource("r", robot_data)
    assert len(remote) == len(local) == 13 and remote.action_spec == local.action_spec
    for index in range(13):
        assert remote.read(index).images == local.read(index).images
        np.testing.assert_array_equal(remote.read(index).action, local.read(index).action)
    with pytest.raises(FileNotFoundError, match=r"flaky://b/none has no dataset_info\.json"):
        ImageTextSource("web", "flaky://b/none")
