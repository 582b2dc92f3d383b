"""FAST action tokens (arXiv 2501.09747): DCT over the chunk, rounding, byte-pair encoding.

    chunk [C, A] in units -> [-1, 1] by the spec's bounds -> DCT-II along time, orthonormal
    -> round(scale * coefficient) -> one symbol per coefficient, low frequencies first, dimensions
    interleaved -> BPE

Every token stands for a known number of coefficients, so a decoder can be held to C x A of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.fft
import tokenizers
from tokenizers import models, trainers

from vla_jax.actions.spec import ActionSpec
from vla_jax.actions.tokenizer import Automaton, accepts

SCALE = 10.0
VOCABULARY = 1024
_FIRST = 0x4E00  # symbol of the least coefficient: a plain with no combining characters


class FastTokenizer:
    """Chunks of actions [C, A] in physical units <-> a variable number of token ids.

    Made by `fit`, or from what that found; see `ActionTokenizer`. A discrete dimension is decoded
    to its nearest level.

    Args:
      spec: the action's dimensions and bounds.
      chunk: C.
      model: the trained BPE.
      low, high: least and greatest rounded coefficient that has a symbol.
      token_ids: int [R], the vocabulary ids that stand for BPE tokens 0 .. R - 1.

    Raises:
      ValueError: fewer or repeated token ids.
    """

    kind = "fast"

    def __init__(
        self,
        spec: ActionSpec,
        chunk: int,
        model: tokenizers.Tokenizer,
        *,
        low: int,
        high: int,
        scale: float,
        token_ids: np.ndarray,
    ):
        size = model.get_vocab_size()
        ids = np.asarray(token_ids, np.int32)[:size]
        if len(ids) < size or len(np.unique(ids)) < size:
            raise ValueError(
                f"FAST needs {size} different token ids, got {len(np.unique(ids))}: fit a smaller "
                "vocabulary or reserve more ids"
            )
        self.spec, self.chunk, self.scale = spec, chunk, scale
        self.token_ids = ids
        self._model, self._low, self._high = model, low, high
        pieces = [model.id_to_token(i) or "" for i in range(size)]
        self._coefficients = [[ord(c) - _FIRST + low for c in piece] for piece in pieces]
        self.automaton = self._make_automaton()

    @classmethod
    def fit(
        cls,
        spec: ActionSpec,
        chunks: Iterable[np.ndarray],
        *,
        token_ids: np.ndarray,
        vocabulary: int = VOCABULARY,
        scale: float = SCALE,
    ) -> FastTokenizer:
        """Learns the byte-pair encoding from chunks [C, A] of a data set.

        Raises ValueError for no chunks, or a vocabulary smaller than the number of symbols.
        """
        rows = [_coefficients(spec, c, scale) for c in chunks]
        if not rows:
            raise ValueError("FAST needs at least one chunk of actions to fit")
        low, high = min(int(r.min()) for r in rows), max(int(r.max()) for r in rows)
        if high - low + 1 > vocabulary:
            raise ValueError(
                f"coefficients from {low} to {high} need {high - low + 1} symbols, more than a "
                f"vocabulary of {vocabulary}: lower the scale {scale} or raise the vocabulary"
            )
        model = tokenizers.Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=[chr(_FIRST + i) for i in range(high - low + 1)],
            show_progress=False,
        )
        model.train_from_iterator((_symbols(r, low) for r in rows), trainer)
        chunk = len(rows[0]) // len(spec.dimensions)
        return cls(spec, chunk, model, low=low, high=high, scale=scale, token_ids=token_ids)

    @classmethod
    def from_fitted(
        cls, spec: ActionSpec, chunk: int, fitted: Mapping[str, Any], *, token_ids: np.ndarray
    ) -> FastTokenizer:
        """What `fitted` describes. Raises KeyError or TypeError for anything else."""
        return cls(
            spec,
            chunk,
            tokenizers.Tokenizer.from_str(json.dumps(fitted["bpe"])),
            low=fitted["low"],
            high=fitted["high"],
            scale=fitted["scale"],
            token_ids=token_ids,
        )

    @property
    def fitted(self) -> dict[str, Any]:
        """The byte-pair encoding and what its symbols stand for."""
        bpe = json.loads(self._model.to_str())
        return {"bpe": bpe, "low": self._low, "high": self._high, "scale": self.scale}

    @property
    def max_tokens(self) -> int:
        """C x A: a token per coefficient, at worst."""
        return self.chunk * len(self.spec.dimensions)

    def encode(self, action: np.ndarray) -> np.ndarray:
        """float [C, A] -> int32 ids [K <= C x A]; see `ActionTokenizer`."""
        action = np.asarray(action)
        if action.shape != (self.chunk, len(self.spec.dimensions)):
            raise ValueError(
                f"FAST was fitted to chunks of shape {(self.chunk, len(self.spec.dimensions))}, "
                f"got {action.shape}"
            )
        row = np.clip(_coefficients(self.spec, action, self.scale), self._low, self._high)
        return self.token_ids[self._model.encode(_symbols(row, self._low)).ids]

    def encode_batch(self, actions: np.ndarray) -> list[np.ndarray]:
        """float [n, C, A] -> n arrays of int32 ids; see `ActionTokenizer`."""
        return [self.encode(action) for action in actions]

    def decode(self, ids: np.ndarray) -> np.ndarray:
        """int ids [K], padding allowed -> float32 [C, A]; see `ActionTokenizer`."""
        count = accepts(self.automaton, ids)
        column = {int(i): n for n, i in enumerate(self.token_ids)}
        row = [c for i in np.asarray(ids)[:count].tolist() for c in self._coefficients[column[i]]]
        coefficients = np.reshape(row, (self.chunk, -1)) / self.scale
        unit = np.clip(np.asarray(scipy.fft.idct(coefficients, axis=0, norm="ortho")), -1, 1)
        low, high = self.spec.low, self.spec.high
        for a, dimension in enumerate(self.spec.dimensions):
            if dimension.levels:
                steps = dimension.levels - 1
                unit[:, a] = np.rint((unit[:, a] + 1) / 2 * steps) / steps * 2 - 1
        return (low + (unit + 1) / 2 * (high - low)).astype(np.float32)

    def tokens_valid(self, ids: np.ndarray, action_valid: np.ndarray) -> np.ndarray:
        """All: each coefficient is of the whole chunk, so padded steps count as they are filled.

        Raises ValueError for a padded dimension: it would change what the others decode to.
        """
        if not np.asarray(action_valid).any(axis=0).all():
            raise ValueError("FAST cannot leave out a dimension: pad it with a constant and fit "
                             "the tokenizer to that")  # fmt: skip
        return np.ones(len(ids), bool)

    def _make_automaton(self) -> Automaton:
        """States count coefficients: a token is legal if it does not lead beyond C x A."""
        total = self.max_tokens
        lengths = np.asarray([len(c) for c in self._coefficients])
        after = np.arange(total)[:, None] + lengths
        return Automaton(
            self.token_ids,
            after <= total,
            np.minimum(after, total).astype(np.int32),
            np.ones(total, bool),
            total,
        )

    def text(self, ids: np.ndarray) -> str:
        """The coefficients of each token, `3,0,0 -2 1,1`."""
        column = {int(i): n for n, i in enumerate(self.token_ids)}
        known = (column[i] for i in np.asarray(ids).tolist() if i in column)
        return " ".join(",".join(map(str, self._coefficients[n])) for n in known)


def _coefficients(spec: ActionSpec, action: np.ndarray, scale: float) -> np.ndarray:
    """float [C, A] in units -> int [C * A], low frequencies first."""
    action = spec.validate(action, where="FAST")
    low, high = spec.low, spec.high
    unit = (np.clip(action, low, high) - low) / (high - low) * 2 - 1
    found = np.asarray(scipy.fft.dct(unit.astype(np.float64), axis=0, norm="ortho"))
    return np.rint(found * scale).astype(np.int64).reshape(-1)


def _symbols(row: np.ndarray, low: int) -> str:
    return "".join(chr(_FIRST + int(c) - low) for c in row)


def chunks_of(actions: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
    """Every chunk [C, A] of one episode's actions [n, A], none of them padded."""
    for start in range(len(actions) - chunk + 1):
        yield actions[start : start + chunk]
