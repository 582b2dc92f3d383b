"""Which fields of a record become its prompt and its answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from vla_jax.text.prompts import fill_template, template_fields


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """How a data set's records are read as texts.

    A field is a path joined by "/", `answers/answer`; on its way lists are gone through. Where a
    field holds several texts, such as five captions of a picture, one is taken: a hash of the
    record's number says which, so it is the same in every epoch. Fields of equally many texts get
    the same number, hence questions stay with their answers.

    Attributes:
      prompt: template; names in braces are fields (`Q: {question} A:`, `{prefix}`).
      answer: a field.
      language: what `{language}` stands for. "": it is a field like any other.
    """

    prompt: str
    answer: str
    language: str = ""

    def __post_init__(self) -> None:
        if not self.prompt.strip() or not self.answer:
            raise ValueError(f"a prompt template and an answer field are needed, not {self}")

    @property
    def fields(self) -> tuple[str, ...]:
        """What is asked of a record, each field once."""
        constant = {"language"} if self.language else set()
        names = (*template_fields(self.prompt), self.answer)
        return tuple(name for name in dict.fromkeys(names) if name not in constant)

    def read(
        self, find: Callable[[str], Sequence[str]], index: int, *, where: str
    ) -> tuple[str, str]:
        """Prompt and answer of a record.

        Args:
          find: field -> the texts in it.
          index: number of the record.
          where: the record, for messages.

        Raises ValueError for an empty text, and what `find` raises.
        """
        values = {"language": self.language}
        for field in self.fields:
            texts = find(field)
            values[field] = texts[_draw(index, len(texts))] if texts else ""
            if not values[field].strip():
                raise ValueError(f"{where} has an empty {field}: fill it in or drop the record")
        return fill_template(self.prompt, values), values[self.answer]


def json_object(data: bytes, *, where: str) -> dict[str, Any]:
    """Parses a record in JSON. Raises ValueError if it is malformed or no object."""
    try:
        parsed = json.loads(data)
    except ValueError as e:  # malformed, or not UTF-8
        raise ValueError(f"{where} is not JSON ({e}): repair or drop it") from e
    if not isinstance(parsed, dict):
        raise ValueError(
            f"{where} is a JSON {type(parsed).__name__}, not an object with fields: repair "
            "or drop it"
        )
    return parsed


def json_texts(record: dict[str, Any], field: str, *, where: str) -> list[str]:
    """The texts in a field; numbers are written out, null is "".

    Raises ValueError if there is no such field (it lists those there are) or it is no text.
    """
    values: list[Any] = [record]
    for part in field.split("/"):
        found: list[Any] = []
        for value in values:
            if not isinstance(value, dict) or part not in value:
                there = ", ".join(value) if isinstance(value, dict) else type(value).__name__
                raise ValueError(
                    f"{where} has no field {field!r}: at {part!r} there is {there}; name another "
                    "field or drop the record"
                )
            inner = value[part]
            found.extend(inner if isinstance(inner, list) else [inner])
        values = found
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise ValueError(
                f"{where}: field {field!r} holds {value!r}, which is no text; name another field"
            )
    return ["" if value is None else str(value) for value in values]


def _draw(index: int, count: int) -> int:
    digest = hashlib.blake2b(str(index).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count
