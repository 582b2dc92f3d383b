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
from typing import Any, TypedDict

import numpy as np

Params = dict[str, Any]
"""Nested plain dicts of arrays; names follow big_vision (`img/...`, `llm/...`)."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One record of one source, before tokens.

    Exactly one of `answer` (a text sample) and `action` (a robot sample) is set.

    Attributes:
      images: one entry per view, in the order the model expects: encoded PNG/JPEG bytes, or
        uint8 [h, w, 3].
      prompt: the text before the answer, template applied (`text.prompts`). Never empty.
      answer: what a text sample should say. Coordinates are written as integer pieces,
        `<093><181>` (y, x in 1/256 of the image).
      action: float32 [C, A], physical units, the dimensions of an `ActionSpec`.
      action_valid: bool [C, A], False for padded dimensions or chunk steps.
      plan: what a robot sample says before it acts (chain of thought); "": nothing.
      state: float32 [S], what the robot measures of itself, in its data set's units.
    """

    images: tuple[bytes | np.ndarray, ...]
    prompt: str
    answer: str | None = None
    action: np.ndarray | None = None
    action_valid: np.ndarray | None = None
    plan: str = ""
    state: np.ndarray | None = None


class Batch(TypedDict):
    """What the model trains on. Images stay uint8 until they are on the accelerator.

    One row is `[BOS][prompt][answer][EOS][padding]`; the image tokens come before it inside the
    model. Prompt positions attend to each other both ways, answer positions causally (prefix-LM).
    """

    images: np.ndarray  # uint8 [B, views, h, w, 3]
    tokens: np.ndarray  # int32 [B, T]
    attend_causal: np.ndarray  # bool [B, T]: this position is seen only by itself and later ones
    in_loss: np.ndarray  # bool [B, T]: this token is predicted (from the position before it)
    valid: np.ndarray  # bool [B, T]: not padding
    source: np.ndarray  # int32 [B]: index into the mixture's source names
    sample: np.ndarray  # uint32 [B]: number of the sample in the run, modulo 2**32
