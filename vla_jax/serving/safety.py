"""What stands between a policy and a robot: limits, and what to do when there is no good action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from vla_jax.actions.spec import ActionDimension, ActionSpec, Unit
from vla_jax.schema import unknown_key
from vla_jax.serving.settings import DimensionLimits

# Why a robot is told to hold its position; the label of a metric.
REASONS = (
    "timeout",
    "overload",
    "rate",
    "illegal",
    "nan",
    "spec",
    "camera",
    "image",
    "state",
    "instruction",
    "stale",
    "request",
    "draining",
    "starting",
    "policy",
    "internal",
)
_GRIPPER = ("closedness", "effort")


class HoldError(Exception):
    """There is no good action for a robot: it must hold its position.

    Args:
      reason: one of `REASONS`.
      why: for the robot's people.
    """

    def __init__(self, reason: str, why: str):
        super().__init__(why)
        if reason not in REASONS:
            raise ValueError(f"no such reason to hold: {reason!r}; there are {REASONS}")
        self.reason, self.why = reason, why


class Safety:
    """Bounds, changes and workspace of one robot's actions; all in physical units.

    Args:
      spec: of the actions. "m", "rad" and "unknown" are deltas, as everywhere in this project.
      limits: by dimension, beside the spec's bounds.
      state_names: of the policy.

    Raises:
      ValueError: a limit of an unknown dimension, outside the spec's bounds, or of a state that
        does not exist.
    """

    def __init__(
        self,
        spec: ActionSpec,
        limits: Mapping[str, DimensionLimits] | None = None,
        state_names: Sequence[str] = (),
    ):
        limits = dict(limits or {})
        for name in limits:
            if name not in spec.names:
                raise ValueError(unknown_key(name, spec.names, "limits"))
        self.spec = spec
        mine = [limits.get(d.name, DimensionLimits()) for d in spec.dimensions]
        low = [d.low if m.low is None else max(m.low, d.low) for d, m in zip(spec.dimensions, mine)]
        high = [
            d.high if m.high is None else min(m.high, d.high) for d, m in zip(spec.dimensions, mine)
        ]
        self._low, self._high = np.asarray(low, np.float32), np.asarray(high, np.float32)
        if (self._low > self._high).any():
            name = spec.names[int(np.argmax(self._low > self._high))]
            raise ValueError(f"limits.{name}: nothing of the ActionSpec's bounds is left")
        change = [np.inf if m.max_change is None else m.max_change for m in mine]
        self._change = np.asarray(change, np.float32)
        self._limits_change = any(m.max_change is not None for m in mine)
        # (dimension, place in the state, low, high)
        self._boxes = [
            (i, _place(m.state, state_names, d.name), *m.workspace)
            for i, (d, m) in enumerate(zip(spec.dimensions, mine))
            if m.workspace is not None
        ]
        self._held = np.asarray([_held(d, m) for d, m in zip(spec.dimensions, mine)], np.float32)
        # Where what was commanded last holds the position; else `_held` does.
        self._keeps = np.asarray(
            [
                m.hold is None and (m.keep or d.unit in _GRIPPER)
                for d, m in zip(spec.dimensions, mine)
            ]
        )
        self._measured = [
            (i, state_names.index(d.name))
            for i, d in enumerate(spec.dimensions)
            if self._keeps[i] and d.name in state_names
        ]

    @property
    def low(self) -> np.ndarray:
        """float32 [A]: the narrower of the spec's and the server's bounds."""
        return self._low

    @property
    def high(self) -> np.ndarray:
        """float32 [A]; likewise."""
        return self._high

    def hold(self, last: np.ndarray | None, state: np.ndarray | None = None) -> np.ndarray:
        """The action that stays where the robot is, float32 [A].

        Args:
          last: commanded before, [A]; None: nothing was. What the state says of a dimension by its
            name then counts, or else a gripper without effort, or open.
        """
        action = self._held.copy()
        if last is not None:
            return np.where(self._keeps, last, action).astype(np.float32)
        for dimension, place in self._measured:
            if state is not None and place < len(state) and np.isfinite(state[place]):
                action[dimension] = np.clip(
                    state[place], self._low[dimension], self._high[dimension]
                )
        return action

    def apply(
        self, actions: np.ndarray, last: np.ndarray | None, state: np.ndarray | None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Brings actions within all limits.

        Bounds first, then the change from the action before, then the workspace, which counts most:
        at its wall a robot stops at once. A robot outside it may move back, not further out.

        Args:
          actions: [C, A], done one after the other.
          last: commanded before them, [A]; None: the robot stands still.
          state: where it is now; needed by a workspace.

        Returns:
          float32 [C, A], and which of "bounds", "change" and "workspace" changed something.

        Raises:
          HoldError: NaN, infinite numbers or a wrong shape; no state.
        """
        try:
            actions = self.spec.validate(actions, where="the policy")
        except ValueError as e:
            raise HoldError("nan", str(e)) from e
        clipped = []
        bounded = np.minimum(np.maximum(actions, self._low), self._high)
        if (bounded != actions).any():
            clipped.append("bounds")
        if self._limits_change:
            before = self.hold(None, state) if last is None else last
            if self._near(bounded, before):
                clipped.append("change")
        if self._boxes and self._into_workspace(bounded, state):
            clipped.append("workspace")
        return bounded, tuple(clipped)

    def _near(self, actions: np.ndarray, before: np.ndarray) -> bool:
        """Changes `actions` to what may follow each other and `before`; whether it did."""
        changed = False
        for row in actions:
            near = np.clip(row, before - self._change, before + self._change)
            # Only what the limit moves, so that rounding does not count as a change.
            far = np.abs(row - before) > self._change
            changed |= bool(far.any())
            row[far] = near[far]
            before = row
        return changed

    def _into_workspace(self, actions: np.ndarray, state: np.ndarray | None) -> bool:
        """Changes `actions`; whether it did."""
        changed = False
        for dimension, place, low, high in self._boxes:
            if state is None or place >= len(state) or not np.isfinite(state[place]):
                name = self.spec.names[dimension]
                raise HoldError("state", f"limits.{name} has a workspace: send where the robot is")
            position = float(state[place])
            for row in actions:
                wanted = position + float(row[dimension])
                allowed = min(max(wanted, min(low, position)), max(high, position))
                if allowed != wanted:
                    row[dimension], changed = allowed - position, True
                position = allowed
        return changed


def _held(dimension: ActionDimension, limits: DimensionLimits) -> float:
    assert dimension.unit in get_args(Unit)
    value = 0.0 if limits.hold is None else limits.hold
    if limits.hold is not None and not dimension.low <= value <= dimension.high:
        raise ValueError(f"limits.{dimension.name}.hold {value} is outside the ActionSpec's bounds")
    return min(max(value, dimension.low), dimension.high)


def _place(state: str, names: Sequence[str], dimension: str) -> int:
    if state in names:
        return names.index(state)
    if state.isdecimal():
        return int(state)
    raise ValueError(
        f"limits.{dimension}.state: {state!r} is neither one of the policy's state features "
        f"{tuple(names)} nor an index"
    )
