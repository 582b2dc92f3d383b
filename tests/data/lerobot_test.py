"""LeRobot data sets written here in the published layout, by other code than that which reads."""

from __future__ import annotations

import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vla_jax.actions.spec import ActionSpec, end_effector_spec
from vla_jax.data import storage
from vla_jax.data.sources import lerobot_meta, video
from vla_jax.data.sources.lerobot import LeRobotSource
from vla_jax.text.prompts import robot_prompt

FPS, SIZE, BLOCK = 10, 64, 16
LENGTHS = (7, 12, 5, 9)  # steps of episodes 0 .. 3
TOTAL = sum(LENGTHS)
TASKS = ("pick the dog", "open the drawer", "wave")
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
CAMERAS = (FRONT, WRIST)
KEYFRAME_EVERY = 5
# The grouping of episodes in v3 files; the two differ.
DATA_FILES = ((0, 1, 2), (3,))
VIDEO_FILES = ((0, 1), (2, 3))
STEPS = [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]


def _number(camera: str, episode: int, step: int) -> int:
    return CAMERAS.index(camera) << 9 | episode << 6 | step


def _picture(camera: str, episode: int, step: int) -> np.ndarray:
    """Fifteen blocks, dark or bright, are the bits of a number; the last block is red."""
    bits = [_number(camera, episode, step) >> i & 1 for i in range(15)]
    blocks = np.full((16, 3), 30, np.uint8)
    blocks[:15][np.array(bits, bool)] = 220
    blocks[15] = (220, 30, 30)
    return blocks.reshape(4, 4, 3).repeat(BLOCK, 0).repeat(BLOCK, 1)


def _read_number(image: np.ndarray | bytes) -> int:
    if isinstance(image, bytes):
        image = np.asarray(Image.open(io.BytesIO(image)))
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    blocks = image.reshape(4, BLOCK, 4, BLOCK, 3).mean((1, 3)).reshape(16, 3)
    red, green, blue = blocks[15]
    assert red > 170 and green < 80 and blue < 80, "not RGB"
    return sum(1 << i for i in range(15) if blocks[i].mean() > 125)


def _actions(episode: int) -> np.ndarray:
    numbers = 100 * episode + np.arange(LENGTHS[episode])[:, None] + np.arange(8) / 10
    return numbers.astype(np.float32)


def _state(episode: int, step: int) -> list[float]:
    return [episode, step, 0.5]


def _tasks(episode: int) -> np.ndarray:
    """Episode 1 changes its task in the middle."""
    halves = np.arange(LENGTHS[episode]) >= LENGTHS[episode] // 2
    return (episode + (halves if episode == 1 else 0)) % 3 * np.ones(LENGTHS[episode], np.int64)


def _encode(file: Path, pictures: list[np.ndarray], codec: str = "libsvtav1") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Presets above 10 are for trying out the encoder: they spoil a picture now and then.
    options = {"g": str(KEYFRAME_EVERY), "crf": "30", "preset": "10"}
    if codec == "libx264":
        # Keyframes are stored before frames that are shown earlier and cannot do without them.
        groups = "open-gop=1:keyint=12:b-adapt=0:scenecut=0"
        options = {"bf": "3", "crf": "20", "x264-params": groups}
    with av.open(str(file), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width = stream.height = len(pictures[0])
        stream.pix_fmt = "yuv420p"
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _concatenate(files: list[Path], to: Path) -> None:
    """Their packets one after the other, without encoding again."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(to), "w", options={"movflags": "faststart"}) as out:
        stream, start = None, 0
        for file in files:
            with av.open(str(file)) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(template, opaque=True)
                    stream.time_base = template.time_base
                for packet in source.demux(template):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + start, packet.dts + start
                        packet.stream = stream
                        out.mux(packet)
                start += template.duration


def _table(episodes: tuple[int, ...], pictures: bool) -> pa.Table:
    steps = [(e, t) for e in episodes for t in range(LENGTHS[e])]
    columns = {
        "action": pa.array(
            [a.tolist() for e in episodes for a in _actions(e)], pa.list_(pa.float32())
        ),
        "observation.state": pa.array([_state(*s) for s in steps], pa.list_(pa.float32())),
        "timestamp": pa.array([t / FPS for _, t in steps], pa.float32()),
        "frame_index": pa.array([t for _, t in steps], pa.int64()),
        "episode_index": pa.array([e for e, _ in steps], pa.int64()),
        "index": pa.array([STEPS.index(s) for s in steps], pa.int64()),
        "task_index": pa.array(np.concatenate([_tasks(e) for e in episodes])),
    }
    if pictures:
        for camera in CAMERAS:
            rows = []
            for e, t in steps:
                buffer = io.BytesIO()
                Image.fromarray(_picture(camera, e, t)).save(buffer, "PNG")
                rows.append({"bytes": buffer.getvalue(), "path": f"frame-{t:06d}.png"})
            columns[camera] = pa.array(
                rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            )
    return pa.table(columns)


def _write_table(table: pa.Table, file: Path, row_group_size: int | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file, row_group_size=row_group_size)


def _write_info(path: Path, version: str, kind: str, templates: dict[str, str], spec) -> None:
    names = ["height", "width", "channels"]
    info = {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": len(LENGTHS),
        "total_frames": TOTAL,
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": "0:3", "test": "3:4", "all": f"0:{len(LENGTHS)}"},
        **templates,
        "features": {
            **{c: {"dtype": kind, "shape": [SIZE, SIZE, 3], "names": names} for c in CAMERAS},
            "observation.images.depth": {
                "dtype": "video",
                "shape": [SIZE, SIZE, 1],
                "names": names,
                "info": {"video.is_depth_map": True},
            },
            "action": {
                "dtype": "float32",
                "shape": [8],
                "names": {"motors": ["stop", *"xyz", "roll", "pitch", "yaw", "gripper"]},
            },
            "observation.state": {"dtype": "float32", "shape": [3], "names": None},
            **{
                key: {"dtype": "int64", "shape": [1], "names": None}
                for key in ("frame_index", "episode_index", "index", "task_index")
            },
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    }
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(info, indent=4))
    (path / "meta/action_spec.json").write_text(spec.to_json())


def _write_v2(path: Path, spec: ActionSpec, kind: str, version: str = "v2.1") -> Path:
    chunk = "chunk-{episode_chunk:03d}"
    templates = {
        "data_path": f"data/{chunk}/episode_{{episode_index:06d}}.parquet",
        "video_path": f"videos/{chunk}/{{video_key}}/episode_{{episode_index:06d}}.mp4",
    }
    _write_info(path, version, kind, templates, spec)
    lines = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    (path / "meta/tasks.jsonl").write_text("".join(json.dumps(s) + "\n" for s in lines))
    lines = [
        {"episode_index": e, "tasks": [TASKS[i] for i in set(_tasks(e))], "length": LENGTHS[e]}
        for e in range(len(LENGTHS))
    ]
    (path / "meta/episodes.jsonl").write_text("".join(json.dumps(s) + "\n" for s in lines))
    lines = [
        {
            "episode_index": e,
            "stats": {
                "action": {
                    "min": _actions(e).min(0).tolist(),
                    "max": _actions(e).max(0).tolist(),
                    "count": [LENGTHS[e]],
                }
            },
        }
        for e in range(len(LENGTHS))
    ]
    (path / "meta/episodes_stats.jsonl").write_text("".join(json.dumps(s) + "\n" for s in lines))
    for e, length in enumerate(LENGTHS):
        place = {"episode_chunk": 0, "episode_index": e}
        file = path / templates["data_path"].format(**place)
        _write_table(_table((e,), kind == "image"), file, row_group_size=4)
        if kind == "video":
            for camera in CAMERAS:
                file = path / templates["video_path"].format(video_key=camera, **place)
                _encode(file, [_picture(camera, e, t) for t in range(length)])
    return path


def _write_v3(path: Path, spec: ActionSpec, v2: Path) -> Path:
    """Front videos are those of `v2` joined. Wrist videos are H.264 with one keyframe in twelve
    frames, so that episodes start between keyframes."""
    templates = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    _write_info(path, "v3.0", "video", templates, spec)
    # What pandas writes for a frame whose index is the text.
    pq.write_table(pa.table({"task_index": [0, 1, 2], "task": TASKS}), path / "meta/tasks.parquet")
    stats = {"action": {"q01": [-2.0] * 8, "q99": [3.0] * 8, "min": [-9.0] * 8, "max": [9.0] * 8}}
    (path / "meta/stats.json").write_text(json.dumps(stats))
    for i, episodes in enumerate(DATA_FILES):
        file = path / templates["data_path"].format(chunk_index=0, file_index=i)
        _write_table(_table(episodes, False), file)
    for i, episodes in enumerate(VIDEO_FILES):
        place = {"chunk_index": 0, "file_index": i}
        of_v2 = v2 / "videos/chunk-000" / FRONT
        _concatenate(
            [of_v2 / f"episode_{e:06d}.mp4" for e in episodes],
            path / templates["video_path"].format(video_key=FRONT, **place),
        )
        _encode(
            path / templates["video_path"].format(video_key=WRIST, **place),
            [_picture(WRIST, e, t) for e in episodes for t in range(LENGTHS[e])],
            "libx264",
        )
    rows = []
    for e, length in enumerate(LENGTHS):
        start = sum(LENGTHS[:e])
        row = {
            "episode_index": e,
            "tasks": [TASKS[i] for i in set(_tasks(e))],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": next(i for i, es in enumerate(DATA_FILES) if e in es),
            "dataset_from_index": start,
            "dataset_to_index": start + length,
        }
        number, episodes = next((i, es) for i, es in enumerate(VIDEO_FILES) if e in es)
        before = sum(LENGTHS[k] for k in episodes if k < e) / FPS
        for camera in CAMERAS:
            row |= {
                f"videos/{camera}/chunk_index": 0,
                f"videos/{camera}/file_index": number,
                f"videos/{camera}/from_timestamp": before,
                f"videos/{camera}/to_timestamp": before + length / FPS,
            }
        rows.append(row)
    _write_table(pa.Table.from_pylist(rows), path / "meta/episodes/chunk-000/file-000.parquet")
    return path


@pytest.fixture(scope="module")
def spec() -> ActionSpec:
    return end_effector_spec("arm", max_position_m=0.05, max_rotation_rad=0.1, control_hz=FPS)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, spec) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("lerobot")
    v2 = _write_v2(root / "v2_video", spec, "video")
    return {
        "v2_image": _write_v2(root / "v2_image", spec, "image"),
        "v2_video": v2,
        "v3_video": _write_v3(root / "v3_video", spec, v2),
    }


@pytest.fixture(params=["v2_image", "v2_video", "v3_video"])
def data(request, sets) -> Path:
    return sets[request.param]


def _copy(data: Path, to: Path) -> Path:
    return shutil.copytree(data, to / "copy", ignore=shutil.ignore_patterns(".index-*"))


def _check(source: LeRobotSource, index: int) -> None:
    episode, step = STEPS[index]
    assert source.locate(index) == (episode, step)
    example = source.read(index)
    assert [_read_number(i) for i in example.images] == [_number(c, episode, step) for c in CAMERAS]
    np.testing.assert_array_equal(example.action, _actions(episode)[step][None])
    assert example.prompt == robot_prompt(TASKS[_tasks(episode)[step]])
    assert example.answer is None and example.action_valid is None


def test_every_step_in_random_order(data, spec):
    source = LeRobotSource("arm", data, "all", cameras=CAMERAS)
    assert len(source) == TOTAL and source.num_episodes == len(LENGTHS)
    assert source.action_spec == spec
    for index in np.random.default_rng(0).permutation(np.repeat(np.arange(TOTAL), 2)).tolist():
        _check(source, index)


def test_every_step_forwards_and_backwards(data):
    source = LeRobotSource("arm", data, "all", cameras=CAMERAS)
    for index in [*range(TOTAL), *reversed(range(TOTAL))]:
        _check(source, index)


def test_several_threads_with_few_decoders(data):
    source = LeRobotSource("arm", data, "all", cameras=CAMERAS, video_cache=2, cache_bytes=0)
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(TOTAL), 4)).tolist()
    most = []

    def check(index: int) -> None:
        _check(source, index)
        most.append(source._videos.num_open)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(check, order))
    assert len(most) == len(order) and max(most) <= 5
    assert source._videos.num_open <= 2 and source._videos._busy == 0


def test_cameras_come_in_the_order_asked_for(data):
    source = LeRobotSource("arm", data, "all", cameras=(WRIST,))
    assert [_read_number(i) for i in source.read(9).images] == [_number(WRIST, 1, 2)]
    both = LeRobotSource("arm", data, "all", cameras=(WRIST, FRONT)).read(9)
    assert [_read_number(i) for i in both.images] == [_number(c, 1, 2) for c in (WRIST, FRONT)]


def test_the_only_camera_needs_no_name(sets, tmp_path):
    copy = _copy(sets["v2_video"], tmp_path)
    _change_info(copy, lambda info: info["features"].pop(FRONT))
    source = LeRobotSource("arm", copy)
    assert _read_number(source.read(8).images[0]) == _number(WRIST, 1, 1)


def test_chunks_end_with_the_episode(data):
    source = LeRobotSource("arm", data, "all", cameras=CAMERAS, chunk=4)
    for index, (episode, step) in enumerate(STEPS):
        example, left = source.read(index), LENGTHS[episode] - step
        actions = _actions(episode)
        np.testing.assert_array_equal(
            example.action, [actions[min(step + k, LENGTHS[episode] - 1)] for k in range(4)]
        )
        if left >= 4:
            assert example.action_valid is None
        else:
            np.testing.assert_array_equal(
                example.action_valid, np.repeat((np.arange(4) < left)[:, None], 8, axis=1)
            )


def test_frames_before_a_step_and_what_the_robot_measures(data):
    state = ("observation.state", "timestamp")
    source = LeRobotSource("arm", data, "all", cameras=CAMERAS, frames=3, state=state)
    for index, (episode, step) in enumerate(STEPS):
        example = source.read(index)
        rows = [max(step - back, 0) for back in (2, 1, 0)]
        expected = [_number(camera, episode, row) for row in rows for camera in CAMERAS]
        assert [_read_number(image) for image in example.images] == expected
        parts = {"observation.state": _state(episode, step), "timestamp": [step / FPS]}
        np.testing.assert_allclose(example.state, [x for key in state for x in parts[key]])
    track = source.track(1)
    assert track.state.shape == (LENGTHS[1], 4) and track.first == LENGTHS[0]
    np.testing.assert_array_equal(track.actions, _actions(1))
    assert list(track.instructions) == [TASKS[task] for task in _tasks(1)]


def test_splits_are_ranges_of_episodes(data):
    train, test = (LeRobotSource("arm", data, s, cameras=CAMERAS) for s in ("train", "test"))
    assert (len(train), train.num_episodes) == (sum(LENGTHS[:3]), 3)
    assert (len(test), test.num_episodes) == (LENGTHS[3], 1)
    assert test.locate(4) == (3, 4)
    assert _read_number(test.read(4).images[1]) == _number(WRIST, 3, 4)
    np.testing.assert_array_equal(test.read(4).action, _actions(3)[4][None])
    for index in (-1, len(test)):
        with pytest.raises(IndexError, match="'arm', which has 9"):
            test.read(index)


def test_versions_agree(sets):
    """The same content: actions and prompts are equal, frames too where the encoding is."""
    images, old, new = (LeRobotSource("arm", p, "all", cameras=CAMERAS) for p in sets.values())
    for index, step in enumerate(STEPS):
        a, b, c = images.read(index), old.read(index), new.read(index)
        np.testing.assert_array_equal(b.images[0], c.images[0])
        for view, camera in enumerate(CAMERAS):
            for example in (b, c):
                difference = example.images[view].astype(int) - _picture(camera, *step)
                assert np.abs(difference).mean() < 8
        for example in (b, c):
            np.testing.assert_array_equal(a.action, example.action)
            assert a.prompt == example.prompt


def test_version_2_0_is_read_as_2_1(tmp_path, sets):
    copy = _copy(sets["v2_image"], tmp_path)
    _change_info(copy, lambda info: info.update(codebase_version="v2.0"))
    _check(LeRobotSource("arm", copy, "all", cameras=CAMERAS), 11)


def test_the_text_of_a_task_may_be_an_unnamed_index(tmp_path, sets):
    copy = _copy(sets["v3_video"], tmp_path)
    table = pa.table({"task_index": [2, 0, 1], "__index_level_0__": [TASKS[i] for i in (2, 0, 1)]})
    pq.write_table(table, copy / "meta/tasks.parquet")
    _check(LeRobotSource("arm", copy, "all", cameras=CAMERAS), 20)


def test_open_files_are_bounded(tmp_path, sets):
    """Eight videos, never more than three open, whichever is read."""
    copy = _copy(sets["v2_video"], tmp_path)
    source = LeRobotSource("arm", copy, "all", cameras=CAMERAS, video_cache=3)
    for index in np.random.default_rng(2).permutation(TOTAL).tolist():
        source.read(index)
        fds = Path("/proc/self/fd")
        if fds.is_dir():
            opened = [os.readlink(f) for f in fds.iterdir() if f.is_symlink()]
            assert sum(str(copy) in f and f.endswith(".mp4") for f in opened) <= 3
        assert 1 <= source._videos.num_open <= 3


def test_pictures_are_read_by_row_group_and_kept_within_limits(sets, monkeypatch):
    """Row groups hold four steps."""
    asked = []
    read = lerobot_meta.read_parquet

    def counted(file, columns=None, *, where, row_group=None):
        asked.append((Path(file).name, tuple(columns), row_group))
        return read(file, columns, where=where, row_group=row_group)

    source = LeRobotSource("arm", sets["v2_image"], "all", cameras=CAMERAS)
    monkeypatch.setattr("vla_jax.data.sources.lerobot.read_parquet", counted)
    for index in range(7, 19):
        source.read(index)
    assert asked == [
        ("episode_000001.parquet", (camera,), group) for group in range(3) for camera in CAMERAS
    ]
    recent = source._row_groups._recent
    assert len(recent) == 6 and 0 < recent.num_bytes < 256 * 2**20
    small = LeRobotSource("arm", sets["v2_image"], "all", cameras=CAMERAS, cache_bytes=0)
    for index in range(TOTAL):
        _check(small, index)
    assert (len(small._row_groups._recent), small._row_groups._recent.num_bytes) == (0, 0)


def test_neighbouring_steps_are_decoded_without_seeking(sets, monkeypatch):
    seeks, decoded = [], []
    seek, seconds = video._Decoder._seek, video._Decoder._peek

    def counted_seek(self, time_s):
        seeks.append(self.path)
        seek(self, time_s)

    def counted_peek(self):
        decoded.append(self.path)
        return seconds(self)

    monkeypatch.setattr(video._Decoder, "_seek", counted_seek)
    monkeypatch.setattr(video._Decoder, "_peek", counted_peek)
    source = LeRobotSource("arm", sets["v3_video"], "all", cameras=CAMERAS)
    for index in range(TOTAL):
        _check(source, index)
        _check(source, index)  # again, from where the decoder stands
    assert len(seeks) == len(set(seeks)) == 4, "one for each file"
    assert len(decoded) == 2 * TOTAL, "each frame once"


def test_the_table_of_steps_is_built_once_and_mapped(data, tmp_path, monkeypatch):
    copy = _copy(data, tmp_path)
    LeRobotSource("arm", copy, "all", cameras=CAMERAS)
    with monkeypatch.context() as patch:
        patch.setattr(LeRobotSource, "_read_steps", None)
        source = LeRobotSource("arm", copy, "all", cameras=CAMERAS)
    assert isinstance(source._steps.base, np.memmap)
    for index in range(TOTAL):
        _check(source, index)
    # Another split and changed data make other tables.
    assert len(LeRobotSource("arm", copy, "test", cameras=CAMERAS)) == LENGTHS[3]
    _change_table(copy, 1, "action", lambda rows: [[r[0] + 1, *r[1:]] for r in rows])
    source = LeRobotSource("arm", copy, "all", cameras=CAMERAS)
    assert source.read(7).action[0, 0] == _actions(1)[0, 0] + 1


def test_frames_slightly_off_are_matched_to_the_nearest(tmp_path, sets):
    copy = _copy(sets["v3_video"], tmp_path)
    file = copy / "meta/episodes/chunk-000/file-000.parquet"
    for off in (-0.03, 0.03):
        table = pq.read_table(sets["v3_video"] / file.relative_to(copy))
        for camera in CAMERAS:
            name = f"videos/{camera}/from_timestamp"
            moved = pa.array([t + off for t in table.column(name).to_pylist()])
            table = table.set_column(table.column_names.index(name), name, moved)
        pq.write_table(table, file)
        source = LeRobotSource("arm", copy, "all", cameras=CAMERAS)
        for index in [*range(TOTAL), *np.random.default_rng(3).permutation(TOTAL).tolist()]:
            _check(source, index)


# In a store


def _upload(data: Path, to: str) -> str:
    for file in data.rglob("*"):
        if file.is_file() and not file.name.startswith(".index-"):
            storage.write_file(f"{to}/{file.relative_to(data)}", file.read_bytes())
    return to


def _num_bytes(store) -> int:
    """That were asked for, in ranges."""
    assert all(None not in (start, end) for what, _, start, end in store.requests)
    return sum(end - start for *_, start, end in store.requests)


def _equal(a, b) -> None:
    for one, other in zip(a.images, b.images, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(a.action, b.action)
    np.testing.assert_array_equal(a.state, b.state)
    assert a.prompt == b.prompt


def test_every_step_from_a_store_that_fails_now_and_then(data, flaky):
    options = {"cameras": CAMERAS, "state": ("observation.state",)}
    local = LeRobotSource("arm", data, "all", **options)
    path = _upload(data, f"flaky://bucket/{data.name}")
    flaky.errors[:] = [TimeoutError("slow")] * 5
    source = LeRobotSource("arm", f"{path}/", "all", video_cache=1, cache_bytes=0, **options)
    assert len(flaky.pauses) == 5
    assert len(source) == TOTAL and source.action_spec == local.action_spec
    for index in np.random.default_rng(5).permutation(TOTAL).tolist():
        flaky.errors[:] = [ConnectionResetError("reset")]
        _equal(source.read(index), local.read(index))
    assert len(flaky.pauses) == 5 + TOTAL, "it was not read from the store"
    # The table of steps lies in the store too.
    requests = len(flaky.requests)
    LeRobotSource("arm", path, "all", **options)
    assert not any(
        what == "cat" and name.endswith(".parquet") and "/data/" in name
        for what, name, *_ in flaky.requests[requests:]
    )


def test_several_threads_read_from_a_store(sets, flaky):
    path = _upload(sets["v3_video"], "flaky://bucket/arm")
    source = LeRobotSource("arm", path, "all", cameras=CAMERAS, video_cache=2)
    order = np.random.default_rng(1).permutation(TOTAL).tolist()
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda index: _check(source, index), order))
    assert source._videos.num_open <= 2 and source._videos._busy == 0


def _noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (192, 192, 3), np.uint8)


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """4 MB in 100 frames; its table of contents is at the end."""
    file = tmp_path_factory.mktemp("noise") / "noise.mp4"
    with av.open(str(file), "w") as container:
        options = {"g": "2", "crf": "18", "preset": "ultrafast"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = 192
        stream.pix_fmt = "yuv420p"
        for i in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_noise(i), format="rgb24")))
        container.mux(stream.encode())
    assert 3e6 < file.stat().st_size < 6e6
    return file


def test_a_frame_takes_a_small_part_of_a_video(noise, flaky, monkeypatch):
    """At most 1 MiB is asked for and kept; nothing of a video that was closed."""
    path, opened = "flaky://bucket/noise.mp4", []
    open_blocks = storage.open_blocks
    monkeypatch.setattr(
        storage, "open_blocks", lambda p: opened.append(open_blocks(p)) or opened[-1]
    )
    for name in (path, f"{path}2"):
        storage.write_file(name, noise.read_bytes())
    local, seen = video.VideoFrames(FPS, 1), set()
    for number in (0, 37, 73, 99):
        flaky.requests.clear()
        frame = (frames := video.VideoFrames(FPS, 1)).read(path, number / FPS)
        np.testing.assert_array_equal(frame, local.read(noise, number / FPS))
        seen.add(frame.tobytes())
        assert flaky.requests.pop(0) == ("info", "/bucket/noise.mp4")
        assert 2 <= len(flaky.requests) <= 5 and _num_bytes(flaky) <= 2**20
        # Its neighbour comes from the same block or the next.
        flaky.requests.clear()
        frames.read(path, (number ^ 1) / FPS)
        assert len(flaky.requests) <= 1 and _num_bytes(flaky) <= 2**18
        assert not opened[-1].closed and 2**18 <= opened[-1]._recent.num_bytes <= 2**20
        frames.read(f"{path}2", number / FPS)
        assert opened[-2].closed and opened[-2]._recent.num_bytes == len(opened[-2]._recent) == 0
    assert len(seen) == 4
    # From start to end, every byte is asked for once, but for the blocks that begin and end it.
    flaky.requests.clear()
    frames = video.VideoFrames(FPS, 1)
    for number in range(100):
        np.testing.assert_array_equal(
            frames.read(path, number / FPS), local.read(noise, number / FPS)
        )
    flaky.requests.pop(0)
    assert noise.stat().st_size <= _num_bytes(flaky) <= noise.stat().st_size + 2**19


def test_a_part_of_a_parquet_file_is_read_alone(flaky):
    """Eight row groups of 1 MiB of pictures, between two columns of numbers."""
    rng = np.random.default_rng(0)
    pictures = [{"bytes": rng.bytes(2**18), "path": ""} for _ in range(32)]
    table = pa.table({"number": range(32), FRONT: pictures, "other": range(32)})
    buffer, path = io.BytesIO(), "flaky://bucket/file.parquet"
    pq.write_table(table, buffer, row_group_size=4, compression="none")
    storage.write_file(path, buffer.getvalue())
    for columns, group, most in (([FRONT], 2, 2.0), (["other", "number"], None, 3.0)):
        flaky.requests.clear()
        read = lerobot_meta.read_parquet(path, columns, where="here", row_group=group)
        rows = slice(0, 32) if group is None else slice(4 * group, 4 * group + 4)
        assert read.to_pylist() == table.select(columns).to_pylist()[rows]
        flaky.requests.pop(0)
        assert _num_bytes(flaky) <= most * 2**20
        # Nothing twice, but for the last block, which says where all is.
        assert len(flaky.requests) <= len(set(flaky.requests)) + 1


def test_what_is_missing_in_a_store_is_named(sets, flaky):
    with pytest.raises(FileNotFoundError, match=r"'arm' \(flaky://b/x\) has no meta/info.json"):
        LeRobotSource("arm", "flaky://b/x")
    path = _upload(sets["v3_video"], "flaky://b/v3")
    file = f"{path}/videos/{WRIST}/chunk-000/file-001.mp4"
    system, inner = storage._backend(file)
    source = LeRobotSource("arm", path, "all", cameras=CAMERAS)
    whole = storage.read_file(file)
    system.rm(inner)
    with pytest.raises(FileNotFoundError, match=rf"'arm' .*1 of 7 files are missing, e.g. {file}:"):
        LeRobotSource("arm", path, "all", cameras=CAMERAS)
    last = rf"'arm' \({path}\) episode 3 step 8: {file} cannot be"
    with pytest.raises(ValueError, match=rf"{last} opened: .* is not there"):
        source.read(TOTAL - 1)
    storage.write_file(file, whole[:600])
    with pytest.raises(ValueError, match=rf"{last} .*copy it"):
        source.read(TOTAL - 1)
    storage.write_file(file, whole)
    flaky.errors[:] = [TimeoutError("slow")] * 8
    with pytest.raises(ValueError, match=rf"{last} opened: .*gave up after 8 tries: Timeout"):
        source.read(TOTAL - 1)
    _check(source, TOTAL - 1)
    data = f"{path}/data/chunk-000/file-001.parquet"
    storage.write_file(data, storage.read_file(data)[:-40])
    with pytest.raises(ValueError, match=rf"'arm' .*{data} cannot be read: .*copy it again"):
        LeRobotSource("arm", path, "all", cameras=CAMERAS)


def test_a_file_that_was_cut_off_while_open(noise, flaky):
    path = "flaky://bucket/noise.mp4"
    storage.write_file(path, noise.read_bytes())
    frames = video.VideoFrames(FPS, 1)
    frames.read(path, 0)
    storage.write_file(path, noise.read_bytes()[: 2**20])
    with pytest.raises(ValueError, match=rf"{path} .*copy it again"):
        frames.read(path, 8.0)
    # The store fails between two reads of one video.
    storage.write_file(path, noise.read_bytes())
    frames.read(path, 0)
    flaky.errors[:] = [TimeoutError("slow")] * 8
    with pytest.raises(ValueError, match=rf"{path} cannot be decoded at 8.0000 s: .*gave up"):
        frames.read(path, 8.0)
    assert frames.num_open == 0
    np.testing.assert_array_equal(
        frames.read(path, 8.0), video.VideoFrames(FPS, 1).read(noise, 8.0)
    )


# What goes wrong


def _change_info(path: Path, change) -> None:
    file = path / "meta/info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def _data_file(path: Path, episode: int) -> Path:
    v3 = (path / "meta/episodes").is_dir()
    number = next(i for i, es in enumerate(DATA_FILES) if episode in es)
    name = f"file-{number:03d}" if v3 else f"episode_{episode:06d}"
    return path / f"data/chunk-000/{name}.parquet"


def _change_table(path: Path, episode: int, column: str, change) -> None:
    """`change` gets the column's values of one episode and returns new ones; None drops it."""
    file = _data_file(path, episode)
    table = pq.read_table(file)
    place, kind = table.column_names.index(column), table.schema.field(column).type
    mine = np.flatnonzero(np.asarray(table.column("episode_index")) == episode)
    values = table.column(column).to_pylist()
    for i, value in zip(mine, change([values[i] for i in mine])):
        values[i] = value
    _write_table(table.set_column(place, column, pa.array(values, kind)), file, row_group_size=4)


def test_missing_or_unknown_data_sets(tmp_path, data):
    with pytest.raises(FileNotFoundError, match=r"'arm' .*no meta/info.json.*that holds data/"):
        LeRobotSource("arm", tmp_path)
    copy = _copy(data, tmp_path)
    with pytest.raises(ValueError, match=r"no split 'val'; .* has train, test, all"):
        LeRobotSource("arm", copy, "val", cameras=CAMERAS)
    with pytest.raises(ValueError, match=r"no camera top; it has \['.*front', '.*wrist'\]"):
        LeRobotSource("arm", copy, cameras=(FRONT, "top"))
    with pytest.raises(ValueError, match=r"2 cameras, \['.*front', '.*wrist'\]: name those"):
        LeRobotSource("arm", copy)
    with pytest.raises(ValueError, match=r"no feature 'actions'; it has \['action', "):
        LeRobotSource("arm", copy, cameras=CAMERAS, action="actions")
    _change_info(copy, lambda info: info.update(codebase_version="v1.6"))
    with pytest.raises(ValueError, match=r"'v1.6'; v2.0, v2.1, v3.0 are read: convert"):
        LeRobotSource("arm", copy, cameras=CAMERAS)
    (copy / "meta/info.json").write_text('{"codebase_version": "v3.0"}')
    with pytest.raises(ValueError, match=r"info.json lacks 'features'"):
        LeRobotSource("arm", copy, cameras=CAMERAS)
    (copy / "meta/info.json").write_text("{")
    with pytest.raises(ValueError, match=r"meta/info.json is no JSON"):
        LeRobotSource("arm", copy, cameras=CAMERAS)


def test_missing_files_are_counted_and_named(tmp_path, sets):
    copy = _copy(sets["v3_video"], tmp_path)
    file = copy / f"videos/{WRIST}/chunk-000/file-001.mp4"
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"'arm' .*1 of 7 files are missing, e.g. {file}"):
        LeRobotSource("arm", copy, "all", cameras=CAMERAS)
    LeRobotSource("arm", copy, "all", cameras=(FRONT,))
    _data_file(copy, 3).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 5 files are missing.*file-001.parquet"):
        LeRobotSource("arm", copy, "all", cameras=(FRONT,))
    (copy / "meta/tasks.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"'arm' .*no meta/tasks.parquet"):
        LeRobotSource("arm", copy, "all", cameras=(FRONT,))


def test_a_draft_is_made_where_the_action_spec_is_missing(tmp_path, data, spec):
    copy = _copy(data, tmp_path)
    file = copy / "meta/action_spec.json"
    file.unlink()
    with pytest.raises(ValueError, match=r"(?s)'arm' .*what its actions mean.*save it as") as e:
        LeRobotSource("arm", copy, cameras=CAMERAS)
    text = str(e.value)[str(e.value).index("{") :]
    draft = ActionSpec.from_json(text)
    assert draft.names == ("stop", "x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert draft.control_hz == FPS and draft.name == "arm"
    if data.name == "v3_video":
        assert [(d.low, d.high) for d in draft.dimensions] == [(-2, 3)] * 8
    else:  # least and greatest of all episodes
        np.testing.assert_allclose(draft.low, np.arange(8) / 10, atol=1e-6)
        np.testing.assert_allclose(draft.high, 308 + np.arange(8) / 10, atol=1e-3)
    file.write_text(text)
    with pytest.raises(ValueError, match="is a draft: fill in what says EDIT"):
        LeRobotSource("arm", copy, cameras=CAMERAS)
    file.write_text(text.replace("EDIT: ", ""))
    assert LeRobotSource("arm", copy, cameras=CAMERAS).action_spec.names == draft.names
    file.unlink()
    assert LeRobotSource("arm", copy, cameras=CAMERAS, spec=spec).action_spec == spec


def test_another_action_spec_is_refused(tmp_path, data, spec):
    other = end_effector_spec("arm", max_position_m=0.02, max_rotation_rad=0.1, control_hz=FPS)
    with pytest.raises(ValueError, match=r"the spec passed .* data set 'arm'.*\n.*dimensions"):
        LeRobotSource("arm", data, cameras=CAMERAS, spec=other)
    copy = _copy(data, tmp_path)
    (copy / "meta/action_spec.json").unlink()
    slow = end_effector_spec("arm", max_position_m=0.02, max_rotation_rad=0.1, control_hz=5)
    with pytest.raises(ValueError, match=r"10 steps a second .*'arm' 5: correct"):
        LeRobotSource("arm", copy, cameras=CAMERAS, spec=slow)
    _change_info(copy, lambda info: info["features"]["action"].update(shape=[7]))
    with pytest.raises(ValueError, match=r"'action' has 7 numbers, ActionSpec 'arm' has 8"):
        LeRobotSource("arm", copy, cameras=CAMERAS, spec=spec)


def test_nan_action_names_episode_and_step(tmp_path, data):
    def change(rows):
        rows[4][3] = float("nan")
        return rows

    copy = _copy(data, tmp_path)
    _change_table(copy, 1, "action", change)
    source = LeRobotSource("arm", copy, cameras=CAMERAS, chunk=3)
    _ = source.read(7 + 1)
    for step in (2, 4):
        with pytest.raises(ValueError, match=r"'arm' .*episode 1 step 4 \(repair.*position_z"):
            source.read(7 + step)


def test_tasks_that_are_empty_or_unknown(tmp_path, data):
    copy = _copy(data, tmp_path)
    if data.name == "v3_video":
        table = pa.table({"task_index": [0, 1], "task": ["pick", " "]})
        pq.write_table(table, copy / "meta/tasks.parquet")
    else:
        (copy / "meta/tasks.jsonl").write_text(
            '{"task_index": 0, "task": "pick"}\n{"task_index": 1, "task": " "}\n'
        )
    source = LeRobotSource("arm", copy, cameras=CAMERAS)
    assert source.read(0).prompt == robot_prompt("pick")
    with pytest.raises(ValueError, match=r"'arm' .*episode 1 step 0: task 1: empty instr.*correct"):
        source.read(7)
    with pytest.raises(ValueError, match=r"episode 2 step 3: task_index 2 is not in meta/tasks"):
        source.read(7 + 12 + 3)


def test_numbers_that_do_not_fit_the_metadata(tmp_path, data):
    def check(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            LeRobotSource("arm", copy, cameras=CAMERAS)

    copy = _copy(data, tmp_path)
    file = _data_file(copy, 1)
    _change_table(copy, 1, "frame_index", lambda rows: [0, *rows[:-1]])
    check(rf"'arm' .*episode 1: {file} has 12 of its steps.*0.*10.*there are 12.*copy")
    _change_table(copy, 1, "frame_index", lambda rows: list(range(12)))
    _change_table(copy, 1, "action", lambda rows: [rows[0][:5], *rows[1:]])
    check(rf"'arm' .*{file}: \d+ numbers of 'action' in \d+ steps, not 8 a step")
    pq.write_table(pq.read_table(file).drop_columns(["task_index"]), file)
    check(rf"{file} cannot be read: it has no column task_index; it has \['action'")
    os.truncate(file, file.stat().st_size - 40)
    check(rf"'arm' .*{file} cannot be read: .*copy it again")


def test_pictures_that_are_not_there(tmp_path, sets):
    copy = _copy(sets["v2_image"], tmp_path)
    _change_table(copy, 1, WRIST, lambda rows: [*rows[:5], {**rows[5], "bytes": None}, *rows[6:]])
    source = LeRobotSource("arm", copy, cameras=CAMERAS)
    source.read(7 + 4)
    with pytest.raises(ValueError, match=r"episode 1 step 5: .*_000001.parquet row group 1 row 1 "):
        source.read(7 + 5)


def test_cut_off_videos(tmp_path, sets):
    """What lies before the end of a video whose index comes first can still be read, no more."""
    copy = _copy(sets["v3_video"], tmp_path)
    file = copy / f"videos/{WRIST}/chunk-000/file-000.mp4"
    os.truncate(file, file.stat().st_size - 200)
    source = LeRobotSource("arm", copy, cameras=CAMERAS)
    for index in range(LENGTHS[0]):
        _check(source, index)
    with pytest.raises(ValueError, match=rf"'arm' .*episode 1 step 11: {file} .*copy it again"):
        source.read(18)
    os.truncate(file, 600)
    with pytest.raises(ValueError, match=rf"'arm' .*episode 0 step 1: {file} cannot be .*copy it"):
        LeRobotSource("arm", copy, cameras=CAMERAS).read(1)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=rf"{file} cannot be opened.*copy it"):
        LeRobotSource("arm", copy, cameras=CAMERAS).read(1)
    assert source._videos._busy == 0


def test_frames_that_are_not_there(tmp_path, sets):
    """A video shorter than its episode; one of another rate."""
    copy = _copy(sets["v2_video"], tmp_path)
    file = copy / f"videos/chunk-000/{FRONT}/episode_000001.mp4"
    _encode(file, [_picture(FRONT, 1, t) for t in range(9)])
    source = LeRobotSource("arm", copy, cameras=CAMERAS)
    _check(source, 7 + 8)
    with pytest.raises(ValueError, match=rf"step 9: {file} has no frame at 0.9000 s .*at 0.8000 s"):
        source.read(7 + 9)
    _change_info(copy, lambda info: info.update(fps=30))
    _change_spec_rate(copy, 30)
    with pytest.raises(ValueError, match=r"episode 0 step 0: .*10.000 frames per second.*says 30"):
        LeRobotSource("arm", copy, cameras=CAMERAS).read(0)


def _change_spec_rate(path: Path, control_hz: float) -> None:
    file = path / "meta/action_spec.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "control_hz": control_hz}))


def test_a_prompt_in_several_phrasings(data):
    source = LeRobotSource(
        "arm", data, cameras=CAMERAS, templates=("{instruction}!", "do {instruction}")
    )
    plain = LeRobotSource("arm", data, cameras=CAMERAS)
    instruction = plain.track(1).instructions[0]
    assert source.read(LENGTHS[0]).prompt == (f"{instruction}!", f"do {instruction}")
