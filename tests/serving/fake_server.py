"""A server process with a policy that can be computed by hand: `python fake_server.py '{...}'`.

The argument is JSON: "settings" of the server and "policy", the arguments of FakePolicy.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import numpy as np

from vla_jax import schema
from vla_jax.actions.spec import end_effector_spec
from vla_jax.decoding.chunks import ChunkExecutor
from vla_jax.serving.contract import Action, Observation
from vla_jax.serving.server import run
from vla_jax.serving.settings import ServerSettings

SPEC = end_effector_spec("fake_arm", max_position_m=0.05, max_rotation_rad=0.25, control_hz=5.0)


class FakePolicy:
    """What it says follows from the first pixel, the instruction and the state.

    Instructions make it fail: "nan", "illegal", "crash", "far", "shape", "sleep SECONDS"; "finish"
    makes it terminate in its third step.
    """

    digest = "f00d"
    spec = SPEC
    image_size = 8

    def __init__(
        self,
        cameras: Sequence[str] = ("front", "wrist"),
        chunk: int = 4,
        states: int = 0,
        call_s: float = 0.0,
        warm_s: float = 0.0,
        batch: int = 16,
        frames: int = 1,
        execute_steps: int = 1,
    ):
        self.card = {"name": "fake"}
        self.cameras, self.chunk, self.frames = tuple(cameras), chunk, frames
        self.state_names = tuple(f"s{i}" for i in range(states))
        self.batch_sizes = (1, batch)
        self._call_s, self._warm_s, self._execute_steps = call_s, warm_s, execute_steps

    def make_executor(self) -> ChunkExecutor:
        return ChunkExecutor(self.spec, self.chunk, execute_steps=self._execute_steps)

    def warm_up(self) -> None:
        time.sleep(self._warm_s)

    def act(self, observations) -> list[Action]:
        assert 0 < len(observations) <= max(self.batch_sizes)
        time.sleep(self._call_s)
        return [self._one(o) for o in observations]

    def _one(self, observation: Observation) -> Action:
        word, _, rest = observation.instruction.partition(" ")
        if word == "crash":
            raise RuntimeError("the device is gone")
        if word == "sleep":
            time.sleep(float(rest))
        actions = expected(observation, self.cameras, self.chunk)
        if word == "nan":
            actions[1, 2] = np.nan
        if word == "finish":
            actions[2:, 0] = 1.0
        if word == "far":
            actions[:, 1] = 3.0
        if word == "shape":
            actions = actions[:, :3]
        tokens = np.arange(self.chunk * 8, dtype=np.int32)
        valid = word != "illegal"
        why = "" if valid else "token 5 stands where only bins may"
        return Action(actions, tokens, "1 2 3", f"plan: {word}", self._call_s, valid, why)

    def answer(self, images, questions) -> list[str]:
        time.sleep(self._call_s)
        return [f"{q} {i.shape[0]}x{i.shape[1]} {int(i.sum())}" for i, q in zip(images, questions)]


def expected(observation: Observation, cameras, chunk: int) -> np.ndarray:
    """Actions float32 [C, A] within the spec's bounds: each from another part of the input."""
    # [frames, cameras]
    pixels = np.stack([observation.images[c][..., 0, 0, 0].reshape(-1) for c in cameras], axis=1)
    pixels = pixels.astype(int)
    actions = np.zeros((chunk, 8), np.float32)
    for step in range(chunk):
        actions[step, 1] = 0.0001 * pixels[-1, 0]
        actions[step, 2] = 0.0001 * pixels[-1, -1]
        actions[step, 6] = 0.0001 * pixels[:-1].sum()
        actions[step, 3] = 0.001 * step
        actions[step, 4] = 0.001 * len(observation.instruction)
        if observation.state is not None:
            actions[step, 5] = 0.01 * float(observation.state.sum())
        actions[step, 7] = 1.0 if "close" in observation.instruction else 0.25
    return actions


def main() -> int:
    options = json.loads(sys.argv[1])
    defaults = {"port": 0, "grpc_port": -1}
    settings = schema.from_dict(ServerSettings, {**defaults, **options.get("settings", {})})
    return run(FakePolicy(**options.get("policy", {})), settings)


if __name__ == "__main__":
    sys.exit(main())
