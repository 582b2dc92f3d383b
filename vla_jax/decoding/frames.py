"""The pictures before the newest, for policies that see several steps at a time."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import numpy as np


class FrameHistory:
    """Of one episode, whose every step is shown to it. `len` is how many steps it remembers.

    Args:
      frames: that the policy sees at a time.
    """

    def __init__(self, frames: int):
        self._frames = frames
        self._steps = collections.deque[Mapping[str, np.ndarray]](maxlen=frames)

    def __len__(self) -> int:
        return len(self._steps)

    def clear(self) -> None:
        """Another episode begins."""
        self._steps.clear()

    def add(self, images: Mapping[str, np.ndarray]) -> None:
        """Shows a step: uint8 [h, w, 3] by camera."""
        self._steps.append(images)

    def views(self) -> dict[str, np.ndarray]:
        """By camera uint8 [frames, h, w, 3], oldest first, or [h, w, 3] for a single frame.

        As in training, an episode's first step stands for those before it.
        """
        if self._frames == 1:
            return dict(self._steps[-1])
        steps = [self._steps[0]] * (self._frames - len(self._steps)) + list(self._steps)
        return {camera: np.stack([step[camera] for step in steps]) for camera in steps[-1]}
