"""What is measured while a run trains: every `train.evaluate_every` updates, and after the last."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax

from vla_jax.build import TrainingRun, acting_policy
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.opening import open_source
from vla_jax.decoding.policy import Policy
from vla_jax.envs.metaworld.tasks import find_tasks
from vla_jax.evaluate import make_evaluators
from vla_jax.evaluation.actions import ActionEvaluator
from vla_jax.evaluation.base import EvaluationConfig, Evaluator, run
from vla_jax.evaluation.captions import CaptionEvaluator
from vla_jax.evaluation.metaworld import MetaworldEvaluator
from vla_jax.evaluation.rollout import make_agents
from vla_jax.evaluation.tabletop import RolloutEvaluator
from vla_jax.evaluation.vqa import VqaEvaluator
from vla_jax.sharding.distributed import lost_process
from vla_jax.training.held_out_loss import HeldOutLoss
from vla_jax.training.step import TrainState
from vla_jax.types import Params

# Kinds without splits: what a run trains on is all there is.
_NO_SPLITS = ("webdataset", "jsonl")
_CLASSES = {
    "actions": ActionEvaluator,
    "vqa": VqaEvaluator,
    "captions": CaptionEvaluator,
    "rollouts": RolloutEvaluator | MetaworldEvaluator,
}


class InTraining:
    """Measures the parameters of a run: the running mean of them, if it keeps one.

    All processes share the work. What fails is told and left out: a simulator that dies shall not
    end a run of days.

    Args:
      training: the run.
      params: its parameters now, to look whether the policy is one for what is asked.
      tell: takes (kind, text) of an event.
      told_to_stop: whether this process shall; then nothing more is measured.

    Raises ValueError or FileNotFoundError for what the config asks.
    """

    def __init__(
        self,
        training: TrainingRun,
        params: Params,
        tell: Callable[[str, str], None],
        told_to_stop: Callable[[], bool] = lambda: False,
    ):
        settings = _in_training(training.config.evaluation)
        self._tell, self._told_to_stop = tell, told_to_stop
        self._evaluators = make_evaluators(training.config, settings, training.builder)
        self._loss = _held_out_loss(training) if "loss" in settings.in_training else None
        for name in settings.in_training:
            if name == "loss" or any(isinstance(e, _CLASSES[name]) for e in self._evaluators):
                continue
            raise ValueError(
                f"evaluation.in_training has {name!r}, and no source has held-out data for it: "
                "leave it out, or give a source with a test split"
            )
        self._policy = acting_policy(
            params, training.config, training.builder, batch_size=settings.batch_size
        )
        for evaluator in self._evaluators:
            if isinstance(evaluator, RolloutEvaluator | MetaworldEvaluator):
                make_agents(settings, self._policy, evaluator.world.action_spec)
        self._policy.params = {}

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        """Scalars of the state after update `step`, "SOURCE/loss" and "EVALUATOR/..."."""
        params = state.get("ema", state["params"])
        # Their memory is the next update's, so nothing here may hold them.
        policy = self._policy.with_params(params)
        parts: list[tuple[str, Callable[[], dict[str, float]]]] = []
        if self._loss is not None:
            parts.append(("loss", functools.partial(self._loss, params)))
        parts += [(e.name, functools.partial(_scalars, e, policy)) for e in self._evaluators]
        scalars: dict[str, float] = {}
        for name, measure in parts:
            if any(policy.gather([self._told_to_stop()])):
                self._tell("evaluation", f"after update {step} cut short before {name}: to stop")
                break
            try:
                scalars |= measure()
            except Exception as e:
                if lost_process(e):
                    raise
                self._tell("evaluation failed", f"{name}: {type(e).__name__}: {e}")
        return scalars


def _scalars(evaluator: Evaluator, policy: Policy) -> dict[str, float]:
    return dict(run(evaluator, policy))


def _in_training(config: EvaluationConfig) -> EvaluationConfig:
    """The settings with the counts of what is measured in training."""

    def count(name: str, of: int) -> int:
        return of if name in config.in_training else 0

    examples, episodes = config.in_training_examples, config.in_training_episodes
    return dataclasses.replace(
        config,
        vqa_examples=count("vqa", examples),
        caption_examples=count("captions", examples),
        action_steps=count("actions", examples),
        rollout_episodes=count("rollouts", episodes),
        trials=max(1, episodes // len(find_tasks(config.tasks))),
        suite_rollouts=0,
        pointing_views=0,
        baselines=False,
    )


def _held_out_loss(training: TrainingRun) -> HeldOutLoss:
    """Raises ValueError if no source of the mixture has a test split."""
    config, sources = training.config, dict[str, Source]()
    for name in training.sources:
        given, why = config.data.sources[name], "its kind has no splits"
        if given.kind not in _NO_SPLITS:
            try:
                sources[name] = open_source(
                    name,
                    given,
                    split="test",
                    chunk=config.data.actions.chunk,
                    frames=config.data.frames,
                    robot_prompts=config.data.robot_prompts,
                )
                continue
            except (ValueError, FileNotFoundError) as e:
                why = str(e)
        if jax.process_index() == 0:
            print(f"source {name!r} has no test split; no validation loss of it ({why})")
    if not sources:
        raise ValueError(
            "evaluation.in_training has 'loss', and no source has a test split: leave it out, or "
            "set train.evaluate_every to 0"
        )
    return HeldOutLoss(
        sources,
        training.builder,
        config.model,
        training.mesh,
        training.shardings["params"],
        batch_size=config.evaluation.batch_size,
        limit=config.evaluation.in_training_examples,
    )
