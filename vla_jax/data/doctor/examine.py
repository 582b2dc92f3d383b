"""Runs every check over the data sets of a config."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.config import DataConfig, SourceConfig
from vla_jax.data.doctor.findings import SEVERITIES, EpisodeCheck, Finding, Limits
from vla_jax.data.doctor.motion import Gripper, GripperState, Idle, Lag
from vla_jax.data.doctor.pictures import Pictures, colour_findings
from vla_jax.data.doctor.rate import rate_findings, step_intervals
from vla_jax.data.doctor.values import Duplicates, Finite, Instructions, Lengths, Ranges
from vla_jax.data.shares import starting_shares
from vla_jax.data.sources.base import EpisodicSource, Source, Track
from vla_jax.data.sources.opening import open_source
from vla_jax.data.statistics import Statistics

BINS = 48
"""Of an action's histogram, from a quarter of its bounds' width below them to as much above."""

_TRACES = 4
_STEPS_SHOWN = 6  # pictures of an episode that are looked at
_PROGRESS_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Options:
    """How much is looked at.

    Attributes:
      episodes: of each data set, spread over it; 0: all.
      pictures: of each data set.
      thumbnails: in the report, of all data sets together.
      gripper_state: which measured number is the gripper's, if known.
      limits: what is still in order.
    """

    episodes: int = 0
    pictures: int = 120
    thumbnails: int = 96
    gripper_state: GripperState | None = None
    limits: Limits = dataclasses.field(default_factory=Limits)


@dataclasses.dataclass
class RobotFacts:
    """What was seen of a robot's episodes.

    Attributes:
      spec: of the actions.
      episodes: there are.
      actions, state: their statistics; None for a state that is not read.
      histogram: int64 [A, BINS]; what is further out is in the outermost bins.
      traces: actions [steps, A] of some episodes.
      instructions: instruction -> episodes with it.
      lengths: steps of each episode that was read.
    """

    spec: ActionSpec
    episodes: int
    actions: Statistics
    state: Statistics | None
    histogram: np.ndarray
    traces: list[np.ndarray]
    instructions: Counter[str]
    lengths: list[int]


@dataclasses.dataclass
class SourceReport:
    """What was seen of one data set.

    Attributes:
      name, config: in the mixture.
      share: of the mixture's samples.
      records: there are; 0 if it could not be opened.
      pictures: the sample that was looked at; None if it could not be opened.
      robot: None for image-text data.
      findings: of this data set.
      unchecked: what could not be looked at, and why.
    """

    name: str
    config: SourceConfig
    share: float
    records: int = 0
    pictures: Pictures | None = None
    robot: RobotFacts | None = None
    findings: list[Finding] = dataclasses.field(default_factory=list)
    unchecked: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Report:
    """Everything that was found, by data set."""

    sources: list[SourceReport]
    seconds: float

    @property
    def findings(self) -> list[Finding]:
        """Of all data sets, worst first."""
        found = [finding for source in self.sources for finding in source.findings]
        return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    def to_plain(self) -> dict[str, Any]:
        """For JSON: findings, and the statistics of each data set."""
        sources = {}
        for source in self.sources:
            robot, facts = source.robot, {"share": source.share, "records": source.records}
            if robot is not None:
                facts |= {"episodes": robot.episodes, "actions": robot.actions.summary()}
            if robot is not None and robot.state is not None:
                facts |= {"state": robot.state.summary()}
            sources[source.name] = {**facts, "unchecked": source.unchecked}
        return {
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
            "sources": sources,
        }


def examine(data: DataConfig, options: Options = Options()) -> Report:
    """Looks at every data set that ever has a weight. What is wrong with one becomes a finding.

    Raises ValueError for weights that make no mixture.
    """
    begun = time.monotonic()
    shares = starting_shares(data)
    reports: list[SourceReport] = []
    for name, config in data.sources.items():
        if not data.uses(name):
            continue
        report = SourceReport(name, config, float(shares[name]))
        reports.append(report)
        try:
            source = open_source(name, config)
        except (ValueError, OSError) as e:
            report.findings.append(
                Finding("error", name, "cannot be opened", "", str(e), "Training would stop here.")
            )
            continue
        look_at(source, report, options, thumbnails=max(2, options.thumbnails // len(data.sources)))
        if source.action_spec is not None:
            _look_at_rate(report, source.action_spec.control_hz)
    compare(reports)
    return Report(reports, time.monotonic() - begun)


def look_at(source: Source, report: SourceReport, options: Options, *, thumbnails: int) -> None:
    """Fills in the report of an opened source."""
    report.records = len(source)
    if not len(source):
        report.findings.append(
            Finding("error", report.name, "no records", "", "the split is empty", "Check its path.")
        )
        return
    if isinstance(source, EpisodicSource):
        groups = _robot(source, report, options)
    else:
        groups = [[index] for index in _spread(len(source), options.pictures)]
    thumbnails = min(thumbnails, 12, len(groups))
    report.pictures = Pictures(report.name, source, groups, thumbnails=thumbnails)
    report.findings += report.pictures.findings()


def _look_at_rate(report: SourceReport, control_hz: float) -> None:
    if report.config.kind != "lerobot":
        report.unchecked.append("rate: no timestamps are read")
        return
    try:
        intervals = step_intervals(report.name, report.config)
    except (ValueError, OSError) as e:
        report.unchecked.append(f"rate: {e}")
        return
    report.findings += rate_findings(report.name, intervals, control_hz)


def compare(reports: list[SourceReport]) -> None:
    """What only shows beside other data sets of the mixture."""
    colours = {
        (report.name, view): means
        for report in reports
        if report.pictures is not None
        for view, means in enumerate(report.pictures.colours)
    }
    found = list(colour_findings(colours))
    first: dict[str, tuple[str, ActionSpec]] = {}
    for report in reports:
        if report.robot is None:
            continue
        spec = report.robot.spec
        name, known = first.setdefault(spec.name, (report.name, spec))
        try:
            known.require_same(spec, here=f"data set {name!r}", there=f"data set {report.name!r}")
        except ValueError as e:
            found.append(
                Finding(
                    "error", report.name, "another ActionSpec", "", str(e),
                    "A robot goes by the name of its ActionSpec: give one of them another name.",
                )
            )  # fmt: skip
    for report in reports:
        report.findings += [finding for finding in found if finding.source == report.name]


def _robot(source: EpisodicSource, report: SourceReport, options: Options) -> list[list[int]]:
    """One pass over the episodes. Returns the records whose pictures are looked at."""
    spec, name = source.action_spec, report.name
    assert spec is not None, name
    ranges, instructions = Ranges(name, spec, options.limits), Instructions(name)
    lengths, lag = Lengths(name, options.limits), Lag(name, spec, options.limits)
    checks: list[EpisodeCheck] = [
        Finite(name, spec),
        ranges,
        Gripper(name, spec, options.limits, options.gripper_state),
        lag,
        Idle(name, spec, options.limits),
        instructions,
        lengths,
        Duplicates(name, source),
    ]
    numbers = _spread(source.num_episodes, options.episodes or source.num_episodes)
    shown = {numbers[i] for i in _spread(len(numbers), _TRACES)}
    histogram, state = _Histogram(spec), None
    traces, steps, unreadable = [], [], []
    for number, track in _tracks(source, numbers, unreadable):
        for check in checks:
            check.add(track)
        histogram.add(track.actions)
        if track.state is not None:
            state = state or Statistics([f"state_{i}" for i in range(track.state.shape[1])])
            state.add(track.state)
        if number in shown:
            traces.append(track.actions)
        steps.append((track.first, len(track.actions)))
    report.robot = RobotFacts(
        spec, source.num_episodes, ranges.statistics, state, histogram.counts, traces,
        instructions.counts, lengths.lengths,
    )  # fmt: skip
    if unreadable:
        report.findings.append(
            Finding(
                "error", name, "unreadable episode", "", f"{len(unreadable)} of {len(numbers)} "
                f"episodes cannot be read; the first: {unreadable[0]}",
                "Repair or drop them: the loader stops there.",
            )
        )  # fmt: skip
    for check in checks:
        report.findings += check.findings()
    if len(numbers) < source.num_episodes:
        report.unchecked.append(f"{source.num_episodes - len(numbers)} episodes, as asked")
    if steps and state is None:
        report.unchecked.append("action lag, gripper against the measured one: no state is read")
    elif lag.unchecked:
        report.unchecked.append(lag.unchecked)
    steps = [steps[i] for i in _spread(len(steps), max(1, options.pictures // _STEPS_SHOWN))]
    return [[first + step for step in _spread(n, _STEPS_SHOWN)] for first, n in steps if n]


def _tracks(
    source: EpisodicSource, numbers: list[int], unreadable: list[str]
) -> Iterator[tuple[int, Track]]:
    """Episodes that can be read, with progress; why others cannot goes to `unreadable`."""
    told = time.monotonic()
    for done, number in enumerate(numbers):
        try:
            track = source.track(number)
        except (ValueError, OSError) as e:
            unreadable.append(str(e))
            continue
        yield number, track
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            print(f"{source.name}: looked at {done} of {len(numbers)} episodes", file=sys.stderr)


class _Histogram:
    def __init__(self, spec: ActionSpec):
        self._low, self._width = spec.low, spec.high - spec.low
        self.counts = np.zeros((len(spec.dimensions), BINS), np.int64)

    def add(self, actions: np.ndarray) -> None:
        places = (actions - self._low) / self._width / 1.5 + 1 / 6
        for i, column in enumerate(places.T):
            column = column[np.isfinite(column)]
            bins = np.clip(np.floor(column * BINS), 0, BINS - 1).astype(int)
            self.counts[i] += np.bincount(bins, minlength=BINS)


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 .. count - 1, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
