"""Pieces of HTML: tables, figures with numbered captions, shares with intervals, images."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

_TYPES = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg"}


class Markup(str):
    """HTML that is escaped already."""

    __slots__ = ()


def text(value: Any) -> str:
    """Anything as HTML."""
    return value if isinstance(value, Markup) else escape(str(value))


def percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, – for None."""
    return "–" if value is None else f"{value:.{digits}g}"


def share_cell(share: dict[str, Any] | None) -> Markup:
    """`62% 48–74` with the interval small; – if there is nothing."""
    if not share or share["share"] is None:
        return Markup('<span class="faint">–</span>')
    low, high = 100 * share["low"], 100 * share["high"]
    return Markup(f'{percent(share["share"])} <span class="interval">{low:.0f}–{high:.0f}</span>')


def count_cell(share: dict[str, Any]) -> Markup:
    return Markup(f'<span class="faint">{share["count"]}/{share["n"]}</span>')


def table(
    header: Sequence[Any], rows: Sequence[Sequence[Any]], *, left: int = 1, total_rows: int = 0
) -> Markup:
    """The first `left` columns are text, the others numbers. The last `total_rows` are set off."""

    def cells(tag: str, values: Sequence[Any]) -> str:
        return "".join(
            f"<{tag}{' class=left' if i < left else ''}>{text(v)}</{tag}>"
            for i, v in enumerate(values)
        )

    head = cells("th", header)
    body = []
    for i, row in enumerate(rows):
        kind = ' class="total"' if i >= len(rows) - total_rows else ""
        body.append(f"<tr{kind}>{cells('td', row)}</tr>")
    return Markup(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def section(anchor: str, title: str, *parts: str) -> Markup:
    return Markup(f'<section id="{anchor}"><h2>{escape(title)}</h2>{"".join(parts)}</section>')


def paragraph(words: str) -> Markup:
    return Markup(f"<p>{text(words)}</p>")


def missing(what: str, remedy: str) -> Markup:
    """Says that a part was not measured, and how to get it."""
    return Markup(f'<p class="missing">{escape(what)} <code>{escape(remedy)}</code></p>')


def picture(data: bytes, media_type: str, alt: str, css: str = "") -> Markup:
    """An image as a data URI."""
    kind = f' class="{css}"' if css else ""
    return Markup(
        f'<img{kind} alt="{escape(alt, quote=True)}" '
        f'src="data:{media_type};base64,{base64.b64encode(data).decode()}">'
    )


class Figures:
    """Numbers figures and tables in the order in which they are made.

    Args:
      media: what image paths are relative to.
    """

    def __init__(self, media: Path):
        self._media = media
        self._numbers = itertools.count(1)

    def figure(self, content: str, caption: str) -> Markup:
        number = next(self._numbers)
        return Markup(
            f"<figure>{content}<figcaption><b>{number}.</b> {text(caption)}</figcaption></figure>"
        )

    def image(self, path: str, alt: str, css: str = "") -> Markup:
        """The file as a data URI; a note in its place if it is gone."""
        file = self._media / path
        if not file.is_file():
            return Markup(f'<span class="missing">no picture {escape(path)}</span>')
        return picture(file.read_bytes(), _TYPES[file.suffix], alt, css)


def cards(items: Sequence[str], size: str = "") -> Markup:
    """A grid of equal cards.

    Args:
      size: "", "small" or "large".
    """
    inside = "".join(f'<div class="card">{item}</div>' for item in items)
    return Markup(f'<div class="cards {size}">{inside}</div>')
