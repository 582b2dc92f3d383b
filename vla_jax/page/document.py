"""A whole page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

_STYLE = Path(__file__).parent / "page.css"


def write_page(
    out: Path,
    title: str,
    navigation: Sequence[tuple[str, str]],
    body: Sequence[str],
    *,
    head: str = "",
) -> Path:
    """Writes a page, whole or not at all, and returns its path. Its style is inside.

    Args:
      out: its directory is made.
      navigation: (anchor, name) of the links at the top.
      body: HTML, see `markup`.
      head: more HTML for the page's head, after the style.
    """
    links = "".join(f'<a href="#{escape(a, quote=True)}">{escape(n)}</a>' for a, n in navigation)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text()}</style>{head}</head>"
        f"<body><nav>{links}</nav><main>{''.join(body)}</main></body></html>\n"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, out)
    return out
