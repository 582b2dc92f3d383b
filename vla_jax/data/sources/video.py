"""Frames of video files by time, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from vla_jax.data import storage

TOLERANCE_S = 1e-4
"""A frame this near is the one that was asked for: timestamps are stored as float32."""

# So many frames ahead, decoding on is cheaper than seeking.
_DECODE_ON = 8
# 29.97 and 30 are different rates.
_SAME_RATE = 5e-4


class VideoFrames:
    """Random access to the frames of many videos, local or in a store.

    `read` may be called by several threads at once. A reader takes a decoder out of the
    pool, so no two threads share one, and puts it back where it stopped: reading on from there
    needs no seeking.

    Args:
      fps: frames per second of every video.
      max_open: decoders kept open. More only while more threads than that are reading.
    """

    def __init__(self, fps: float, max_open: int):
        self._fps, self._max_open = fps, max_open
        self._idle: list[_Decoder] = []  # the one used last at the end
        self._busy = 0
        self._lock = threading.Lock()

    @property
    def num_open(self) -> int:
        return len(self._idle) + self._busy

    def read(self, path: str | os.PathLike[str], time_s: float) -> np.ndarray:
        """The frame nearest to `time_s`, uint8 RGB [h, w, 3].

        Raises:
          ValueError: naming the file, if it cannot be opened or decoded, has another frame rate,
            or has no frame within half a frame of `time_s`.
        """
        path = os.fspath(path)
        try:
            decoder = self._take(path, time_s)
        except (FFmpegError, OSError, EOFError) as e:
            raise ValueError(
                f"{path} cannot be opened: {e}. It is missing, cut off or no video: copy it again"
            ) from e
        try:
            image = decoder.read(time_s)
        except BaseException as e:
            with self._lock:
                self._busy -= 1
            decoder.close()
            if isinstance(e, (FFmpegError, OSError, EOFError)):
                raise ValueError(
                    f"{path} cannot be decoded at {time_s:.4f} s: {e}. It is damaged: copy it again"
                ) from e
            raise
        self._give_back(decoder)
        return image

    def _take(self, path: str, time_s: float) -> _Decoder:
        with self._lock:
            same = [d for d in self._idle if d.path == path]
            self._busy += 1
            if same:
                # The one that has to decode least.
                now = time_s + TOLERANCE_S
                decoder = max(same, key=lambda d: d.position if d.position <= now else -1.0)
                self._idle.remove(decoder)
                return decoder
            surplus = self._surplus()
        for decoder in surplus:
            decoder.close()
        try:
            return _Decoder(path, self._fps)
        except BaseException:
            with self._lock:
                self._busy -= 1
            raise

    def _give_back(self, decoder: _Decoder) -> None:
        with self._lock:
            self._busy -= 1
            self._idle.append(decoder)
            surplus = self._surplus()
        for old in surplus:
            old.close()

    def _surplus(self) -> list[_Decoder]:
        """Takes out the idle decoders that are too many. The lock is held."""
        count = min(max(0, self.num_open - self._max_open), len(self._idle))
        surplus, self._idle = self._idle[:count], self._idle[count:]
        return surplus


class _Decoder:
    """One open video. For one thread at a time.

    Raises as `VideoFrames.read`, but FFmpeg's own errors as they are.
    """

    def __init__(self, path: str, fps: float):
        self.path, self._fps = path, fps
        # FFmpeg opens local files itself.
        with contextlib.ExitStack() as opened:
            remote = storage.is_remote(path)
            file = opened.enter_context(storage.open_blocks(path)) if remote else path
            self._container = opened.enter_context(av.open(file, "r"))
            self._stream = self._video_stream()
            self._opened = opened.pop_all()
        self._reformatter = VideoReformatter()
        self._frames: Iterator[VideoFrame] = iter(())
        self._current: VideoFrame | None = None
        self._following: VideoFrame | None = None  # decoded, not yet stepped to

    @property
    def position(self) -> float:
        """Time of the frame decoded last, in seconds; -1 before the first."""
        return -1.0 if self._current is None else _seconds(self._current)

    def close(self) -> None:
        self._frames = iter(())
        self._opened.close()

    def read(self, time_s: float) -> np.ndarray:
        ahead = time_s - self.position
        if self._current is None or not -TOLERANCE_S <= ahead <= _DECODE_ON / self._fps:
            self._seek(time_s)
        while self._current is not None and _seconds(self._current) < time_s - TOLERANCE_S:
            following = self._peek()
            if following is None or self._distance(following, time_s) >= self._distance(
                self._current, time_s
            ):
                break
            self._current, self._following = following, None
        frame = self._current
        if frame is None or self._distance(frame, time_s) > 0.5 / self._fps:
            found = "none at all" if frame is None else f"the nearest is at {_seconds(frame):.4f} s"
            raise ValueError(
                f"{self.path} has no frame at {time_s:.4f} s ({found}). It is cut off or does not "
                "belong to this episode: copy it again or drop the episode"
            )
        if frame.is_corrupt:  # FFmpeg fills in what it could not decode
            raise ValueError(f"{self.path} is damaged at {time_s:.4f} s: copy it again")
        # One thread: a small picture is converted sooner than threads are started.
        return self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()

    def _video_stream(self) -> av.VideoStream:
        if not self._container.streams.video:
            raise ValueError(f"{self.path} has no video stream: copy or write it again")
        stream = self._container.streams.video[0]
        # base_rate is exact for short files too, where the average depends on how long the last
        # frame is said to be shown.
        rates = [float(r) for r in (stream.base_rate, stream.average_rate) if r]
        if rates and all(abs(rate / self._fps - 1) > _SAME_RATE for rate in rates):
            raise ValueError(
                f"{self.path} has {rates[0]:.3f} frames per second, meta/info.json says "
                f"{self._fps:g}: correct fps there or write the video again"
            )
        # Callers read in parallel; a decoder with threads only answers later.
        stream.codec_context.thread_count = 1
        return stream

    def _seek(self, time_s: float) -> None:
        """Makes the keyframe before `time_s` current, or the first frame if there is none."""
        start, back = time_s + TOLERANCE_S, 1.0
        assert self._stream.time_base is not None
        while True:
            start = max(start, 0.0)
            # Without this, a failed seek would leave frames of another place behind.
            self._current = self._following = None
            self._container.seek(
                int(start / self._stream.time_base), stream=self._stream, backward=True
            )
            self._frames = self._container.decode(self._stream)
            self._current = self._peek()
            self._following = None
            late = self._current is not None and self.position > time_s + TOLERANCE_S
            # A keyframe may be stored before frames that are shown earlier and need the one before.
            if not late or start == 0.0:
                return
            start, back = start - back, 2 * back

    def _peek(self) -> VideoFrame | None:
        if self._following is None:
            self._following = next((f for f in self._frames if f.pts is not None), None)
        return self._following

    @staticmethod
    def _distance(frame: VideoFrame, time_s: float) -> float:
        return abs(_seconds(frame) - time_s)


def _seconds(frame: VideoFrame) -> float:
    assert frame.pts is not None and frame.time_base is not None
    return float(frame.pts * frame.time_base)
