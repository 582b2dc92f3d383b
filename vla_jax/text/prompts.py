"""Prompt templates. The answer follows the prompt directly."""

from __future__ import annotations

import re
from collections.abc import Mapping

QUESTION_TEMPLATE = "Q: {question} A:"
CAPTION_TEMPLATE = "Q: caption in {language} A:"
"""The language by its English name in small letters, as in "caption in german"."""

_FIELD = re.compile(r"\{([^{}]+)\}")


def template_fields(template: str) -> tuple[str, ...]:
    """The names in braces, each once: `Q: {question} A:` -> ("question",)."""
    return tuple(dict.fromkeys(_FIELD.findall(template)))


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Puts values in place of the names in braces. Raises KeyError for one that is not given."""
    return _FIELD.sub(lambda match: values[match[1]], template)


def question_prompt(question: str) -> str:
    """`Q: what is left of the dog? A:` Raises ValueError for an empty question."""
    question = question.strip()
    if not question:
        raise ValueError("empty question: a text sample needs something to answer")
    return fill_template(QUESTION_TEMPLATE, {"question": question})


def robot_prompt(instruction: str) -> str:
    """RT-2's robot prompt (arXiv 2307.15818, section 3.2).

    Raises ValueError for an empty instruction: the policy would act on nothing.
    """
    instruction = instruction.strip().rstrip(".?!")
    if not instruction:
        raise ValueError("empty instruction: say what the robot should do, e.g. 'pick the dog'")
    return f"Q: what action should the robot take to {instruction}? A:"
