"""A bundle as a model server of vla-eval:

    python -m vla_jax.serving.harnesses.vla_eval_server --args.bundle=DIR --port=8000
    vla-eval run --config eval.yaml

Actions are position, rotation and gripper, in this order. The policy's "terminate" is left out:
there the benchmark alone ends an episode. Where a server would tell a robot to hold its position,
the episode fails with the reason "model_act".
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from vla_eval import specs
from vla_eval.model_servers.base import SessionContext
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.model_servers.serve import run_server
from vla_eval.specs import DimSpec
from vla_eval.types import Action, Observation

from vla_jax.serving.contract import ServedPolicy
from vla_jax.serving.harnesses.episode import EndEffector, Episode, camera_names
from vla_jax.serving.policy import load

Gripper = Literal["closedness", "binary_close_positive", "binary_close_negative", "binary_close_01"]
_BINARY = {  # open, closed
    "binary_close_positive": (-1.0, 1.0),
    "binary_close_negative": (1.0, -1.0),
    "binary_close_01": (0.0, 1.0),
}


class PolicyServer(PredictModelServer):
    """See `BundleServer`. vla-eval's own chunking is not used."""

    def __init__(
        self,
        policy: ServedPolicy,
        *,
        cameras: dict[str, str] | None = None,
        gripper: Gripper = "closedness",
        position_unit: float = 1.0,
        rotation_unit: float = 1.0,
    ):
        super().__init__()
        for name, unit in (("position_unit", position_unit), ("rotation_unit", rotation_unit)):
            if not (np.isfinite(unit) and unit > 0):
                raise ValueError(f"{name} must be above 0, got {unit}")
        self._policy = policy
        self._cameras, self._gripper = cameras or {}, gripper
        self._arm = EndEffector.of(policy.spec)
        self._names = camera_names(policy, self._cameras)
        units = [position_unit] * 3 + [rotation_unit] * len(self._arm.rotation)
        self._units = np.asarray(units, np.float32)
        self._episodes: dict[str, Episode] = {}

    def predict(self, obs: Observation, ctx: SessionContext) -> Action:
        """One action, float32 [A]. Raises NoActionError, which the harness counts as an error."""
        episode = self._episodes.get(ctx.episode_id)
        if episode is None:
            episode = Episode(self._policy, self._cameras)
            self._episodes[ctx.episode_id] = episode
        state = obs.get("states", obs.get("state")) if self._policy.state_names else None
        if state is not None:
            state = np.asarray(state, np.float32)
        step = episode.next(obs.get("images", {}), obs.get("task_description", ""), state)
        motion = self._arm.motion(step.action) / self._units
        return {"actions": np.append(motion, self._gripper_of(step.action)).astype(np.float32)}

    async def on_episode_end(self, result: dict[str, Any], ctx: SessionContext) -> None:
        self._episodes.pop(ctx.episode_id, None)
        await super().on_episode_end(result, ctx)

    def get_action_spec(self) -> dict[str, DimSpec]:
        """What vla-eval compares with the benchmark's, with the bounds of the ActionSpec."""
        arm, spec = self._arm, self._policy.spec
        found = {"position": self._deltas("position", "delta_xyz", arm.position)}
        if arm.rotation:
            found["rotation"] = self._deltas("rotation", "euler_xyz", arm.rotation)
        if arm.gripper is not None:
            low, high = sorted(_BINARY.get(self._gripper, (0.0, 1.0)))
            form = "continuous_close_01" if self._gripper == "closedness" else self._gripper
            found["gripper"] = DimSpec("gripper", 1, form, (low, high), description=spec.gripper)
        return found

    def get_observation_spec(self) -> dict[str, DimSpec]:
        found = {name: specs.IMAGE_RGB for name in self._names.values()}
        if self._policy.state_names:
            found["state"] = specs.RAW
        return {**found, "language": specs.LANGUAGE}

    def get_observation_params(self) -> dict[str, Any]:
        """What built-in benchmarks send only if they are asked to."""
        params = {"send_wrist_image": True} if len(self._names) > 1 else {}
        return params | ({"send_state": True} if self._policy.state_names else {})

    def _deltas(self, name: str, form: str, places: tuple[int, ...]) -> DimSpec:
        dimensions = [self._policy.spec.dimensions[i] for i in places]
        unit = float(self._units[0 if name == "position" else -1])
        bounds = min(d.low for d in dimensions) / unit, max(d.high for d in dimensions) / unit
        described = f"{dimensions[0].unit} / {unit:g}, frame {self._policy.spec.frame}"
        return DimSpec(name, 3, form, bounds, description=described)

    def _gripper_of(self, action: np.ndarray) -> list[float]:
        if self._arm.gripper is None:
            return []
        if self._gripper == "closedness":
            return [self._arm.closedness(self._policy.spec, action)]
        return [_BINARY[self._gripper][self._arm.is_closed(self._policy.spec, action)]]


class BundleServer(PolicyServer):
    """A bundle, loaded and warmed up.

    Args:
      bundle: a directory that `python -m vla_jax.export` wrote.
      cameras: the policy's name of a camera -> the benchmark's, where they differ.
      gripper: what the benchmark takes: one of vla-eval's own forms, or the closedness as it is.
      position_unit: metres that the benchmark's 1 stands for, where it takes a controller's
        scale; 1: it takes metres, or the bundle was trained on that scale.
      rotation_unit: radians likewise.

    Raises:
      FileNotFoundError, ValueError: as `vla_jax.serving.load`; an ActionSpec that is none of an end
        effector.
    """

    def __init__(
        self,
        bundle: str,
        cameras: dict[str, str] | None = None,
        gripper: Gripper = "closedness",
        position_unit: float = 1.0,
        rotation_unit: float = 1.0,
    ):
        policy = load(bundle, max_batch_size=1)
        policy.warm_up()
        super().__init__(
            policy,
            cameras=cameras,
            gripper=gripper,
            position_unit=position_unit,
            rotation_unit=rotation_unit,
        )


if __name__ == "__main__":
    run_server(BundleServer)
