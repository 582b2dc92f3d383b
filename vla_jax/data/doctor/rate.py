"""Whether steps come as often as the ActionSpec says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vla_jax.data.config import SourceConfig
from vla_jax.data.doctor.findings import Finding
from vla_jax.data.sources.lerobot_meta import LeRobotMeta, read_parquet

_MOST_FILES = 20


def step_intervals(name: str, config: SourceConfig) -> np.ndarray:
    """float64 [n], seconds from one step of an episode to the next, of a LeRobot data set.

    Of episodes spread over it. Raises as `LeRobotSource` does.
    """
    meta = LeRobotMeta(name, config.path)
    episodes = meta.episodes(config.split, meta.choose_cameras(config.cameras))
    files = list(dict.fromkeys(episode.data for episode in episodes))
    chosen = np.unique(np.linspace(0, len(files) - 1, min(len(files), _MOST_FILES)).astype(int))
    found = []
    for number in chosen.tolist():
        columns = ["timestamp", "episode_index", "frame_index"]
        table = read_parquet(files[number], columns, where=meta.where)
        times, episode, frame = (table.column(column).to_numpy() for column in columns)
        order = np.lexsort((frame, episode))
        within = np.diff(episode[order]) == 0
        found.append(np.diff(times[order].astype(np.float64))[within])
    return np.concatenate(found)


def rate_findings(name: str, intervals: np.ndarray, control_hz: float) -> Iterator[Finding]:
    """Compares intervals [n], seconds, with the rate that the ActionSpec names."""
    if not len(intervals):
        return
    median = float(np.median(intervals))
    if not abs(median * control_hz - 1) <= 0.05:
        seen = f"{1 / median:.3g} a second" if median > 0 else f"{median:g} s apart"
        yield Finding(
            "error", name, "wrong rate", "",
            f"by their timestamps steps come {seen}, the ActionSpec says {control_hz:g}",
            "Correct control_hz (and fps), or resample: the robot would move at another speed.",
        )  # fmt: skip
        return
    gaps = float((intervals * control_hz > 1.5).mean())
    if gaps:
        yield Finding(
            "warning" if gaps > 0.01 else "note", name, "dropped steps", "",
            f"{gaps:.2%} of the intervals are longer than 1.5 steps, the longest is "
            f"{intervals.max():.3g} s",
            "Cut the episodes there, or resample: an action is taken to last one step.",
        )  # fmt: skip
