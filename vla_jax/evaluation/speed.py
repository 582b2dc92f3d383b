"""How fast a policy acts."""

from __future__ import annotations

import dataclasses

from vla_jax.evaluation.base import Result


@dataclasses.dataclass
class Speed:
    """How often a policy was asked and how long that took, the simulators' time left out.

    The first call, which compiles, is not timed.

    Attributes:
      actions: done in all episodes.
      asked: predictions, one an episode and a look.
      calls: of the model, each for all episodes that were due.
      timed_asked, timed_calls, timed_s: of those after the first.
    """

    actions: int = 0
    asked: int = 0
    calls: int = 0
    timed_asked: int = 0
    timed_calls: int = 0
    timed_s: float = 0.0

    def add_call(self, rows: int, seconds: float) -> None:
        if self.calls:
            self.timed_asked += rows
            self.timed_calls += 1
            self.timed_s += seconds
        self.calls += 1
        self.asked += rows

    def measured(self) -> Result:
        """Per look at a picture and per second. Rates are None if there was one call only.

        `actions_per_s` counts the actions of all robots that shared the calls; a robot of its own
        gets `robot_actions_per_s`, those of one prediction in the time of one call.
        """
        per_look = self.actions / self.asked if self.asked else None
        rates: dict[str, float | None] = dict.fromkeys(
            ("call_s", "actions_per_s", "robot_actions_per_s")
        )
        if per_look and self.timed_s:
            rates = {
                "call_s": self.timed_s / self.timed_calls,
                "actions_per_s": per_look * self.timed_asked / self.timed_s,
                "robot_actions_per_s": per_look * self.timed_calls / self.timed_s,
            }
        return {
            "model_calls": self.calls,
            "predictions": self.asked,
            "actions_per_prediction": per_look,
            **rates,
        }
