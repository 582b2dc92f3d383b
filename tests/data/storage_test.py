from __future__ import annotations

import errno
import gc
import io
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest

from vla_jax.data import storage
from vla_jax.data.sources import index_files

DATA = bytes(np.random.default_rng(0).integers(0, 256, 100_000, np.uint8))


@pytest.fixture(params=["local", "file://", "memory://"])
def place(request, tmp_path, memory):
    if request.param == "local":
        return str(tmp_path)
    return f"file://{tmp_path}" if request.param == "file://" else "memory://bucket/dir"


def _facts(path):
    return storage.file_facts([path], where="here")[0]


def test_what_is_written_is_read(place):
    path = storage.join(place, "deep/file.bin")
    assert not storage.exists(path)
    storage.write_file(path, DATA)
    assert storage.exists(path) and not storage.exists(storage.parent(path))
    assert storage.read_file(path) == DATA
    assert storage.read_range(path, 77, 1234) == DATA[77 : 77 + 1234]
    assert storage.read_range(path, 5, 0) == b""
    assert _facts(path).size == len(DATA)
    with pytest.raises(EOFError, match=r"file\.bin ends 90 bytes before byte 100090"):
        storage.read_range(path, 99_990, 100)
    storage.write_file(path, b"new")
    assert storage.read_file(path) == b"new"


def test_a_file_is_read_from_start_to_end_and_with_jumps(place, monkeypatch):
    monkeypatch.setattr(storage, "_BLOCK", 1000)
    path = storage.join(place, "file.bin")
    storage.write_file(path, DATA)
    with storage.open_file(_facts(path)) as file, io.BytesIO(DATA) as expected:
        for start, length in [(0, 10), (12, 700), (50_000, 3000), (49_999, 1), (99_995, 100)]:
            file.seek(start), expected.seek(start)
            assert file.read(length) == expected.read(length)
        file.seek(-7, os.SEEK_END)
        assert (file.read(), file.tell()) == (DATA[-7:], len(DATA))
        file.seek(0), expected.seek(0)
        assert list(file) == list(expected)  # lines


def test_threads_read_at_once(place):
    path = storage.join(place, "file.bin")
    storage.write_file(path, DATA)
    starts = np.random.default_rng(1).integers(0, 99_000, 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda start: storage.read_range(path, start, 999), starts))
    assert read == [DATA[start : start + 999] for start in starts]


def test_patterns(place):
    for name in ("s-00.tar", "s-01.tar", "s-02.tar", "t.tar", "x[1].txt"):
        storage.write_file(storage.join(place, f"d/{name}"), b"x")

    def names(pattern):
        return [p.rpartition("/")[2] for p in storage.list_files(storage.join(place, pattern))]

    assert names("d/*.tar") == ["s-00.tar", "s-01.tar", "s-02.tar", "t.tar"]
    assert names("d/s-0[12].tar") == ["s-01.tar", "s-02.tar"]
    assert names("d/s-{00..02}.tar") == ["s-00.tar", "s-01.tar", "s-02.tar"]
    assert names("d/{t,s-0?}.tar") == ["t.tar", "s-00.tar", "s-01.tar", "s-02.tar"]
    assert names("d/x[1].txt") == ["x[1].txt"]
    assert names("d/none*") == []
    for path in storage.list_files(storage.join(place, "d/*.tar")):
        assert storage.read_file(path) == b"x"


def test_braces_are_spelled_out():
    assert storage.list_files("/none/{8..11}") == [f"/none/{n}" for n in (8, 9, 10, 11)]
    assert storage.list_files("/none/{098..100}") == [f"/none/{n}" for n in ("098", "099", "100")]
    assert storage.list_files("/none/{a,b}{0..1}") == [
        f"/none/{n}" for n in ("a0", "a1", "b0", "b1")
    ]
    assert storage.list_files("/none/{a}") == ["/none/{a}"]


def test_missing_files_are_counted_and_named(place):
    storage.write_file(storage.join(place, "0"), b"x")
    names = [storage.join(place, name) for name in "0123"]
    with pytest.raises(
        FileNotFoundError, match=r"'web': 3 of 4 files are missing, e\.g\. .*/1: co"
    ):
        storage.file_facts(names, where="data set 'web'")
    for read in (storage.read_file, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read(names[1])


def test_a_directory_of_many_files_is_listed_once(flaky):
    few, many = ([f"flaky://b/{d}/{i}" for i in range(n)] for d, n in (("few", 3), ("many", 40)))
    paths = [*many, *few]
    for number, path in enumerate(paths):
        storage.write_file(path, bytes(number))
    storage.write_file("flaky://b/many/deep/er", b"x")
    flaky.errors[:] = [TimeoutError("slow")]
    facts = storage.file_facts(paths, where="here")
    assert [(f.path, f.size) for f in facts] == [(p, n) for n, p in enumerate(paths)]
    assert sorted(what for what, *_ in flaky.requests) == ["info"] * 3 + ["ls"] * 2
    storage.write_file(many[7], b"other")
    again = storage.file_facts(paths, where="here")
    assert [f.path for f, g in zip(facts, again) if f.version != g.version] == [many[7]]
    for missing in ("flaky://b/many/99", "flaky://b/many/deep"):
        with pytest.raises(FileNotFoundError, match=f"1 of 44 files are missing, e.g. {missing}:"):
            storage.file_facts([*paths, missing], where="here")
    with pytest.raises(FileNotFoundError, match=r"40 of 40 files are missing, e\.g\. .*/none/0:"):
        storage.file_facts([path.replace("many", "none") for path in many], where="here")


def test_pieces_of_a_remote_file(flaky, monkeypatch):
    """Any piece is right; blocks read last are kept, large pieces are one request."""
    monkeypatch.setattr(storage, "_SMALL_BLOCK", 1000)
    path = "flaky://b/file.bin"
    storage.write_file(path, DATA)
    rng = np.random.default_rng(0)
    with storage.open_blocks(path) as file:
        for _ in range(300):
            start, length = (int(rng.integers(end)) for end in (len(DATA) + 500, 1500))
            assert file.seek(start) == start
            assert file.read(length) == DATA[start : start + length]
            assert file.tell() == max(start, min(start + length, len(DATA)))
        assert file.seek(-7, os.SEEK_END) == len(DATA) - 7 and file.read() == DATA[-7:]
        flaky.requests.clear()
        for start in (2500, 2100, 3999, 5000, 5999, 2000):
            file.seek(start)
            assert file.read(10) == DATA[start : start + 10]
        file.seek(7000)
        assert file.read(5000) == DATA[7000:12000]
        starts = [(start, end) for _, _, start, end in flaky.requests]
        assert starts == [
            (2000, 3000),
            (3000, 4000),
            (4000, 5000),
            (5000, 6000),
            (6000, 7000),
            (2000, 3000),
            (7000, 12000),
        ]
    assert file.closed
    with pytest.raises(FileNotFoundError, match=r"flaky://b/none is not there"):
        storage.open_blocks("flaky://b/none")


def test_a_changed_file_has_other_facts(place):
    path = storage.join(place, "file")
    storage.write_file(path, b"one")
    before = _facts(path)
    assert _facts(path) == before
    if not storage.is_remote(path):
        os.utime(path.removeprefix("file://"), ns=(1, 1))
    else:
        storage.write_file(path, b"two")
    assert _facts(path).version != before.version


class _Http(Exception):
    def __init__(self, code):
        super().__init__(f"http {code}")
        self.code = code


PASSING = [
    TimeoutError("slow"), ConnectionResetError("reset"), OSError("503 unavailable"),
    OSError(errno.EIO, "internal error"), _Http(500), _Http("429"),
]  # fmt: skip
LASTING = [
    FileNotFoundError("no"), PermissionError("no"), _Http(400), OSError("Forbidden: x"),
    OSError(errno.EINVAL, "no"), RuntimeError("no"), ValueError("no"),
]  # fmt: skip


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_passing_errors_are_tried_again(flaky, error, capsys):
    storage.write_file("flaky://b/file", DATA)
    flaky.errors[:] = [error] * 3
    assert storage.read_range("flaky://b/file", 10, 20) == DATA[10:30]
    assert len(flaky.requests) == 4
    assert [base / 2 <= pause <= base for base, pause in zip((0.5, 1, 2), flaky.pauses)] == [
        True
    ] * 3
    flaky.errors[:] = [error]
    assert storage.read_file("flaky://b/file") == DATA
    told = capsys.readouterr().err.splitlines()
    assert told == [f"flaky://b/file: {type(error).__name__}: {error}; trying again, up to 8 times"]


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_lasting_errors_are_not(flaky, error):
    storage.write_file("flaky://b/file", DATA)
    flaky.errors[:] = [error]
    with pytest.raises(type(error)) as raised:
        storage.read_file("flaky://b/file")
    assert raised.value is error and len(flaky.requests) == 1 and not flaky.pauses


def test_at_last_it_gives_up(flaky):
    storage.write_file("flaky://b/file", DATA)
    flaky.errors[:] = [TimeoutError("slow")] * 100
    with pytest.raises(OSError, match="flaky://b/file: gave up after 8 tries: TimeoutError: slow"):
        storage.read_file("flaky://b/file")
    assert len(flaky.requests) == 8
    assert len(flaky.pauses) == 7 and max(flaky.pauses) <= 30 and sum(flaky.pauses) <= 64
    flaky.errors[:] = [TimeoutError("slow")] * 100
    with pytest.raises(OSError, match="gave up"):  # not "there is no such file"
        storage.exists("flaky://b/file")


def test_the_programs_random_numbers_do_not_move(flaky):
    storage.write_file("flaky://b/file", DATA)
    before = random.getstate()
    flaky.errors[:] = [TimeoutError("slow")]
    storage.read_file("flaky://b/file")
    assert random.getstate() == before


@pytest.mark.parametrize(("path", "extra"), [("gs://b/x", "gcs"), ("s3://b/x", "s3")])
def test_a_missing_backend_names_the_extra(path, extra, monkeypatch):
    def not_installed(path):
        raise ImportError("Please install it")

    monkeypatch.setattr(fsspec.core, "url_to_fs", not_installed)
    with pytest.raises(ImportError, match=rf"{path}.*pip install 'vla_jax\[{extra}\]'"):
        storage.read_file(path)


def test_an_unknown_protocol_is_named():
    with pytest.raises(ValueError, match=r"nowhere://b/x.*gs:// or s3://"):
        storage.read_file("nowhere://b/x")


def test_tables_are_kept_beside_remote_files_and_built_anew_for_other_ones(memory):
    storage.write_file("memory://b/0", b"one")
    built = []

    def load():
        def build():
            built.append(1)
            return np.arange(6).reshape(2, 3)

        return index_files.load_or_build([_facts("memory://b/0")], "test", build)

    for _ in range(2):
        np.testing.assert_array_equal(load(), np.arange(6).reshape(2, 3))
    assert len(built) == 1 and len(storage.list_files("memory://b/.index-*.npy")) == 1
    storage.write_file("memory://b/0", b"two")
    load()
    assert len(built) == 2


def test_a_damaged_table_is_built_anew(tmp_path):
    storage.write_file(tmp_path / "0", b"one")
    files = storage.file_facts([tmp_path / "0"], where="here")
    index_files.load_or_build(files, "test", lambda: np.arange(1000))
    table = next(tmp_path.glob(".index-*"))
    for size in (500, 10, 0):
        os.truncate(table, size)
        assert index_files.load_or_build(files, "test", lambda: np.arange(1000))[-1] == 999


def test_tables_by_file_go_on_where_they_were(tmp_path):
    for name in "0123":
        storage.write_file(tmp_path / name, name.encode() * 10)
    built = []

    def load(fail=""):
        def build(file):
            name = storage.read_range(file.path, 0, 1).decode()
            if name == fail:
                raise KeyboardInterrupt
            built.append(name)
            return np.full((int(name), 2), int(name), np.uint32)

        files = storage.file_facts([tmp_path / name for name in "0123"], where="here")
        return index_files.load_or_build_by_file(files, "test", build, name="web", threads=1)

    with pytest.raises(KeyboardInterrupt):
        load(fail="2")
    assert "2" not in built  # the others: those that came before it, in whatever order
    expected = [(n, n, n) for n in range(4) for _ in range(n)]
    for _ in range(2):
        table = load()
        assert table.dtype == np.uint32 and list(map(tuple, table.tolist())) == expected
    assert sorted(built) == ["0", "1", "2", "3"]
    os.utime(tmp_path / "1", ns=(1, 1))
    assert list(map(tuple, load().tolist())) == expected
    assert len(built) == 5 and built[4] == "1"


def test_others_may_read_what_is_written(tmp_path):
    before = os.umask(0o022)
    try:
        storage.write_file(tmp_path / "deep" / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "deep" / "file").stat().st_mode & 0o777 == 0o644
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["file"]


def test_a_file_is_uploaded_and_in_the_end_is_there(flaky, tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    for errors in ([], [TimeoutError("slow"), ConnectionResetError("reset")]):
        flaky.errors[:] = errors
        storage.upload_file(str(tmp_path / "file"), "flaky://b/deep/file")
        assert not flaky.errors and storage.read_file("flaky://b/deep/file") == DATA
        storage.remove_directory("flaky://b/deep")
    flaky.errors[:] = [PermissionError("not yours")]
    with pytest.raises(PermissionError):
        storage.upload_file(str(tmp_path / "file"), "flaky://b/deep/file")


def test_directories_are_removed_with_all_they_hold(tmp_path, memory):
    for place in (str(tmp_path / "d"), "memory://bucket/d"):
        for name in ("a", "deep/b"):
            storage.write_file(storage.join(place, name), b"x")
        storage.write_file(f"{place}2/c", b"x")
        storage.remove_directory(place)
        storage.remove_directory(place)
        assert not storage.exists(f"{place}/deep/b") and not storage.exists(f"{place}/a")
        assert storage.exists(f"{place}2/c")


class _Finalized:
    """Garbage that a collection runs Python code for, so that another thread may go on there."""

    def __init__(self):
        self.me = self

    def __del__(self):
        pass


def test_tables_can_be_read_in_several_threads(tmp_path):
    """Where Python 3.11.7 mixes up two threads that parse the header of a file (gh-106905)."""
    path = tmp_path / "table.npy"
    np.save(path, np.zeros((3, 4)))

    def read(_):
        for _ in range(300):
            _Finalized()
            assert index_files._load(str(path)).shape == (3, 4)

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
