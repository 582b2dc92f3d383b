"""A run that is killed and goes on, on any number of processes, has the same samples."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vla_jax.data.config import WeightChange
from vla_jax.data.loader import Loader
from vla_jax.data.mixture import Mixture
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.types import Example

ROOT = Path(__file__).parents[2]
BATCH = 8
IMAGE = np.zeros((16, 16, 3), np.uint8)
SIZES = {"red": 90, "green": 40, "blue": 70}


class Numbers:
    """Records whose prompts say which they are."""

    action_spec = None

    def __init__(self, name: str):
        self.name = name

    def __len__(self):
        return SIZES[self.name]

    def read(self, index: int) -> Example:
        return Example((IMAGE,), f"Q: {self.name} {index}? A:", answer="yes")


SOURCES = {name: Numbers(name) for name in SIZES}
BUILDER = SequenceBuilder(Vocabulary(), None, max_tokens=24, max_answer_tokens=4)
# Five stages: two changes of weights, and where blue and green are used up.
MIXTURE = Mixture(
    {"red": 1, "green": 1, "blue": 2},
    SIZES,
    seed=3,
    groups={"warm": 1, "cold": 2},
    group_of={"red": "warm", "green": "cold", "blue": "cold"},
    changes=(WeightChange(60, groups={"warm": 3}), WeightChange(130, groups={"warm": 1})),
    epochs={"green": 2, "blue": 1},
)


def ids(start_step: int, rows: np.ndarray | None = None) -> Iterator[list]:
    """(source, record) of each row of each batch, read off its tokens."""
    record_of = {
        BUILDER.build(source.read(i))["tokens"].tobytes(): (k, i)
        for k, source in enumerate(SOURCES.values())
        for i in range(len(source))
    }
    loader = Loader(
        MIXTURE, SOURCES, BUILDER, batch_size=BATCH, image_size=16, start_step=start_step,
        rows=rows,
    )  # fmt: skip
    for step, batch in enumerate(loader, start_step + 1):
        assert loader.step == step
        yield [record_of[row.tobytes()] for row in batch["tokens"]]


def expected(start_step: int, stop_step: int) -> list[list]:
    """The same from the mixture alone."""
    source, record = MIXTURE.locate(np.arange(start_step * BATCH, stop_step * BATCH))
    pairs = list(zip(source.tolist(), record.tolist()))
    return [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_has_the_same_samples(processes):
    """Across all stages."""
    assert MIXTURE.stages[-1].start < 90 * BATCH and len(MIXTURE.stages) == 5
    shares = np.array_split(np.arange(BATCH), processes)
    parts = [list(itertools.islice(ids(0, rows), 90)) for rows in shares]
    joined = [list(itertools.chain(*rows)) for rows in zip(*parts)]
    assert joined == expected(0, 90)


def run_and_save(folder: Path, start_step: int) -> None:
    """As training does: the ids of each batch first, then the number of the next step."""
    with (folder / "ids").open("a") as file:
        for step, rows in enumerate(ids(start_step), start_step + 1):
            print(rows, file=file, flush=True)
            (folder / "next").write_text(str(step))
            (folder / "next").rename(folder / "step")


def test_a_killed_run_goes_on_with_exactly_the_samples_that_are_left(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)], cwd=ROOT, env=environment,
    )  # fmt: skip
    begun = time.monotonic()
    while not (tmp_path / "step").exists() or int((tmp_path / "step").read_text()) < 20:
        assert child.poll() is None and time.monotonic() - begun < 100
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    saved = int((tmp_path / "step").read_text())
    lines = (tmp_path / "ids").read_text().splitlines()
    assert len(lines) - saved in (0, 1)
    assert lines[:saved] == [str(rows) for rows in expected(0, saved)]
    left = expected(saved, saved + 40)
    assert list(itertools.islice(ids(saved), 40)) == left
    halves = np.split(np.arange(BATCH), 2)
    two = [list(itertools.islice(ids(saved, rows), 40)) for rows in halves]
    assert [a + b for a, b in zip(*two)] == left


def test_reading_ahead_of_the_end_of_the_data_stops_no_batch_before_it():
    mixture = Mixture({"red": 1}, {"red": 90}, 0, epochs={"red": 1})
    red = {"red": SOURCES["red"]}
    loader = Loader(mixture, red, BUILDER, batch_size=10, image_size=16, prefetch=4)
    rows = [row.tobytes() for batch in itertools.islice(loader, 9) for row in batch["tokens"]]
    assert len(set(rows)) == 90
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


if __name__ == "__main__":
    run_and_save(Path(sys.argv[1]), 0)
