"""What all plots are made of: the document, its text and its colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

PALETTE = ("#2f5d8a", "#c8702a", "#3b7f5c", "#8a4f7d", "#7a7f87", "#b3932f")
# A page's style may set the names, e.g. for a dark screen.
GRID, AXIS = "var(--line, #e6e8eb)", "var(--axis, #9aa1a9)"
TEXT, BOUND = "var(--soft, #4a5058)", "var(--bad, #b03a2e)"


def svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(title, quote=True)}" font-size="12">{"".join(parts)}</svg>'
    )


def text(
    x: float, y: float, text: str, *, anchor: str = "start", color: str = TEXT, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def shade(share: float) -> str:
    """White to the first palette colour."""
    low, high = (247, 248, 250), (47, 93, 138)
    mixed = (round(a + (b - a) * share) for a, b in zip(low, high))
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def curve_color(number: int) -> str:
    """Colour of the n-th curve; a page's style may set --curve-n."""
    n = number % len(PALETTE)
    return f"var(--curve-{n}, {PALETTE[n]})"
