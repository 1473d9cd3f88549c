"""How numbers are written in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wildshape.report.blocks import Note
from wildshape.report.results import Measure, signed

DASH = "–"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction as a percentage without its sign; a dash where unknown."""
    if fraction is None or not math.isfinite(fraction):
        return DASH
    return f"{100 * fraction:.{digits}f}"


def number(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where unknown."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def with_interval(measure: Measure, unit: str = "") -> str:
    """A value with its interval in brackets."""
    if not measure:
        return DASH
    text = f"{measure.value:.1f}{unit}"
    return f"{text} [{measure.low:.1f}, {measure.high:.1f}]" if measure.has_interval else text


def signed_interval(measure: Measure, unit: str = "") -> str:
    """A difference with its sign and interval."""
    if not measure:
        return DASH
    text = f"{signed(measure.value)}{unit}"
    return f"{text} [{signed(measure.low)}, {signed(measure.high)}]" if measure.has_interval else text


def threshold(value: float) -> str:
    """PCK@.06 and the like."""
    return f"PCK@{value:.2f}".replace("@0.", "@.")


def duration(seconds: float) -> str:
    """Seconds as 4.2 s, 3 min 05 s or 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def settings(config: Mapping[str, Any] | None) -> str:
    """A configuration in one line."""
    parts = []
    for key, value in (config or {}).items():
        if value is None or value == "" or value == []:
            continue
        if isinstance(value, float):
            value = f"{value:g}"
        elif isinstance(value, list):
            value = " ".join(str(item) for item in value)
        text = str(value)
        parts.append(f"{key} {text if len(text) <= 80 else text[:77] + '...'}")
    return ", ".join(parts) or DASH


def missing(what: str, command: str) -> Note:
    """A note that something is not there yet, and the command that makes it."""
    return Note(f"{what} Run:", "missing", command)
