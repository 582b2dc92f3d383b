"""Prompt templates. The answer follows the prompt directly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

QUESTION_TEMPLATE = "Q: {question} A:"
CAPTION_TEMPLATE = "Q: caption in {language} A:"
"""The language by its English name in small letters, as in "caption in german"."""

ROBOT_TEMPLATE = "Q: what action should the robot take to {instruction}? A:"
"""RT-2's robot prompt (arXiv 2307.15818, section 3.2)."""

PLAN_TEMPLATE = "Instruction: {instruction}. Plan:"
PLAN_END = "Action:"
"""RT-2's chain of thought (section 4.4): `Instruction: I'm hungry. Plan: pick rxbar chocolate.
Action: 1 128 124 136 121 158 111 255`."""

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


_CAPTION = re.compile(
    re.escape(CAPTION_TEMPLATE).replace(re.escape("{language}"), r"[^{}]+"), re.IGNORECASE
)


def is_caption_prompt(prompt: str) -> bool:
    """Whether it asks for a caption, as `CAPTION_TEMPLATE` does or PaliGemma's `caption en`."""
    text = prompt.strip()
    return bool(_CAPTION.fullmatch(text)) or text.lower().startswith(("caption ", "cap "))


def robot_prompt(instruction: str, template: str = ROBOT_TEMPLATE) -> str:
    """The prompt of a robot that acts at once.

    Raises ValueError for an empty instruction: the policy would act on nothing.
    """
    instruction = instruction.strip().rstrip(".?!")
    if not instruction:
        raise ValueError("empty instruction: say what the robot should do, e.g. 'pick the dog'")
    return fill_template(template, {"instruction": instruction})


def robot_prompts(instruction: str, templates: Sequence[str]) -> str | tuple[str, ...]:
    """The prompt in all of its phrasings, or the only one; raises as `robot_prompt`."""
    prompts = tuple(robot_prompt(instruction, template) for template in templates)
    return prompts[0] if len(prompts) == 1 else prompts


def plan_sentence(plan: str) -> str:
    """`pick rxbar chocolate.`: what stands between the plan's prompt and `PLAN_END`."""
    return plan.strip().rstrip(".?!") + "."


def require_instruction(template: str) -> None:
    """Raises ValueError if a robot's template does not have {instruction} for its one field."""
    if template_fields(template) != ("instruction",):
        raise ValueError(
            f"robot prompt {template!r} has the fields {template_fields(template)}: it needs "
            "{instruction} and no other"
        )
