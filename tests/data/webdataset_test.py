from __future__ import annotations

import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from tests.data.examples import encoded
from vla_jax.data import storage
from vla_jax.data.sources.texts import TextLayout
from vla_jax.data.sources.webdataset import WebDatasetSource
from vla_jax.text.prompts import QUESTION_TEMPLATE

SHARDS, PER_SHARD = 3, 5
QUESTIONS = TextLayout(QUESTION_TEMPLATE, "answers/answer")


def _sample(number, image_format="JPEG"):
    """As img2dataset writes it: a long key, a caption, and what was known of the picture."""
    about = {
        "caption": f"in json {number}",
        "question": f"what is {number}?",
        "answers": [{"answer": f"{number}.{k}", "confidence": "yes"} for k in range(4)],
        "width": 32,
        "original": None,
    }
    return {
        "__key__": f"{number:09d}",
        {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[image_format]: encoded(number, image_format),
        "txt": f" a dög number {number}\n".encode(),
        "json": json.dumps(about).encode(),
    }


def _shard(samples):
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer, encoder=False, mtime=0) as writer:
        for sample in samples:
            writer.write(sample)
    return buffer.getvalue()


def _write(place, samples=_sample):
    for shard in range(SHARDS):
        numbers = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        data = _shard(samples(number) for number in numbers)
        storage.write_file(storage.join(place, f"{shard:05d}.tar"), data)


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path, memory):
    place = str(tmp_path) if request.param == "local" else "memory://bucket/web"
    _write(place)
    return place


def _by_webdataset(place):
    """Every sample, read by the webdataset library alone."""
    paths = storage.list_files(storage.join(place, "*.tar"))
    # Streams, as it leaves files open that it opens itself.
    streams = [{"url": path, "stream": io.BytesIO(storage.read_file(path))} for path in paths]
    return list(group_by_keys(tar_file_expander(streams)))


@pytest.mark.parametrize("pattern", ["", "*.tar", "{00000..00002}.tar"])
def test_captions_equal_what_webdataset_reads(place, pattern):
    source = WebDatasetSource("web", storage.join(place, pattern) if pattern else place)
    expected = _by_webdataset(place)
    assert source.action_spec is None
    assert len(source) == len(expected) == SHARDS * PER_SHARD
    for index in np.random.default_rng(0).permutation(len(source)).tolist():
        example, sample = source.read(index), expected[index]
        assert example.images == (sample["jpg"],)
        assert example.answer == sample["txt"].decode().strip() == f"a dög number {index}"
        assert example.prompt == "Q: caption in english A:"


def test_questions_equal_what_webdataset_reads(place):
    source = WebDatasetSource("web", place, texts=QUESTIONS)
    for index, sample in enumerate(_by_webdataset(place)):
        about, example = json.loads(sample["json"]), source.read(index)
        assert example.images == (sample["jpg"],)
        assert example.prompt == f"Q: {about['question']} A:"
        assert example.answer == tuple(each["answer"] for each in about["answers"])


def test_text_file_and_json_field_together(tmp_path):
    _write(tmp_path)
    layout = TextLayout("{.txt} of {width} in {language}:", "caption", language="german")
    example = WebDatasetSource("web", tmp_path, texts=layout).read(7)
    assert (example.prompt, example.answer) == ("a dög number 7 of 32 in german:", "in json 7")


def test_other_layouts_of_the_shard(tmp_path):
    """Images of each kind, folders, capitals, files that belong to no sample, pax headers."""
    long = "d/" + "x" * 150
    parts = [
        ("a/1.png", encoded(1)), ("a/1.txt", b"one"),
        ("README", b"about"), ("a/.hidden", b"nothing"),
        ("b/1.txt", b"two"), ("b/1.extra.jpg", b"not it"), ("b/1.JPEG", encoded(2, "JPEG")),
        ("c/1.webp", encoded(3, "WEBP")), ("c/1.TXT", b"three"), ("c/1.jpg", b"the second"),
        (f"{long}.jpg", encoded(4, "JPEG")), (f"{long}.txt", b"four"),
    ]  # fmt: skip
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(path, "w", format=form) as tar:
            folder = tarfile.TarInfo("a")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name, data in parts:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                if form == tarfile.USTAR_FORMAT:
                    info.name = name.replace("x" * 150, "x" * 70)
                tar.addfile(info, io.BytesIO(data))
        source = WebDatasetSource("web", path)
        assert [source.read(i).answer for i in range(len(source))] == [
            "one",
            "two",
            "three",
            "four",
        ]
        assert [source.read(i).images[0] for i in range(4)] == [
            encoded(1), encoded(2, "JPEG"), encoded(3, "WEBP"), encoded(4, "JPEG"),
        ]  # fmt: skip


def test_files_far_apart_are_read_apart(tmp_path, monkeypatch):
    sample = {"__key__": "0", "jpg": b"image", "mp4": bytes(200_000), "txt": b"far"}
    storage.write_file(tmp_path / "0.tar", _shard([sample]))
    source, asked = WebDatasetSource("web", tmp_path), []
    read_range = storage.read_range

    def counted(path, start, length):
        asked.append(length)
        return read_range(path, start, length)

    monkeypatch.setattr(storage, "read_range", counted)
    assert source.read(0).images == (b"image",) and source.read(0).answer == "far"
    assert asked == [5, 3] * 2


def test_threads_read_at_once(place):
    source = WebDatasetSource("web", place)
    order = np.random.default_rng(0).integers(0, len(source), 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, order))
    assert [e.answer for e in read] == [f"a dög number {i}" for i in order]
    assert [e.images[0] for e in read] == [encoded(i, "JPEG") for i in order]


def _count_scans(monkeypatch):
    scanned, scan = [], WebDatasetSource._scan

    def counted(self, shard):
        table = scan(self, shard)
        scanned.append(shard.path.rpartition("/")[2])
        return table

    monkeypatch.setattr(WebDatasetSource, "_scan", counted)
    return scanned


def test_shards_are_read_once_and_again_when_they_change(place, monkeypatch):
    scanned = _count_scans(monkeypatch)
    WebDatasetSource("web", place)
    WebDatasetSource("web", place, texts=QUESTIONS)
    assert sorted(scanned) == ["00000.tar", "00001.tar", "00002.tar"]
    data = _shard(_sample(number) for number in (90, 91))
    storage.write_file(storage.join(place, "00001.tar"), data)
    source = WebDatasetSource("web", place)
    assert scanned[3:] == ["00001.tar"] and len(source) == 2 * PER_SHARD + 2
    assert source.read(PER_SHARD).answer == "a dög number 90"
    assert source.read(PER_SHARD + 2).answer == f"a dög number {2 * PER_SHARD}"


def test_a_store_that_fails_now_and_then(flaky, capsys):
    _write("flaky://b")
    flaky.errors[:] = [OSError("503"), TimeoutError("slow")] * 3
    source = WebDatasetSource("web", "flaky://b", threads=1)
    flaky.errors[:] = [ConnectionResetError("reset")]
    assert source.read(7).images == (encoded(7, "JPEG"),)
    assert "trying again" in capsys.readouterr().err
    flaky.errors[:] = [TimeoutError("slow")] * 8
    with pytest.raises(OSError, match=r"flaky:///?b/00001\.tar: gave up after 8 tries"):
        source.read(7)
    flaky.requests.clear()
    source.read(7)
    assert len(flaky.requests) == 1  # image and text with one request


def test_no_shard_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'web': no file is like .*/\*\.tar: give the dir"):
        WebDatasetSource("web", tmp_path)
    _write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'web': 2 of 5 files are missing.*00003\.tar"):
        WebDatasetSource("web", tmp_path / "{00000..00004}.tar")


def test_samples_that_lack_something_are_left_out_and_counted(tmp_path, capsys):
    def samples(number):
        sample = _sample(number, ("JPEG", "PNG", "WEBP")[number % 3])
        for n, kind in ((2, "webp"), (6, "txt"), (9, "txt")):
            if number == n:
                sample[kind] = b""
        if number == 6:
            del sample["txt"]
        return sample

    _write(tmp_path, samples)
    source = WebDatasetSource("web", tmp_path)
    left = [n for n in range(SHARDS * PER_SHARD) if n not in (2, 6, 9)]
    assert [source.read(i).answer for i in range(len(source))] == [
        f"a dög number {n}" for n in left
    ]
    assert capsys.readouterr().err == (
        "web: 3 of 15 samples cannot be used and are left out: "
        "1 have no image (jpg, jpeg, png, webp), 2 have no .txt\n"
    )
    assert len(WebDatasetSource("web", tmp_path, texts=QUESTIONS)) == 14


def test_shards_without_a_usable_sample(tmp_path):
    _write(tmp_path, lambda n: {"__key__": str(n), "jpg": b"x", "cls": b"1"})
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match=r"'web': 15 of 15 .* 15 have no \.txt.*00000\.tar begins with 0\.cls, 0\.jpg, 1",
        ):
            WebDatasetSource("web", tmp_path)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match=r"0 of 0 samples.*begins with nothing"):
        WebDatasetSource("web", tmp_path / "empty.tar")


def test_a_truncated_shard_is_named(tmp_path):
    _write(tmp_path)
    path = tmp_path / "00000.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    last = members[-1]
    for size in (
        0, 300, members[3].offset_data + 5, last.offset, last.offset + 100, last.offset_data,
        last.offset_data + 3, last.offset_data + 512,
    ):  # fmt: skip
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"'web', {path} \({size} bytes\) is cut off.*Downl"):
            WebDatasetSource("web", path)
    damaged = bytearray(whole)
    damaged[members[4].offset + 10] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"byte {members[4].offset} is neither a header nor"):
        WebDatasetSource("web", path)


def test_samples_before_a_cut_are_used_if_so_many_shards_may_be_cut_off(tmp_path, capsys):
    _write(tmp_path)
    path = tmp_path / "00001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        starts = [m.offset for m in tar.getmembers() if m.name.endswith((".jpg", ".png"))]
    expected = [WebDatasetSource("web", tmp_path).read(i) for i in range(SHARDS * PER_SHARD)]
    for kept in (2, 0):
        path.write_bytes(whole[: starts[kept] + 700])
        with pytest.raises(ValueError, match=r"00001\.tar .* is cut off.*\n.*1 shards .* 0 may be"):
            WebDatasetSource("web", tmp_path)
        source = WebDatasetSource("web", tmp_path, max_bad_records=1)
        assert "left out, the end of a shard: data set 'web'" in capsys.readouterr().err
        left = expected[: PER_SHARD + kept] + expected[2 * PER_SHARD :]
        assert [source.read(i) for i in range(len(source))] == left


def test_a_shard_cut_off_after_the_opening_is_named(tmp_path):
    _write(tmp_path)
    source = WebDatasetSource("web", tmp_path)
    os.truncate(tmp_path / "00000.tar", 4000)
    source.read(PER_SHARD)
    with pytest.raises(ValueError, match=r"'web', .*00000\.tar sample.*\(byte.*it is cut off or"):
        source.read(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"txt": b" \n"}, r"it has an empty \.txt: fill it in or drop the record"),
        ({"txt": b"\xff\xfe"}, r"its \.txt is not UTF-8"),
        ({"json": b"{"}, r"its \.json is not JSON \(.*repair"),
        ({"json": b"[1]"}, r"its \.json is a JSON list, not an object"),
        ({"json": b'{"a": 1, "b": 2}'}, r"its \.json has no field 'caption'.* there is a, b"),
        ({"json": b'{"caption": null}'}, "it has an empty caption"),
        ({"json": b'{"caption": []}'}, "it has an empty caption"),
        ({"json": b'{"caption": {"a": 1}}'}, r"its \.json: .*holds .*which is no text"),
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_sample_is_named(tmp_path, change, message):
    _write(tmp_path, lambda n: {**_sample(n), **(change if n == 8 else {})})
    source = WebDatasetSource("web", tmp_path, texts=TextLayout("{.txt}:", "caption"))
    source.read(7)
    at = r"'web', .*00001\.tar sample '000000008' \(byte \d+\): "
    with pytest.raises(ValueError, match=at + message):
        source.read(8)
    for index in (-1, 15):
        with pytest.raises(IndexError, match="'web', which has 15"):
            source.read(index)
