"""Which fields of a record become its prompt and its answer."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from vla_jax.text.prompts import fill_template, template_fields


@dataclasses.dataclass(frozen=True)
class TextLayout:
    """How a data set's records are read as texts.

    A field is a path joined by "/", `answers/answer`; on its way lists are gone through. Where
    fields hold several texts, such as five captions of a picture, or there are several templates,
    the record has as many prompts and answers, of which each sample gets one, see `types.Example`.
    Of fields of equally many texts the same number is taken, hence questions stay with their
    answers.

    Attributes:
      prompt: template; names in braces are fields (`Q: {question} A:`, `{prefix}`). Several: other
        phrasings of the same.
      answer: a field.
      language: what `{language}` stands for. "": it is a field like any other.
    """

    prompt: str | tuple[str, ...]
    answer: str
    language: str = ""

    def __post_init__(self) -> None:
        if not self.templates or not all(t.strip() for t in self.templates) or not self.answer:
            raise ValueError(f"a prompt template and an answer field are needed, not {self}")

    @functools.cached_property
    def templates(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """What is asked of a record, each field once."""
        constant = {"language"} if self.language else set()
        names = [name for template in self.templates for name in template_fields(template)]
        return tuple(name for name in dict.fromkeys([*names, self.answer]) if name not in constant)

    def read(
        self, find: Callable[[str], Sequence[str]], *, where: Callable[[], str]
    ) -> tuple[str | tuple[str, ...], str | tuple[str, ...]]:
        """Prompts and answers of a record, equally many if there are several of both.

        Args:
          find: field -> the texts in it.
          where: tells which record it is, for messages.

        Raises ValueError if no choice is free of empty texts, and what `find` raises.
        """
        texts = {field: find(field) for field in self.fields}
        if len(self.templates) == 1 and all(len(t) == 1 and t[0].strip() for t in texts.values()):
            # Most data are like this, and it is quicker.
            values = {"language": self.language} | {
                field: found[0] for field, found in texts.items()
            }
            return fill_template(self.templates[0], values), values[self.answer]
        empty = [field for field, found in texts.items() if not any(t.strip() for t in found)]
        choices = [
            {field: found[n % len(found)] for field, found in texts.items()}
            for n in range(0 if empty else max(map(len, texts.values())))
        ]
        choices = [values for values in choices if all(t.strip() for t in values.values())]
        if not choices:
            field = empty[0] if empty else " or ".join(self.fields)
            raise ValueError(f"{where()} has an empty {field}: fill it in or drop the record")
        pairs = [
            (fill_template(template, {"language": self.language} | values), values[self.answer])
            for values in choices
            for template in self.templates
        ]
        prompts, answers = (_one_if_same(texts) for texts in zip(*pairs))
        return prompts, answers


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


def _one_if_same(texts: tuple[str, ...]) -> str | tuple[str, ...]:
    return texts[0] if len(set(texts)) == 1 else texts
