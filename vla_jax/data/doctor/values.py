"""Checks of an episode's numbers, texts and length, each by itself."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from vla_jax.actions.spec import ActionSpec
from vla_jax.data.doctor.findings import Finding, Limits
from vla_jax.data.sources.base import Source, Track
from vla_jax.data.statistics import Statistics

_CONSTANT = 1e-6
_PLACEHOLDERS = {"none", "null", "nan", "n/a", "na", "test", "todo", "tbd", "task", "unknown", "-"}


class Finite:
    """NaN and infinite values of actions and state."""

    def __init__(self, name: str, spec: ActionSpec):
        self._name, self._spec = name, spec
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, track: Track) -> None:
        parts = {"action": track.actions}
        if track.state is not None:
            parts["state"] = track.state
        for part, values in parts.items():
            steps, columns = np.nonzero(~np.isfinite(values))
            for step, column in zip(steps.tolist(), columns.tolist()):
                name = self._spec.names[column] if part == "action" else f"state_{column}"
                self._counts[name] += 1
                self._first.setdefault(name, f"{track.where} step {step}")

    def findings(self) -> Iterator[Finding]:
        for name, count in self._counts.items():
            yield Finding(
                "error", self._name, "NaN or infinity", f"first in {self._first[name]}",
                f"{name} has {count} values that are NaN or infinite",
                "Repair or drop these episodes: the loader stops at them.",
            )  # fmt: skip


class Ranges:
    """Dimensions that hardly move, and values that their bounds clip.

    Attributes:
      statistics: of the actions.
    """

    def __init__(self, name: str, spec: ActionSpec, limits: Limits):
        self._name, self._spec, self._limits = name, spec, limits
        self.statistics = Statistics(spec.names)
        self._low, self._high = (x.astype(np.float64) for x in (spec.low, spec.high))
        self._slack = 1e-4 * (self._high - self._low)  # float32 at the bound itself
        self._clipped = np.zeros(len(spec.dimensions), np.int64)
        self._first = [""] * len(spec.dimensions)

    def add(self, track: Track) -> None:
        self.statistics.add(track.actions)
        below = track.actions < self._low - self._slack
        outside = below | (track.actions > self._high + self._slack)
        outside &= np.isfinite(track.actions)
        self._clipped += outside.sum(0)
        for i in np.flatnonzero(outside.any(0)):
            self._first[i] = self._first[i] or f"{track.where} step {outside[:, i].argmax()}"

    def findings(self) -> Iterator[Finding]:
        for i, dimension in enumerate(self._spec.dimensions):
            if not self.statistics.count[i]:
                continue  # Finite tells
            if finding := self._flat(i):
                yield finding
            # What is not a closedness at all, the gripper's check says.
            if self._clipped[i] and dimension.unit != "closedness":
                yield self._outside(i)

    def _flat(self, i: int) -> Finding | None:
        low, high = self.statistics.low[i], self.statistics.high[i]
        dimension = self._spec.dimensions[i]
        spread, width = self.statistics.spread()[i], self._high[i] - self._low[i]
        if high - low <= _CONSTANT:
            seen = f"{dimension.name} is {low:.4g} in every step"
            remedy = "Check how it was recorded. If the robot does not use it, leave it."
        elif dimension.levels is None and spread < self._limits.flat_share * width:
            seen = (
                f"{dimension.name} has 98% of its values within {spread:.3g} {dimension.unit}, all "
                f"within {low:.4g} .. {high:.4g}"
            )
            if high - low > 0.5 * width:  # some steps use it fully
                remedy = "Right for a motion that is rare."
                return Finding("note", self._name, "flat dimension", "", seen, remedy)
            seen += f": about {max(1, round(256 * spread / width))} of 256 bins"
            remedy = (
                f"Check its unit, and its bounds {dimension.low:g} .. {dimension.high:g}: this is "
                "too coarse to learn from."
            )
        else:
            return None
        return Finding("warning", self._name, "flat dimension", "", seen, remedy)

    def _outside(self, i: int) -> Finding:
        dimension, statistics = self._spec.dimensions[i], self.statistics
        share = self._clipped[i] / statistics.count[i]
        limits = self._limits
        severity = "note" if share <= limits.clipped_warning else "warning"
        if share > limits.clipped_error:
            severity = "error"
        remedy = "Store it as 0 or 1."
        if dimension.unit != "flag":
            remedy = (
                "Check its unit; else widen the bounds in the ActionSpec, e.g. to the 1st and 99th "
                f"percentile, {statistics.quantile(0.01)[i]:.4g} and "
                f"{statistics.quantile(0.99)[i]:.4g}."
            )
        return Finding(
            severity, self._name, "out of bounds", f"first in {self._first[i]}",
            f"{dimension.name}: {share:.2%} of the values are outside of {dimension.low:g} .. "
            f"{dimension.high:g} {dimension.unit} and get clipped; all are "
            f"{statistics.low[i]:.4g} .. {statistics.high[i]:.4g}",
            remedy,
        )  # fmt: skip


class Instructions:
    """Missing, empty and meaningless instructions.

    Attributes:
      counts: instruction -> episodes that have it.
    """

    def __init__(self, name: str):
        self._name = name
        self.counts: Counter[str] = Counter()
        self._empty, self._episodes, self._first = 0, 0, ""

    def add(self, track: Track) -> None:
        self._episodes += 1
        self.counts.update({text.strip() for text in track.instructions})
        empty = [step for step, text in enumerate(track.instructions) if not text.strip()]
        missing = len(track.actions) - len(track.instructions)
        if empty or missing:
            self._empty += len(empty) + missing
            step = empty[0] if empty else len(track.instructions)
            self._first = self._first or f"{track.where} step {step}"

    def findings(self) -> Iterator[Finding]:
        if self._empty:
            yield Finding(
                "error", self._name, "empty instruction", f"first in {self._first}",
                f"{self._empty} steps have no instruction",
                "Label or drop these episodes: the loader stops at them.",
            )  # fmt: skip
        odd = {t: n for t, n in self.counts.items() if t and t.casefold() in _PLACEHOLDERS}
        if odd:
            yield Finding(
                "warning", self._name, "meaningless instruction", "",
                f"{sum(odd.values())} episodes say {', '.join(map(repr, odd))}",
                "Say what the robot does in them, or drop them.", "likely",
            )  # fmt: skip
        if len(self.counts) == 1 and self._episodes > 1 and not self._empty:
            yield Finding(
                "note", self._name, "one instruction", "",
                f"all {self._episodes} episodes have the same instruction",
                "A policy of this data set alone learns to ignore its instruction.",
            )  # fmt: skip


class Lengths:
    """Episodes that are too short to show a task.

    Attributes:
      lengths: steps of each episode.
    """

    def __init__(self, name: str, limits: Limits):
        self._name, self._limits = name, limits
        self.lengths: list[int] = []
        self._where: list[str] = []

    def add(self, track: Track) -> None:
        self.lengths.append(len(track.actions))
        self._where.append(track.where)

    def findings(self) -> Iterator[Finding]:
        if not self.lengths:
            return
        median = float(np.median(self.lengths))
        least = max(float(self._limits.short_steps), median / 10)
        short = [i for i, length in enumerate(self.lengths) if length < least]
        if short:
            yield Finding(
                "warning", self._name, "short episode", _list([self._where[i] for i in short]),
                f"{len(short)} of {len(self.lengths)} episodes have fewer than {least:g} steps "
                f"(the shortest {min(self.lengths)}, the median {median:g})",
                "Look at them: most are recordings that were broken off. Drop those.",
            )  # fmt: skip


class Duplicates:
    """Episodes that are there twice: of equal actions and an equal first image."""

    def __init__(self, name: str, source: Source, most_read: int = 400):
        self._name, self._source, self._most_read = name, source, most_read
        self._by_actions: dict[bytes, list[tuple[str, int]]] = {}

    def add(self, track: Track) -> None:
        if len(track.actions):
            digest = hashlib.sha256(track.actions.astype("<f4").tobytes()).digest()
            self._by_actions.setdefault(digest, []).append((track.where, track.first))

    def findings(self) -> Iterator[Finding]:
        same = [group for group in self._by_actions.values() if len(group) > 1]
        equal, alike, read = [], [], 0
        for group in same:
            by_image: dict[bytes, list[str]] = {}
            for where, first in group if read < self._most_read else ():
                read += 1
                by_image.setdefault(self._first_image(first), []).append(where)
            twice = [wheres for wheres in by_image.values() if len(wheres) > 1]
            equal += twice
            if not twice:
                alike.append([where for where, _ in group])
        if equal:
            extra = sum(len(wheres) - 1 for wheres in equal)
            yield Finding(
                "warning", self._name, "duplicate episode", _list([" = ".join(equal[0])]),
                f"{extra} episodes are copies of another: the same actions and first image",
                "Drop the copies: they count twice, and may be in both training and test split.",
            )  # fmt: skip
        if alike:
            yield Finding(
                "note", self._name, "same actions", _list([" = ".join(alike[0])]),
                f"{len(alike)} groups of episodes have the same actions, not the same first image",
                "Check whether one was replayed, or the actions of one were written to another.",
            )  # fmt: skip

    def _first_image(self, index: int) -> bytes:
        try:
            images = self._source.read(index).images
        except (ValueError, OSError):
            return str(index).encode()  # its own finding
        return hashlib.sha256(
            b"".join(i if isinstance(i, bytes) else i.tobytes() for i in images)
        ).digest()


def _list(wheres: list[str], most: int = 3) -> str:
    more = f" and {len(wheres) - most} more" if len(wheres) > most else ""
    return "; ".join(wheres[:most]) + more
