"""The headline: did pseudo-labels help the 3D model? And what was run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wildshape.report.analysis import Analysis
from wildshape.report.blocks import Block, Figure, Grid, Note, Section
from wildshape.report.results import Arm, Measure, change
from wildshape.report.sections.words import (
    DASH,
    duration,
    missing,
    settings,
    signed_interval,
    with_interval,
)
from wildshape.report.svg import Interval, interval_chart
from wildshape.report.svg_bars import bar_chart


def headline(analysis: Analysis) -> Section:
    """The three arms as a verdict, a chart and a table."""
    title, arms, flags = "Do pseudo-labels help?", analysis.arms, analysis.inputs.run_flags
    lead = "The same 3D model trained on the labelled photos alone and with selected pseudo-labels added"
    if any(arm.role == "ceiling" for arm in arms):
        lead += (
            ", and with the true labels of the same web images in their place, which is the most that "
            "better pseudo-labels could give"
        )
    lead += "."
    if not arms:
        note = missing("No verdict yet: no 3D model was measured.", f"python acsm/evaluate.py {flags}")
        return Section("headline", title, [note], lead)
    blocks: list[Block] = [Note(analysis.verdict.text, f"verdict {analysis.verdict.tone}")]
    charts = [
        _chart(arms, "AUC in percent; further right is better", lambda arm: arm.auc, _plain),
        _chart(arms, "Camera error; further left is better", lambda arm: arm.camera, _degrees),
    ]
    caption = (
        "Dots are the measured values, lines their 95 % intervals. AUC: share of keypoints "
        "that the 3D model puts within 6, 7, 8, 9 and 10 % of the box's longer side of the true place, "
        "averaged. Camera error: mean angle between the predicted and the true view."
    )
    blocks.append(Figure([chart for chart in charts if chart], caption))
    blocks.append(_table(arms))
    if not any(arm.role == "ceiling" for arm in arms):
        blocks.append(Note("There is no ceiling: the true labels of the web images are not known."))
    return Section("headline", title, blocks, lead)


def _plain(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if value == round(value) else f"{value:.1f}"


def _degrees(value: float) -> str:
    return f"{_plain(value)}°"


def _chart(
    arms: Sequence[Arm], title: str, of: Callable[[Arm], Measure], format_value: Callable[[float], str]
) -> str:
    rows = [
        Interval(_short(arm), of(arm).value, of(arm).low, of(arm).high, arm.role) for arm in arms if of(arm)
    ]
    return interval_chart(rows, title, format_value=format_value)


def _short(arm: Arm) -> str:
    names = {"labels": "labels only", "ceiling": "ceiling"}
    return names.get(arm.role) or f"+ {arm.name.replace('_', '-').upper()}"


def _table(arms: Sequence[Arm]) -> Grid:
    labels = next((arm for arm in arms if arm.role == "labels"), None)
    rows = []
    for arm in arms:
        against = labels if labels is not None and arm is not labels else None
        rows.append(
            (
                arm.title,
                arm.split,
                str(arm.facts.get("instances") or arm.facts.get("num") or DASH),
                with_interval(arm.auc),
                signed_interval(change(arm, against, "auc")) if against else DASH,
                with_interval(arm.camera, "°"),
                signed_interval(change(arm, against, "camera"), "°") if against else DASH,
            )
        )
    columns = (
        "trained on", "split", "animals", "AUC (%)", "over labels only", "camera error", "over labels only",
    )  # fmt: skip
    caption = (
        "95 % bootstrap intervals over animals in brackets; those of differences are paired, since all "
        "arms are measured on the same animals."
    )
    return Grid(columns, rows, caption, numeric=(2, 3, 4, 5, 6))


def what_was_run(analysis: Analysis) -> Section:
    """Settings of every stage, and the time each took."""
    inputs = analysis.inputs
    blocks: list[Block] = []
    timings = inputs.timings()
    if timings:
        total = sum(timings.values())
        bars = [
            (stage, seconds, f"({100 * seconds / max(total, 1e-9):.0f} %)")
            for stage, seconds in timings.items()
        ]
        chart = bar_chart(bars, format_value=duration, tone="neutral", width=760)
        blocks.append(Figure([chart], f"Time by stage, {duration(total)} in all."))
    else:
        note = "No times were written: they come with the whole pipeline in one command."
        blocks.append(missing(note, f"wildshape run {inputs.run_flags}"))
    rows = []
    for name, made in inputs.provenance.items():
        rows.append((name, str(made.get("stage") or DASH), settings(made.get("config"))))
    for name, checkpoint in inputs.checkpoints.items():
        facts = checkpoint.manifest
        progress = f"{facts.get('step', DASH)} of {facts.get('steps', DASH)} steps"
        stage = str(facts.get("stage") or DASH)
        rows.append((f"checkpoints/{name} ({progress})", stage, settings(checkpoint.config)))
    if rows:
        title = "Settings: what made each table and each model"
        blocks.append(Grid(("artefact", "stage", "settings"), rows, title, folded=True))
    return Section("run", "What was run", blocks)
