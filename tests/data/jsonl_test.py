from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.data.examples import encoded
from vla_jax.data import storage
from vla_jax.data.sources import jsonl
from vla_jax.data.sources.jsonl import JsonlSource
from vla_jax.data.sources.texts import TextLayout
from vla_jax.text.prompts import QUESTION_TEMPLATE
from vla_jax.types import chosen

COUNT = 24


def _record(number):
    return {
        "image": f"images/{number}.png",
        "prefix": f"caption {number}",
        "suffix": f"ein Bär {number}",
        "question": ["where?", "what?", "who?"],
        "answer": ["there", "that", "they"],
    }


def _write(place, lines=None, name="train.jsonl"):
    if lines is None:
        lines = [json.dumps(_record(n), ensure_ascii=n % 2 == 0) for n in range(COUNT)]
    storage.write_file(storage.join(place, name), "\n".join(lines).encode())
    for number in range(COUNT):
        storage.write_file(storage.join(place, f"images/{number}.png"), encoded(number))
    return storage.join(place, name)


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path, memory):
    return str(tmp_path) if request.param == "local" else "memory://bucket/lines"


@pytest.mark.parametrize("end", ["", "\n", "\r\n\n  \n"], ids=["none", "one", "blank"])
def test_records_equal_the_lines(place, end):
    path = _write(place)
    storage.write_file(path, storage.read_file(path).replace(b"\n", b"\r\n\n", 4) + end.encode())
    source = JsonlSource("lines", path)
    expected = [json.loads(line) for line in storage.read_file(path).splitlines() if line.strip()]
    assert len(source) == len(expected) == COUNT and source.action_spec is None
    for index in np.random.default_rng(0).permutation(COUNT).tolist():
        example, record = source.read(index), expected[index]
        assert (example.prompt, example.answer) == (record["prefix"], record["suffix"])
        assert example.images == (encoded(index),)


def test_fields_of_other_names(place):
    """A question stays with its answer, in every phrasing."""
    texts = TextLayout((QUESTION_TEMPLATE, "{prefix}, {question}"), "answer")
    source = JsonlSource("lines", _write(place), texts=texts)
    for number in range(COUNT):
        example = source.read(number)
        assert set(zip(example.prompt, example.answer, strict=True)) == {
            (prompt, answer)
            for question, answer in (("where?", "there"), ("what?", "that"), ("who?", "they"))
            for prompt in (f"Q: {question} A:", f"caption {number}, {question}")
        }
        drawn = {chosen(example, draw) for draw in range(6)}
        assert drawn == set(zip(example.prompt, example.answer))
    # A phrasing without an answer of its own leaves one answer.
    source = JsonlSource("lines", _write(place), texts=TextLayout(("{prefix}", "so"), "suffix"))
    example = source.read(3)
    assert example.prompt == ("caption 3", "so") and example.answer == "ein Bär 3"


def test_an_empty_one_of_several_answers_is_left_out(tmp_path):
    lines = [{"prefix": "p", "suffix": ["", "a", "b"], "image": "images/0.png"}]
    lines += [{"prefix": "p", "suffix": ["", " "], "image": "images/0.png"}]
    path = _write(tmp_path, [json.dumps(line) for line in lines])
    source = JsonlSource("lines", path)
    assert source.read(0).prompt == "p" and source.read(0).answer == ("a", "b")
    with pytest.raises(ValueError, match=r"line 2.*has an empty suffix"):
        source.read(1)
    with pytest.raises(ValueError, match="a prompt template and an answer field are needed"):
        TextLayout((), "suffix")


def test_several_files_and_an_image_root(tmp_path):
    _write(tmp_path / "pictures")
    for name in ("b", "a"):
        _write(tmp_path / "text", [json.dumps({**_record(3), "prefix": name})] * 2, f"{name}.jsonl")
    source = JsonlSource(
        "lines", tmp_path / "text/*.jsonl", image_root=tmp_path / "pictures", image="image"
    )
    assert [source.read(i).prompt for i in range(4)] == ["a", "a", "b", "b"]
    assert source.read(3).images == (encoded(3),)
    absolute = {**_record(0), "image": str(tmp_path / "pictures/images/7.png")}
    path = _write(tmp_path / "text", [json.dumps(absolute)], "c.jsonl")
    assert JsonlSource("lines", path).read(0).images == (encoded(7),)


def test_threads_read_at_once(place):
    source = JsonlSource("lines", _write(place))
    order = np.random.default_rng(0).integers(0, COUNT, 200).tolist()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, order))
    assert [e.prompt for e in read] == [f"caption {i}" for i in order]
    assert [e.images[0] for e in read] == [encoded(i) for i in order]


def test_lines_are_indexed_once_and_again_when_they_change(place, monkeypatch):
    scanned, scan = [], jsonl._scan
    monkeypatch.setattr(jsonl, "_scan", lambda file: scanned.append(file.path) or scan(file))
    path = _write(place)
    for _ in range(2):
        assert len(JsonlSource("lines", path)) == COUNT
    assert scanned == [path]
    _write(place, [json.dumps(_record(5))])
    assert JsonlSource("lines", path).read(0).prompt == "caption 5"
    assert scanned == [path] * 2


def test_a_store_that_fails_now_and_then(flaky):
    path = _write("flaky://b")
    flaky.errors[:] = [OSError("503")] * 2
    source = JsonlSource("lines", path)
    flaky.errors[:] = [OSError("503")] * 2
    assert source.read(4).images == (encoded(4),)
    flaky.errors[:] = [OSError("503")] * 8
    with pytest.raises(OSError, match=r"flaky://b/train\.jsonl: gave up after 8 tries"):
        source.read(4)


def test_missing_or_empty_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'lines': 1 of 1 files are missing.*none\.jsonl"):
        JsonlSource("lines", tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"'lines': no file is like .*/\*\.jsonl"):
        JsonlSource("lines", tmp_path / "*.jsonl")
    storage.write_file(tmp_path / "empty.jsonl", b"\n \n")
    with pytest.raises(ValueError, match=r"'lines': .*empty\.jsonl has no line"):
        JsonlSource("lines", tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": ', r"is not JSON \(.*repair or drop"),
        ("7", "is a JSON int, not an object"),
        (json.dumps({"image": "images/0.png", "prefix": "p"}), "no field 'suffix'.* image, prefix"),
        (json.dumps({**_record(0), "prefix": " "}), "has an empty prefix: fill it in"),
        (json.dumps({**_record(0), "suffix": ""}), "has an empty suffix"),
        (json.dumps({**_record(0), "suffix": True}), "field 'suffix' holds True, which is no text"),
        (json.dumps({**_record(0), "image": "x.png"}), r"image .*/x\.png is not there.*image_root"),
        (json.dumps({**_record(0), "image": "empty.png"}), r"its image .*/empty\.png is empty"),
        (json.dumps({**_record(0), "image": ["a", "b"]}), r"holds \['a', 'b'\], not one path"),
        (json.dumps({"file": "a", "suffix": "b", "prefix": "c"}), "no field 'image'.*file, suffix"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, message):
    storage.write_file(tmp_path / "empty.png", b"")
    lines = [json.dumps(_record(0)), "", line]
    source = JsonlSource("lines", _write(tmp_path, lines))
    source.read(0)
    at = rf"'lines', .*train\.jsonl line 3 \(byte {len(lines[0]) + 2}\)"
    with pytest.raises(ValueError, match=f"{at}.*{message}"):
        source.read(1)
    for index in (-1, 2):
        with pytest.raises(IndexError, match="'lines', which has 2"):
            source.read(index)


def test_a_layout_needs_both_texts():
    for prompt, answer in ((" ", "a"), ("p", "")):
        with pytest.raises(ValueError, match="prompt template and an answer field are needed"):
            TextLayout(prompt, answer)
