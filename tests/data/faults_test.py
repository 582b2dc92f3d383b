"""Records that cannot be used: named, counted, replaced up to a number, then fatal."""

from __future__ import annotations

import itertools
import json
import shutil

import fsspec
import numpy as np
import pytest

from tests.data.examples import SIZE, encoded, pixels, rows_of
from vla_jax.data.config import SourceConfig
from vla_jax.data.loader import Loader
from vla_jax.data.mixture import Mixture
from vla_jax.data.sources.jsonl import JsonlSource
from vla_jax.data.sources.opening import open_source
from vla_jax.types import Example

COUNT = 12


class Texts:
    """A source in memory; `broken` says what becomes of some records."""

    name, action_spec = "web", None

    def __init__(self, broken):
        self.broken = broken

    def __len__(self):
        return COUNT

    def read(self, index):
        fault = self.broken.get(index)
        if isinstance(fault, Exception):
            raise fault
        return fault or Example((encoded(index),), f"Q: {index}? A:", answer=f"number {index}")


FAULTS = {
    "not read": (OSError("the disk is gone"), "the disk is gone"),
    "malformed": (ValueError("not a record"), "not a record"),
    "no image": (Example((b"text",), "Q: a? A:", answer="a"), "its image is damaged"),
    "cut image": (Example((encoded(1)[:200],), "Q: a? A:", answer="a"), "its image is damaged"),
    "two images": (Example((encoded(1),) * 2, "Q: a? A:", answer="a"), "has 2 images, not 1"),
    "shape": (Example((np.zeros((4, 4), np.uint8),), "Q: a? A:", answer="a"), r"shape \(4, 4\)"),
    "long prompt": (Example((encoded(1),), "Q: " + "a " * 99, answer="a"), "raise max_tokens"),
    "no answer": (Example((encoded(1),), "Q: a? A:"), "neither action nor answer"),
}


def run(source, builder, steps=9, **options):
    mixture = Mixture({source.name: 1}, {source.name: len(source)}, seed=3)
    loader = Loader(
        mixture, {source.name: source}, builder, **{"batch_size": 4, "image_size": SIZE} | options
    )
    batches = list(itertools.islice(loader, steps))
    loader.close()
    return mixture, batches, loader.bad_records


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_record_is_named_and_replaced_by_the_next(fault, builder, capsys):
    broken, message = FAULTS[fault]
    source = Texts({5: broken})
    with pytest.raises(
        type(broken) if isinstance(broken, Exception) else ValueError, match=message
    ):
        run(source, builder)
    mixture, batches, bad = run(source, builder, max_bad_records=1)
    # Three epochs: it is replaced in each, and counted once.
    assert bad == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "replaced" in line]
    assert len(told) == 1 and "source 'web' record 5 (1 of at most 1)" in told[0]
    _, record = mixture.locate(np.arange(36))
    assert (record == 5).sum() == 3
    examples = [source.read(6 if i == 5 else i) for i in record.tolist()]
    for number, batch in enumerate(batches):
        part = examples[4 * number : 4 * number + 4]
        np.testing.assert_array_equal(batch["images"][:, 0], [pixels(e.images[0]) for e in part])
        np.testing.assert_array_equal(batch["tokens"], builder.build_rows(part)["tokens"])


def test_one_more_than_allowed_ends_the_run(builder):
    broken = {3: OSError("gone"), 4: ValueError("empty"), 9: FAULTS["cut image"][0]}
    *_, bad = run(Texts(broken), builder, max_bad_records=3)
    assert bad == 3
    with pytest.raises(
        (ValueError, OSError), match=r"3 bad records; data.max_bad_records allows 2"
    ):
        run(Texts(broken), builder, max_bad_records=2)


def test_nothing_left_is_an_error(builder):
    broken = {i: OSError("gone") for i in range(COUNT)}
    with pytest.raises(ValueError, match="source 'web' has no record that can be used"):
        run(Texts(broken), builder, max_bad_records=COUNT)


def test_processes_replace_the_same_samples(builder):
    source = Texts({5: OSError("gone"), 6: FAULTS["cut image"][0], 0: FAULTS["long prompt"][0]})
    _, whole, _ = run(source, builder, max_bad_records=3)
    halves = [run(source, builder, max_bad_records=3, rows=rows_of(p, 2, 4))[1] for p in range(2)]
    for number, batch in enumerate(whole):
        for key in batch:
            joined = np.concatenate([half[number][key] for half in halves])
            np.testing.assert_array_equal(joined, batch[key])


def test_readers_that_wait_change_nothing(builder):
    source = Texts({5: OSError("gone")})
    _, one, _ = run(source, builder, max_bad_records=1)
    _, many, _ = run(source, builder, max_bad_records=1, readers=4)
    for a, b in zip(one, many):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_an_exception_that_is_no_bad_record_names_its_source(builder):
    """A mistake in the program of a source is not skipped."""
    with pytest.raises(KeyError, match="while reading source 'web' record 5"):
        run(Texts({5: KeyError("prefix")}), builder, max_bad_records=5)


@pytest.mark.parametrize("robot_data", ["tfrecord"], indirect=True)
def test_a_file_cut_off_or_gone_while_it_is_read(robot_data, builder, tmp_path):
    copy = shutil.copytree(robot_data, tmp_path / "copy")
    source = open_source("robot", SourceConfig("episodes", str(copy)))
    file = next(copy.glob("*train*"))
    whole = file.read_bytes()
    offset, length = source._index.images[12, 0].tolist()
    end = source._records._shards._spans[3, 0] + offset + length
    file.write_bytes(whole[: end - 1])  # the last image lacks its last byte
    with pytest.raises(ValueError, match=rf"{file} record 3 cannot be read: .*ends 1 bytes before"):
        run(source, builder, steps=4)
    *_, bad = run(source, builder, steps=8, max_bad_records=1)
    assert bad == 1
    file.unlink()
    with pytest.raises(
        ValueError, match=rf"'robot', {file} record . cannot be read: .*No such file"
    ):
        run(source, builder, steps=4, max_bad_records=1)


def test_a_store_that_fails_now_and_then_is_asked_again(flaky, builder, capsys):
    system = fsspec.filesystem("flaky")
    lines = [
        json.dumps({"image": f"{i}.png", "prefix": f"say {i}", "suffix": f"number {i}"})
        for i in range(COUNT)
    ]
    for i in range(COUNT):
        system.pipe_file(f"flaky://data/{i}.png", encoded(i))
    system.pipe_file("flaky://data/all.jsonl", "\n".join(lines).encode())
    source = JsonlSource("web", "flaky://data/all.jsonl")
    _, expected, _ = run(source, builder)
    flaky.errors.extend([TimeoutError("slow"), ConnectionResetError("reset")] * 3)
    _, batches, bad = run(source, builder)
    assert not flaky.errors and len(flaky.pauses) >= 3
    assert bad == 0
    for a, b in zip(expected, batches):
        np.testing.assert_array_equal(a["images"], b["images"])
    # One that is gone for good is a bad record.
    system.rm_file("flaky://data/7.png")
    with pytest.raises(ValueError, match=r"line 8 .*its image flaky://data/7.png is not there"):
        run(source, builder)
    assert run(source, builder, max_bad_records=1)[2] == 1
