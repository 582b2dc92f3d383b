"""A server with the page in demo mode and a policy that knows one table by heart.

    python page_server.py '{"settings": {...}}'

No trained policy is small enough to stand here. This one was told where the blocks of table 0 are,
and sees the rest, the gripper's pose and fingers, in the state of each request: it can pick.
"""

from __future__ import annotations

import json
import random
import sys

import numpy as np

from vla_jax import schema
from vla_jax.corpus.pictures import PictureBank
from vla_jax.decoding.chunks import ChunkExecutor
from vla_jax.envs.tabletop.config import CONFIGS
from vla_jax.envs.tabletop.layout import draw_layout
from vla_jax.serving.contract import Action, Observation
from vla_jax.serving.server import run
from vla_jax.serving.settings import ServerSettings

WORLD = CONFIGS["demo"]
TRAVEL_M, GRASP_M, ALIGNED_M = 0.10, 0.016, 0.02


class ByHeart:
    """Picks a block of table 0; to "nan" it answers NaN, to anything else that it stays."""

    card = {"name": "by heart"}  # noqa: RUF012
    digest = "b4ea27"
    spec = WORLD.action_spec
    cameras = ("image",)
    frames = chunk = 1
    state_names = ("x", "y", "z", "roll", "pitch", "yaw", "commanded", "measured")
    image_size = WORLD.image_size
    batch_sizes = (1,)

    def __init__(self):
        bank = PictureBank()
        layout = draw_layout(random.Random(0), WORLD, bank, bank.concepts("robot"))
        self._blocks = {b.name: np.array([b.x, b.y]) for b in layout.blocks}

    def make_executor(self) -> ChunkExecutor:
        return ChunkExecutor(self.spec, self.chunk)

    def warm_up(self) -> None:
        pass

    def act(self, observations) -> list[Action]:
        return [self._one(o) for o in observations]

    def _one(self, observation: Observation) -> Action:
        words, state = observation.instruction, observation.state
        assert state is not None and observation.images["image"].shape == (112, 112, 3)
        action = np.zeros(8, np.float32)
        block = next((xy for name, xy in self._blocks.items() if words.endswith(name)), None)
        if words == "nan":
            action[1] = np.nan
        elif block is not None:
            action[1:4], action[7] = pick(state, block)
        tokens = np.arange(8, dtype=np.int32)
        return Action(action[None], tokens, "", f"<i>plan</i>: {words}", 0.0, True, "")

    def answer(self, images, questions) -> list[str]:
        return [f"{int(i.sum())} <b>{q}</b>" for i, q in zip(images, questions)]


def pick(state: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, float]:
    """Delta [3] and closedness: above the block, down, close, up."""
    z, closedness = state[2], state[7]
    above = block - state[:2]
    aligned = np.abs(above).max() < ALIGNED_M
    down = aligned and z < 0.03
    closed = down or (state[6] > 0.5 and closedness > 0.2)
    if down and state[6] < 0.5:
        delta = np.array([*above, 0])
    elif closed:
        delta = np.array([0, 0, TRAVEL_M - z])
    elif aligned:
        delta = np.array([*above, GRASP_M - z])
    else:
        delta = np.array([*above, TRAVEL_M - z])
    return np.clip(delta, -WORLD.max_position_m, WORLD.max_position_m), float(closed)


def main() -> int:
    options = json.loads(sys.argv[1])
    defaults = {"port": 0, "grpc_port": -1, "demo": True}
    settings = schema.from_dict(ServerSettings, {**defaults, **options.get("settings", {})})
    return run(ByHeart(), settings)


if __name__ == "__main__":
    sys.exit(main())
