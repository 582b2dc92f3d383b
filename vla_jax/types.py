"""What every part of the system agrees on: the axis legend, one source record, one batch.

Axis letters, used in every einsum and docstring of this project:

    B batch             T query position    S key position     V vocabulary
    N query heads       K key/value heads   G = N / K          H head dimension
    D model width       F mlp width         L layers           P image patches
    A action dimension  C action chunk

A mask's name says what True means.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NotRequired, TypedDict

import numpy as np

Params = dict[str, Any]
"""Nested plain dicts of arrays; names follow big_vision (`img/...`, `llm/...`)."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One record of one source, before tokens.

    Exactly one of `answer` (a text sample) and `action` (a robot sample) is set.

    A record may have several phrasings of its prompt, and several answers: each sample of it gets
    one, by the sample's number, and evaluation gets the first. Equally many of both belong
    together: the n-th prompt gets the n-th answer.

    Attributes:
      images: one entry per view, in the order the model expects: encoded PNG/JPEG bytes, or
        uint8 [h, w, 3].
      prompt: the text before the answer, template applied (`text.prompts`). Never empty. Several:
        one is drawn.
      answer: what a text sample should say. Several: one is drawn. Coordinates are written as
        integer pieces, `<093><181>` (y, x in 1/256 of the image).
      action: float32 [C, A], physical units, the dimensions of an `ActionSpec`.
      action_valid: bool [C, A], False for padded dimensions or chunk steps.
      plan: what a robot sample says before it acts (chain of thought); "": nothing.
      state: float32 [S], what the robot measures of itself, in its data set's units.
    """

    images: tuple[bytes | np.ndarray, ...]
    prompt: str | tuple[str, ...]
    answer: str | tuple[str, ...] | None = None
    action: np.ndarray | None = None
    action_valid: np.ndarray | None = None
    plan: str = ""
    state: np.ndarray | None = None


def chosen(example: Example, draw: int = 0) -> tuple[str, str | None]:
    """The one prompt and the one answer of a sample.

    Args:
      draw: random bits, as a number >= 0. 0 takes the first of everything.
    """
    prompt, answer = example.prompt, example.answer
    count = 1
    if isinstance(prompt, tuple):
        count = max(len(prompt), 1)
        prompt = prompt[draw % count] if prompt else ""
    if isinstance(answer, tuple):
        other = draw if len(answer) == count else draw // count
        answer = answer[other % len(answer)] if answer else None
    return prompt, answer


def references(example: Example) -> tuple[str, ...]:
    """What answers to the first prompt are compared with: all that belong to it.

    Raises ValueError if the example has no answer.
    """
    prompt, answer = example.prompt, example.answer
    if isinstance(answer, str):
        return (answer,)
    if not answer:
        raise ValueError(f"no answer to {prompt!r}")
    if isinstance(prompt, tuple) and len(prompt) == len(answer):
        return tuple(own for text, own in zip(prompt, answer) if text == prompt[0])
    return answer


class Batch(TypedDict):
    """What the model trains on. Images stay uint8 until they are on the accelerator.

    One row is `[BOS][prompt][answer][EOS][padding]`; the image tokens come before it inside the
    model. Prompt positions attend to each other both ways, answer positions causally (prefix-LM).

    A packed row holds k examples, one after the other (`data.packing`): its images are the views of
    all, and what is one value for an example, [B] here, is [B, k].
    """

    images: np.ndarray  # uint8 [B, views, h, w, 3]
    tokens: np.ndarray  # int32 [B, T]
    attend_causal: np.ndarray  # bool [B, T]: this position is seen only by itself and later ones
    in_loss: np.ndarray  # bool [B, T]: this token is predicted (from the position before it)
    valid: np.ndarray  # bool [B, T]: not padding
    source: np.ndarray  # int32 [B]: index into the mixture's source names
    sample: np.ndarray  # uint32 [B]: number of the sample in the run, modulo 2**32
    truncated: NotRequired[np.ndarray]  # bool [B]: its answer was too long and is cut
    # With a state that is a vector.
    state: NotRequired[np.ndarray]  # float32 [B, S], -1 .. 1
    state_valid: NotRequired[np.ndarray]  # bool [B]: there is a state
    # In packed rows.
    segment: NotRequired[np.ndarray]  # int32 [B, T]: which example a token is of, from 1; 0 padding
    image_segment: NotRequired[np.ndarray]  # int32 [B, views]: likewise for images; 0: of all
    left_out: NotRequired[np.ndarray]  # bool [B, k]: this example did not fit
