"""Carrying out chunks of actions: what a robot does when its policy says several at once.

Open loop: a chunk is done to its end before the policy looks again. Receding horizon: only its
first `execute_steps` are. Temporal ensembling (ACT, arXiv 2304.13705, section 4): the policy looks
often, and what is done is a mean of all that was said about this step.
"""

from __future__ import annotations

import collections
import math

import numpy as np

from vla_jax.actions.spec import ActionSpec

_SWITCHES = ("flag", "closedness")


class ChunkExecutor:
    """The actions of one robot in one episode, one after the other.

        while running:
            if executor.due:
                executor.add(predicted)  # [C, A], the first of them for now
            do(executor.next())

    With ensembling, the predictions i = 0, 1, ... of a step, the oldest first, have the weights
    exp(-`ensemble_decay` * i). The mean is one of physical units. Flags, the gripper's closedness
    and dimensions with levels are switches: the mean of open and closed is neither, and whether to
    close or to end depends on a contact that older pictures could not show. There the newest
    prediction counts alone.

    Args:
      spec: of the actions: deltas, so that a mean of angles needs no care at half a turn.
      chunk: C.
      execute_steps: actions that are done before the policy looks again.
      ensemble_decay: m in exp(-m i), at least 0; None: no ensembling.

    Raises:
      ValueError: execute_steps is not in 1 .. C, a decay below 0 or not finite, or ensembling of
        chunks that never overlap.
    """

    def __init__(
        self,
        spec: ActionSpec,
        chunk: int,
        *,
        execute_steps: int = 1,
        ensemble_decay: float | None = None,
    ):
        if execute_steps > chunk:
            raise ValueError(
                f"execute_steps {execute_steps} is more than the policy's chunk of {chunk} actions"
            )
        if execute_steps < 1:
            raise ValueError(f"execute_steps must be at least 1, got {execute_steps}")
        if ensemble_decay is not None:
            if not (math.isfinite(ensemble_decay) and ensemble_decay >= 0):
                raise ValueError(f"ensemble_decay must be at least 0, got {ensemble_decay}")
            if execute_steps == chunk:
                raise ValueError(
                    f"with execute_steps {execute_steps}, chunks of {chunk} actions never overlap, "
                    "and ensemble_decay has nothing to average: set execute_steps lower or train "
                    "on a longer chunk"
                )
        self._shape = chunk, len(spec.dimensions)
        self._execute_steps, self._decay = execute_steps, ensemble_decay
        self._switches = np.array([d.unit in _SWITCHES or bool(d.levels) for d in spec.dimensions])
        self._step = 0
        # (step it was made in, actions [C, A]), the oldest first.
        self._chunks: collections.deque[tuple[int, np.ndarray]] = collections.deque()

    @property
    def due(self) -> bool:
        """Whether a prediction is wanted before the next action."""
        return not self._chunks or self._step - self._chunks[-1][0] >= self._execute_steps

    def add(self, actions: np.ndarray) -> None:
        """Takes in what the policy predicts from this step on, float [C, A] in the spec's units.

        Raises ValueError for another shape.
        """
        actions = np.asarray(actions, np.float32)
        if actions.shape != self._shape:
            raise ValueError(f"a chunk of shape {list(actions.shape)}, not {list(self._shape)}")
        if self._decay is None:
            self._chunks.clear()
        self._chunks.append((self._step, actions))

    def next(self) -> np.ndarray:
        """The action of this step, float32 [A]; then it is the next step's turn.

        Raises RuntimeError if a prediction is due.
        """
        if self.due:
            raise RuntimeError("a prediction is due: `add` it first")
        while self._step - self._chunks[0][0] >= self._shape[0]:  # it says nothing of this step
            self._chunks.popleft()
        said = np.stack([actions[self._step - made] for made, actions in self._chunks])
        self._step += 1
        if self._decay is None:
            return said[-1]
        weights = np.exp(-self._decay * np.arange(len(said)))
        mean = (weights / weights.sum()) @ said.astype(np.float64)
        return np.where(self._switches, said[-1], mean).astype(np.float32)
