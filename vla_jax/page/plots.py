"""Small SVG plots: lines, bars with intervals, heat maps, histograms, pies. Text stays text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from vla_jax.page.svg import AXIS, BOUND, GRID, PALETTE, TEXT, curve_color, shade, svg, text


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve; x ascending.

    Attributes:
      label: in the legend. "" for a curve that is alone, or for a broken line that goes with the
        curve before it, in its colour.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Bar:
    """A share in 0..1 with its interval; None for no value."""

    label: str
    value: float | None
    low: float = 0.0
    high: float = 0.0


def line_plot(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    bounds: Sequence[float] = (),
    width: int = 480,
    height: int = 230,
) -> str:
    """Curves over a shared x axis that starts at 0; empty string if there is no point.

    Args:
      y_range: None: that of the values, and with `from_zero` 0 too.
      bounds: values drawn as broken lines across.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return ""
    x_low, x_high = _span([0.0, *(x for line in lines for x in line.x)])
    values = [y for line in lines for y in line.y]
    y_low, y_high = y_range or _span([0.0, *values] if from_zero else values)
    looks = _looks(lines)
    legend, extra = _legend(lines, looks, 6.6 * len(y_label) + 18, width - 12)
    height += extra
    left, right, top, bottom = 46, width - 12, 26 + extra, height - 38

    def place(x: float, y: float) -> tuple[float, float]:
        px = left + (x - x_low) / (x_high - x_low) * (right - left)
        py = bottom - (min(max(y, y_low), y_high) - y_low) / (y_high - y_low) * (bottom - top)
        return px, py

    parts = []
    for tick in _ticks(y_low, y_high, 4):
        y = place(x_low, tick)[1]
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(text(left - 7, y + 4, _number(tick), anchor="end"))
    for bound in bounds:
        y = place(x_low, bound)[1]
        parts.append(
            f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{BOUND}" '
            'stroke-dasharray="4 3"/>'
        )
    for tick in _ticks(x_low, x_high, 5):
        label = _number(tick)
        x = min(place(tick, y_low)[0], width - 3.6 * len(label))  # the last one fits in, too
        parts.append(text(x, bottom + 16, label, anchor="middle"))
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="{AXIS}"/>')
    parts.append(text((left + right) / 2, height - 5, x_label, anchor="middle"))
    parts.append(text(0, 12, y_label))
    for (px, py), label, color in legend:
        parts.append(text(px, py, label, color=color, weight=600))
    for line, (color, dashes) in zip(lines, looks):
        points = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in zip(line.x, line.y))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.8" '
            f'stroke-linejoin="round"{dashes}/>'
        )
        if len(line.x) == 1:
            x, y = place(line.x[0], line.y[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>')
    return svg(width, height, parts, f"{y_label} over {x_label}")


def _looks(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """(colour, attributes that break it) of each line. With more lines than colours, those of the
    second round are dotted."""
    looks, number = [], -1
    for line in lines:
        broken = not line.label and number >= 0
        number += not broken
        dotted = ' stroke-dasharray="1.5 3"' if number >= len(PALETTE) else ""
        looks.append(
            (curve_color(number), ' stroke-dasharray="5 4" opacity="0.7"' if broken else dotted)
        )
    return looks


def _legend(
    lines: Sequence[Line], looks: Sequence[tuple[str, str]], left: float, right: float
) -> tuple[list[tuple[tuple[float, float], str, str]], int]:
    """((x, y), label, colour) of the legend, right-aligned in rows, and the height that rows after
    the first one take; the first begins at `left`."""
    rows: list[list[tuple[str, str, float]]] = [[]]
    room = right - left
    for line, (color, _) in zip(lines, looks):
        if not line.label:
            continue
        wide = 12 + 6.8 * len(line.label)
        if wide > room and room < right:
            rows.append([])
            room = right
        rows[-1].append((line.label, color, wide))
        room -= wide
    placed = []
    for k, row in enumerate(rows):
        x = right - sum(wide for *_, wide in row) + 12
        for label, color, wide in row:
            placed.append(((x, 12.0 + 16 * k), label, color))
            x += wide
    return placed, 16 * (len(rows) - 1)


def bar_plot(
    groups: Sequence[tuple[str, Sequence[Bar]]],
    *,
    y_label: str,
    width: int = 980,
    height: int = 270,
) -> str:
    """Groups of bars from 0 to 100%, with 95% intervals as thin lines. Same labels in each group.

    Args:
      groups: (name under the group, its bars).
    """
    left, right, top, bottom = 46, width - 8, 30, height - 34
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - tick * (bottom - top)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(text(left - 7, y + 4, f"{tick:.0%}", anchor="end"))
    labels = list(dict.fromkeys(bar.label for _, bars in groups for bar in bars))
    colors = {label: curve_color(i) for i, label in enumerate(labels)}
    slot = (right - left) / max(1, len(groups))
    for number, (name, bars) in enumerate(groups):
        centre = left + slot * (number + 0.5)
        wide = min(34.0, slot * 0.72 / max(1, len(bars)))
        for k, bar in enumerate(bars):
            if bar.value is None:
                continue
            x = centre + (k - len(bars) / 2) * wide
            tall = bar.value * (bottom - top)
            middle = x + wide / 2 - 1
            low, high = (bottom - v * (bottom - top) for v in (bar.low, bar.high))
            parts.append(
                f'<rect x="{x:.1f}" y="{bottom - tall:.1f}" width="{wide - 2:.1f}" '
                f'height="{max(tall, 1):.1f}" fill="{colors[bar.label]}" rx="1.5">'
                f"<title>{escape(f'{name}, {bar.label}: {bar.value:.0%}')}</title></rect>"
            )
            parts.append(
                f'<line x1="{middle:.1f}" y1="{high:.1f}" x2="{middle:.1f}" y2="{low:.1f}" '
                'stroke="#22262b" stroke-width="1.3"/>'
            )
        parts.append(text(centre, bottom + 18, name, anchor="middle"))
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="{AXIS}"/>')
    parts.append(text(0, 12, y_label))
    legend = right
    for label in reversed(labels):
        parts.append(text(legend, 12, label, anchor="end", color=colors[label], weight=600))
        legend -= 14 + 6.8 * len(label)
    return svg(width, height, parts, y_label)


def bar_rows(
    groups: Sequence[tuple[str, Sequence[tuple[str, Sequence[Bar]]]]],
    *,
    x_label: str,
    width: int = 900,
) -> str:
    """Bars from 0 to 100% lying one below the other, with 95% intervals as thin lines.

    At the right stands the value of each row's first bar.

    Args:
      groups: (name over the group, its rows: (name, bars)). Same labels in each row.
    """
    names = [name for _, rows in groups for name, _ in rows]
    left, right = 22 + 6.8 * max(map(len, names), default=0), width - 44
    labels = list(dict.fromkeys(b.label for _, rows in groups for _, bars in rows for b in bars))
    colors = {label: curve_color(i) for i, label in enumerate(labels)}
    thick = 11 if len(labels) == 1 else 8
    parts, y = [], 26.0
    legend = float(right)
    for label in reversed(labels):
        parts.append(text(legend, 12, label, anchor="end", color=colors[label], weight=600))
        legend -= 14 + 6.8 * len(label)
    for group, rows in groups:
        parts.append(text(0, y + 12, group, weight=600))
        y += 20
        for name, bars in rows:
            middle = y + thick * len(bars) / 2
            parts.append(text(left - 8, middle + 4, name, anchor="end"))
            if bars and bars[0].value is not None:
                parts.append(text(right + 8, middle + 4, f"{bars[0].value:.0%}"))
            for bar in bars:
                if bar.value is not None:
                    parts += _lying(bar, name, left, right, y, thick, colors[bar.label])
                y += thick
            y += 6
        y += 6
    grid = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = left + tick * (right - left)
        grid.append(f'<line x1="{x:.1f}" y1="26" x2="{x:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        grid.append(text(x, y + 14, f"{tick:.0%}", anchor="middle"))
    parts.append(text((left + right) / 2, y + 32, x_label, anchor="middle"))
    return svg(width, y + 38, [*grid, *parts], x_label)


def _lying(
    bar: Bar, name: str, left: float, right: float, y: float, thick: float, color: str
) -> list[str]:
    value = bar.value or 0.0
    low, high, end = (left + v * (right - left) for v in (bar.low, bar.high, value))
    middle = y + thick / 2 - 0.5
    return [
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(end - left, 1):.1f}" '
        f'height="{thick - 1}" fill="{color}" rx="1.5">'
        f"<title>{escape(f'{name}, {bar.label}: {value:.0%}')}</title></rect>",
        f'<line x1="{low:.1f}" y1="{middle:.1f}" x2="{high:.1f}" y2="{middle:.1f}" '
        'stroke="#22262b" stroke-width="1.3"/>',
    ]


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    counts: Sequence[Sequence[int]],
    *,
    cell: int = 30,
) -> str:
    """Counts as a table of shades; each row's shades are shares of that row."""
    left = 14 + 7 * max(len(r) for r in rows)
    top = 12 + 6 * max(len(c) for c in columns)
    width, height = left + cell * len(columns) + 20, top + cell * len(rows) + 4
    parts = []
    for j, name in enumerate(columns):
        x = left + cell * (j + 0.5)
        parts.append(
            f'<text x="{x:.1f}" y="{top - 6}" fill="{TEXT}" font-size="12" '
            f'transform="rotate(-45 {x:.1f} {top - 6})">{escape(name)}</text>'
        )
    for i, name in enumerate(rows):
        total = max(1, sum(counts[i]))
        y = top + cell * i
        parts.append(text(left - 7, y + cell / 2 + 4, name, anchor="end"))
        for j, count in enumerate(counts[i]):
            share = count / total
            ink = "#ffffff" if share > 0.55 else "#22262b"
            parts.append(
                f'<rect x="{left + cell * j}" y="{y}" width="{cell - 2}" height="{cell - 2}" '
                f'rx="2" fill="{shade(share)}"/>'
            )
            if count:
                x = left + cell * j + (cell - 2) / 2
                parts.append(text(x, y + cell / 2 + 3, str(count), anchor="middle", color=ink))
    return svg(width, height, parts, "true answers by given answers")


def histogram(
    counts: Sequence[int],
    low: float,
    high: float,
    *,
    x_label: str,
    bounds: Sequence[float] = (),
    width: int = 480,
    height: int = 150,
) -> str:
    """Counts in bins of equal width from `low` to `high`; empty string if all are 0.

    Args:
      bounds: values drawn as broken lines, where they are in the range.
    """
    if not any(counts):
        return ""
    left, right, top, bottom = 46, width - 12, 14, height - 36
    wide, most = (right - left) / len(counts), max(counts)

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    bars = "".join(
        f"M{left + i * wide:.1f} {bottom}v-{max(1.0, count / most * (bottom - top)):.1f}"
        f"h{wide - 0.7:.1f}V{bottom}z"
        for i, count in enumerate(counts)
        if count
    )
    parts = [f'<path d="{bars}" fill="{PALETTE[0]}"/>']
    parts.append(text(left - 7, top + 6, _count(most), anchor="end"))
    for bound in bounds:
        if low <= bound <= high:
            x = place(bound)
            parts.append(
                f'<line x1="{x:.1f}" y1="{top - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{BOUND}" '
                'stroke-width="1.3" stroke-dasharray="4 3"/>'
            )
    for tick in _ticks(low, high, 5):
        parts.append(text(place(tick), bottom + 15, _number(tick), anchor="middle"))
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="{AXIS}"/>')
    parts.append(text((left + right) / 2, height - 5, x_label, anchor="middle"))
    return svg(width, height, parts, x_label)


def pie(shares: Sequence[tuple[str, float]], *, title: str, size: int = 190) -> str:
    """Parts of a whole, largest first, with a legend; empty string if all are 0."""
    total = sum(share for _, share in shares)
    if not total:
        return ""
    radius, middle, begun, parts = size / 2 - 6, size / 2, 0.0, []
    for number, (name, share) in enumerate(sorted(shares, key=lambda s: -s[1])):
        color, part = PALETTE[number % len(PALETTE)], share / total
        ends = [begun, begun + part]
        (x0, y0), (x1, y1) = (
            (middle + radius * math.sin(math.tau * e), middle - radius * math.cos(math.tau * e))
            for e in ends
        )
        if part > 0.9999:
            parts.append(f'<circle cx="{middle}" cy="{middle}" r="{radius}" fill="{color}"/>')
        else:
            parts.append(
                f'<path d="M{middle} {middle}L{x0:.1f} {y0:.1f}A{radius} {radius} 0 '
                f'{int(part > 0.5)} 1 {x1:.1f} {y1:.1f}z" fill="{color}" stroke="#fff"/>'
            )
        begun = ends[1]
        y = 22 + 20 * number
        parts.append(
            f'<rect x="{size + 14}" y="{y - 10}" width="11" height="11" rx="2" fill="{color}"/>'
        )
        parts.append(text(size + 32, y, f"{name}  {part:.1%}"))
    return svg(size + 330, max(size, 30 + 20 * len(shares)), parts, title)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"


def _count(value: int) -> str:
    """In at most five letters."""
    return f"{value / 1e6:.3g}M" if value >= 1e6 else _number(float(f"{value:.3g}"))
