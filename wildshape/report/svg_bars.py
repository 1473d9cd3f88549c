"""Bar charts as inline SVG: the funnel, and plain horizontal bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from wildshape.report.svg import short_number, svg_element, text_element, text_width


@dataclass(frozen=True)
class Bar:
    """One row of the funnel.

    Attributes:
        name: What is counted.
        kept: How many there are.
        total: How many came in, in the same unit; None where the unit changes here.
        losses: Reason and count of what was lost on the way in.
        full: Length of a full bar, in the row's unit.
        tone: Colour.
        note: Said after the losses.
    """

    name: str
    kept: int
    total: int | None
    losses: Sequence[tuple[str, int]]
    full: int
    tone: str = "1"
    note: str = ""


def funnel_chart(bars: Sequence[Bar], *, width: float = 1000) -> str:
    """Bars for what is left after each step, with what was lost on the way and why."""
    left, right = 210.0, width - 4
    body: list[str] = []
    y = 4.0
    for bar in bars:
        scale = (right - left) / max(bar.full, 1)
        colour = f"var(--tone-{bar.tone})"
        body.append(text_element(left - 14, y + 18, bar.name, "label", "end"))
        length = max(bar.kept * scale, 1.5)
        body.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="26" rx="2" fill="{colour}"/>')
        x = left + bar.kept * scale
        for reason, count in bar.losses:
            if bar.total is None or not count:
                continue
            part = min(count * scale, right - x)
            hint = f"<title>{count:,} {escape(reason)}</title>"
            place = f'x="{x + 1:.1f}" y="{y}" width="{max(part - 1, 0.5):.1f}" height="26"'
            body.append(f'<rect class="lost" {place}>{hint}</rect>')
            x += part
        number = f"{bar.kept:,}"
        if length > text_width(number) + 16:
            body.append(text_element(left + 8, y + 18, number, "inside"))
        else:
            body.append(text_element(x + 8, y + 18, number, "value"))
        for line in _wrapped(_loss_words(bar), (right - left) / 6.0):
            body.append(text_element(left, y + 41, line, "muted"))
            y += 15
        y += 40
    return svg_element(width, y, body, "funnel: " + ", ".join(f"{bar.kept} {bar.name}" for bar in bars))


def _loss_words(bar: Bar) -> str:
    words = ", ".join(f"{count:,} {reason}" for reason, count in bar.losses if count)
    lost = f"lost: {words}" if words else ""
    return "; ".join(part for part in (lost, bar.note) if part)


def _wrapped(text: str, characters: float) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= characters:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def bar_chart(
    rows: Sequence[tuple[str, float, str]],
    title: str = "",
    *,
    full: float | None = None,
    format_value: Callable[[float], str] = short_number,
    tone: str = "1",
    width: float = 520,
) -> str:
    """Horizontal bars: name, length and a remark each; NaN has no bar. "" without rows.

    Args:
        rows: Name, value, and a remark that is written after the value.
        title: Said above.
        full: The value of a full bar; by default the largest.
        format_value: How values are written.
        tone: Colour.
        width: In pixels.
    """
    if not rows:
        return ""
    values = [value if math.isfinite(value) else 0.0 for _, value, _ in rows]
    full = full or max(values) or 1.0
    words = [
        (format_value(value) if math.isfinite(value) else "-") + (f"  {remark}" if remark else "")
        for _, value, remark in rows
    ]
    left = 12 + max(text_width(name) for name, _, _ in rows)
    right = width - 12 - max(text_width(word) for word in words)
    top, step = (26.0 if title else 2.0), 20.0
    body = [text_element(0, 14, title, "title")] if title else []
    for number, ((name, _, _), value, word) in enumerate(zip(rows, values, words)):
        y = top + step * number
        body.append(text_element(left - 10, y + 14, name, "label", "end"))
        track = f'x="{left:.1f}" y="{y + 4:.1f}" height="12" rx="2"'
        body.append(f'<rect class="track" {track} width="{right - left:.1f}"/>')
        length = min(value / full, 1.0) * (right - left)
        body.append(f'<rect {track} width="{length:.1f}" fill="var(--tone-{tone})"/>')
        body.append(text_element(right + 8, y + 14, word, "muted"))
    return svg_element(width, top + step * len(rows) + 4, body, title or "bars")
