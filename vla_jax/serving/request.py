"""What robots ask, whatever protocol they speak: a mapping of names to values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_jax.serving.contract import Observation, ServedPolicy
from vla_jax.serving.pictures import is_slow, read_picture
from vla_jax.serving.pixels import resized
from vla_jax.serving.safety import HoldError
from vla_jax.serving.sessions import Session

_MAX_NAME, _MAX_TEXT, _MAX_STATE = 128, 4096, 1024


class NotUnderstoodError(ValueError):
    """A message that is no request at all: it gets an error, not an action."""


class RequestReader:
    """Turns the fields of a message into an Observation.

    openpi's flat names are understood ("observation/image", "observation/state", "prompt"), nested
    ones ("images": {...}, "state") and OpenVLA's ("image", "instruction", "unnorm_key").

    Args:
      policy: what it needs.
      cameras: its names of cameras -> the robots' names.
      max_side, max_age_s: see `ServerSettings`.

    Raises:
      ValueError: `cameras` has a name that the policy does not know.
    """

    def __init__(
        self, policy: ServedPolicy, *, cameras: Mapping[str, str], max_side: int, max_age_s: float
    ):
        unknown = sorted(set(cameras) - set(policy.cameras))
        if unknown:
            raise ValueError(f"cameras: {unknown} are not the policy's, {list(policy.cameras)}")
        self._spec, self._state_names = policy.spec, policy.state_names
        self._cameras, self._frames, self._side = policy.cameras, policy.frames, policy.image_size
        self._names = {c: self._names_of(c, cameras.get(c)) for c in policy.cameras}
        self._max_side, self._max_age_s = max_side, max_age_s

    def _names_of(self, camera: str, theirs: str | None) -> tuple[str, ...]:
        names = (
            (theirs,)
            if theirs
            else (camera, f"observation/{camera}", f"observation/images/{camera}")
        )
        if theirs is None and len(self._cameras) == 1:  # nothing to confuse it with
            names += ("image", "observation/image")
        return names

    def instruction(self, fields: Mapping[str, Any]) -> str:
        """Raises HoldError for none or too long a one."""
        text = fields.get("prompt", fields.get("instruction"))
        if isinstance(text, np.ndarray) and text.size == 1:
            text = text.item()
        if not isinstance(text, str) or not text.strip():
            raise HoldError("instruction", 'no instruction: send text as "prompt" or "instruction"')
        if len(text) > _MAX_TEXT:
            raise HoldError("instruction", f"an instruction of {len(text)} characters")
        return str(text).strip()

    def state(self, fields: Mapping[str, Any]) -> np.ndarray | None:
        """float32 [S], or None if there is none. Raises HoldError for one that is no vector."""
        value = fields.get("observation/state", fields.get("state"))
        if value is None:
            return None
        state = _vector(value)
        if state is None:
            raise HoldError("state", "the state must be a vector of finite numbers")
        return state

    def last_action(self, fields: Mapping[str, Any]) -> np.ndarray | None:
        """What the robot did last, float32 [A], if it tells. Raises HoldError for nonsense."""
        if fields.get("last_action") is None:
            return None
        action = _vector(fields["last_action"])
        if action is None or len(action) != len(self._spec.dimensions):
            raise HoldError(
                "request", f"last_action must be {len(self._spec.dimensions)} finite numbers"
            )
        return action

    def require_same_spec(self, fields: Mapping[str, Any]) -> None:
        """Raises HoldError if the robot says it is another one."""
        digest, key = fields.get("spec"), fields.get("unnorm_key")
        if digest is not None and digest != self._spec.digest:
            raise HoldError(
                "spec", f"the robot's ActionSpec is {digest!r}, the policy's {self._spec.digest!r}"
            )
        if key is not None and key != self._spec.name:
            raise HoldError("spec", f"unnorm_key {key!r}: this policy acts by {self._spec.name!r}")

    def require_fresh(self, fields: Mapping[str, Any], session: Session) -> None:
        """Raises HoldError if the pictures are old, or older than the robot's last."""
        when = fields.get("timestamp")
        if when is None:
            return
        if isinstance(when, bool) or not isinstance(when, int | float | np.number):
            raise HoldError("request", "timestamp must be a number: seconds since 1970")
        when, now = float(when), time.time()
        # not (x <= y) rather than x > y: NaN is not fresh.
        if self._max_age_s and not abs(now - when) <= self._max_age_s:
            raise HoldError("stale", f"the pictures are of {now - when:.3f} s ago by our clock")
        if not when >= session.newest_frame:
            raise HoldError(
                "stale", f"the pictures are {session.newest_frame - when:.3f} s older than the last"
            )
        session.newest_frame = when

    async def observation(self, fields: Mapping[str, Any], state: np.ndarray | None) -> Observation:
        """Raises HoldError for whatever is missing or wrong."""
        instruction = self.instruction(fields)
        if self._state_names and (state is None or len(state) != len(self._state_names)):
            raise HoldError(
                "state",
                f"the policy needs a state of {len(self._state_names)} numbers, "
                f"{list(self._state_names)}; got {'none' if state is None else len(state)}",
            )
        nested = fields.get("images")
        nested = nested if isinstance(nested, Mapping) else {}
        images = {}
        for camera, names in self._names.items():
            found = next((m[n] for n in names for m in (nested, fields) if n in m), None)
            if found is None:
                raise HoldError("camera", f"no picture of camera {camera!r}; known as {names}")
            images[camera] = await self._frames_of(found, camera)
        return Observation(
            images,
            instruction,
            state if self._state_names else None,
            _number(fields, "temperature", 0.0, 10.0),
            int(_number(fields, "seed", 0, 2**31 - 1)),
        )

    async def picture(self, value: Any, camera: str) -> np.ndarray:
        """uint8 [side, side, 3] of the policy's side. Raises HoldError; see `read_picture`."""
        if is_slow(value, self._side):
            return await asyncio.to_thread(self._picture, value, camera)
        return self._picture(value, camera)

    def _picture(self, value: Any, camera: str) -> np.ndarray:
        return resized(read_picture(value, camera=camera, max_side=self._max_side), self._side)

    async def _frames_of(self, value: Any, camera: str) -> np.ndarray:
        """uint8 [side, side, 3], or [frames, side, side, 3] if the robot sends as many."""
        several = isinstance(value, np.ndarray) and value.ndim == 4
        if not several or self._frames == 1:
            return await self.picture(value, camera)
        if len(value) != self._frames:
            raise HoldError(
                "image",
                f"camera {camera!r}: {len(value)} frames, and the policy sees {self._frames}",
            )
        return np.stack([await self.picture(frame, camera) for frame in value])


def session_name(fields: Mapping[str, Any], default: str) -> str:
    """Who asks. Raises NotUnderstoodError for a name that is none."""
    name = fields.get("session", default)
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise NotUnderstoodError(f"session must be a name of up to {_MAX_NAME} characters")
    return name


def _vector(value: Any) -> np.ndarray | None:
    """float32 [N] of finite numbers, or None."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.ndim != 1 or array.size > _MAX_STATE:
            return None
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    except (ValueError, TypeError, OverflowError):
        return None
    return array if np.isfinite(array).all() else None


def _number(fields: Mapping[str, Any], name: str, low: float, high: float) -> float:
    value = fields.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise HoldError("request", f"{name} must be a number")
    if not low <= value <= high:
        raise HoldError("request", f"{name} must be in [{low}, {high}], got {value}")
    return float(value)
