"""Action tokenizers by name, and as JSON: in a file of their own or inside a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.actions.bins import NUM_BINS
from vla_jax.actions.digits import DigitTokenizer
from vla_jax.actions.fast import FastTokenizer
from vla_jax.actions.quantile import QuantileTokenizer
from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import ActionTokenizer
from vla_jax.actions.uniform import UniformTokenizer


@dataclasses.dataclass(frozen=True)
class ActionConfig:
    """How actions become tokens.

    Attributes:
      tokenizer: "uniform" (RT-2), "digits" (plain text), or the file of one that was fitted to
        data: `tools/tokenizer_report.py` writes quantile.json and fast.json.
      chunk: C, the actions that follow from one image; a fitted tokenizer has its own.
      token_ids: which tokens stand for bins. "": the vocabulary's integers, as RT-2-PaLI-X has it.
        A file of `tools/least_used_tokens.py`: the least used ones, as RT-2-PaLM-E. "digits" needs
        neither.
    """

    tokenizer: str = "uniform"
    chunk: int = 1
    token_ids: str = ""

    def __post_init__(self):
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")
        if self.tokenizer not in ("uniform", "digits") and not self.tokenizer.endswith(".json"):
            raise ValueError(
                f"unknown tokenizer {self.tokenizer!r}: uniform, digits, or a fitted one's .json"
            )


def make_tokenizer(
    config: ActionConfig, spec: ActionSpec, token_ids: np.ndarray
) -> ActionTokenizer:
    """The tokenizer of a config.

    Args:
      spec: of the data.
      token_ids: int [n], vocabulary ids for its tokens, at least as many as it has. For "digits",
        those of 0 to 9 and of the space.

    Raises:
      FileNotFoundError: no such file.
      ValueError: too few ids, or a fitted tokenizer of another spec or chunk.
    """
    if config.tokenizer == "uniform":
        return UniformTokenizer(spec, token_ids[:NUM_BINS], config.chunk)
    if config.tokenizer == "digits":
        return DigitTokenizer(spec, token_ids[:10], int(token_ids[10]), config.chunk)
    fitted = load(config.tokenizer, token_ids=token_ids)
    spec.require_same(fitted.spec, here="the data", there=config.tokenizer)
    if fitted.chunk != config.chunk:
        raise ValueError(
            f"{config.tokenizer} was fitted to chunks of {fitted.chunk} actions, the config asks "
            f"for {config.chunk}: set data.actions.chunk={fitted.chunk} or fit another"
        )
    return fitted


def to_json(tokenizer: ActionTokenizer) -> dict[str, Any]:
    """All that it takes to make the same tokenizer again, as JSON values."""
    return {
        "kind": tokenizer.kind,
        "spec": json.loads(tokenizer.spec.to_json()),
        "chunk": tokenizer.chunk,
        "token_ids": np.asarray(tokenizer.token_ids).tolist(),
        "fitted": tokenizer.fitted,
    }


def from_json(state: Mapping[str, Any], *, token_ids: np.ndarray | None = None) -> ActionTokenizer:
    """What `to_json` describes.

    Args:
      token_ids: other ids than the stored ones; there may be more than it needs.

    Raises:
      ValueError: anything but a tokenizer's JSON.
    """
    try:
        kind, chunk, fitted = state["kind"], int(state["chunk"]), state["fitted"]
        stored = np.asarray(state["token_ids"], np.int32)
        spec = ActionSpec.from_json(json.dumps(state["spec"]))
        ids = stored if token_ids is None else np.asarray(token_ids)[: len(stored)]
        if kind == "uniform":
            return UniformTokenizer(spec, ids, chunk)
        if kind == "quantile":
            return QuantileTokenizer(spec, ids, np.asarray(fitted["edges"]), chunk)
        if kind == "digits":
            return DigitTokenizer(spec, ids[:10], int(ids[10]), chunk)
        if kind == "fast":
            return FastTokenizer.from_fitted(spec, chunk, fitted, token_ids=ids)
    except (KeyError, TypeError, IndexError) as e:
        raise ValueError(f"not an action tokenizer: {type(e).__name__} {e}") from e
    raise ValueError(f"not an action tokenizer: unknown kind {kind!r}")


def save(tokenizer: ActionTokenizer, path: str | Path) -> None:
    """Writes one JSON file."""
    Path(path).write_text(json.dumps(to_json(tokenizer)) + "\n")


def load(path: str | Path, *, token_ids: np.ndarray | None = None) -> ActionTokenizer:
    """Reads what `save` wrote; see `from_json`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: any other file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no action tokenizer at {path}: fit one with tools/tokenizer_report.py"
        )
    try:
        return from_json(json.loads(file.read_text()), token_ids=token_ids)
    except ValueError as e:  # of JSON, UTF-8 and from_json
        raise ValueError(f"{path}: {e}") from e
