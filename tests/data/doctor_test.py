"""Every check on a fault put into a clean set; the report; the tool as a user runs it."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.examples import encoded
from tests.data.lerobot_test import CAMERAS, FPS, LENGTHS, _write_v2
from tests.evaluation.report_test import Page
from vla_jax.actions.spec import ActionSpec, end_effector_spec
from vla_jax.data.config import DataConfig, SourceConfig
from vla_jax.data.doctor.examine import Options, Report, SourceReport, compare, examine, look_at
from vla_jax.data.doctor.findings import Finding
from vla_jax.data.doctor.motion import Correlation, GripperState
from vla_jax.data.doctor.page import write_report
from vla_jax.data.doctor.rate import rate_findings, step_intervals
from vla_jax.data.sources.base import Track, place
from vla_jax.data.staged import EpisodeRow
from vla_jax.data.tfds_writer import write_episodes
from vla_jax.types import Example

ROOT = Path(__file__).parents[2]
SPEC = end_effector_spec("test", max_position_m=0.05, max_rotation_rad=0.1, control_hz=5)
STEPS, EPISODES, GRIPPER = 40, 24, 7
CONFIG = SourceConfig("episodes", "/data/<arm>")


@dataclasses.dataclass
class Episode:
    actions: np.ndarray
    state: np.ndarray | None
    images: list[bytes | np.ndarray]
    instructions: list[str]


class MemorySource:
    """Episodes in memory."""

    def __init__(self, episodes: list[Episode], spec: ActionSpec = SPEC, name: str = "arm"):
        self.name, self.action_spec, self.episodes = name, spec, episodes
        self._starts = [0, *np.cumsum([len(e.actions) for e in episodes]).tolist()]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def num_episodes(self) -> int:
        return len(self.episodes)

    def track(self, number: int) -> Track:
        e = self.episodes[number]
        first = self._starts[number]
        return Track(f"episode {number}", first, e.actions, tuple(e.instructions), e.state)

    def read(self, index: int) -> Example:
        number, step = place(self._starts, index, "step", self.name)
        episode = self.episodes[number]
        if not episode.instructions[step]:
            raise ValueError(f"record {index} has no instruction")
        return Example((episode.images[step],), episode.instructions[step])


@functools.cache
def picture(*seed: int, tint: tuple[int, int, int] = (30, 0, -30)) -> bytes:
    """A reddish one, of its own."""
    noise = np.random.default_rng(seed).integers(60, 180, (6, 6, 3)) + np.array(tint)
    buffer = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).resize((24, 24), 0).save(buffer, "PNG")
    return buffer.getvalue()


def clean() -> list[Episode]:
    """Deltas within their bounds; the arm follows at once; the gripper closes, then opens."""
    rng, found = np.random.default_rng(0), []
    for number in range(EPISODES):
        steps = STEPS + number % 5
        unit = rng.uniform(-0.9, 0.9, (steps, 8))
        actions = unit * SPEC.high
        actions[:, 0] = np.arange(steps) == steps - 1
        start, end = steps // 4 + number % 3, 3 * steps // 4
        actions[:, GRIPPER] = (np.arange(steps) >= start) & (np.arange(steps) < end)
        state = np.zeros((steps, 7))
        state[1:, :6] = np.cumsum(actions[:-1, 1:7], axis=0)
        state[1:, 6] = actions[:-1, GRIPPER]
        words = ["pick the dog", "push the cat", "open <the> drawer & wait"][number % 3]
        found.append(
            Episode(
                actions.astype(np.float32),
                state.astype(np.float32),
                [picture(number, t) for t in range(steps)],
                [words] * steps,
            )
        )
    return found


def diagnose(steps: list[Episode], spec: ActionSpec = SPEC, **options) -> Report:
    report = SourceReport("arm", CONFIG, 1.0)
    source = MemorySource(steps, spec)
    look_at(source, report, Options(**options), thumbnails=4)  # pyright: ignore
    compare([report])
    return Report([report], 1.0)


def of_check(report: Report, check: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == check]


@pytest.mark.parametrize("state", [None, GripperState(6, "closedness")])
def test_a_clean_set_has_no_findings(state):
    assert diagnose(clean(), gripper_state=state).findings == []


def test_a_clean_set_without_state_says_what_was_not_checked():
    episodes = [dataclasses.replace(e, state=None) for e in clean()]
    report = diagnose(episodes, episodes=10)
    assert report.findings == []
    assert [words.split(":")[0] for words in report.sources[0].unchecked] == [
        "14 episodes, as asked", "action lag, gripper against the measured one"
    ]  # fmt: skip


def _set(column: int, value: Callable[[np.ndarray], np.ndarray]):
    def change(episodes: list[Episode]) -> None:
        for e in episodes:
            e.actions[:, column] = value(e.actions[:, column])

    return change


def _not_finite(episodes):
    episodes[5].actions[7, 2] = np.nan
    episodes[6].actions[1, 2] = np.inf
    episodes[8].state[3, 4] = np.nan


def _idle(episodes):
    for e in episodes[:12]:
        e.actions[12:26, 1:7] = 0


def _lag(steps: int):
    def change(episodes):
        for e in episodes:
            e.actions[:, 1:7] = np.roll(e.actions[:, 1:7], -steps, axis=0)

    return change


def _copy(episodes):
    episodes[9] = episodes[3]
    episodes[11] = dataclasses.replace(episodes[4], images=episodes[11].images)
    episodes[11].images += [picture(99)] * (len(episodes[4].actions) - len(episodes[11].images))


def _instructions(words: str):
    def change(episodes):
        episodes[4].instructions[:] = [words] * len(episodes[4].instructions)

    return change


def _one_instruction(episodes):
    for e in episodes:
        e.instructions[:] = ["pick the dog"] * len(e.instructions)


def _short(episodes):
    for e in episodes[2:4]:
        e.actions, e.state = e.actions[:2], e.state[:2]
        e.instructions, e.images = e.instructions[:2], e.images[:2]


def _images(image: bytes | np.ndarray, numbers=range(EPISODES), steps=slice(None)):
    def change(episodes):
        for number in numbers:
            images = episodes[number].images
            images[steps] = [image] * len(images[steps])

    return change


def _exchange(episodes):
    for number, e in enumerate(episodes):
        e.images = [picture(number, t, tint=(-30, 0, 30)) for t in range(len(e.images))]


def _frozen(episodes):
    for number in range(0, EPISODES, 2):
        episodes[number].images = [picture(number)] * len(episodes[number].images)


FAULTS = {
    "constant": (_set(4, lambda x: x * 0 + 0.02), "warning", "flat dimension",
                 "rotation_x is 0.02 in every step"),
    "coarse": (_set(1, lambda x: x / 1000), "warning", "flat dimension",
               "position_x has 98% of its values within"),
    "rare": (_set(1, lambda x: np.where(np.abs(x) > 0.0447, x, 0)), "note", "flat dimension",
             "position_x has 98% of its values within 0 m, all within -0.0"),
    "not finite": (_not_finite, "error", "NaN or infinity",
                   "position_y has 2 values that are NaN or infinite"),
    "few clipped": (_set(1, lambda x: np.where(x > 0.0443, 0.06, x)), "note", "out of bounds",
                    "position_x: 0."),
    "clipped": (_set(1, lambda x: x * 1.3), "warning", "out of bounds", "position_x: 1"),
    "millimetres": (_set(1, lambda x: x * 1000), "error", "out of bounds", "position_x: 9"),
    "idle": (_idle, "warning", "idle frames", "16.2% of the steps lie in 12 runs of 10 or more"),
    "idle once": (lambda e: _idle(e[:1] * 12), "note", "idle frames", "1.4% of the steps"),
    "signed gripper": (_set(GRIPPER, lambda x: 2 * x - 1), "error", "gripper is no closedness",
                       "gripper_closedness goes from -1 to 1"),
    "gripper in mm": (_set(GRIPPER, lambda x: 80 * x), "error", "gripper is no closedness",
                      "goes from 0 to 80"),
    "inverted gripper": (_set(GRIPPER, lambda x: 1 - x), "warning", "inverted gripper",
                         "first goes from closed to open in 24 of 24 episodes"),
    "late": (_lag(-2), "warning", "action lag", "moves 2 steps (0.4 s) BEFORE its action"),
    "early": (_lag(3), "warning", "action lag", "moves 3 steps (0.6 s) after its action"),
    "copy": (_copy, "warning", "duplicate episode", "1 episodes are copies"),
    "same actions": (_copy, "note", "same actions", "1 groups of episodes"),
    "no instruction": (_instructions(" "), "error", "empty instruction", "44 steps have no"),
    "placeholder": (_instructions("N/A"), "warning", "meaningless instruction", "1 episodes say"),
    "one instruction": (_one_instruction, "note", "one instruction", "all 24 episodes"),
    "short": (_short, "warning", "short episode", "2 of 24 episodes have fewer than 4.15 steps"),
    "cut off picture": (_images(picture(1)[:60], [0], slice(0, 1)), "error",
                        "undecodable picture", "1 of 120 sampled"),
    "no picture": (_images(b"none", [0]), "error", "undecodable picture", "6 of 120 sampled"),
    "black": (_images(np.zeros((8, 8, 3), np.uint8), [0], slice(0, 1)), "warning",
              "blank picture", "1 of 120 sampled"),
    "frozen": (_frozen, "warning", "frozen camera", "of 20 sampled episodes"),
    "pictures copied": (_images(picture(7)), "warning", "identical pictures", "of 120 sampled"),
    "BGR": (_exchange, "warning", "red and blue exchanged?", "view 0: blue is above red in 100%"),
}  # fmt: skip
# What a fault brings along besides.
ALSO = {
    "not finite": {("error", "NaN or infinity")},
    "millimetres": set(),
    "inverted gripper": {("note", "inverted gripper")},
    "copy": {("note", "same actions"), ("note", "identical pictures")},
    "same actions": {("warning", "duplicate episode"), ("note", "identical pictures")},
    "no instruction": {("error", "unreadable record")},
    "no picture": {("warning", "frozen camera")},
    "frozen": set(),
    "pictures copied": {("warning", "frozen camera")},
    "constant": set(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_found_and_nothing_else(fault):
    inject, severity, check, seen = FAULTS[fault]
    episodes = clean()
    inject(episodes)
    report = diagnose(episodes)
    found = [f for f in of_check(report, check) if f.severity == severity and seen in f.seen]
    assert len(found) == 1, "\n".join(map(str, report.findings))
    others = {(f.severity, f.check) for f in report.findings} - {(severity, check)}
    assert others <= ALSO.get(fault, set()), "\n".join(map(str, report.findings))
    assert found[0].remedy.endswith((".", ")"))


def test_findings_say_where():
    episodes = clean()
    _not_finite(episodes)
    where = {f.seen.split()[0]: f.where for f in of_check(diagnose(episodes), "NaN or infinity")}
    assert where == {
        "position_y": "first in episode 5 step 7", "state_4": "first in episode 8 step 3"
    }  # fmt: skip
    episodes = clean()
    _idle(episodes[3:4] * 12)
    (idle,) = of_check(diagnose(episodes), "idle frames")
    assert idle.where == "longest: episode 3 steps 12 to 25" and idle.confidence == "likely"
    episodes = clean()
    episodes[2].actions[9, 1] = 0.08
    (outside,) = of_check(diagnose(episodes), "out of bounds")
    assert outside.where == "first in episode 2 step 9"
    share = 1 / sum(len(e.actions) for e in episodes)
    assert f"{share:.2%} of the values are outside of -0.05 .. 0.05 m" in outside.seen


@pytest.mark.parametrize(
    ("means", "flip_action", "flip_state", "wrong"),
    [
        ("closedness", False, False, False),
        ("closedness", False, True, True),
        ("opening", False, True, False),
        ("opening", True, True, True),
        ("opening", False, False, True),
    ],
)
def test_gripper_against_a_state_that_is_known(means, flip_action, flip_state, wrong):
    episodes = clean()
    for e in episodes:
        assert e.state is not None
        e.actions[:, GRIPPER] = 1 - e.actions[:, GRIPPER] if flip_action else e.actions[:, GRIPPER]
        e.state[:, 6] = 1 - e.state[:, 6] if flip_state else e.state[:, 6]
    report = diagnose(episodes, gripper_state=GripperState(6, means))
    errors = [f for f in of_check(report, "inverted gripper") if f.severity == "error"]
    assert len(errors) == wrong
    with pytest.raises(
        ValueError, match=r"state_7 is to be the gripper's, but .*state_0 to state_6"
    ):
        diagnose(episodes, gripper_state=GripperState(7, "opening"))


def test_absolute_actions_are_targets():
    """A standing target is idle, a constant delta is not; lag is told from changes."""
    dimensions = tuple(dataclasses.replace(d, low=-2.0, high=2.0) for d in SPEC.dimensions[1:7])
    spec = ActionSpec("abs", dimensions, "base, absolute", "none", "none", 5)
    episodes = clean()
    for e in episodes:
        assert e.state is not None
        target = np.cumsum(e.actions[:, 1:7] * 8, axis=0)
        target *= 1.9 / np.abs(target).max()
        e.state[1:, :6] = target[:-1]
        e.state[0, :6] = 0
        e.actions = target.astype(np.float32)
    assert {f.check for f in diagnose(episodes, spec).findings} <= {"flat dimension"}
    for e in episodes:
        e.actions = np.roll(e.actions, -2, axis=0)
    (lag,) = of_check(diagnose(episodes, spec), "action lag")
    assert "moves 2 steps (0.4 s) after" in lag.seen
    for e in episodes:
        e.actions[10:30] = e.actions[10]
    (idle,) = of_check(diagnose(episodes, spec), "idle frames")
    assert idle.where.endswith("steps 10 to 29") or idle.where.endswith("steps 11 to 29")


def test_a_lag_that_cannot_be_told_is_said_so():
    short = clean()
    for e in short:
        assert e.state is not None
        e.actions, e.state = e.actions[:13], e.state[:13]  # 7 lags need 14 steps, of differences
        e.images, e.instructions = e.images[:13], e.instructions[:13]
    assert diagnose(short).sources[0].unchecked == [
        "action lag: no episode with a state has 14 steps or more"
    ]
    apart = clean()
    for e in apart:
        e.state = np.random.default_rng(3).normal(size=(len(e.actions), 2)).astype(np.float32)
    assert diagnose(apart).sources[0].unchecked == [
        "action lag: no measured number follows an action (correlation below 0.5)"
    ]


def test_correlation_equals_numpy():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), rng.normal(size=(60, 3))
    correlation = Correlation(range(-2, 4))
    correlation.add(x - 5, y + 9)
    for k, lag in enumerate(range(-2, 4)):
        early, late = x[max(0, -lag) : 60 - max(0, lag)], y[max(0, lag) : 60 - max(0, -lag)]
        early, late = early - x.mean(0), late - y.mean(0)
        norms = np.sqrt(np.outer((early**2).sum(0), (late**2).sum(0)))
        np.testing.assert_allclose(correlation.result()[k], early.T @ late / norms, rtol=1e-9)


def test_episodes_and_records_that_cannot_be_read():
    class Damaged(MemorySource):
        def track(self, number):
            if number in (3, 4):
                raise ValueError(f"episode {number} is damaged")
            return super().track(number)

    report = SourceReport("arm", CONFIG, 1.0)
    look_at(Damaged(clean()), report, Options(), thumbnails=2)  # pyright: ignore
    (finding,) = report.findings
    assert finding.severity == "error" and finding.check == "unreadable episode"
    assert "2 of 24 episodes cannot be read; the first: episode 3 is damaged" in finding.seen


def test_data_sets_are_compared():
    """A spec of its own; a tint that the others do not have, where they have it too none."""
    other = dataclasses.replace(SPEC, control_hz=9)
    reports = []
    for name, tint, spec in (
        ("red", (30, 0, -30), SPEC), ("bgr", (-30, 0, 30), SPEC), ("fast", (30, 0, -30), other)
    ):  # fmt: skip
        episodes = clean()
        for i, e in enumerate(episodes):
            e.images = [picture(i, t, tint=tint) for t in range(len(e.images))]
        reports.append(SourceReport(name, CONFIG, 1 / 3))
        look_at(MemorySource(episodes, spec, name), reports[-1], Options(), thumbnails=1)  # pyright: ignore
    compare(reports)
    found = [(f.source, f.severity, f.check) for r in reports for f in r.findings]
    assert found == [
        ("bgr", "warning", "red and blue exchanged?"), ("fast", "error", "another ActionSpec")
    ]  # fmt: skip
    assert "control_hz: data set 'red' has 5, data set 'fast' has 9" in reports[2].findings[0].seen
    # Beside bluish data, bluish pictures are no sign.
    for report in reports:
        report.findings = []
    reports[0].pictures = reports[2].pictures = reports[1].pictures
    compare(reports)
    assert [f.check for r in reports for f in r.findings] == ["another ActionSpec"]


def test_timestamps_against_the_rate(tmp_path):
    spec = end_effector_spec("arm", max_position_m=0.05, max_rotation_rad=0.1, control_hz=FPS)
    path = _write_v2(tmp_path / "arm", spec, "image")
    intervals = step_intervals("arm", SourceConfig("lerobot", str(path), "all", cameras=CAMERAS))
    assert len(intervals) == sum(LENGTHS) - len(LENGTHS)
    np.testing.assert_allclose(intervals, 1 / FPS, rtol=1e-4)
    assert list(rate_findings("arm", intervals, FPS)) == []
    (wrong,) = rate_findings("arm", intervals, 3 * FPS)
    assert wrong.severity == "error" and "steps come 10 a second" in wrong.seen
    intervals[3] *= 4
    (gap,) = rate_findings("arm", intervals, FPS)
    assert gap.severity == "warning" and f"{1 / len(intervals):.2%} of the intervals" in gap.seen
    (still,) = rate_findings("arm", np.zeros(5), FPS)
    assert "steps come 0 s apart" in still.seen


def test_a_lerobot_data_set_of_another_rate(tmp_path):
    spec = end_effector_spec("arm", max_position_m=0.05, max_rotation_rad=0.1, control_hz=FPS)
    path = _write_v2(tmp_path / "arm", spec, "image")
    data = DataConfig({"arm": SourceConfig("lerobot", str(path), "all", cameras=CAMERAS)})
    right = examine(data)
    assert of_check(right, "wrong rate") == []
    assert not any(words.startswith("rate") for words in right.sources[0].unchecked)
    for file in path.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        times = pa.array(table["timestamp"].to_numpy() / 3, table.schema.field("timestamp").type)
        column = table.schema.get_field_index("timestamp")
        pq.write_table(table.set_column(column, "timestamp", times), file)
    (finding,) = of_check(examine(data), "wrong rate")
    assert "by their timestamps steps come 30 a second, the ActionSpec says 10" in finding.seen


def test_report_shows_what_was_found(tmp_path):
    episodes = clean()
    FAULTS["constant"][0](episodes)
    FAULTS["no instruction"][0](episodes)
    for e in episodes[:3]:
        e.instructions[:] = ["<script>alert(1)</script> & 'x'"] * len(e.instructions)
    report = diagnose(episodes, gripper_state=GripperState(6, "closedness"))
    out = write_report(report, tmp_path / "out" / "doctor.html", title="<b>Data</b>")
    text = out.read_text()
    page = Page(text)
    assert len(text) < 3e6 and "<script" not in text and "<b>Data" not in text
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert len(page.images) == 4
    assert list(page.sections) == ["findings", "mixture", "source-0"]
    first = [row for row in page.rows if row and row[0] in ("error", "warning", "note")]
    worst_first = [f.severity for f in report.findings]
    assert [row[0] for row in first[: len(worst_first)]] == worst_first == sorted(worst_first)
    assert any("rotation_x is 0.02 in every step" in cell for row in first for cell in row)
    records = sum(len(e.actions) for e in episodes)
    assert page.row("arm") == [
        "arm", "episodes", f"{records:,}", "24", "100.0%", f"{1e6 / records:.3g}"
    ]  # fmt: skip
    assert page.row("<script>alert(1)</script> & 'x'")[1:] == ["3", "12.5%"]
    assert page.row("(empty)")[1:] == ["1", "4.2%"]
    values = np.concatenate([e.actions for e in episodes])[:, 1]
    shown = page.row("position_x")
    assert shown[:3] == ["position_x", "m", "-0.05 .. 0.05"]
    assert float(shown[3]) == pytest.approx(values.min(), rel=1e-2)
    assert float(shown[6]) == pytest.approx(np.quantile(values, 0.99), rel=1e-2)
    assert page.row("state_6")[5] == "1"
    assert text.count('aria-label="position_x') == 2
    plain = report.to_plain()
    assert plain["counts"] == {"error": report.count("error"), "warning": 1, "note": 0}
    assert plain["sources"]["arm"]["actions"]["rotation_x"]["max"] == np.float32(0.02)
    json.dumps(plain, allow_nan=False)


def test_a_page_of_many_data_sets_stays_small(tmp_path):
    one = diagnose(clean()).sources[0]
    sources = [dataclasses.replace(one, name=f"arm {i}", share=1 / 30) for i in range(30)]
    out = write_report(Report(sources, 1.0), tmp_path / "doctor.html", title="Many")
    assert out.stat().st_size < 3e6
    assert "arm 29" in Page(out.read_text()).sections["mixture"]


@pytest.fixture(scope="module")
def arm_data(tmp_path_factory) -> Path:
    """The clean set as RLDS; every fifth episode is in the test split."""
    path = tmp_path_factory.mktemp("arm") / "arm"
    rows = (
        EpisodeRow(
            images={"image": e.images},
            state=e.state,
            action=e.actions,
            instruction=e.instructions[0],
            success=True,
            metadata={"seed": 0},
        )
        for e in clean()
    )
    write_episodes(rows, path, SPEC, name="arm", description="", test_every=5)
    return path


def test_what_cannot_be_opened_is_a_finding(tmp_path, arm_data, web_data):
    data = DataConfig(
        {
            "arm": SourceConfig("episodes", str(arm_data), weight=3.0),
            "web": SourceConfig("image_text", str(web_data)),
            "gone": SourceConfig("jsonl", str(tmp_path / "gone.jsonl")),
            "off": SourceConfig("jsonl", str(tmp_path / "off.jsonl"), weight=0.0),
        }
    )
    report = examine(data)
    steps = sum(STEPS + n % 5 for n in range(EPISODES) if n % 5 != 4)
    assert [(s.name, s.records, round(s.share, 3)) for s in report.sources] == [
        ("arm", steps, 0.6), ("web", 40, 0.2), ("gone", 0, 0.2)
    ]  # fmt: skip
    (finding,) = report.findings
    assert (finding.severity, finding.check) == ("error", "cannot be opened")
    assert finding.source == "gone" and "gone.jsonl" in finding.seen
    web = report.sources[1].pictures
    assert web is not None and web.read == 40 and web.colours[0].shape == (40, 3)
    write_report(report, tmp_path / "doctor.html", title="Data")


def test_the_tool_ends_with_an_exit_code(tmp_path, arm_data, web_data, capsys):
    config = tmp_path / "config.py"
    text = (ROOT / "configs/demo_cotrain.py").read_text()
    for name, path in (("robot", arm_data), ("web", web_data)):
        text = text.replace(f"demo_out/data/{name}", str(path))
    config.write_text(text)
    spec = importlib.util.spec_from_file_location("doctor", ROOT / "tools/doctor.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    overrides = ["--config.data.sources.robot.state=('steps/observation/state',)"]
    code = tool.main([str(config), *overrides, "--out", str(tmp_path / "clean")])
    said = capsys.readouterr().out
    assert code == 0, said
    plain = json.loads((tmp_path / "clean" / "doctor.json").read_text())
    assert plain["findings"] == []
    assert {name: s["records"] for name, s in plain["sources"].items()} == {
        "robot": 830, "web": 40
    }  # fmt: skip
    assert plain["sources"]["robot"]["episodes"] == 20
    page = Page((tmp_path / "clean" / "doctor.html").read_text())
    assert page.row("robot")[2:4] == ["830", "20"] and len(page.images) == 24
    assert said.splitlines()[-1].startswith("0 errors, 0 warnings, 0 notes: ")
    assert plain["sources"]["robot"]["state"]["state_6"]["max"] == 1
    assert plain["sources"]["robot"]["unchecked"] == ["rate: no timestamps are read"]

    arguments = [arm_data, "--state", "steps/observation/state", "--gripper_state", "6:opening"]
    command = [sys.executable, "tools/doctor.py", *arguments, "--out", tmp_path / "errors"]
    ran = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert ran.returncode == 1, ran.stderr
    assert "ERROR arm: inverted gripper: state_6, the gripper's opening, goes the" in ran.stdout

    for bad, message in (
        ([tmp_path / "none.py"], "error: no config file"),
        ([arm_data, "--gripper_state", "6"], "error: --gripper_state=6: expected e.g. 7:clo"),
        ([arm_data, "--config.data.seed=1"], "error: --config.data.seed=1: overrides are of a"),
    ):
        assert tool.main([str(word) for word in bad]) == 2
        assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize(
    ("image_format", "broken"), [("PNG", 0), ("JPEG", 0), ("WEBP", 0), ("TIFF", 1)]
)
def test_pictures_are_those_that_the_loader_decodes(image_format, broken):
    episodes = clean()[:6]
    episodes[0].images[0] = encoded(1, image_format)
    assert len(of_check(diagnose(episodes), "undecodable picture")) == broken
