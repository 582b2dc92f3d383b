"""Vocabulary: text to ids and back, with 256 reserved integer pieces.

The pieces `<000>` .. `<255>` stand for the integers 0 to 255, one token each. Web samples use them
for image coordinates; a robot action writes bin i as the token of integer i. That is how RT-2 uses
PaLI-X, whose vocabulary has a token for every integer (arXiv 2307.15818, section 3.2).
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import sentencepiece

BUNDLED = pathlib.Path(__file__).parent / "vocabulary_4096.model"
"""Trained from the picture corpus and robot instructions by tools/train_vocabulary.py."""

PAD_ID, EOS_ID, BOS_ID, UNK_ID = 0, 1, 2, 3
INTEGERS = 256

_STARTS_WITH_INTEGER = re.compile(r"<\d{3}>")


def integer_piece(value: int) -> str:
    """`<007>` for 7."""
    return f"<{value:03d}>"


class Vocabulary:
    """A SentencePiece model with the reserved ids this project needs.

    A word is the same token at the start of a text and inside one, because `encode` puts a space
    before a text that does not start with an integer piece, and `decode` takes one away again. So
    `decode(encode(text)) == text` for every text without NUL characters.

    Args:
      path: a SentencePiece model file; None: the bundled one.
      expected_size: number of ids that a checkpoint or config was made for, to be checked.

    Raises FileNotFoundError for a missing file, ValueError for a file that is no SentencePiece
    model, has other reserved ids, lacks integer pieces, or is not of the expected size.
    """

    pad_id, eos_id, bos_id, unk_id = PAD_ID, EOS_ID, BOS_ID, UNK_ID

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, expected_size: int | None = None
    ):
        self.path = pathlib.Path(path) if path is not None else BUNDLED
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no vocabulary file at {self.path}; "
                "make one with tools/train_vocabulary.py or leave the path out for the bundled one"
            )
        serialized = self.path.read_bytes()
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(serialized)
        except RuntimeError as e:
            raise ValueError(f"{self.path} is not a SentencePiece model: {e}") from e
        self.digest: str = hashlib.sha256(serialized).hexdigest()[:16]
        """16 hex digits of the file's SHA-256."""
        self._check(expected_size)
        pieces = [integer_piece(i) for i in range(INTEGERS)]
        self.integer_ids: np.ndarray = np.array(
            [self._model.PieceToId(p) for p in pieces], np.int32
        )
        """int32 [256]: id of each integer piece."""
        self.action_ids: np.ndarray = self.integer_ids
        """int32 [256]: id of each action bin. The integers' own ids, as with PaLI-X; a scheme after
        PaLM-E, which overwrites the least used tokens, would be another array."""
        for array in (self.integer_ids, self.action_ids):
            array.flags.writeable = False

    @property
    def size(self) -> int:
        """Number of ids."""
        return self._model.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""
        if not text:
            return []
        return self._model.EncodeAsIds(text if _STARTS_WITH_INTEGER.match(text) else " " + text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`; PAD, BOS and EOS vanish. Raises ValueError for an unknown id."""
        plain = [int(i) for i in ids]
        wrong = [i for i in plain if not 0 <= i < self.size]
        if wrong:
            raise ValueError(f"ids {wrong[:5]} are outside the vocabulary of {self.size}")
        return self._model.DecodeIds(plain).removeprefix(" ")

    def piece(self, token_id: int) -> str:
        """The piece of one id, with the meta symbol for a space, for tables and messages."""
        return self._model.IdToPiece(int(token_id))

    def _check(self, expected_size: int | None) -> None:
        model = self._model
        found = (model.pad_id(), model.eos_id(), model.bos_id(), model.unk_id())
        wanted = (PAD_ID, EOS_ID, BOS_ID, UNK_ID)
        if found != wanted:
            raise ValueError(
                f"{self.path}: pad, eos, bos, unk are {found}, this project needs {wanted}; "
                "train the vocabulary with tools/train_vocabulary.py"
            )
        missing = [
            p
            for p in (integer_piece(i) for i in range(INTEGERS))
            if model.IdToPiece(model.PieceToId(p)) != p
        ]
        if missing:
            raise ValueError(
                f"{self.path}: {len(missing)} integer pieces are missing, e.g. {missing[:3]}; they "
                "carry coordinates and actions: train with tools/train_vocabulary.py"
            )
        if expected_size is not None and expected_size != self.size:
            raise ValueError(
                f"{self.path} has {self.size} ids, {expected_size} were expected: "
                "model and vocabulary do not belong together"
            )
