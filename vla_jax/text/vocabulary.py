"""Vocabulary: text to ids and back, with 256 reserved integer pieces.

The pieces `<000>` .. `<255>` stand for the integers 0 to 255, one token each. Web samples use them
for image coordinates; a robot action writes bin i as the token of integer i. That is how RT-2 uses
PaLI-X, whose vocabulary has a token for every integer (arXiv 2307.15818, section 3.2).

A published vocabulary, like Gemma's, has none of these: actions then get its least used tokens
(`text.least_used`), and coordinates in texts are spelled like other words.
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
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""SentencePiece's mark for a space, alone a piece of its own."""

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
      expected_size: rows of the model's embedding table, to be checked. Published tables may have
        up to a hundredth more rows than there are ids.

    Raises FileNotFoundError for a missing file, ValueError for a file that is no SentencePiece
    model, has other reserved ids or some integer pieces but not all, or is not of the expected
    size.
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
        pieces = [integer_piece(i) for i in range(INTEGERS)]
        self._integers = np.array([self._model.PieceToId(p) for p in pieces], np.int32)
        self._integers.flags.writeable = False
        self._check(expected_size)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self._model.GetPieceSize()

    @property
    def has_integers(self) -> bool:
        """Whether there are integer pieces."""
        return UNK_ID not in self._integers

    @property
    def integer_ids(self) -> np.ndarray:
        """int32 [256]: id of each integer piece. Raises ValueError if there are none."""
        if not self.has_integers:
            raise ValueError(
                f"{self.path} has no pieces {integer_piece(0)} .. {integer_piece(INTEGERS - 1)} "
                "for integers: name other tokens for actions with data.actions.token_ids"
            )
        return self._integers

    @property
    def digit_ids(self) -> np.ndarray:
        """int32 [11]: ids of the digits 0 to 9 and of a lone space.

        Raises ValueError if one of them is not a piece.
        """
        ids = np.array([self._model.PieceToId(p) for p in "0123456789" + SPACE])
        if UNK_ID in ids:
            raise ValueError(f"{self.path} has no pieces for single digits and the space")
        return ids.astype(np.int32)

    @property
    def reserved(self) -> np.ndarray:
        """bool [V]: control pieces, pieces for bytes, and integers."""
        model = self._model
        tests = (model.IsControl, model.IsUnknown, model.IsUnused, model.IsByte)
        found = np.array([any(test(i) for test in tests) for i in range(self.size)])
        found[self._integers] = True
        return found

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without BOS and EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text."""
        # SentencePiece starts threads for a list, even for one at a time; they then wait for a
        # core behind the loader's, which decode images.
        encode = self._model.Encode
        spaced = (t if not t or _STARTS_WITH_INTEGER.match(t) else " " + t for t in texts)
        return [encode(text, out_type=int) for text in spaced]

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
        missing = np.flatnonzero(self._integers == UNK_ID)
        if 0 < len(missing) < INTEGERS:
            raise ValueError(
                f"{self.path}: {len(missing)} of the integer pieces are missing, e.g. "
                f"{integer_piece(missing[0])}: train with tools/train_vocabulary.py"
            )
        spare = None if expected_size is None else expected_size - self.size
        if spare is not None and not 0 <= spare <= self.size // 100:
            raise ValueError(
                f"{self.path} has {self.size} ids, {expected_size} were expected: "
                "model and vocabulary do not belong together"
            )
