"""Stand-ins for a policy and for simulators, with everything they do written down in advance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vla_jax.actions.spec import end_effector_spec
from vla_jax.actions.uniform import UniformTokenizer
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.decoding.policy import ActResult
from vla_jax.envs.pool import Transition

SPEC = end_effector_spec("tabletop", max_position_m=0.1, max_rotation_rad=0.5, control_hz=3.0)
TOKENIZER = UniformTokenizer(SPEC, np.arange(1000, 1256))


class FakePolicy:
    """Answers and acts by the functions it is given.

    Args:
      answer: question -> answer.
      act: instruction -> action [8], or a chunk of them [C, 8].
      chunk: C.
      plan: instruction -> what it says that it will do; None: it does not plan.
      frames: that it sees at a time.
    """

    def __init__(
        self,
        answer: Callable[[str], str] = lambda question: "",
        act: Callable[[str], np.ndarray] = lambda instruction: np.zeros(8),
        chunk: int = 1,
        plan: Callable[[str], str] | None = None,
        frames: int = 1,
    ):
        self.frames = frames
        self.seen: list[np.ndarray] = []  # images of each act
        self._answer, self._act, self._plan = answer, act, plan
        self.builder: SequenceBuilder | None = None
        self.action_spec, self.robots = SPEC, (SPEC.name,)
        self.needs_state = False
        self.action_tokenizer = UniformTokenizer(SPEC, np.arange(1000, 1256), chunk)
        self.calls: list[int] = []  # rows of each
        self.sampled: list[tuple[float, tuple[int, ...]]] = []  # temperature and seeds of each act

    def for_robot(self, name: str) -> FakePolicy:
        assert name == SPEC.name
        return self

    def answer(self, images: np.ndarray, questions: list[str]) -> list[str]:
        assert len(images) == len(questions)
        self.calls.append(len(questions))
        return [self._answer(q) for q in questions]

    def complete(self, images: np.ndarray, prompts: list[str]) -> list[str]:
        return self.answer(images, prompts)

    def gather(self, found=(), error=None) -> list:
        return list(found)

    def act(
        self,
        images: np.ndarray,
        instructions: list[str],
        *,
        temperature: float = 0.0,
        seeds=(),
        states=None,
    ) -> ActResult:
        assert len(images) == len(instructions) and states is None
        self.seen.append(images)
        self.sampled.append((temperature, tuple(seeds)))
        self.calls.append(len(instructions))
        tokenizer = self.action_tokenizer
        chunks = [np.reshape(self._act(i), (tokenizer.chunk, 8)) for i in instructions]
        ids = np.stack([tokenizer.encode(chunk) for chunk in chunks])
        plans = tuple(self._plan(i) for i in instructions) if self._plan else ()
        return ActResult(np.stack([tokenizer.decode(row) for row in ids]), ids, plans)


class FakePool:
    """Episodes that last `length(seed)` steps and succeed if the last action's x is positive.

    `lose` holds (call number, environment): what is lost in that `reset` or `step`, counted
    together from 0. An environment that is lost must be reset before it is stepped again.
    """

    def __init__(
        self,
        num_envs: int,
        length: Callable[[int], int] = lambda seed: 3,
        lose: frozenset[tuple[int, int]] = frozenset(),
    ):
        self.num_envs, self._length, self._lose = num_envs, length, lose
        self.calls = 0
        self.started: list[int] = []  # seeds
        self._episodes: dict[int, list] = {}  # environment -> [seed, steps, options]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def reset(self, requests):
        results = {}
        for env, (seed, options) in requests.items():
            self.started.append(seed)
            self._episodes[env] = [seed, 0, options]
            results[env] = (self._observe(env), self._info(env, False))
        return self._losing(results)

    def step(self, actions):
        results = {}
        for env, action in actions.items():
            action = np.full(8, 0.05) if action is None else action
            episode = self._episodes[env]
            episode[1] += 1
            over = episode[1] >= self._length(episode[0])
            success = bool(over and action[1] > 0)
            terminated = bool(action[0] > 0.5) or success
            results[env] = Transition(
                self._observe(env),
                float(success),
                terminated,
                over and not terminated,
                self._info(env, success),
                np.asarray(action, np.float32),
            )
        return self._losing(results)

    def _losing(self, results):
        for call, env in self._lose:
            if call == self.calls and env in results:
                results[env] = None
                del self._episodes[env]
        self.calls += 1
        return results

    def _observe(self, env):
        seed, steps, _ = self._episodes[env]
        image = np.zeros((16, 16, 3), np.uint8)
        image[..., 0], image[..., 1] = seed % 256, 40 * steps
        return {"image": image}

    def _info(self, env, success):
        seed, _, options = self._episodes[env]
        family = options["family"]
        return {
            "instruction": f"{family} the thing {seed}",
            "family": family,
            "success": success,
            "objects": [
                {"name": "dog", "center_yx": (4.0, 8.0), "box_yxyx": (2.0, 6.0, 6.0, 10.0)},
                {"name": "red mat", "center_yx": (12.0, 12.0), "box_yxyx": (9.0, 9.0, 15.0, 15.0)},
            ],
        }
