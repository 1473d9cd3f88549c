"""Small charts as inline SVG, coloured by the page's style sheet so that they follow light and dark.

Classes used: `axis`, `grid`, `label`, `muted`, `value`; a series' colour is the CSS variable that its
`tone` names (`--tone-<tone>`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

CHARACTER = 6.6  # mean width in pixels of a character at the charts' 12 px


def text_width(text: str) -> float:
    """Approximate width in pixels of a label in the charts' font."""
    return CHARACTER * len(text)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers that lie between `low` and `high`, both included."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short_number(value: float) -> str:
    """A number for an axis: 0.25, 12, 1,500, 20k, 1.5M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size >= 1e3:
        return f"{value:,.0f}"
    return f"{value:.3g}"


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: Written at the line's end.
        x: [N].
        y: [N]; NaN breaks the line.
        tone: Colour.
        dashed: Whether the line is dashed.
        band: Lower and upper bound [N] of a shaded band around the line.
        markers: Whether points are marked.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    tone: str = "1"
    dashed: bool = False
    band: tuple[Sequence[float], Sequence[float]] | None = None
    markers: bool = False


@dataclass(frozen=True)
class Axes:
    """What the axes of a line chart say and span; None spans the data."""

    x_label: str = ""
    y_label: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_ticks: Sequence[float] | None = None
    format_x: Callable[[float], str] = short_number
    format_y: Callable[[float], str] = short_number
    rules: Sequence[tuple[float, str]] = field(default_factory=tuple)  # vertical lines with a name
    title: str = ""
    legend: bool = False  # names above the lines, for lines that end at one place


@dataclass(frozen=True)
class _Frame:
    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / ((high - low) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / ((high - low) or 1.0) * (self.bottom - self.top)


def svg_element(width: float, height: float, body: Sequence[str], description: str) -> str:
    """A chart of the given size, with words for those who cannot see it."""
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(description)}" style="max-width:{width:g}px">{"".join(body)}</svg>'
    )


def text_element(x: float, y: float, text: str, css: str = "label", anchor: str = "start") -> str:
    """A text whose baseline starts (or ends, or is centred) at a place."""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _span(values: Sequence[np.ndarray], pad: float = 0.06) -> tuple[float, float]:
    finite = np.concatenate([v[np.isfinite(v)] for v in values]) if values else np.empty(0)
    if finite.size == 0:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    margin = (high - low) * pad if high > low else abs(high) * 0.1 or 0.5
    return low - margin, high + margin


def _path(frame: _Frame, x: np.ndarray, y: np.ndarray) -> str:
    parts, pen = [], "M"
    for a, b in zip(x, y):
        if not (math.isfinite(a) and math.isfinite(b)):
            pen = "M"
            continue
        parts.append(f"{pen}{frame.x(a):.1f} {frame.y(b):.1f}")
        pen = "L"
    return "".join(parts)


def _spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved apart to at least `gap`, in their order, kept within bounds where they fit."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [0.0] * len(positions)
    previous = low - gap
    for i in order:
        placed[i] = previous = max(positions[i], previous + gap)
    limit = high
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def line_chart(series: Sequence[Series], axes: Axes, *, width: float = 520, height: float = 280) -> str:
    """Lines with their names at their ends; "" if no series has a finite point."""
    data = [(s, np.asarray(s.x, float), np.asarray(s.y, float)) for s in series]
    data = [(s, x, y) for s, x, y in data if np.isfinite(y).any()]
    if not data:
        return ""
    ys = [y for _, _, y in data]
    ys += [np.asarray(b, float) for s, _, _ in data if s.band is not None for b in s.band]
    x_range = axes.x_range or _span([x for _, x, _ in data], 0.0)
    y_range = axes.y_range or _span(ys)
    y_ticks = nice_ticks(*y_range)
    left = 14 + max((text_width(axes.format_y(tick)) for tick in y_ticks), default=0)
    right = width - 14 - (0 if axes.legend else max(text_width(s.name) for s, _, _ in data))
    top = (30 if axes.title else 8) + (16 if axes.y_label else 0) + (14 if axes.rules else 0)
    top += 8 if axes.legend else 0
    frame = _Frame(left, top, right, height - (42 if axes.x_label else 24), x_range, y_range)
    body = [text_element(0, 14, axes.title, "title")] if axes.title else []
    if axes.y_label:
        body.append(text_element(0, 35 if axes.title else 12, axes.y_label, "muted"))
    for tick in y_ticks:
        y = frame.y(tick)
        body.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>')
        body.append(text_element(left - 6, y + 4, axes.format_y(tick), "muted", "end"))
    for tick in axes.x_ticks if axes.x_ticks is not None else nice_ticks(*x_range):
        x = frame.x(tick)
        body.append(f'<path class="axis" d="M{x:.1f} {frame.bottom:.1f}v4"/>')
        body.append(text_element(x, frame.bottom + 17, axes.format_x(tick), "muted", "middle"))
    body.append(f'<path class="axis" d="M{left:.1f} {frame.bottom:.1f}H{right:.1f}"/>')
    if axes.x_label:
        body.append(text_element((left + right) / 2, height - 6, axes.x_label, "muted", "middle"))
    for value, name in axes.rules:
        x = frame.x(value)
        body.append(f'<path class="rule" d="M{x:.1f} {top - 4:.1f}V{frame.bottom:.1f}"/>')
        centre = max(x, text_width(name) / 2)  # inside the picture
        body.append(text_element(centre, top - 8, name, "muted", "middle"))
    body += [part for s, x, y in data for part in _draw_series(frame, s, x, y)]
    names_at = _legend if axes.legend else _end_names
    body += names_at(frame, data)
    names = ", ".join(s.name for s, _, _ in data)
    return svg_element(width, height, body, f"{axes.title or axes.y_label}: {names}")


def _draw_series(frame: _Frame, series: Series, x: np.ndarray, y: np.ndarray) -> list[str]:
    colour = f"var(--tone-{series.tone})"
    parts = []
    if series.band is not None:
        low, high = (np.asarray(bound, float) for bound in series.band)
        keep = np.isfinite(low) & np.isfinite(high)
        outline = _path(
            frame,
            np.concatenate([x[keep], x[keep][::-1]]),
            np.concatenate([high[keep], low[keep][::-1]]),
        )
        if outline:
            parts.append(f'<path d="{outline}Z" fill="{colour}" opacity=".16"/>')
    dash = ' stroke-dasharray="5 4"' if series.dashed else ""
    parts.append(f'<path class="line" d="{_path(frame, x, y)}" stroke="{colour}"{dash}/>')
    if series.markers:
        for a, b in zip(x, y):
            if math.isfinite(b):
                title = f"<title>{escape(series.name)}: {b:.3g} at {a:g}</title>"
                place = f'cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}"'
                parts.append(f'<circle {place} r="3" fill="{colour}">{title}</circle>')
    return parts


def _end_names(frame: _Frame, data: Sequence[tuple[Series, np.ndarray, np.ndarray]]) -> list[str]:
    ends = [frame.y(float(y[np.isfinite(y)][-1])) for _, _, y in data]
    placed = _spread(ends, 14, frame.top + 2, frame.bottom)
    return [
        f'<text class="label" x="{frame.right + 7:.1f}" y="{y + 4:.1f}" '
        f'style="fill:var(--tone-{s.tone})">{escape(s.name)}</text>'
        for (s, _, _), y in zip(data, placed)
    ]


def _legend(frame: _Frame, data: Sequence[tuple[Series, np.ndarray, np.ndarray]]) -> list[str]:
    parts, x = [], frame.right
    for s, _, _ in reversed(data):
        x -= text_width(s.name) + 4
        style = f'style="fill:var(--tone-{s.tone})"'
        parts.append(f'<text class="label" x="{x:.1f}" y="14" {style}>{escape(s.name)}</text>')
        x -= 22
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        line = f'd="M{x:.1f} 10h16" stroke="var(--tone-{s.tone})"'
        parts.append(f'<path class="line" {line}{dash}/>')
        x -= 14
    return parts


@dataclass(frozen=True)
class Interval:
    """One row of a dot-and-interval chart; `low` and `high` may be NaN."""

    name: str
    value: float
    low: float
    high: float
    tone: str = "1"


def interval_chart(
    rows: Sequence[Interval],
    title: str,
    *,
    format_value: Callable[[float], str] = short_number,
    width: float = 520,
) -> str:
    """A dot with its interval for every row, on one axis; "" if no row has a value."""
    rows = [row for row in rows if math.isfinite(row.value)]
    if not rows:
        return ""
    left = 12 + max(text_width(row.name) for row in rows)
    right = width - 16 - max(text_width(format_value(row.value)) for row in rows)
    top, step = 32.0, 34.0
    bottom = top + step * len(rows)
    ends = np.array([[row.low, row.value, row.high] for row in rows], float)
    frame = _Frame(left, top, right, bottom, _span([ends.ravel()], 0.08), (0, 1))
    body = [text_element(0, 14, title, "title")]
    for tick in nice_ticks(*frame.x_range, count=5):
        x = frame.x(tick)
        body.append(f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>')
        body.append(text_element(x, bottom + 15, format_value(tick), "muted", "middle"))
    for number, row in enumerate(rows):
        y, colour = top + step * (number + 0.5), f"var(--tone-{row.tone})"
        body.append(text_element(left - 10, y + 4, row.name, "label", "end"))
        span = ""
        if math.isfinite(row.low) and math.isfinite(row.high):
            a, b = frame.x(row.low), frame.x(row.high)
            body.append(f'<path class="whisker" d="M{a:.1f} {y:.1f}H{b:.1f}" stroke="{colour}"/>')
            span = f" ({format_value(row.low)} to {format_value(row.high)})"
        hint = f"<title>{escape(row.name)}: {format_value(row.value)}{span}</title>"
        place = f'cx="{frame.x(row.value):.1f}" cy="{y:.1f}" r="5.5"'
        body.append(f'<circle {place} fill="{colour}">{hint}</circle>')
        body.append(text_element(width, y + 4, format_value(row.value), "value", "end"))
    return svg_element(width, bottom + 22, body, title)
