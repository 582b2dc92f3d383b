"""The tokens that a corpus uses least, for actions as in RT-2-PaLM-E (arXiv 2307.15818, 3.2)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vla_jax.text.vocabulary import Vocabulary


def count_tokens(vocabulary: Vocabulary, texts: Iterable[str]) -> np.ndarray:
    """How often each id occurs in the texts: int64 [V]."""
    counts = np.zeros(vocabulary.size, np.int64)
    for text in texts:
        np.add.at(counts, vocabulary.encode(text), 1)
    return counts


def least_used(vocabulary: Vocabulary, counts: np.ndarray, number: int) -> np.ndarray:
    """The `number` ids with the lowest counts, in the order of their ids: int32 [number].

    Never PAD, EOS, BOS, UNK, an integer piece, or a piece for a byte, which spells what the corpus
    did not have. Among equals the last ids come first: SentencePiece puts rare pieces there.

    Raises ValueError for counts of another vocabulary, or more ids than can be spared.
    """
    counts = np.asarray(counts)
    if counts.shape != (vocabulary.size,):
        raise ValueError(f"{counts.shape} counts for a vocabulary of {vocabulary.size} ids")
    spared = np.flatnonzero(~vocabulary.reserved)
    if number > len(spared):
        raise ValueError(f"{number} ids were asked for, {len(spared)} can be spared")
    order = np.lexsort((-spared, counts[spared]))
    return np.sort(spared[order[:number]]).astype(np.int32)


def save_ids(path: str | Path, vocabulary: Vocabulary, ids: np.ndarray, counts: np.ndarray) -> None:
    """Writes a JSON file for `data.actions.token_ids`; makes its directory."""
    state = {
        "vocabulary": vocabulary.digest,
        "token_ids": ids.tolist(),
        "counts": counts[ids].tolist(),
        "tokens_counted": int(counts.sum()),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(state) + "\n")


def load_ids(path: str | Path, vocabulary: Vocabulary) -> np.ndarray:
    """What `save_ids` wrote: int32 [n].

    Raises:
      FileNotFoundError: no such file.
      ValueError: any other file, or ids of another vocabulary.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"no token ids at {path}: count them with tools/least_used_tokens.py, or leave "
            "data.actions.token_ids empty to use the vocabulary's integers"
        )
    try:
        state = json.loads(file.read_text())
        ids, made_for = np.asarray(state["token_ids"], np.int32), state["vocabulary"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path} is not a file of tools/least_used_tokens.py: {e}") from e
    if made_for != vocabulary.digest:
        raise ValueError(
            f"{path} was made for vocabulary {made_for}, this is {vocabulary.digest}: count again"
        )
    return ids
