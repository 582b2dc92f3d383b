"""What an evaluator is, which ones run, and where their results go."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import jax

from vla_jax.corpus.pictures import ART_STYLES
from vla_jax.decoding.processes import FailedElsewhereError
from vla_jax.envs.metaworld.tasks import find_tasks

if TYPE_CHECKING:
    from vla_jax.decoding.policy import Policy

T = TypeVar("T")
Measured = Literal["loss", "actions", "vqa", "captions", "rollouts"]

Result = dict[str, Any]
"""What JSON can hold. `result["scalars"]` is {name: float}; the rest is for the report."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What `evaluate` measures. A count of 0 leaves that part out.

    Attributes:
      vqa_examples: held-out questions, spread evenly over each image-text source.
      caption_examples: held-out pictures with captions, likewise; needs the extra `captions`.
      action_steps: held-out robot steps, likewise.
      rollout_episodes: closed-loop episodes per concept pool; in Meta-World, see `trials`.
      action_temperature: of sampling action tokens in the rollouts; 0 takes the likeliest. A greedy
        policy that hesitates between two ways can stand still for good.
      execute_steps: actions of a chunk that are done before the policy looks again.
      ensemble_decay: m >= 0 averages all that chunks said about a step, with weights exp(-m i), the
        oldest first (ACT); None: the newest chunk alone. See `decoding.chunks`.
      pushes: times an episode that something goes wrong in the simulator, unless it ends before: a
        block is nudged or falls out of the fingers, or the gripper is pushed away. The scenes are
        the same as without.
      reasoning: instructions take a step of thought, "pick the fruit", "pick the sum of one and
        two"; only one block fits.
      rollout_envs: simulators that run at once; one model call serves all of them.
      rollout_workers: processes they run in.
      pools: concepts that the blocks show. "robot": as in the episodes; "web_only": only in the
        picture corpus.
      world: which world, as for `vla_jax.envs.episodes --config`. In "metaworld" no pools are run
        and nothing is pointed to, but `trials` episodes of each of `tasks`.
      suite_rollouts: closed-loop episodes per cell of RT-2's evaluation suites (see
        `evaluation.suites.cells`); 20 or more say something.
      suites: which of them.
      suite_styles: in them, pictures of things that no robot episode shows are drawn in one of so
        many styles, see `PictureBank.picture`; 1: as the corpus draws them unless told otherwise.
      tasks: names of Meta-World tasks; (): all fifty.
      trials: episodes of each of them. Published results are of 10.
      pointing_views: rendered table-top views on which the model is asked to point.
      baselines: also run a random policy and the scripted expert.
      videos_per_outcome: rollout videos per task family or task of successes and of failures each.
      batch_size: rows per model call; fewer are padded.
      seed: of layouts and tasks. Episode i of every pool and policy has seed + i. Training episodes
        must use other seeds.
      in_training: what is measured every `train.evaluate_every` updates of a run: "loss" (and token
        accuracy) of each source, "actions", "vqa", "captions", "rollouts" of the robot's pools.
      in_training_examples: held-out samples of each source, then.
      in_training_episodes: rollouts per concept pool, then.
    """

    vqa_examples: int = 1000
    caption_examples: int = 0
    action_steps: int = 500
    rollout_episodes: int = 50
    action_temperature: float = 0.0
    execute_steps: int = 1
    ensemble_decay: float | None = None
    pushes: int = 0
    reasoning: bool = False
    rollout_envs: int = 16
    rollout_workers: int = 2
    pools: tuple[Literal["robot", "web_only"], ...] = ("robot", "web_only")
    world: Literal["demo", "full", "metaworld"] = "demo"
    suite_rollouts: int = 0
    suites: tuple[Literal["seen", "unseen", "emergent", "control"], ...] = (
        *("seen", "unseen", "emergent", "control"),
    )
    suite_styles: int = 1
    tasks: tuple[str, ...] = ()
    trials: int = 10
    pointing_views: int = 50
    baselines: bool = True
    videos_per_outcome: int = 1
    batch_size: int = 16
    seed: int = 1_000_000_000
    in_training: tuple[Measured, ...] = ("loss",)
    in_training_examples: int = 256
    in_training_episodes: int = 20

    def __post_init__(self):
        counts = ("vqa_examples", "action_steps", "rollout_episodes", "pointing_views")
        more = ("videos_per_outcome", "caption_examples", "suite_rollouts", "pushes")
        for name in (*counts, *more):
            if getattr(self, name) < 0:
                raise ValueError(f"evaluation.{name} must be at least 0, got {getattr(self, name)}")
        if self.suite_styles > len(ART_STYLES):
            raise ValueError(
                f"evaluation.suite_styles {self.suite_styles}: there are {len(ART_STYLES)} styles, "
                f"{', '.join(ART_STYLES)}"
            )
        if self.action_temperature < 0:
            raise ValueError(
                f"evaluation.action_temperature must be at least 0, got {self.action_temperature}"
            )
        if self.ensemble_decay is not None and not 0 <= self.ensemble_decay < math.inf:
            raise ValueError(
                f"evaluation.ensemble_decay must be at least 0, got {self.ensemble_decay}"
            )
        find_tasks(self.tasks)  # raises ValueError for one that there is not
        positive = ("rollout_envs", "rollout_workers", "batch_size", "execute_steps", "trials")
        for name in (*positive, "suite_styles", "in_training_examples", "in_training_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} must be at least 1, got {getattr(self, name)}")


class Evaluator(Protocol):
    """One measurement of a policy. Built from config; may be run many times.

    Attributes:
      name: of its result file and the prefix of its scalars.
    """

    @property
    def name(self) -> str: ...

    def measure(self, policy: Policy, media: Path | None = None) -> Result:
        """Everything measured.

        Args:
          media: an existing directory for pictures; None: make none. Paths in the result are
            relative to its parent.
        """
        ...


def run(evaluator: Evaluator, policy: Policy) -> Iterator[tuple[str, float]]:
    """(name, value) of every scalar: what a training loop writes."""
    for name, value in measure_together(evaluator, policy)["scalars"].items():
        yield f"{evaluator.name}/{name}", value


def measure_together(evaluator: Evaluator, policy: Policy, media: Path | None = None) -> Result:
    """`evaluator.measure` by all processes: each calls this alike, and if it fails in one it fails
    in all. See `Policy.gather`.

    Raises what the evaluator does, or FailedElsewhereError.
    """
    try:
        result = evaluator.measure(policy, media)
    except FailedElsewhereError:
        raise
    except Exception as e:
        policy.gather(error=e)
        raise
    policy.gather()
    return result


def divided(items: Sequence[T]) -> list[T]:
    """This process's share: those of process p of P are the p-th, the (P + p)-th, ..."""
    return list(items[jax.process_index() :: jax.process_count()])


def finite(scalars: Mapping[str, float | None]) -> dict[str, float]:
    """The scalars that could be measured: not None, not NaN."""
    return {k: v for k, v in scalars.items() if v is not None and math.isfinite(v)}


def write_result(path: Path, result: Result) -> None:
    """Writes JSON, whole or not at all. NaN and infinity become null: JSON has neither."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_with_null(result), indent=1, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def read_result(path: Path, remedy: str) -> Any:
    """What `write_result` or another program wrote as JSON; None if the file is not there.

    Raises ValueError, naming the file and ending with the remedy, if it is not JSON.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise ValueError(f"{path} is not JSON ({e}): {remedy}") from e


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Records of JSON lines up to the first that a crash cut off; none if there is no file."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _with_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_null(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_with_null(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def inside_template(template: Callable[[str], str], prompt: str) -> str:
    """The text that `template` was applied to: `pick the dog` from the robot's prompt.

    Raises ValueError if the prompt does not come from this template.
    """
    before, after = template("\0").split("\0")
    if not (prompt.startswith(before) and prompt.endswith(after)):
        raise ValueError(f"prompt {prompt!r} is not of the form {before}...{after}")
    return prompt[len(before) : len(prompt) - len(after)]
