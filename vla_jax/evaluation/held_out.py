"""Held-out samples of the configured data sets, in the form that the evaluators take.

Each process of a job gets its own share of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from vla_jax.data.loader import EvaluationBatch, evaluation_batches
from vla_jax.data.sequence import SequenceBuilder
from vla_jax.data.sources.base import Source
from vla_jax.data.sources.image_text import ImageTextSource
from vla_jax.evaluation.actions import ActionBatch
from vla_jax.evaluation.base import inside_template
from vla_jax.evaluation.captions import CaptionBatch
from vla_jax.evaluation.vqa import VqaBatch
from vla_jax.text.prompts import (
    PLAN_TEMPLATE,
    ROBOT_TEMPLATE,
    is_caption_prompt,
    question_prompt,
    robot_prompt,
)
from vla_jax.types import chosen, references


def vqa_batches(
    source: ImageTextSource,
    builder: SequenceBuilder,
    *,
    batch_size: int,
    image_size: int,
    limit: int,
) -> Callable[[], Iterator[VqaBatch]]:
    """Questions spread evenly over an image-text source.

    Captions are among them only where the source has kinds of question, "task", and "language".

    Args:
      limit: most samples of one pass.
    """
    labelled = source.labelled

    def start() -> Iterator[VqaBatch]:
        for batch, rows in _own_batches(source, builder, batch_size, image_size, limit):
            records = batch["record"][rows].tolist()
            examples = [source.read(record) for record in records]
            prompts = [chosen(example)[0] for example in examples]
            if not labelled:
                asked = [n for n, text in enumerate(prompts) if not is_caption_prompt(text)]
                rows, records = rows[asked], [records[n] for n in asked]
                examples, prompts = [examples[n] for n in asked], [prompts[n] for n in asked]
            if not records:
                continue
            labels = [source.labels(record) for record in records]
            questions, whole = _questions(prompts)
            yield VqaBatch(
                images=batch["images"][rows],
                questions=questions,
                answers=[references(example)[0] for example in examples],
                tasks=[label["task"] for label in labels],
                languages=[label["language"] for label in labels],
                references=[references(example) for example in examples],
                numbers=batch["sample"][rows],
                whole=whole,
            )

    return start


def _questions(prompts: list[str]) -> tuple[list[str], bool]:
    """Without their template if all have it, else as they are; and whether they are whole."""
    try:
        return [inside_template(question_prompt, prompt) for prompt in prompts], False
    except ValueError:
        return prompts, True


def caption_batches(
    source: Source, builder: SequenceBuilder, *, batch_size: int, image_size: int, limit: int
) -> Callable[[], Iterator[CaptionBatch]]:
    """Those samples of an image-text source whose prompt asks for a caption.

    Args:
      limit: most samples that are looked at, spread evenly.
    """

    def start() -> Iterator[CaptionBatch]:
        for batch, rows in _own_batches(source, builder, batch_size, image_size, limit):
            examples = [source.read(record) for record in batch["record"][rows].tolist()]
            prompts = [chosen(example)[0] for example in examples]
            asked = [n for n, text in enumerate(prompts) if is_caption_prompt(text)]
            if asked:
                yield CaptionBatch(
                    images=batch["images"][rows[asked]],
                    prompts=[prompts[n] for n in asked],
                    references=[references(examples[n]) for n in asked],
                    numbers=batch["sample"][rows[asked]],
                )

    return start


def has_captions(source: Source, limit: int) -> bool:
    """Whether `caption_batches` has any."""
    count = min(limit, len(source))
    records = (n * len(source) // count for n in range(count))
    return any(is_caption_prompt(chosen(source.read(record))[0]) for record in records)


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
        for batch, rows in _own_batches(source, builder, batch_size, image_size, limit):
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
                numbers=batch["sample"][rows],
            )

    return start


def _own_batches(
    source: Source, builder: SequenceBuilder, batch_size: int, image_size: int, limit: int
) -> Iterator[tuple[EvaluationBatch, np.ndarray]]:
    """This process's share of one pass: batches, and which of their rows are not filling."""
    share = -(-batch_size // jax.process_count())
    rows = jax.process_index() * share + np.arange(share)
    for batch in evaluation_batches(
        source,
        builder,
        batch_size=share * jax.process_count(),
        image_size=image_size,
        limit=limit,
        rows=rows,
    ):
        valid = np.flatnonzero(batch["row_valid"])
        if len(valid):
            yield batch, valid
