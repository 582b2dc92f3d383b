"""Checks of how actions and the measured state go together over time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.doctor.findings import Finding, Limits
from vla_jax.data.sources.base import Track

_STILL_DELTA = 0.01  # of half the bounds' width
_STILL_ABSOLUTE = 0.001  # of the bounds' width, from one step to the next
_LEAST_EPISODES = 5
_MARGIN = 0.1  # of correlation, by which another lag must be better


class GripperState(NamedTuple):
    """Which measured number is the gripper's, and what it grows with."""

    index: int
    means: Literal["closedness", "opening"]


def moving(spec: ActionSpec) -> np.ndarray:
    """int [M], the dimensions that move the arm."""
    units = [d.unit for d in spec.dimensions]
    return np.flatnonzero([unit in ("m", "rad", "unknown") for unit in units])


def is_change(spec: ActionSpec) -> bool:
    """Whether actions are deltas or velocities: 0 stands still. Else they are targets."""
    words = f"{spec.frame} {spec.rotation}".casefold()
    return "delta" in words or "velocit" in words


class Correlation:
    """Of every column of x with every column of y, some steps later; over many episodes.

    Args:
      lags: steps that y is later.

    Attributes:
      least: steps of the shortest episode that is used.
    """

    def __init__(self, lags: range):
        self.lags, self.least = lags, 2 * len(lags)
        self._sums: list[list[np.ndarray]] = []

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """One episode, x [n, X] and y [n, Y]; each is taken relative to its mean."""
        if len(x) < self.least:
            return
        x, y = x - x.mean(0), y - y.mean(0)
        sums = []
        for lag in self.lags:
            early = x[max(0, -lag) : len(x) - max(0, lag)]
            late = y[max(0, lag) : len(y) - max(0, -lag)]
            sums.append([early.T @ late, np.square(early).sum(0), np.square(late).sum(0)])
        if not self._sums:
            self._sums = sums
            return
        for total, one in zip(self._sums, sums):
            for k in range(3):
                total[k] = total[k] + one[k]

    def result(self) -> np.ndarray:
        """float64 [lags, X, Y], 0 where nothing moves; [0] if there was no long enough episode."""
        found = []
        for cross, x, y in self._sums:
            scale = np.sqrt(np.outer(x, y))
            found.append(np.where(scale > 1e-12, cross / np.maximum(scale, 1e-12), 0.0))
        return np.array(found)


class Idle:
    """Long runs of steps in which nothing is told to move."""

    def __init__(self, name: str, spec: ActionSpec, limits: Limits):
        self._name, self._limits = name, limits
        self._moving = moving(spec)
        self._gripper = [i for i, d in enumerate(spec.dimensions) if d.unit == "closedness"]
        width = (spec.high - spec.low)[self._moving]
        self._change = is_change(spec)
        self._still = width * (_STILL_DELTA / 2 if self._change else _STILL_ABSOLUTE)
        self._least = max(5, round(limits.idle_seconds * spec.control_hz))
        self._steps = self._idle = self._runs = self._longest = 0
        self._where = ""

    def add(self, track: Track) -> None:
        actions = track.actions
        if not len(self._moving) or not np.isfinite(actions).all():
            return
        motion = actions[:, self._moving]
        if not self._change:
            motion = np.diff(motion, axis=0, prepend=motion[:1])
        still = (np.abs(motion) < self._still).all(1)
        gripper = actions[:, self._gripper]
        still &= (np.abs(np.diff(gripper, axis=0, prepend=gripper[:1])) < 0.05).all(1)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(int), [0]])))
        self._steps += len(actions)
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist()):
            length = end - first
            if length < self._least:
                continue
            self._runs, self._idle = self._runs + 1, self._idle + length
            if length > self._longest:
                self._longest, self._where = length, f"{track.where} steps {first} to {end - 1}"

    def findings(self) -> Iterator[Finding]:
        if not self._runs:
            return
        share = self._idle / self._steps
        yield Finding(
            "warning" if share > self._limits.idle_share else "note",
            self._name, "idle frames", f"longest: {self._where}",
            f"{share:.1%} of the steps lie in {self._runs} runs of {self._least} or more in which "
            f"nothing moves (the longest has {self._longest})",
            "Cut them when the data is written: a policy learns to stand still from them.",
            "likely",
        )  # fmt: skip


class Gripper:
    """Closedness that is none, or the wrong way round.

    Args:
      state: the gripper's number of the measured state, if it is known.

    `add` raises ValueError if there is no such number.
    """

    def __init__(
        self, name: str, spec: ActionSpec, limits: Limits, state: GripperState | None = None
    ):
        self._name, self._limits, self._state = name, limits, state
        self._columns = [i for i, d in enumerate(spec.dimensions) if d.unit == "closedness"]
        self._names = [spec.names[i] for i in self._columns]
        size = len(self._columns)
        self._low, self._high = np.full(size, np.inf), np.full(size, -np.inf)
        self._outside, self._steps = np.zeros(size, int), 0
        self._where = ""
        self._opens, self._closes = np.zeros(size, int), np.zeros(size, int)
        self._follows = Correlation(range(_lag_steps(spec, limits) + 1))

    def add(self, track: Track) -> None:
        values = track.actions[:, self._columns]
        if not values.size or not np.isfinite(values).all():
            return
        outside = (values < -0.02) | (values > 1.02)
        if outside.any() and not self._where:
            self._where = f"{track.where} step {outside.any(1).argmax()}"
        self._outside, self._steps = self._outside + outside.sum(0), self._steps + len(values)
        self._low = np.minimum(self._low, values.min(0))
        self._high = np.maximum(self._high, values.max(0))
        changes = np.diff((values > 0.5).astype(int), axis=0)
        for i, column in enumerate(changes.T):
            first = column[np.flatnonzero(column)[:1]]
            self._closes[i] += (first > 0).sum()
            self._opens[i] += (first < 0).sum()
        if track.state is not None and np.isfinite(track.state).all():
            size = track.state.shape[1]
            if self._state is not None and self._state.index >= size:
                raise ValueError(
                    f"state_{self._state.index} is to be the gripper's, but data set "
                    f"{self._name!r} has state_0 to state_{size - 1}"
                )
            self._follows.add(values.astype(np.float64), track.state.astype(np.float64))

    def findings(self) -> Iterator[Finding]:
        for i in range(len(self._columns)):
            if self._outside[i]:
                yield self._no_closedness(i)
            elif finding := self._order(i):
                yield finding
            if finding := self._against_state(i):
                yield finding

    def _no_closedness(self, i: int) -> Finding:
        low, high = self._low[i], self._high[i]
        if low < -0.02 and high <= 1.02:
            remedy = "If -1 is open, store (x + 1) / 2; if -1 is closed, (1 - x) / 2."
        else:
            remedy = "Store it as a share of the way: 0 open, 1 closed."
        return Finding(
            "error", self._name, "gripper is no closedness", f"first in {self._where}",
            f"{self._names[i]} goes from {low:.4g} to {high:.4g}, and {self._outside[i]} of "
            f"{self._steps} values are not in 0 (open) .. 1 (closed)",
            remedy,
        )  # fmt: skip

    def _order(self, i: int) -> Finding | None:
        """Robots come with an open gripper, close it on a thing, and let it go."""
        opens, closes = int(self._opens[i]), int(self._closes[i])
        if opens + closes < _LEAST_EPISODES or opens < 0.8 * (opens + closes):
            return None
        return Finding(
            "warning", self._name, "inverted gripper", "",
            f"{self._names[i]} first goes from closed to open in {opens} of {opens + closes} "
            "episodes in which it changes; usual is to close first",
            "Watch an episode. If the gripper closes where the number falls, store 1 - x. Tasks "
            "that begin with a thing in the hand look like this too.",
            "likely",
        )  # fmt: skip

    def _against_state(self, i: int) -> Finding | None:
        found = self._follows.result()
        if not found.size:
            return None
        if self._state is not None:
            column = self._state.index
            r = found[np.abs(found[:, i, column]).argmax(), i, column]
            wrong = r > 0 if self._state.means == "opening" else r < 0
            if abs(r) < self._limits.least_correlation or not wrong:
                return None
            return Finding(
                "error", self._name, "inverted gripper", "",
                f"state_{column}, the gripper's {self._state.means}, goes the wrong way after "
                f"{self._names[i]} (correlation {r:.2f})",
                "Store 1 - x, or correct what the state's number means.",
            )  # fmt: skip
        lag, column = np.unravel_index(np.abs(found[:, i]).argmax(), found[:, i].shape)
        r = found[lag, i, column]
        if r > -0.7:
            return None
        return Finding(
            "note", self._name, "inverted gripper", "",
            f"state_{column} falls where {self._names[i]} rises (correlation {r:.2f})",
            "Right if that number is the gripper's opening or height; if it is its closedness, "
            "store 1 - x. Say which with --gripper_state.",
            "unsure",
        )  # fmt: skip


class Lag:
    """Actions that are stored some steps before or after the motion they cause."""

    def __init__(self, name: str, spec: ActionSpec, limits: Limits):
        self._name, self._spec, self._limits = name, spec, limits
        self._moving, self._change = moving(spec), is_change(spec)
        steps = _lag_steps(spec, limits)
        self._follows = Correlation(range(-((steps + 1) // 2), steps + 1))

    def add(self, track: Track) -> None:
        if track.state is None or not len(self._moving):
            return
        actions, state = track.actions[:, self._moving].astype(np.float64), track.state
        if not (np.isfinite(actions).all() and np.isfinite(state).all()):
            return
        moved = np.diff(state.astype(np.float64), axis=0)
        # Step t of both: the command given at t, and what it changes until t + 1.
        if self._change:
            self._follows.add(actions[:-1], moved)
        else:
            self._follows.add(np.diff(actions, axis=0)[:-1], moved[1:])

    @property
    def unchecked(self) -> str:
        """Why nothing can be said; "" if it can."""
        if not self._follows.result().size:
            return f"action lag: no episode with a state has {self._follows.least} steps or more"
        if not self._votes():
            least = self._limits.least_correlation
            return f"action lag: no measured number follows an action (correlation below {least:g})"
        return ""

    def findings(self) -> Iterator[Finding]:
        votes = self._votes()
        if not votes:
            return
        lag = max(votes, key=lambda k: len(votes[k]))
        if not lag:
            return
        seconds, when = abs(lag) / self._spec.control_hz, "after" if lag > 0 else "BEFORE"
        remedy = (
            f"Shift the actions by {lag} steps when the data is written, unless the robot really "
            f"takes {seconds:.2g} s to answer."
            if lag > 0
            else "Check how steps were put together: an action belongs to the observation before "
            "it acts."
        )
        yield Finding(
            "warning", self._name, "action lag", "",
            f"the measured state moves {abs(lag)} steps ({seconds:.2g} s) {when} its action; "
            f"correlation: {', '.join(votes[lag])}",
            remedy, "likely",
        )  # fmt: skip

    def _votes(self) -> dict[int, list[str]]:
        """Lag -> dimensions that are followed at it, with their correlations."""
        found = np.abs(self._follows.result())
        lags, votes = np.array(self._follows.lags), {}
        for i, column in enumerate(self._moving if found.size else ()):
            best, state = np.unravel_index(found[:, i].argmax(), found[:, i].shape)
            r, at_once = found[best, i, state], found[lags == 0, i, state][0]
            if r < self._limits.least_correlation:
                continue
            lag = int(lags[best]) if r > at_once + _MARGIN else 0
            shown = f"{self._spec.names[column]} {r:.2f} (at once {at_once:.2f})"
            votes.setdefault(lag, []).append(shown)
        return votes


def _lag_steps(spec: ActionSpec, limits: Limits) -> int:
    return max(2, round(limits.lag_seconds * spec.control_hz))
