"""What is seen of a run: the line, rates, alarms, profiles, recompilation, Weights & Biases."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.data.examples import encoded
from tests.training.mixture_in_runs_test import step_metrics, with_data
from tests.training.training_test import make_config
from vla_jax.build import build_training
from vla_jax.data.config import WeightChange
from vla_jax.data.loader import Loader
from vla_jax.data.mixture import Mixture
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.models.presets import ModelConfig
from vla_jax.sharding.mesh import to_global
from vla_jax.text.vocabulary import Vocabulary
from vla_jax.train import train
from vla_jax.training import input_alarm
from vla_jax.training.compile_once import CompileOnce
from vla_jax.training.flops import (
    StepWork,
    peak_flops_per_s,
    step_work,
    train_flops_per_sample,
)
from vla_jax.training.goodput import read_goodput
from vla_jax.training.input_alarm import InputAlarm
from vla_jax.training.metrics import MetricWriter, read_events, read_metrics
from vla_jax.training.monitor import Monitor, WatchConfig
from vla_jax.training.optimizer import make_schedule
from vla_jax.training.profiler import Profiler
from vla_jax.training.progress import COLUMNS, duration, progress_line, start_up_line
from vla_jax.training.step import make_train_step
from vla_jax.training.window import Window
from vla_jax.types import Example

TWO = Mixture({"robot": 2, "web": 1}, {"robot": 90, "web": 90}, seed=0)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rates_and_the_time_to_go_are_those_of_the_last_windows():
    clock, work = Clock(), StepWork(positions=500, flops=3e12, peak_flops_per_s=8e12)
    window = Window(TWO, 16, work, clock)
    assert window.eta_s(10) is None
    clock.now = 100.0  # a compilation
    window.forget()
    step = 0
    # Six windows of 2 steps; the pace of the last five counts, with what came between steps.
    for seconds in (50, 4, 4, 4, 4, 8):
        for _ in range(2):
            window.add(step_metrics(TWO, step, np.asarray([9, 2])))
            window.waited_s += 0.5
            window.transfer_s += 0.25
            step += 1
        clock.now += seconds
        scalars, eta = window.scalars(step), window.eta_s(30)
        window.reset()
    assert eta == 30 * 24 / 10
    assert scalars["speed/steps_per_s"] == 2 / 8
    assert scalars["speed/samples_per_s"] == 32 / 8
    # `step_metrics` says that all positions are used, twice over.
    assert scalars["speed/tokens_per_s"] == 2 * 500 * 2 / 8
    assert scalars["speed/model_flops_per_s"] == 3e12 * 2 / 8
    assert scalars["speed/mfu"] == pytest.approx(0.75 / 8)
    assert scalars["speed/input_wait_share"] == 1 / 8
    assert scalars["speed/transfer_share"] == 0.5 / 8


def test_peaks_are_those_of_the_kind_of_device():
    kinds = {
        "TPU v4": 275,
        "TPU v5 lite": 197,
        "TPU v5": 459,
        "TPU v5p": 459,
        "TPU v6 lite": 918,
        "TPU7x": 2307 / 2,
        "NVIDIA A100-SXM4-80GB": 311.9,
        "NVIDIA H100 80GB HBM3": 989.4,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989.4,
        "NVIDIA B200": 2250,
    }
    found = {kind: peak_flops_per_s(kind) for kind in kinds}
    assert found == {kind: tera * 1e12 for kind, tera in kinds.items()}
    assert peak_flops_per_s("cpu") is None


def test_work_of_an_update_counts_every_row():
    model = ModelConfig(preset="tiny", image_size=28, num_views=2)
    work = step_work(model, (40, 10), 8, samples_per_row=3)
    patches = (28 // 14) ** 2
    assert work.positions == 8 * (3 * 2 * patches + 40)
    assert work.flops == pytest.approx(24 * train_flops_per_sample(model, 40, 10, samples=3))
    assert work.peak_flops_per_s is None


def scalars_of(mixture: Mixture, **more: float) -> dict[str, float]:
    scalars = {"loss": 1.25, "speed/samples_per_s": 1234.5, "speed/input_wait_share": 0.034}
    for number, name in enumerate(mixture.names):
        scalars |= {
            f"{name}/loss": number + 0.5,
            f"{name}/token_accuracy": 0.875,
            f"{name}/share_of_samples": 0.497,
            f"{name}/share_of_tokens": 0.75,
            f"{name}/share_configured": 0.5,
        }
    return scalars | more


def test_progress_line_says_all_in_one_line():
    more = {"speed/tokens_per_s": 45_678.0, "speed/model_flops_per_s": 2e12}
    line = progress_line(20, 400, scalars_of(TWO, **more), TWO, 3725.0)
    assert line == (
        "step 20/400  loss 1.250  robot 0.500 acc 0.88 49.7/50.0%  web 1.500 acc 0.88 49.7/50.0%"
        " | 1,234 samples/s  45.7k tok/s  2,000 GFLOP/s  wait 3%  ETA 1h02m"
    )
    more |= {"speed/mfu": 0.4567, "memory/peak_gib": 61.25}
    line = progress_line(20, 400, scalars_of(TWO, **more), TWO)
    assert line.endswith("45.7k tok/s  MFU 45.7%  wait 3%  mem 61.2 GiB")
    tokens = {"robot": 9.0, "web": 3.0}
    in_tokens = Mixture({"robot": 2, "web": 1}, {"robot": 9, "web": 9}, 0, loss_tokens=tokens)
    assert "75.0/50.0%" in progress_line(20, 400, scalars_of(in_tokens), in_tokens)
    names = [f"data_set_{n}" for n in range(40)]
    many = Mixture(dict.fromkeys(names, 1.0), dict.fromkeys(names, 9), seed=0)
    line = progress_line(123_456, 1_000_000, scalars_of(many, **more), many, 1e6)
    assert len(line) <= COLUMNS and "data_set_0 " in line and " more | " in line
    assert line.endswith("ETA 11d13h")
    assert start_up_line({"imports": 6.14, "compile": 20.0}) == (
        "start-up 26.1 s: imports 6.1, compile 20.0"
    )
    assert [duration(s) for s in (4.4, 59.6, 3599, 86_399)] == ["4 s", "1m00s", "59m59s", "23h59m"]


class SlowSource:
    """Records in memory; reading one takes a while."""

    name, action_spec = "web", None

    def __init__(self, image: bytes, seconds: float):
        self._image, self._seconds = image, seconds

    def __len__(self) -> int:
        return 9

    def read(self, index: int) -> Example:
        time.sleep(self._seconds)
        return Example(images=(self._image,), prompt=f"Q: {index}? A:", answer="a dog")


class SlowBuilder(SequenceBuilder):
    def build_rows(self, *args, **kwargs):
        time.sleep(0.1)
        return super().build_rows(*args, **kwargs)


@pytest.mark.parametrize("slow", ["reading", "tokenizing", "decoding"])
def test_the_alarm_names_the_stage_that_is_slow(slow):
    kind = SlowBuilder if slow == "tokenizing" else SequenceBuilder
    builder = kind(Vocabulary(), [], max_tokens=48, max_answer_tokens=12)
    image = encoded(0, size=900 if slow == "decoding" else 16)
    source = SlowSource(image, 0.02 if slow == "reading" else 0.0)
    mixture = Mixture({"web": 1}, {"web": 9}, seed=0)
    loader = Loader(mixture, {"web": source}, builder, batch_size=8, image_size=16)
    alarm = InputAlarm(0.1, loader.stage_seconds, least_s=0)
    begun = time.perf_counter()
    for _ in range(4):
        batch = next(loader)
    waited = time.perf_counter() - begun
    assert not [name for name in batch if "second" in name or name.endswith("_s")]
    seconds = loader.stage_seconds()
    if slow == "reading":
        assert seconds["reading"] >= 4 * 8 * 0.02
    if slow == "tokenizing":
        assert seconds["tokenizing"] >= 4 * 0.1
    line = alarm.check(waited, 0.0, waited)
    loader.close()
    assert line is not None and f"wait 100% of the time; {slow} is the slow stage" in line


def test_an_alarm_is_told_once_and_again_after_a_quiet_window(monkeypatch):
    seconds = {"reading": 0.0, "tokenizing": 0.0, "decoding": 0.0}
    alarm = InputAlarm(0.1, lambda: seconds, least_s=4.0)
    seconds["decoding"] = 3.0
    assert alarm.check(1.0, 0.0, 2.0) is None  # too short yet
    line = alarm.check(0.5, 0.0, 2.0)
    assert line is not None and "wait 38% of the time; decoding is the slow" in line
    assert alarm.check(4.0, 0.0, 4.0) is not None  # another stage: nothing was at work
    seconds["decoding"] += 9
    assert alarm.check(4.0, 0.0, 4.0) is not None
    seconds["decoding"] += 9
    assert alarm.check(4.0, 0.0, 4.0) is None
    assert alarm.check(0.1, 0.2, 4.0) is None  # 8%: below the threshold
    line = alarm.check(0.5, 1.5, 4.0)
    assert line is not None and "transfer is the slow stage" in line
    # Of several processes, the one that waits longest is named.
    monkeypatch.setattr(input_alarm.jax, "process_count", lambda: 2)
    other = np.asarray([5.0, 4.0, 3.5, 0.0, 0.5, 0.0])
    monkeypatch.setattr(
        input_alarm.multihost_utils, "process_allgather", lambda mine: np.stack([mine, other])
    )
    line = alarm.check(0.0, 0.0, 5.0)
    assert line is not None and "wait 80% of the time on process 1; reading is the" in line


def test_a_second_compilation_names_what_changed():
    step = jax.jit(lambda state, batch: state + batch["tokens"].sum())
    compiled = CompileOnce(step)

    def run(**batch) -> str | None:
        step(jnp.zeros(()), batch)
        return compiled.check(batch)

    tokens = jnp.zeros((4, 8), jnp.int32)
    assert run(tokens=tokens) is None
    assert run(tokens=tokens + 1) is None
    line = run(tokens=tokens[:, :7])
    assert line is not None and "compiled again (2 times now)" in line
    assert "tokens is int32[4, 7]" in line and "was int32[4, 8]" in line
    line = run(tokens=tokens, state=jnp.zeros(4))
    assert line is not None and "state is float32[4]" in line and "was not there" in line
    assert run(tokens=tokens[:, :7]) is None  # compiled before


def test_mixtures_that_change_do_not_compile_again(data_sets):
    """Other weights, a source that is used up, other texts: one program all the same."""
    config = with_data(
        make_config(data_sets, train__steps=12),
        web={"epochs": 1},
        weight_changes=(WeightChange(24, sources={"web": 6.0}),),
    )
    run = build_training(config)
    step = make_train_step(run.optimizer, run.shardings, run.mesh, run.loss_fn)
    state, loader, web = run.fresh_state(), run.loader(0), []
    for batch in (next(loader) for _ in range(12)):
        web.append(int(batch["source"].sum()))
        state, _ = step(state, to_global(batch, run.mesh, 8))
        assert step._cache_size() == 1
    loader.close()
    # A third, then three quarters, then none: 25 records in all.
    assert sum(web) == 25 and sum(web[:3]) == 8 and web[3] == 6 and web[-3:] == [0, 0, 0]
    assert len({*web}) > 3 and len(run.mixture.stages) == 3


def test_profile_on_demand(tmp_path):
    told, step = [], jax.jit(lambda x: x @ x)
    (tmp_path / "profile_now").write_text("")  # left over from another run: asks for nothing
    profiler = Profiler(tmp_path, (), told.append, poll_s=0.0)
    x = jnp.ones((8, 8))

    def update(number: int) -> None:
        profiler.before(number)
        x.block_until_ready()
        profiler.after(number, step(x))

    update(1)
    assert not told
    time.sleep(0.01)  # another time of change
    (tmp_path / "profile_now").write_text("2")
    update(2)
    assert profiler.recording and not told
    update(3)
    assert told == [f"profile written to {tmp_path}/profile/2"] and not profiler.recording
    assert [p.stat().st_size > 0 for p in tmp_path.glob("profile/2/**/*.xplane.pb")] == [True]
    update(4)
    # What cannot be written is told, and updates go on.
    (tmp_path / "profile" / "5").write_text("a file")
    time.sleep(0.01)
    (tmp_path / "profile_now").write_text("1")
    update(5)
    assert len(told) == 2 and told[1].startswith("no profile could be begun in")
    (tmp_path / "profile" / "5").unlink()
    time.sleep(0.01)
    (tmp_path / "profile_now").write_text("1 all")
    update(6)
    assert told[2:] == [f"profile written to {tmp_path}/profile/6"]


@pytest.mark.parametrize("steps", [(0, 3), (5, 4), (5,)])
def test_bad_settings_are_refused(steps):
    with pytest.raises(ValueError, match=r"train\.watch\.profile_steps"):
        WatchConfig(profile_steps=steps)
    with pytest.raises(ValueError, match=r"train\.watch\.input_alarm 0 "):
        WatchConfig(input_alarm=0)


def test_a_run_and_its_resumption_are_seen_whole(data_sets, tmp_path, capsys):
    def config(steps: int):
        return make_config(
            data_sets, train__steps=steps, train__log_every=2, train__checkpoint_every=4,
            train__watch=WatchConfig(profile_steps=(3, 4)),
        )  # fmt: skip

    train(config(5), str(tmp_path))
    train(config(6), str(tmp_path))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert "step 1: start-up " in lines[0] and "parameters " in lines[0]
    assert "compile " in lines[0] and "first batch " in lines[0]
    assert lines[1].startswith("step 2/5  loss ") and "GFLOP/s" in lines[1] and "ETA" in lines[1]
    assert "step 6: start-up " in lines[-1] and "restore " in lines[-1]
    records = read_metrics(tmp_path)
    assert [r["step"] for r in records] == [1, 2, 4, 5, 6]
    # The schedules of 5 and of 6 steps: the run was made longer.
    schedules = [make_schedule(config(n).optimizer, n) for n in (5, 5, 5, 5, 6)]
    want = [float(schedule(r["step"] - 1)) for schedule, r in zip(schedules, records)]
    assert [r["learning_rate"] for r in records] == pytest.approx(want)
    assert want[0] == 0 and want[1] == pytest.approx(3e-3)
    assert records[0]["start_up/compile_s"] > 0 and records[4]["start_up/restore_s"] > 0
    assert all(0 <= r["goodput"] < 1 for r in records) and records[3]["goodput"] > 0
    events = [(e.step, e.kind) for e in read_events(tmp_path)]
    assert events == [
        (0, "start"), (4, "profile"), (4, "checkpoint"), (5, "checkpoint"), (5, "done"),
        (5, "start"), (6, "checkpoint"), (6, "done"),
    ]  # fmt: skip
    assert list((tmp_path / "profile" / "3").rglob("*.xplane.pb"))
    # Every second from the first start to the last record is booked under one reason.
    booked = [json.loads(line) for line in (tmp_path / "goodput.jsonl").read_text().splitlines()]
    seconds = read_goodput(tmp_path)
    assert sum(seconds.values()) == pytest.approx(booked[-1]["time"] - booked[0]["start"], abs=1e-3)
    assert {"steps", "saving", "input wait", "stopped", "start-up/restore"} <= {*seconds}
    assert "repeated steps" not in seconds
    page = (tmp_path / "run.html").read_text()
    assert "goes on from update 5" in page and "http-equiv" not in page
    assert '<span class="badge done">done</span>' in page


@pytest.mark.parametrize(
    ("error", "outcome", "state"),
    [
        (FloatingPointError("loss is NaN"), None, "failed"),
        (KeyboardInterrupt(), None, "preempted"),
        (FloatingPointError("told to stop"), "preempted", "preempted"),
        (None, "preempted", "preempted"),
        (None, None, "stopped"),
    ],
)
def test_how_a_run_ends_is_told(tmp_path, error, outcome, state):
    with contextlib.ExitStack() as stack:
        if error is not None:
            stack.enter_context(pytest.raises(type(error)))
        monitor = stack.enter_context(
            Monitor(
                tmp_path, WatchConfig(), TWO, samples_per_step=8, start=3, steps=9, train_step=len
            )
        )
        monitor.before_step(4)
        monitor.outcome = outcome
        if error is not None:
            raise error
    last = read_events(tmp_path)[-1]
    assert (last.kind, last.step) == (state, 3)
    page = (tmp_path / "run.html").read_text()
    assert f'<span class="badge {state}">{state}</span>' in page and last.text in page
    assert ("loss is NaN" in last.text) == (state == "failed")


def test_the_loop_is_told_of_a_second_compilation_and_of_undone_updates(tmp_path):
    step, lines = jax.jit(lambda batch: {"loss": batch["tokens"].sum()}), []
    monitor = Monitor(
        tmp_path, WatchConfig(), TWO, samples_per_step=8, start=0, steps=9, train_step=step,
        print_line=lines.append,
    )  # fmt: skip
    with monitor:
        for number, length in enumerate((8, 8, 7), start=1):
            monitor.before_step(number)
            monitor.got_batch()
            batch = {"tokens": jnp.zeros((4, length))}
            monitor.transferred()
            monitor.dispatched(number, step(batch), batch)
            monitor.add(step_metrics(TWO, number, np.asarray([9, 2])))
            if number != 2:
                monitor.log()
        with monitor.saving():
            time.sleep(0.05)
        monitor.went_back(1)
    events = [(event.step, event.kind) for event in read_events(tmp_path)]
    assert events == [
        (0, "start"), (3, "compiled again"), (3, "checkpoint"), (3, "stopped")
    ]  # fmt: skip
    assert [line.split(":")[0] for line in lines[:2]] == ["step 1", "compiled again"]
    assert "tokens is float32[4, 7]" in lines[1] and lines[2].startswith("step 3/9  loss 1.000")
    seconds = read_goodput(tmp_path)
    assert {"compiled again", "repeated steps", "start-up/compile"} <= {*seconds}
    assert seconds["saving"] >= 0.05
    assert seconds["repeated steps"] > 0 and seconds["steps"] == pytest.approx(0, abs=1e-9)


class FakeWandb(types.ModuleType):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.begun: list[dict] = []
        self.logged: list[dict] = []

    def init(self, **kwargs):
        self.begun.append(kwargs)
        return types.SimpleNamespace(
            log=self.logged.append,
            define_metric=lambda *_, **__: None,
            finish=lambda: self.logged.append({"finished": True}),
        )


def test_weights_and_biases_if_asked_for(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for start in (0, 1):
        with MetricWriter(tmp_path, start, wandb="vla", config={"a": 1}) as writer:
            writer.write(start + 1, {"loss": 2.0})
    first, second = fake.begun
    assert first["project"] == "vla" and first["config"] == {"a": 1}
    assert first["id"] == second["id"] and first["resume"] == "allow"
    assert fake.logged == [
        {"step": 1, "loss": 2.0}, {"finished": True}, {"step": 2, "loss": 2.0}, {"finished": True},
    ]  # fmt: skip
    MetricWriter(tmp_path, 2, wandb="vla", active=False).close()
    assert len(fake.begun) == 2
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    with pytest.raises(ValueError, match=r"train\.watch\.wandb is 'vla'.*pip install wandb"):
        MetricWriter(tmp_path, 2, wandb="vla")
