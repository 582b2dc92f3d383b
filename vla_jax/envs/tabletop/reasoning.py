"""Instructions that take a step of thought, and the plain task behind them.

RT-2's chain of thought (arXiv 2307.15818, section 4.4) is trained on such pairs: `Instruction: I'm
hungry. Plan: pick rxbar chocolate`. Here the target of a task is not named but described, so that
one thing on the table fits and no other could be argued to:

    category    pick the fruit
    attribute   i am thirsty, bring me a drink; pick what tells the time; push the red one ...
    number      pick the smallest number; pick the sum of one and two
    relation    pick what is left of the dog

What is true of a thing is written down for the concepts of robot episodes; the words for it name
no concept that only the web corpus has.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from vla_jax.corpus.phrases import CATEGORY_NOUNS, RELATED
from vla_jax.corpus.pictures import MAT_COLORS, PictureBank
from vla_jax.envs.tabletop.tasks import Task, make_task

if TYPE_CHECKING:
    from vla_jax.envs.tabletop.layout import Block, Layout

Kind = Literal["category", "attribute", "number", "relation"]
KINDS: tuple[Kind, ...] = ("category", "attribute", "number", "relation")

_FRUIT = ("apple", "banana", "grapes", "strawberry", "watermelon")
_FOOD = (*_FRUIT, "carrot", "corn", "pizza", "burger", "donut")
_SKY = ("sun", "moon", "star")

Trait = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Words, what they fit, and what someone may say they fit: that is not on the table then."""

REQUESTS: tuple[Trait, ...] = (
    ("i am thirsty, bring me a drink", ("coffee",), ("watermelon",)),
    ("i am tired, bring me a drink that helps", ("coffee",), ()),
    ("i am hungry, bring me something to eat", _FOOD, ("fish", "pig", "octopus", "coffee")),
    ("it is raining, bring me what i need", ("umbrella",), ("hat", "shoe", "house")),
    ("i am late, bring me what tells the time", ("clock",), ("sun",)),
    ("i am bored, bring me something to read", ("book",), ()),
    ("the house is locked, bring me what opens it", ("key",), ("house",)),
    ("it is a birthday, bring me something to give", ("gift",), ("book", "crown", "sunflower")),
    ("my head is cold, bring me what helps", ("hat",), ("crown", "sun", "coffee")),
    ("my foot is cold, bring me what helps", ("shoe",), ("sun", "coffee")),
)
"""Of a pick: what someone says who wants something."""

TRAITS: tuple[Trait, ...] = (
    ("what is sweet", (*_FRUIT, "donut"), ("carrot", "corn", "coffee", "gift", "pizza", "burger")),
    ("what is healthy", (*_FRUIT, "carrot", "corn"), ("fish", "coffee", "shoe", "heart")),
    ("what is read", ("book",), ("clock", *(f"number {i}" for i in range(1, 6)))),
    ("what tells the time", ("clock",), ("sun",)),
    ("what opens a lock", ("key",), ()),
    ("what keeps the rain off", ("umbrella",), ("hat", "house", "bus", "car")),
    ("what a king has on", ("crown",), ("hat", "shoe")),
    ("what is for a foot", ("shoe",), ("soccer ball",)),
    ("what scores a goal", ("soccer ball",), ("basketball",)),
    ("what people live in", ("house",), ("sailboat", "bus")),
    ("what goes to space", ("rocket",), _SKY),
    ("what goes on water", ("sailboat",), ("fish", "octopus", "penguin", "frog")),
    ("what has wheels", ("car", "bus"), ("rocket",)),
    ("what lives in the sea", ("fish", "octopus"), ("penguin", "frog", "sailboat")),
    ("what says meow", ("cat",), ()),
    ("what guards the house", ("dog",), ("key", "house")),
    ("what has eight arms", ("octopus",), ()),
    ("what shines at night", ("moon",), ("star", "sun")),
    ("what shines by day", ("sun",), ("moon", "star", "sunflower")),
    ("what stands for love", ("heart",), ("gift",)),
    ("what shows a way", ("arrow",), ("star", "sun")),
)
"""Descriptions that stand where the name of a thing would."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five")
_CLEAR = 1.4  # of a relation: so many times further along than across, as in the web corpus
_SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, 1), "below": (0, -1)}


def narrowed(kind: Kind, concepts: Sequence[str], bank: PictureBank) -> tuple[str, ...]:
    """The concepts that a scene for an instruction of this kind is drawn from."""
    numbers = tuple(c for c in concepts if bank.value(c) is not None)
    return numbers if kind == "number" and len(numbers) > 3 else tuple(concepts)


def rephrased(
    task: Task, layout: Layout, kind: Kind, bank: PictureBank, rng: random.Random
) -> str | None:
    """An instruction for the task that describes its target; None if none of the kind fits.

    It fits the target and nothing else on the table.
    """
    target = next(b for b in layout.blocks if b.name == task.target)
    others = tuple(b for b in layout.blocks if b is not target)
    names = [b.name for b in others]
    if kind == "attribute" and task.family == "pick":
        said = [words for words in REQUESTS if _singles_out(words, target.name, names)]
        if said and rng.random() < 0.5:
            return rng.choice(said)[0]
    if kind == "category":
        found = _by_category(target, others, bank)
    elif kind == "attribute":
        found = _by_attribute(target, others, bank)
    elif kind == "number":
        found = _by_number(target, others, bank, rng)
    else:
        found = _by_relation(target, others, layout)
    if not found:
        return None
    return make_task(
        task.family,
        task.target,
        task.reference,
        task.direction,
        rng.randrange(12),
        subject=rng.choice(found),
    ).instruction


def _singles_out(trait: Trait, target: str, others: Sequence[str]) -> bool:
    _, fits, perhaps = trait
    return target in fits and not set(others) & {*fits, *perhaps}


def _by_category(target: Block, others: Sequence[Block], bank: PictureBank) -> list[str]:
    category = bank.category(target.name)
    if category not in CATEGORY_NOUNS:
        return []
    near = {category, *RELATED.get(category, ())}
    if any(bank.category(b.name) in near for b in others):
        return []
    return ["the " + CATEGORY_NOUNS[category].split(" ", 1)[1]]


def _by_attribute(target: Block, others: Sequence[Block], bank: PictureBank) -> list[str]:
    found = [t[0] for t in TRAITS if _singles_out(t, target.name, [b.name for b in others])]
    color = bank.color(target.name)
    # A tile of that colour, or a picture without a clear one, would be a second answer.
    clear = all(bank.color(b.name) not in ("", color) and b.tile != color for b in others)
    if color in MAT_COLORS and clear:
        found.append(f"the {color} one")
    return found


def _by_number(
    target: Block, others: Sequence[Block], bank: PictureBank, rng: random.Random
) -> list[str]:
    value = bank.value(target.name)
    if value is None:
        return []
    found = []
    low, high = 1, len(_NUMBERS) - 1
    if sums := [a for a in range(low, high + 1) if low <= value - a <= high]:
        a = rng.choice(sums)
        found.append(f"the sum of {_NUMBERS[a]} and {_NUMBERS[value - a]}")
    if lesser := [b for b in range(low, high + 1) if value + b <= high]:
        b = rng.choice(lesser)
        found.append(f"the answer of {_NUMBERS[value + b]} minus {_NUMBERS[b]}")
    if value % 2 == 0 and low <= value // 2 <= high:
        found.append(f"the answer of two times {_NUMBERS[value // 2]}")
    rest = [v for b in others if (v := bank.value(b.name)) is not None]
    if rest and value < min(rest):
        found.append("the smallest number")
    if rest and value > max(rest):
        found.append("the largest number")
    return found


def _by_relation(target: Block, others: Sequence[Block], layout: Layout) -> list[str]:
    """`what is left of the dog`, as seen in the picture."""
    found = []
    for anchor in others:
        for words, (right, up) in _SIDES.items():

            def along(thing, right=right, up=up, anchor=anchor) -> float:
                return right * (thing.x - anchor.x) + up * (thing.y - anchor.y)

            across = abs(up * (target.x - anchor.x)) + abs(right * (target.y - anchor.y))
            things = (*others, *layout.mats)
            rest = [along(thing) for thing in things if thing is not anchor]
            if along(target) > _CLEAR * across and all(distance <= 0 for distance in rest):
                found.append(f"what is {words} the {anchor.name}")
    return found
