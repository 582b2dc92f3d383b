"""What a check says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal, Protocol

from vla_jax.data.sources.base import Track

Severity = Literal["error", "warning", "note"]
Confidence = Literal["certain", "likely", "unsure"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""Worst first. An error stops training or spoils it; a warning is for a person to judge; a note is
worth knowing."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes:
      severity: see `SEVERITIES`.
      source: name of the data set in the mixture.
      check: what was looked for, e.g. "flat dimension".
      where: dimension, episode and step; "" for the whole data set.
      seen: what was found, with its number.
      remedy: what to do about it.
      confidence: "certain" for a count; "likely" and "unsure" for a conclusion that can be wrong.
    """

    severity: Severity
    source: str
    check: str
    where: str
    seen: str
    remedy: str
    confidence: Confidence = "certain"

    def __str__(self) -> str:
        sure = "" if self.confidence == "certain" else f" ({self.confidence})"
        where = f" [{self.where}]" if self.where else ""
        return (
            f"{self.severity.upper()} {self.source}: {self.check}{sure}: {self.seen}{where}. "
            f"{self.remedy}"
        )


class EpisodeCheck(Protocol):
    """Looks at one episode after the other, then says what it found."""

    def add(self, track: Track) -> None: ...

    def findings(self) -> Iterator[Finding]: ...


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is still in order.

    Attributes:
      flat_share: least spread (1st to 99th percentile) of a dimension, of its bounds' width.
      clipped_warning, clipped_error: share of a dimension's values outside of its bounds. Bounds at
        the 1st and 99th percentile leave out 2%.
      idle_seconds: the arm may stand still so long; a longer run counts.
      idle_share: of all steps that may lie in such runs.
      short_steps: least length of an episode; a tenth of the median too.
      lag_seconds: so much later than an action, and half as much earlier, its motion is looked for.
      least_correlation: to believe that a measured number follows an action.
    """

    flat_share: float = 0.02
    clipped_warning: float = 0.025
    clipped_error: float = 0.25
    idle_seconds: float = 2.0
    idle_share: float = 0.1
    short_steps: int = 3
    lag_seconds: float = 0.8
    least_correlation: float = 0.5
