"""Held-out samples of the configured data sets, in the form that the evaluators take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from vla_jax.data.loader import EvaluationBatch, evaluation_batches
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.image_text import ImageTextSource
from vla_jax.evaluation.actions import ActionBatch
from vla_jax.evaluation.base import inside_template
from vla_jax.evaluation.vqa import VqaBatch
from vla_jax.text.prompts import PLAN_TEMPLATE, ROBOT_TEMPLATE, question_prompt, robot_prompt
from vla_jax.types import chosen


def vqa_batches(
    source: ImageTextSource,
    builder: SequenceBuilder,
    *,
    batch_size: int,
    image_size: int,
    limit: int,
) -> Callable[[], Iterator[VqaBatch]]:
    """Questions spread evenly over an image-text source.

    Args:
      limit: most samples of one pass.
    """

    def start() -> Iterator[VqaBatch]:
        for batch in evaluation_batches(
            source, builder, batch_size=batch_size, image_size=image_size, limit=limit
        ):
            rows = _rows(batch)
            texts = [source.texts(record) for record in batch["record"][rows].tolist()]
            yield VqaBatch(
                images=batch["images"][rows],
                questions=[inside_template(question_prompt, t["prompt"]) for t in texts],
                answers=[t["answer"] for t in texts],
                tasks=[t["task"] for t in texts],
                languages=[t["language"] for t in texts],
            )

    return start


def action_batches(
    source: Source,
    builder: SequenceBuilder,
    *,
    batch_size: int,
    image_size: int,
    limit: int,
    template: str = ROBOT_TEMPLATE,
) -> Callable[[], Iterator[ActionBatch]]:
    """Steps spread evenly over a robot source.

    Args:
      limit: most steps of one pass.
      template: of the source's prompts, the first of several; that of plans is `PLAN_TEMPLATE`.
    """

    def start() -> Iterator[ActionBatch]:
        for batch in evaluation_batches(
            source, builder, batch_size=batch_size, image_size=image_size, limit=limit
        ):
            rows = _rows(batch)
            examples = [source.read(record) for record in batch["record"][rows].tolist()]
            actions = np.stack([e.action for e in examples if e.action is not None])
            templates = [PLAN_TEMPLATE if e.plan else template for e in examples]
            states = [e.state for e in examples if e.state is not None]
            yield ActionBatch(
                images=batch["images"][rows],
                instructions=[
                    inside_template(functools.partial(robot_prompt, template=t), chosen(e)[0])
                    for e, t in zip(examples, templates)
                ],
                actions=actions,
                valid=np.stack(
                    [
                        np.ones(actions.shape[1:], bool) if v is None else v
                        for v in (e.action_valid for e in examples)
                    ]
                ),
                states=None if builder.state is None else np.stack(states),
            )

    return start


def _rows(batch: EvaluationBatch) -> np.ndarray:
    return np.flatnonzero(batch["row_valid"])
