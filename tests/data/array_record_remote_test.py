"""ArrayRecord files in a store, written by the format's own library, against what was written."""

from __future__ import annotations

import itertools
import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from array_record.python import array_record_module

from tests.data.examples import LENGTHS, SIZE, episodes
from vla_jax.data import storage
from vla_jax.data.config import SourceConfig
from vla_jax.data.convert import convert
from vla_jax.data.loader import Loader
from vla_jax.data.mixture import Mixture
from vla_jax.data.sources.array_records import ArrayRecords
from vla_jax.data.sources.opening import open_source
from vla_jax.data.tfds_writer import write_episodes

URL = "flaky://b/records"
OPTIONS = [
    "group_size:1,uncompressed",
    "group_size:1",  # zstd, as tensorflow_datasets writes it
    "group_size:7,brotli:3",
    "group_size:100,snappy",
    "group_size:3,transpose",
    "group_size:5,uncompressed,pad_to_block_boundary",
    "group_size:65536,zstd:1",
]
RNG = np.random.default_rng(0)
# As long as a block of the file and around it; and so many that the list of chunks has 128 KiB.
EDGES = [0, 1, 65_400, 65_471, 65_472, 65_473, 65_536, 131_072, 300_000, 7]
SIZES = {
    "edges": EDGES * 2,
    "many": RNG.integers(0, 40, 20_000).tolist(),
    "one": [123],
    "empty": [0],
}


def random_records(sizes) -> list[bytes]:
    """Every other one can be compressed."""
    return [
        RNG.integers(0, 256 if i % 2 else 3, n, np.uint8).tobytes() for i, n in enumerate(sizes)
    ]


def write(path: Path, records, options: str) -> bytes:
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for record in records:
        writer.write(record)
    writer.close()
    return path.read_bytes()


def upload(data: bytes, url: str = URL) -> None:
    fsspec.filesystem("flaky").pipe_file(url, data)


def opened(count: int, url: str = URL) -> ArrayRecords:
    return ArrayRecords(storage.file_facts([url], where="here"), [count], said_by="the test")


def fetched(flaky) -> list[int]:
    """Bytes of each request for some, which are then forgotten."""
    spans = [what[2:] for what in flaky.requests if what[0] == "cat"]
    flaky.requests.clear()
    return [end - start for start, end in spans]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_every_record_is_what_was_written(sizes, options, flaky, tmp_path):
    records = random_records(SIZES[sizes])
    upload(write(tmp_path / "file", records, options))
    remote = opened(len(records))
    few = RNG.permutation(len(records))[:100].tolist()
    for index in {0, len(records) - 1, *few}:
        assert remote.read(0, index) == records[index]


def test_a_file_without_records_is_opened(flaky, tmp_path):
    upload(write(tmp_path / "none", [], "group_size:1"), "flaky://b/none")
    upload(write(tmp_path / "one", [b"it"], "group_size:1"), "flaky://b/one")
    files = storage.file_facts(["flaky://b/none", "flaky://b/one"], where="here")
    assert ArrayRecords(files, [0, 1], said_by="the test").read(1, 0) == b"it"
    for read, said in ((0, 1), (1, 2)):
        with pytest.raises(ValueError, match=f"{read} records can be read, the test says {said}: "):
            ArrayRecords(files, [said, said], said_by="the test").read(read, 0)


def test_threads_read_many_files_at_once(flaky, tmp_path):
    sizes = RNG.integers(0, 100_000, 20).tolist()
    files = [random_records(sizes) for _ in range(4)]
    for number, records in enumerate(files):
        upload(write(tmp_path / "file", records, OPTIONS[number]), f"{URL}-{number}")
    facts = storage.file_facts([f"{URL}-{number}" for number in range(4)], where="here")
    remote = ArrayRecords(facts, [20] * 4, said_by="the test")
    places = RNG.integers(0, (4, 20), (400, 2)).tolist()
    with ThreadPoolExecutor(8) as pool:
        for (file, number), found in zip(places, pool.map(lambda at: remote.read(*at), places)):
            assert found == files[file][number]


def test_a_record_costs_its_own_bytes(flaky, tmp_path):
    records = random_records([20_000] * 200 + [200_000] * 10)
    data = write(tmp_path / "file", records, "group_size:1,uncompressed")
    upload(data)
    remote = opened(len(records))
    order = RNG.permutation(len(records)).tolist()
    remote.read(0, order[0])
    first, second = fetched(flaky)
    assert first <= 2**17 and second < 20_100 and len(data) > 5_000_000
    for index in order[1:]:
        assert remote.read(0, index) == records[index]
        [size] = fetched(flaky)
        # Header and sizes of the chunk, and headers of the blocks that it lies in.
        assert len(records[index]) < size < len(records[index]) + 50 + 24 * (1 + size // 65_536)


@pytest.mark.parametrize("group", [1, 3])
def test_nothing_is_left_of_what_was_read(group, flaky, tmp_path):
    records = random_records([2_000_000] * 20)
    upload(write(tmp_path / "file", records, f"group_size:{group},uncompressed"))
    remote = opened(len(records))
    for index, record in enumerate(records):
        assert remote.read(0, index) == record
        assert os.path.getsize(remote._stand_in._file.name) == 0
    assert remote._chunks.num_bytes == 0 if group == 1 else 6e6 < remote._chunks.num_bytes < 17e6
    local = Path(remote._stand_in._file.name)
    del remote
    assert not local.exists()


def test_a_group_is_fetched_once_when_it_is_read_in_order(flaky, tmp_path):
    records = random_records([1000] * 100)
    upload(write(tmp_path / "file", records, "group_size:25,uncompressed"))
    remote = opened(100)
    assert [remote.read(0, index) for index in range(100)] == records
    assert len(fetched(flaky)) == 1 + 4


def test_a_long_list_of_chunks_is_a_second_request(flaky, tmp_path):
    records = random_records(SIZES["many"])
    upload(write(tmp_path / "file", records, "group_size:1,uncompressed"))
    opened(len(records)).read(0, 5)
    tail, rest, record = fetched(flaky)
    assert tail == 2**17 and rest + tail < 20 * len(records) and record < 150


@pytest.mark.parametrize("place", ["local", "remote"])
def test_more_files_than_a_process_may_open(place, flaky, tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (12, limits[1]))
    for number in range(9):
        upload(
            write(tmp_path / str(number), [b"%d" % number, b"x"], "group_size:1"), f"{URL}-{number}"
        )
    urls = [str(tmp_path / str(n)) if place == "local" else f"{URL}-{n}" for n in range(9)]
    files = ArrayRecords(storage.file_facts(urls, where="here"), [2] * 9, said_by="the test")
    before, free = len(os.listdir("/dev/fd")), os.dup(0)
    os.close(free)  # the least number that is not in use; greater ones may be
    for _ in range(2):
        assert [files.read(number, 0) for number in range(9)] == [b"%d" % n for n in range(9)]
        assert len(os.listdir("/dev/fd")) == before + 3
    # The list of the chunks once, the record twice.
    assert len(fetched(flaky)) == (3 * 9 if place == "remote" else 0)
    # What the system says is told, where it is not the file's fault.
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        with pytest.raises(RuntimeError, match="Too many open files"):
            files.read(0, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert files.read(0, 0) == b"0"


def test_requests_that_fail_are_made_again(flaky, tmp_path):
    records = random_records([1000] * 20)
    upload(write(tmp_path / "file", records, "group_size:1"))
    remote = opened(20)
    for index, record in enumerate(records):
        flaky.errors[:] = [TimeoutError("slow"), ConnectionResetError("reset")]
        assert remote.read(0, index) == record
        assert not flaky.errors
    flaky.errors[:] = [TimeoutError("slow")] * 100
    with pytest.raises(OSError, match=f"{URL}: gave up after 8 tries: TimeoutError: slow"):
        remote.read(0, 3)
    flaky.errors.clear()
    assert remote.read(0, 3) == records[3]
    fsspec.filesystem("flaky").rm_file(URL)
    with pytest.raises(FileNotFoundError):
        remote.read(0, 3)


def _outcome(count: int) -> list[bytes | None]:
    """Each record of the file; None where it is an error of the kinds that a source names."""
    remote, found = opened(count), []
    for index in range(count):
        try:
            found.append(remote.read(0, index))
        except (ValueError, EOFError, RuntimeError):
            found.append(None)
    return found


@pytest.mark.parametrize("options", ["group_size:1,uncompressed", "group_size:2", "group_size:1"])
def test_no_damaged_byte_gives_a_wrong_record(options, flaky, tmp_path):
    records = random_records([3000, 100_000, 0, 40, 5000, 70_000])
    data = write(tmp_path / "file", records, options)
    used = np.flatnonzero(np.frombuffer(data, np.uint8))
    lost = []
    for at in RNG.choice(used, 60).tolist() + used[-200::4].tolist() + used[:64:8].tolist():
        damaged = bytearray(data)
        damaged[at] ^= int(RNG.integers(1, 256))
        upload(bytes(damaged))
        found = _outcome(len(records))
        assert all(a in (b, None) for a, b in zip(found, records)), at
        lost.append(sum(a is None for a in found))
    # What is in one chunk takes no others with it; all are lost with the list of chunks.
    assert {1 if "1" in options else 2, len(records)} <= set(lost)


def test_no_cut_file_gives_a_wrong_record(flaky, tmp_path):
    records = random_records([3000, 100_000, 0, 40, 5000, 70_000])
    data = write(tmp_path / "file", records, "group_size:1")
    for size in [
        0,
        1,
        64,
        65_536,
        len(data) - 65_536,
        len(data) - 1,
        *RNG.integers(0, len(data), 9),
    ]:
        upload(data[: int(size)])
        with pytest.raises(ValueError, match=r"0 records can be read \(.*\), the test says 6: the"):
            opened(6).read(0, 0)
    for other in (bytes(len(data)), RNG.bytes(200_000)):
        upload(other)
        assert _outcome(6) == [None] * 6


@pytest.fixture(scope="module")
def robot(spec, tmp_path_factory) -> Path:
    """RLDS, its records in ArrayRecord files."""
    path = tmp_path_factory.mktemp("rlds") / "1.0.0"
    write_episodes(
        episodes(), path, spec, name="r", description="", test_every=5, file_format="array_record"
    )
    return path


@pytest.fixture(scope="module")
def converted(robot, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("converted")
    convert("r", SourceConfig("episodes", str(robot)), path, shards=3)
    return path


def copied(directory: Path, url: str) -> str:
    for file in directory.rglob("*"):
        if file.is_file():
            upload(file.read_bytes(), f"{url}/{file.relative_to(directory)}")
    return url


def same(one, other) -> None:
    assert one.images == other.images and one.prompt == other.prompt
    np.testing.assert_array_equal(one.action, other.action, strict=True)
    np.testing.assert_array_equal(one.action_valid, other.action_valid)


def test_converted_data_in_a_store_equal_those_on_disk(converted, flaky):
    url = copied(converted, "flaky://b/converted")
    for options in ({}, {"chunk": 3, "frames": 2}):
        remote = open_source("r", SourceConfig("array_record", url), **options)
        local = open_source("r", SourceConfig("array_record", str(converted)), **options)
        assert len(remote) == len(local) == sum(LENGTHS[:4])
        assert remote.metadata == local.metadata and remote.action_spec == local.action_spec
        for index in RNG.permutation(len(local)).tolist():
            same(remote.read(index), local.read(index))
        for number in range(4):
            mine, theirs = remote.track(number), local.track(number)
            assert (mine.first, mine.instructions) == (theirs.first, theirs.instructions)
            np.testing.assert_array_equal(mine.actions, theirs.actions, strict=True)


def test_faults_of_converted_data_in_a_store_are_named(converted, flaky):
    url = copied(converted, "flaky://b/converted")
    system, config = fsspec.filesystem("flaky"), SourceConfig("array_record", url)
    shard = f"{url}/train/records-00001-of-00003.array_record"
    whole = system.cat_file(shard)
    image = open_source("r", SourceConfig("array_record", str(converted))).read(LENGTHS[0])
    at = whole.index(image.images[0]) + len(image.images[0]) - 9
    upload(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], shard)
    source = open_source("r", config)
    source.read(LENGTHS[0] + 1)
    with pytest.raises(ValueError, match=rf"'r', {shard} record 0 cannot be read: .*hash mismatch"):
        source.read(LENGTHS[0])
    upload(whole[:-1], shard)
    with pytest.raises(ValueError, match=rf"{shard} has {len(whole) - 1} bytes, metadata\.json sa"):
        open_source("r", config)
    upload(whole, shard)
    source = open_source("r", config)
    flaky.errors[:] = [TimeoutError("slow")] * 100
    with pytest.raises(ValueError, match=rf"{shard} record 0 cannot be read: .*gave up after 8"):
        source.read(LENGTHS[0])
    flaky.errors.clear()
    system.rm_file(shard)
    with pytest.raises(ValueError, match=rf"{shard} record 0 cannot be read"):
        source.read(LENGTHS[0])
    with pytest.raises(FileNotFoundError, match=rf"1 of 3 files are missing, e\.g\. {shard}"):
        open_source("r", config)
    upload(whole, shard)
    steps = system.cat_file(f"{url}/train/steps.npy")
    for damaged in (steps[:-1], steps[:50], b""):
        upload(damaged, f"{url}/train/steps.npy")
        with pytest.raises(ValueError, match=rf"{url}/train.*steps\.npy or episodes\.npy is miss"):
            open_source("r", config)
    system.rm_file(f"{url}/train/steps.npy")
    with pytest.raises(ValueError, match=rf"{url}/train.*steps\.npy or episodes\.npy is missing"):
        open_source("r", config)
    system.rm_file(f"{url}/train/metadata.json")
    with pytest.raises(FileNotFoundError, match=r"flaky://b/converted/train\): no metadata\.json"):
        open_source("r", config)
    upload(b"{}", f"{url}/train/unfinished/plan.json")
    with pytest.raises(ValueError, match=r"flaky://b/converted/train\): its conversion is not fin"):
        open_source("r", config)


def batches(path: str, builder, **options):
    source = open_source("r", SourceConfig("array_record", path))
    mixture = Mixture({"r": 1}, {"r": len(source)}, seed=3)
    loader = Loader(mixture, {"r": source}, builder, batch_size=4, image_size=SIZE, **options)
    found = list(itertools.islice(loader, 9))
    loader.close()
    return found, loader.bad_records


def test_the_loader_gives_the_same_batches(converted, builder, flaky):
    url = copied(converted, "flaky://b/converted")
    expected, _ = batches(str(converted), builder)
    for readers in (1, 4):
        flaky.errors[:] = [TimeoutError("slow"), ConnectionResetError("reset")] * 3
        found, bad = batches(url, builder, readers=readers)
        assert not flaky.errors and bad == 0
        for a, b in zip(found, expected, strict=True):
            assert a.keys() == b.keys()
            for key in a:
                np.testing.assert_array_equal(a[key], b[key], strict=True)


def test_a_conversion_from_a_store_to_a_store_is_that_on_disk(robot, converted, flaky):
    url = copied(robot, "flaky://b/r/1.0.0")
    convert("r", SourceConfig("episodes", url), "flaky://b/out", shards=3)
    system = fsspec.filesystem("flaky")
    for file in (converted / "train").iterdir():
        stored = system.cat_file(f"flaky://b/out/train/{file.name}")
        if file.name == "metadata.json":
            assert json.loads(stored)["digest"] == json.loads(file.read_bytes())["digest"]
        else:
            assert stored == file.read_bytes()
