"""How answers in words are compared: VQA's normalisation and its accuracy over several answers."""

from __future__ import annotations

import collections
import re
import unicodedata
from collections.abc import Sequence

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
# With their apostrophe. What is a word of its own without it (we'll, I'd, it's) is left out.
_CONTRACTIONS = (
    "ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't "
    "needn't shan't shouldn't wasn't weren't won't wouldn't could've might've must've should've "
    "would've i'm i've we've you've they've who've you're they're he's she's that's there's what's "
    "where's who's how's when's why's here's somebody's someone's something's you'll they'll "
    "that'll what'll you'd they'd who'd ma'am o'clock y'all"
)
_APOSTROPHE = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}
# Of ASCII, VQA's own list: "%", "&" and "$" say something.
_SPACES = frozenset(';/[]"{}()=+\\_-><@`,?!')
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_NOT_DECIMAL = re.compile(r"(?<!\d)\.|\.(?!\d)")  # a point that is not inside a number
_FULL_CREDIT = 3  # people who must have said the same


def normalize(answer: str) -> str:
    """For comparing answers, as VQA does (https://visualqa.org/evaluation.html).

    Small letters; no full stops, except in numbers, and no commas inside them; other punctuation
    but apostrophes and colons becomes a space; number words up to ten become digits; no articles;
    a contraction gets the apostrophe that it lacks. Beyond English: Unicode's compatibility forms
    are one, and punctuation of all scripts counts. An answer that is nothing else ("the", "?!")
    stays as it is, apart from case and white space.
    """
    text = " ".join(unicodedata.normalize("NFKC", answer).casefold().replace("’", "'").split())
    bare = _COMMA_IN_NUMBER.sub("", _NOT_DECIMAL.sub("", text))
    bare = "".join(" " if _is_space(c) else c for c in bare)
    words = [_NUMBERS.get(word, word) for word in bare.split() if word not in _ARTICLES]
    return " ".join(_APOSTROPHE.get(word, word) for word in words) or text


def _is_space(character: str) -> bool:
    if character.isascii():
        return character in _SPACES
    return unicodedata.category(character).startswith("P")


def vqa_accuracy(said: str, references: Sequence[str]) -> float:
    """0 to 1. Of ten people's answers, VQA's accuracy: min(people who said the same / 3, 1), the
    mean over the ten sets of nine that leave one of them out (arXiv 1505.00468, section 3).

    With fewer than four references, where nobody could reach 1: whether it is one of them.

    Raises ValueError without references.
    """
    if not references:
        raise ValueError("an answer is compared with at least one reference")
    given, true = normalize(said), [normalize(reference) for reference in references]
    same = [answer == given for answer in true]
    if len(true) <= _FULL_CREDIT:
        return float(any(same))
    others = (sum(same) - own for own in same)
    return sum(min(n / _FULL_CREDIT, 1.0) for n in others) / len(true)


def commonest(references: Sequence[str]) -> str:
    """The answer that most give; of equally many the first."""
    counts = collections.Counter(normalize(reference) for reference in references)
    most = max(counts.values())
    return next(r for r in references if counts[normalize(r)] == most)
