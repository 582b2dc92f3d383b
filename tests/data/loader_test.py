from __future__ import annotations

import dataclasses
import io
import itertools
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
from PIL import Image

from tests.data.examples import SIZE, encoded, pixels, rows, rows_of
from vla_jax.actions.spec import end_effector_spec
from vla_jax.data.config import SourceConfig
from vla_jax.data.loader import Loader, evaluation_batches
from vla_jax.data.mixture import Mixture
from vla_jax.data.packing import Packing
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.opening import open_source
from vla_jax.data.tfds_writer import write_image_text
from vla_jax.types import Example


class ListSource:
    """A source in memory."""

    def __init__(self, name, examples, action_spec=None):
        self.name, self.examples, self.action_spec = name, examples, action_spec

    def __len__(self):
        return len(self.examples)

    def read(self, index):
        return self.examples[index]


def text_example(number: int, image=None) -> Example:
    image = encoded(number) if image is None else image
    return Example(images=(image,), prompt=f"Q: number {number}? A:", answer=f"number {number}")


@pytest.fixture(scope="module")
def sources(robot_data, web_data):
    return {
        "robot": open_source("robot", SourceConfig("episodes", str(robot_data))),
        "web": open_source("web", SourceConfig("image_text", str(web_data))),
    }


@pytest.fixture(scope="module")
def mixture(sources):
    return Mixture({"robot": 1, "web": 2}, {k: len(s) for k, s in sources.items()}, seed=4)


@pytest.fixture(scope="module")
def load(mixture, sources, builder):
    def make(steps, **options):
        loader = Loader(
            mixture, sources, builder, **{"batch_size": 8, "image_size": SIZE} | options
        )
        return list(itertools.islice(loader, steps))

    return make


def assert_same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], strict=True)


def test_batches_are_the_samples_of_the_mixture(load, mixture, sources, builder):
    for step, batch in enumerate(load(5)):
        source, record = mixture.locate(np.arange(8 * step, 8 * step + 8))
        examples = [list(sources.values())[k].read(i) for k, i in zip(source, record)]
        expected = {
            "images": np.stack([pixels(e.images[0])[None] for e in examples]),
            "source": source,
            "sample": np.arange(8 * step, 8 * step + 8, dtype=np.uint32),
            **builder.build_rows(examples),
        }
        assert_same([batch], [expected])


def test_packed_batches_are_those_samples_in_rows(load, mixture, sources, builder):
    """8 rows of 3 samples: images in slots, texts in segments; on two processes as on one."""
    packing = Packing(3, 70, 36)
    batches = load(3, packing=packing)
    for step, batch in enumerate(batches):
        numbers = np.arange(24 * step, 24 * step + 24)
        source, record = mixture.locate(numbers)
        examples = [list(sources.values())[k].read(i) for k, i in zip(source, record)]
        expected = packing.pack(builder.build_rows(examples, mixture.draws(numbers)))
        decoded = np.stack([pixels(e.images[0]) for e in examples])
        expected |= {"images": decoded.reshape(8, 3, SIZE, SIZE, 3)}
        expected |= {"source": source.reshape(8, 3), "sample": numbers.reshape(8, 3)}
        expected |= {"image_segment": np.tile([1, 2, 3], (8, 1))}
        assert batch.keys() == expected.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], expected[key])
    parts = [load(3, packing=packing, rows=rows_of(p, 2, 8)) for p in range(2)]
    joined = [
        {key: np.concatenate([part[step][key] for part in parts]) for key in batches[step]}
        for step in range(3)
    ]
    assert_same(joined, batches)


def test_each_epoch_draws_other_texts(builder):
    several = [
        dataclasses.replace(text_example(n), answer=("one", "two", "three")) for n in range(8)
    ]
    source = {"web": ListSource("web", several)}
    mixture = Mixture({"web": 1}, {"web": 8}, seed=0)

    def answers(epochs) -> list[dict[str, str]]:
        loader = Loader(mixture, source, builder, batch_size=8, image_size=SIZE)
        found = []
        for batch in itertools.islice(loader, epochs):
            asked = batch["valid"] & ~batch["in_loss"]
            texts = [
                (builder.vocabulary.decode(t[a]), builder.vocabulary.decode(t[b]))
                for t, a, b in zip(batch["tokens"], asked, batch["in_loss"])
            ]
            found.append(dict(texts))
        return found

    epochs = answers(8)
    assert all(len({epoch[f"Q: number {n}? A:"] for epoch in epochs}) > 1 for n in range(8))
    assert answers(8) == epochs
    [held_out] = evaluation_batches(source["web"], builder, batch_size=8, image_size=SIZE)
    first = [dataclasses.replace(e, answer="one") for e in several]
    np.testing.assert_array_equal(held_out["tokens"], builder.build_rows(first)["tokens"])


def test_a_loader_started_later_gives_the_same_batches(load):
    through = load(12)
    assert_same(load(4, start_step=8), through[8:])
    assert_same(load(3, start_step=1, threads=1, prefetch=1), through[1:4])


def test_a_far_step_starts_at_once(load, mixture):
    [batch] = load(1, start_step=10**11)
    np.testing.assert_array_equal(batch["source"], mixture.locate(8 * 10**11 + np.arange(8))[0])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_split_each_batch(load, processes):
    whole = load(3)
    parts = [load(3, rows=rows_of(p, processes, 8)) for p in range(processes)]
    joined = [
        {key: np.concatenate([part[step][key] for part in parts]) for key in whole[step]}
        for step in range(3)
    ]
    assert_same(joined, whole)


def test_the_state_is_the_next_step(mixture, sources, builder):
    loader = Loader(mixture, sources, builder, batch_size=4, image_size=SIZE, start_step=7)
    assert loader.step == 7
    next(loader)
    assert loader.step == 8


def test_a_closed_or_forgotten_loader_reads_no_more(mixture, sources, builder):
    reads = []

    class Counting(ListSource):
        def read(self, index):
            reads.append(index)
            return super().read(index)

    counted = {**sources, "web": Counting("web", [text_example(i) for i in range(40)])}
    loader = Loader(mixture, counted, builder, batch_size=8, image_size=SIZE)
    next(loader)
    loader.close()
    count = len(reads)
    time.sleep(0.2)
    assert len(reads) == count
    with pytest.raises(ValueError, match="the loader is closed"):
        next(loader)

    loader = Loader(mixture, counted, builder, batch_size=8, image_size=SIZE)
    gone = weakref.ref(loader)
    del loader
    assert gone() is None


def test_a_program_may_end_while_the_loader_reads_ahead(web_data):
    program = f"""
from vla_jax.data.loader import Loader
from vla_jax.data.config import SourceConfig
from vla_jax.data.mixture import Mixture
from vla_jax.data.packing import Packing
from vla_jax.data.sources.opening import open_source
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.text.vocabulary import Vocabulary

source = open_source("web", SourceConfig("image_text", {str(web_data)!r}))
builder = SequenceBuilder(Vocabulary(), None, max_tokens=48, max_answer_tokens=12)
mixture = Mixture({{"web": 1}}, {{"web": len(source)}}, seed=0)
loader = Loader(
    mixture, {{"web": source}}, builder, batch_size=256, image_size=32, prefetch=50
)
next(loader)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_evaluation_covers_every_record_once(sources, builder):
    batches = list(evaluation_batches(sources["web"], builder, batch_size=16, image_size=SIZE))
    assert len(batches) == 3
    valid = np.concatenate([b["row_valid"] for b in batches])
    record = np.concatenate([b["record"] for b in batches])
    assert valid.tolist() == [True] * 40 + [False] * 8
    assert record[valid].tolist() == list(range(40))
    for batch in batches:
        assert batch["images"].shape == (16, 1, SIZE, SIZE, 3)
        examples = [sources["web"].read(i) for i in batch["record"].tolist()]
        np.testing.assert_array_equal(batch["tokens"], builder.build_rows(examples)["tokens"])


def test_evaluation_on_a_part_is_spread_and_shared(sources, builder):
    def run(**options):
        return list(evaluation_batches(
            sources["web"], builder, batch_size=4, image_size=SIZE, limit=10, **options
        ))  # fmt: skip

    whole = run()
    assert np.concatenate([b["record"] for b in whole])[:10].tolist() == list(range(0, 40, 4))
    parts = [run(rows=rows_of(p, 2, 4)) for p in range(2)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts)]
    assert_same(joined, whole)


def test_two_views_grey_images_arrays_and_other_sizes(builder):
    array = pixels(encoded(1))
    grey = io.BytesIO()
    Image.fromarray(array[..., 0]).save(grey, "PNG")
    views = [(array, grey.getvalue()), (encoded(2, size=2 * SIZE), encoded(3, "GIF"))]
    source = ListSource("two", [Example(v, "Q: what? A:", answer="dog") for v in views])
    [batch] = evaluation_batches(source, builder, batch_size=2, image_size=SIZE)
    assert batch["images"].shape == (2, 2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(batch["images"][0, 0], array)
    np.testing.assert_array_equal(batch["images"][0, 1], np.repeat(array[..., :1], 3, 2))
    # Halving with antialiasing: a triangle filter [1, 3, 3, 1] / 8 each way, away from the border.
    large = pixels(views[1][0]).astype(float)
    kernel = np.asarray([1, 3, 3, 1]) / 8
    block = large[9:13, 19:23]
    expected = np.einsum("i,j,ijc->c", kernel, kernel, block)
    assert np.abs(batch["images"][1, 0, 5, 10] - expected).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(batch["images"][1, 1], pixels(encoded(3, "GIF")))


def failing(builder, bad: Example, **options):
    source = ListSource("web", [text_example(0), text_example(1), bad, text_example(3)])
    batches = evaluation_batches(source, builder, batch_size=2, image_size=SIZE)
    next(batches)  # the failure belongs to the second batch
    next(batches)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (text_example(2, image=b"not an image"), "'web' record 2: its image is damaged"),
        (text_example(2, image=encoded(2)[:300]), "'web' record 2: its image is damaged"),
        (
            text_example(2, image=np.zeros((4, 4), np.uint8)),
            r"'web' record 2: image of shape \(4, 4\)",
        ),
        (
            text_example(2, image=np.zeros((1, 4, 4, 3), np.uint8)),
            r"'web' record 2: image of shape \(1, 4, 4, 3\)",
        ),
        (Example((encoded(0),) * 2, "Q: a? A:", answer="a"), "'web' record 2 has 2 images, not 1"),
        (Example((encoded(0),), "Q: " + "a " * 99, answer="a"), "raise max_tokens or shorten"),
    ],
)
def test_a_bad_record_is_named(builder, bad, message):
    with pytest.raises(ValueError, match=message):
        failing(builder, bad)


def test_a_sources_exception_reaches_the_caller(builder, mixture, sources):
    class Broken(ListSource):
        def read(self, index):
            if index:
                raise OSError("web: the disk is gone")
            return super().read(index)

    broken = {**sources, "web": Broken("web", [text_example(i) for i in range(40)])}
    loader = Loader(mixture, broken, builder, batch_size=8, image_size=SIZE)
    with pytest.raises(OSError, match="web: the disk is gone"):
        next(loader)


def test_wrong_set_ups_are_refused(builder, vocabulary, mixture, sources, web_data):
    def make(mixture=mixture, sources=sources, builder=builder, **options):
        Loader(mixture, sources, builder, **{"batch_size": 8, "image_size": SIZE} | options)

    with pytest.raises(ValueError, match="are not rows of a batch of 8"):
        make(rows=np.array([7, 8]))
    with pytest.raises(ValueError, match="the sources are"):
        make(sources={"web": sources["web"]})
    with pytest.raises(ValueError, match="at least one thread, not 0"):
        make(threads=0)
    plain = SequenceBuilder(vocabulary, None, max_tokens=48, max_answer_tokens=12)
    with pytest.raises(ValueError, match="'robot' has actions"):
        make(builder=plain)
    other = end_effector_spec("other", max_position_m=1, max_rotation_rad=1, control_hz=5)
    robot = ListSource("robot", [text_example(0)], action_spec=other)
    with pytest.raises(ValueError, match="source 'robot'"):
        make(sources={**sources, "robot": robot})
    with pytest.raises(ValueError, match="no records to evaluate on"):
        next(evaluation_batches(ListSource("none", []), builder, batch_size=2, image_size=SIZE))
    with pytest.raises(FileNotFoundError, match="'web'"):
        open_source("web", SourceConfig("image_text", str(web_data / "nowhere")))
    with pytest.raises(ValueError, match="no feature 'image'"):
        open_source("web", SourceConfig("image_text", str(sources["robot"]._records.path)))


def test_empty_prompt_in_stored_data_is_named(tmp_path, builder):
    row = rows("train", 1)[0]
    with pytest.raises(ValueError, match="row 0 of split train has no prompt or no answer"):
        write_image_text(
            {"train": [{**row, "answer": ""}]}, tmp_path / "d", name="web", description=""
        )
    assert not (tmp_path / "d").exists()
