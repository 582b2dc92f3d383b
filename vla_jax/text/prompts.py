"""Prompt templates. The answer follows the prompt directly."""

from __future__ import annotations


def question_prompt(question: str) -> str:
    """`Q: what is left of the dog? A:` Raises ValueError for an empty question."""
    question = question.strip()
    if not question:
        raise ValueError("empty question: a text sample needs something to answer")
    return f"Q: {question} A:"


def robot_prompt(instruction: str) -> str:
    """RT-2's robot prompt (arXiv 2307.15818, section 3.2).

    Raises ValueError for an empty instruction: the policy would act on nothing.
    """
    instruction = instruction.strip().rstrip(".?!")
    if not instruction:
        raise ValueError("empty instruction: say what the robot should do, e.g. 'pick the dog'")
    return f"Q: what action should the robot take to {instruction}? A:"
