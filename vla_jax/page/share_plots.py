"""Plots of shares: a table of shades, and one share against another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from vla_jax.page.svg import BOUND, GRID, TEXT, curve_color, shade, svg, text


def share_map(
    rows: Sequence[str],
    columns: Sequence[str],
    shares: Sequence[Sequence[float | None]],
    *,
    cell: int = 46,
) -> str:
    """Shares in 0..1 as a table of shades, white 0 and dark 1; None is left empty."""
    left = 14 + 6.6 * max(len(r) for r in rows)
    top = 16 + 5.4 * max(len(c) for c in columns)
    tall = 30
    width = left + cell * len(columns) + 4.4 * max(len(c) for c in columns[-2:])
    height = top + tall * len(rows) + 4
    parts = []
    for j, name in enumerate(columns):
        x = left + cell * (j + 0.4)
        parts.append(
            f'<text x="{x:.1f}" y="{top - 7:.1f}" fill="{TEXT}" font-size="12" '
            f'transform="rotate(-45 {x:.1f} {top - 7:.1f})">{escape(name)}</text>'
        )
    for i, name in enumerate(rows):
        y = top + tall * i
        parts.append(text(left - 8, y + tall / 2 + 3, name, anchor="end"))
        for j, share in enumerate(shares[i]):
            x = left + cell * j
            fill = "none" if share is None else shade(share)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 2}" height="{tall - 2}" rx="2" '
                f'fill="{fill}" stroke="{GRID}"/>'
            )
            if share is not None:
                ink = "#ffffff" if share > 0.55 else "#22262b"
                middle = x + (cell - 2) / 2
                label = f"{100 * share:.0f}"
                parts.append(text(middle, y + tall / 2 + 3, label, anchor="middle", color=ink))
    return svg(width, height, parts, "shares of success by row and column")


@dataclasses.dataclass(frozen=True)
class Point:
    """A pair of shares with their intervals: (value, low, high) each."""

    label: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def trade_off_plot(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    x_bound: float | None = None,
    width: int = 480,
    height: int = 300,
) -> str:
    """Pairs of shares, joined in their order; crosses are intervals. At least one.

    Args:
      x_bound: drawn as a broken line upwards.
    """
    left, right, top, bottom = 46, width - 16, 26, height - 38
    x_low, x_high = _tenths([v for p in points for v in p.x] + ([x_bound] if x_bound else []))
    y_low, y_high = _tenths([v for p in points for v in p.y])

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (x - x_low) / (x_high - x_low) * (right - left),
            bottom - (y - y_low) / (y_high - y_low) * (bottom - top),
        )

    parts = []
    for tick in _ticks(x_low, x_high):
        x = place(tick, y_low)[0]
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(text(x, bottom + 16, f"{tick:.0%}", anchor="middle"))
    for tick in _ticks(y_low, y_high):
        y = place(x_low, tick)[1]
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(text(left - 7, y + 4, f"{tick:.0%}", anchor="end"))
    if x_bound is not None:
        x = place(x_bound, y_low)[0]
        parts.append(
            f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{BOUND}" '
            'stroke-dasharray="4 3"/>'
        )
    color = curve_color(0)
    for p in points:
        (x, y), (x0, y0), (x1, y1) = (place(a, b) for a, b in zip(p.x, p.y))
        parts.append(
            f'<path d="M{x0:.1f} {y:.1f}H{x1:.1f}M{x:.1f} {y0:.1f}V{y1:.1f}" stroke="{color}" '
            'opacity="0.35" fill="none"/>'
        )
    path = " ".join("{:.1f},{:.1f}".format(*place(p.x[0], p.y[0])) for p in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
    places = [place(p.x[0], p.y[0]) for p in points]
    for number, (p, (x, y)) in enumerate(zip(points, places)):
        beside = [places[k] for k in (number - 1, number + 1) if 0 <= k < len(places)]
        across, down = _away((x, y), beside)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>')
        spot = x + 24 * across, y + 16 * down + 4
        parts.append(text(*spot, p.label, anchor="middle", weight=600))
    parts.append(text((left + right) / 2, height - 5, x_label, anchor="middle"))
    parts.append(text(0, 12, y_label))
    return svg(width, height, parts, f"{y_label} over {x_label}")


def _away(spot: tuple[float, float], beside: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Direction, (across, down) of length 1, in which a line through `spot` does not go."""
    units = []
    for x, y in beside:
        length = math.hypot(spot[0] - x, spot[1] - y)
        if length:
            units.append(((spot[0] - x) / length, (spot[1] - y) / length))
    across, down = sum(u[0] for u in units), sum(u[1] for u in units)
    if units and math.hypot(across, down) < 0.5:  # it goes on almost straight: beside it
        across, down = units[0][1], -units[0][0]
    length = math.hypot(across, down)
    return (across / length, down / length) if length else (0.0, -1.0)


def _tenths(values: Sequence[float]) -> tuple[float, float]:
    """The tenths that hold all values."""
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10
    return (low, high) if high > low else (low - 0.1, high + 0.1)


def _ticks(low: float, high: float) -> list[float]:
    """Each tenth, or each second one of many."""
    count = round(10 * (high - low))
    return [low + k / 10 for k in range(0, count + 1, 1 if count <= 6 else 2)]
