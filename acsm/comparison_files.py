"""A comparison of runs as text, CSV, JSON and a page that needs nothing beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from acsm.compare import Comparison, Measure
from acsm.per_animal import CURVE
from wildshape.report.blocks import Block, Figure, Grid, Note, Section
from wildshape.report.build import render_page
from wildshape.report.svg import Axes, Interval, Series, interval_chart, line_chart

HOW = (
    "Differences are to the first, over the same animals; their 95 % intervals are paired bootstrap "
    "intervals over animals. p: paired permutation test (random signs of the animals' differences), "
    "two-sided, not corrected for the number of comparisons."
)
_FIELDS = (
    "run", "measure", "value", "low", "high", "animals",
    "difference", "difference_low", "difference_high", "p",
)  # fmt: skip


def _shown(comparison: Comparison, *, keypoints: bool) -> list[Measure]:
    """The measures that any run has a value of."""
    return [
        measure
        for measure in comparison.measures
        if (measure.keypoint is not None) == keypoints
        and any(cell["value"] is not None for cell in comparison.cells[measure.key].values())
    ]


def _number(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{value:+.1f}" if signed else f"{value:.1f}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _span(ends: Sequence[float] | None, signed: bool = False) -> str:
    return f"[{_number(ends[0], signed)}, {_number(ends[1], signed)}]" if ends else ""


def as_text(comparison: Comparison, labels: str) -> str:
    """A block a measure, a line a run: value, interval, difference to the first, p."""
    width = max(len(name) for name in comparison.names)
    left_out = [f"{count} of {name}" for name, count in comparison.left_out.items() if count]
    lines = [f"compare: {comparison.animals} animals of {labels}, differences to {comparison.names[0]}"]
    if left_out:
        lines.append(f"  left out, as another has them not: {', '.join(left_out)}")
    for measure in _shown(comparison, keypoints=False):
        better = "higher" if measure.higher_is_better else "lower"
        lines.append(f"  {measure.title} ({better} is better)")
        for name, cell in comparison.cells[measure.key].items():
            text = f"    {name:<{width}}  {_number(cell['value']):>5} {_span(cell['interval']):<14}"
            if cell.get("difference") is not None:
                change = f"{_number(cell['difference'], True)} {_span(cell['difference_interval'], True)}"
                text += f"  {change:<22} p {_p(cell['p'])}"
            lines.append(text.rstrip())
    return "\n".join(lines)


def as_csv(comparison: Comparison) -> str:
    """A line a run and measure, those by keypoint too."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_FIELDS)
    for key, cells in comparison.cells.items():
        for name, cell in cells.items():
            ends, change = cell["interval"] or ("", ""), cell.get("difference_interval") or ("", "")
            found = (cell["value"], *ends, cell["animals"], cell.get("difference"), *change, cell.get("p"))
            writer.writerow([name, key, *("" if value is None else value for value in found)])
    return buffer.getvalue()


def as_json(comparison: Comparison, category: str, labels: str) -> dict[str, Any]:
    """All figures, JSON-able once NumPy values are plain."""
    return {
        "category": category,
        "labels": labels,
        "reference": comparison.names[0],
        "runs": comparison.names,
        "animals": comparison.animals,
        "left_out": comparison.left_out,
        "how": HOW,
        "units": "percent; camera_error in degrees",
        "measures": comparison.cells,
        "pck_curve": {"thresholds": CURVE, "values": comparison.curves},
    }


def _grid(comparison: Comparison, measures: Sequence[Measure], caption: str, folded: bool) -> Grid:
    rows, strong = [], []
    for measure in measures:
        for name, cell in comparison.cells[measure.key].items():
            first = name == comparison.names[0]
            interval = cell.get("difference_interval")
            if interval and interval[0] * interval[1] > 0:
                strong.append(len(rows))
            rows.append(
                (
                    measure.title if first else "",
                    name,
                    f"{_number(cell['value'])} {_span(cell['interval'])}",
                    str(cell["animals"]),
                    "" if first else _number(cell.get("difference"), True),
                    "" if first else _span(interval, True),
                    "" if first else _p(cell.get("p")),
                )
            )
    columns = ("measure", "run", "value [95 %]", "animals", "difference", "95 %", "p")
    return Grid(columns, rows, caption, numeric=range(2, 7), strong=strong, folded=folded)


def _intervals(comparison: Comparison, key: str, title: str) -> str:
    cells: Mapping[str, Mapping[str, Any]] = comparison.cells[key]
    rows = [
        Interval(name, cell["value"], *cell["interval"], tone=str(number % 5 + 1))
        for number, (name, cell) in enumerate(cells.items())
        if cell["value"] is not None
    ]
    return interval_chart(rows, title, format_value=lambda value: f"{value:.1f}")


def as_html(comparison: Comparison, category: str, labels: str) -> str:
    """One page with the tables, intervals and PCK curves."""
    lines = [
        Series(name, CURVE, list(values), tone=str(number % 5 + 1), dashed=number >= 5)
        for number, (name, values) in enumerate(comparison.curves.items())
    ]
    axes = Axes("threshold (of the box's longer side)", "PCK, %", title="PCK curve", legend=True)
    charts = [
        _intervals(comparison, "auc", "AUC, % (higher is better)"),
        _intervals(comparison, "camera_error_deg", "Camera error, degrees (lower is better)"),
        _intervals(comparison, "miou", "mIoU, % (higher is better)"),
        line_chart(lines, axes),
    ]
    caption = "Stressed rows: the interval of the difference leaves zero out"
    main = _grid(comparison, _shown(comparison, keypoints=False), caption, folded=False)
    points = _grid(comparison, _shown(comparison, keypoints=True), "AUC by keypoint", folded=True)
    left_out = [f"{count} of {name}" for name, count in comparison.left_out.items() if count]
    blocks: list[Block] = [Figure([chart for chart in charts if chart]), main]
    if left_out:
        text = f"Left out, as another run was not measured on them: animals {', '.join(left_out)}."
        blocks.insert(0, Note(text, tone="warning"))
    if points.rows:
        blocks.append(points)
    about = [
        ("compared with", comparison.names[0]),
        ("labels", labels),
        ("animals", str(comparison.animals)),
    ]
    return render_page(category, about, [Section("compare", "Side by side", blocks, HOW)])
