"""Where the time of a run went, against sums by hand; with a kill and a resume."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from vla_jax.training.goodput import TimeBook, process_start, read_goodput


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self, now: float):
        self.now = now

    def __call__(self) -> float:
        return self.now

    def book(self, book: TimeBook, **seconds: float) -> None:
        for reason, passed in seconds.items():
            self.now += passed
            assert book.lap(reason.replace("_", " ")) == pytest.approx(passed)


def test_a_killed_and_resumed_run_adds_up_to_its_wall_time(tmp_path):
    clock = Clock(1000.0)
    book = TimeBook(began=990.0, clock=clock)  # 10 s of imports
    book.lap("start-up/imports")
    book.open(tmp_path)
    clock.now += 5
    book.lap("start-up/compile")
    assert book.start_up == {"imports": 10.0, "compile": 5.0}
    book.resume(0)
    clock.book(book, steps=20, input_wait=4)
    book.record(10)
    clock.book(book, steps=18, saving=2)  # saved at 15
    book.record(20)
    assert book.goodput() == pytest.approx(38 / 59)
    clock.book(book, steps=7)  # and killed: these are not written down

    with (tmp_path / "goodput.jsonl").open("a") as file:
        file.write('{"time": 12')  # as the kill left it
    clock.now += 93  # 100 s after its last record
    book = TimeBook(began=clock.now, clock=clock)
    clock.now += 8
    book.lap("start-up/imports")
    book.open(tmp_path)
    book.resume(15)  # updates 16 to 20 are done again: half of 18 s
    clock.book(book, steps=12)
    book.record(21)
    want = {
        "start-up/imports": 18.0,
        "start-up/compile": 5.0,
        "steps": 20 + 9 + 12.0,
        "repeated steps": 9.0,
        "input wait": 4.0,
        "saving": 2.0,
        "stopped": 100.0,
    }
    assert read_goodput(tmp_path) == pytest.approx(want)
    assert sum(want.values()) == clock.now - 990
    assert book.seconds() == pytest.approx(want)
    assert book.goodput() == pytest.approx(41 / 179)


def test_updates_that_are_rolled_back_count_once(tmp_path):
    clock = Clock(0.0)
    book = TimeBook(clock=clock)
    book.open(tmp_path)
    book.resume(0)
    for step in (10, 20, 30):
        clock.book(book, steps=10)
        book.record(step)
    book.resume(5)  # the first record's half, and the two after it
    clock.book(book, steps=5)
    book.record(10)
    book.resume(8)  # 2 of the 5 updates of 5 s
    assert book.seconds() == pytest.approx({"steps": 8.0, "repeated steps": 27.0})


def test_only_one_process_of_a_job_writes(tmp_path):
    book = TimeBook(clock=Clock(0.0))
    book.open(tmp_path, active=False)
    book.resume(0)
    book.record(1)
    assert not list(tmp_path.iterdir()) and read_goodput(tmp_path) == {}


def test_a_clock_that_is_set_back_books_nothing():
    clock = Clock(100.0)
    book = TimeBook(clock=clock)
    clock.now = 50.0
    assert book.lap("steps") == 0
    clock.book(book, steps=3)
    assert book.seconds() == {"steps": 3}


def test_a_process_knows_when_it_began():
    program = (
        "import time; time.sleep(0.5);"
        "from vla_jax.training.goodput import process_start; print(process_start())"
    )
    before = time.time()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    # To a tick of the kernel's clock; nearer to the start than to the end.
    assert -0.05 < float(done.stdout) - before < 0.45, done.stderr
    assert process_start() < before
