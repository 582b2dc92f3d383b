"""What the cells ask about: one draw of a thing, its words and what lies beside it.

Beside a web-only thing there is always another thing that no episode shows, so that going for
whatever is unfamiliar is right half the time at best.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Sequence

from vla_jax.corpus.coordinates import RELATIONS
from vla_jax.corpus.phrases import CATEGORY_NOUNS, RELATED
from vla_jax.corpus.pictures import PictureBank
from vla_jax.evaluation.suites import words
from vla_jax.evaluation.suites.episode import Question, only_one

_NO_PICTURES = ("number", "symbol", "block")


def simple_object(rng: random.Random, bank: PictureBank) -> Question:
    """A plain thing among things of other kinds and colours."""
    about = rng.choice(words.SIMPLE)

    def differs(key: str) -> bool:
        same_kind = bank.category(key) == bank.category(about)
        return not same_kind and (bank.color(key) != bank.color(about) or not bank.color(key))

    rival = _pick(rng, filter(differs, bank.concepts("web_only")))
    return _with_robots(rng, bank, about, about, [rival], differs)


def similar_object(rng: random.Random, bank: PictureBank) -> Question:
    """A thing among those most like it: of its kind, and of its colour where there are any."""
    pictures = [k for k in bank.concepts("web_only") if k not in words.SIMPLE]
    about = rng.choice([k for k in pictures if bank.value(k) is None])
    rival = rng.choice(_alike(rng, bank, about, bank.concepts("web_only"))[:3])
    robots = _alike(rng, bank, about, bank.concepts("robot"))
    return Question(about, about, [rival, *robots[1:4]], robots[0])


def symbol(rng: random.Random, bank: PictureBank) -> Question:
    """A sign or a number."""
    numbers = [k for k in bank.concepts("web_only") if bank.value(k) is not None]
    about = rng.choice((rng.choice(words.SYMBOLS), rng.choice(numbers)))
    rival = _pick(rng, (k for k in (*words.SYMBOLS, *numbers) if k != about))
    known = [k for k in bank.concepts("robot") if bank.category(k) in ("number", "symbol")]
    said = about.removeprefix("number ") if rng.random() < 0.5 else about
    return Question(about, said, [rival, *rng.sample(known, 3)], _picture(rng, bank))


def picture(rng: random.Random, bank: PictureBank) -> Question:
    """`picture of the duck`, among other pictures."""
    about, rival = rng.sample(_pictures(bank, "web_only"), 2)
    said = rng.choice(("picture of the {}", "card with the {}", "block with the {}")).format(about)
    return _with_robots(rng, bank, about, said, [rival])


def symbol_and_relation(rng: random.Random, bank: PictureBank) -> Question:
    """`picture left of the check mark`: the thing itself is not named."""
    about, anchor = _pick(rng, _pictures(bank, "web_only")), rng.choice(words.SYMBOLS)
    relation = rng.choice(RELATIONS)
    question = _with_robots(rng, bank, about, f"picture {relation} the {anchor}", [anchor])
    return dataclasses.replace(question, fits=only_one(about, relation, anchor))


def arithmetic(rng: random.Random, bank: PictureBank) -> Question:
    """A number that is a result, the smallest or the largest."""
    unseen = {v: k for k in bank.concepts("web_only") if (v := bank.value(k)) is not None}
    known = {v: k for k in bank.concepts("robot") if (v := bank.value(k)) is not None}
    numbers = unseen | known
    kind = rng.choice(("sum", "result", "extreme"))
    if kind == "extreme":
        smallest = rng.random() < 0.5
        value = rng.choice((0, 6, 7) if smallest else (6, 7, 8, 9))
        said = "smallest number" if smallest else "largest number"
        others = [v for v in numbers if v != value and (v > value) == smallest]
    else:
        value = rng.choice(sorted(unseen))
        said = _sum(rng, value) if kind == "sum" and value else _result(rng, value)
        others = [v for v in numbers if v != value]
    rival = rng.choice([v for v in others if v in unseen])
    others.remove(rival)
    company = [numbers[v] for v in (rival, *rng.sample(others, min(2, len(others))))]
    company += rng.sample(_pictures(bank, "robot"), 3 - len(company))
    return Question(unseen[value], said, company, _picture(rng, bank, company))


def category_or_sign(rng: random.Random, bank: PictureBank) -> Question:
    """`fruit`, or `sign for recycling`."""
    if rng.random() < 0.5:
        about, rival, *more = rng.sample(tuple(words.SIGNS), 4)
        robot, mover = rng.sample(_pictures(bank, "robot"), 2)
        return Question(about, words.SIGNS[about], [rival, robot, *more], mover)
    about = _pick(
        rng, (k for k in _pictures(bank, "web_only") if bank.category(k) in CATEGORY_NOUNS)
    )
    category = bank.category(about)
    clashing = {category, *RELATED.get(category, ())}

    def clear(key: str) -> bool:
        return bank.category(key) not in clashing and category not in RELATED.get(
            bank.category(key), ()
        )

    rival = _pick(rng, filter(clear, _pictures(bank, "web_only")))
    said = CATEGORY_NOUNS[category].split(" ", 1)[1]
    return _with_robots(rng, bank, about, said, [rival], clear)


def nutrition(rng: random.Random, bank: PictureBank) -> Question:
    """`healthy snack`, among what is not."""
    said, good, bad = rng.choice(words.NUTRITION)
    about = rng.choice(good)
    unseen = [k for k in bad if k not in bank.concepts("robot")]
    first = rng.choice(unseen)
    rest = rng.sample([k for k in bad if k != first], len(bad) - 1)
    eatable = ("fruit", "vegetable", "food", "drink", "animal", "plant")
    others = [k for k in _pictures(bank, "robot") if bank.category(k) not in eatable]
    mover, *more = rng.sample(others, 3)
    return Question(about, said, [first, *rest[:2], *more], mover)


def color_or_language(rng: random.Random, bank: PictureBank) -> Question:
    """`yellow fruit`, or all of the instruction in one of five languages."""
    if rng.random() < 1 / 6:
        return _colored(rng, bank)
    language = rng.choice(words.LANGUAGES)
    about, rival = rng.sample(words.TRANSLATED, 2)
    mover = rng.choice(words.TRANSLATED_MOVERS)
    question = _with_robots(rng, bank, about, about, [rival], lambda key: key != mover)
    return dataclasses.replace(
        question,
        mover=mover,
        directions=words.TRANSLATED_DIRECTIONS,
        phrase=lambda task: words.sentence_in(
            language, task.family, task.target, task.reference, task.direction
        ),
    )


def profession(rng: random.Random, bank: PictureBank) -> Question:
    """`firefighter`, among other people."""
    about, *others = rng.sample(words.PROFESSIONS, 3)
    return _with_robots(rng, bank, about, about, others)


def face(rng: random.Random, bank: PictureBank) -> Question:
    """`woman with white hair`, `crying face`, among others."""
    about, *others = rng.sample(tuple(words.FACES), 3)
    question = _with_robots(rng, bank, about, words.FACES[about], others)
    return dataclasses.replace(question, says_colors="hair" in question.words)


def never_shown(rng: random.Random, bank: PictureBank) -> Question:
    """A thing that is in no data at all, beside another one."""
    about, rival = rng.sample(bank.concepts("nowhere"), 2)
    return _with_robots(rng, bank, about, about, [rival])


def _colored(rng: random.Random, bank: PictureBank) -> Question:
    kinds = ("fruit", "vegetable", "animal", "vehicle", "clothing")
    about = _pick(
        rng,
        (k for k in bank.concepts("web_only") if bank.category(k) in kinds and bank.color(k)),
    )
    kind, color = bank.category(about), bank.color(about)
    related = {kind, *RELATED.get(kind, ())}

    def clear(key: str) -> bool:
        """Of another kind, or of that kind and another colour."""
        mine = bank.category(key)
        return mine not in related or (mine == kind and bank.color(key) not in (color, ""))

    same_kind = [k for k in bank.concepts("web_only") if bank.category(k) == kind]
    rivals = [k for k in same_kind if clear(k) and k != about]
    said = f"{color} {CATEGORY_NOUNS[kind].split(' ', 1)[1]}"
    question = _with_robots(rng, bank, about, said, [rng.choice(rivals)], clear)
    return dataclasses.replace(question, says_colors=True)


def _sum(rng: random.Random, value: int) -> str:
    first = rng.randint(1, value - 1)
    a, b = words.NUMBER_WORDS[first], words.NUMBER_WORDS[value - first]
    return rng.choice((f"sum of {a} and {b}", f"sum of {a} plus {b}"))


def _result(rng: random.Random, value: int) -> str:
    """Of a product, or of a difference."""
    products = {(a, b) for a in range(5) for b in range(5) if a * b == value and 1 not in (a, b)}
    if products and rng.random() < 0.6:
        a, b = rng.choice(sorted(products))
        return f"answer of {words.NUMBER_WORDS[a]} times {words.NUMBER_WORDS[b]}"
    more = rng.randint(max(value, 1), 10)
    a, b = words.NUMBER_WORDS[more], words.NUMBER_WORDS[more - value]
    return f"answer of {a} minus {b}"


def _with_robots(
    rng: random.Random,
    bank: PictureBank,
    about: str,
    said: str,
    rivals: Sequence[str],
    clear: Callable[[str], bool] = lambda key: True,
) -> Question:
    """`rivals` lie beside it, then pictures from the robot's episodes that `clear` accepts."""
    mover, *robots = rng.sample([k for k in _pictures(bank, "robot") if clear(k)], 4)
    return Question(about, said, [rivals[0], robots[0], *rivals[1:], *robots[1:]], mover)


def _pictures(bank: PictureBank, split: str) -> list[str]:
    """Things, rather than signs."""
    return [k for k in bank.concepts(split) if bank.category(k) not in _NO_PICTURES]


def _picture(rng: random.Random, bank: PictureBank, but: Sequence[str] = ()) -> str:
    return _pick(rng, (k for k in _pictures(bank, "robot") if k not in but))


def _pick(rng: random.Random, keys: Iterable[str]) -> str:
    return rng.choice(list(keys))


def _alike(rng: random.Random, bank: PictureBank, key: str, among: Sequence[str]) -> list[str]:
    """`among` without the key, those of its kind and colour first, equals in any order."""

    def likeness(other: str) -> int:
        same_color = bool(bank.color(key)) and bank.color(other) == bank.color(key)
        return 2 * (bank.category(other) == bank.category(key)) + same_color

    others = [k for k in among if k != key]
    return sorted(rng.sample(others, len(others)), key=likeness, reverse=True)
