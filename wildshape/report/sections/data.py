"""The funnel from addresses to selected labels, and the labelled set beside it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from wildshape.report.analysis import Analysis
from wildshape.report.blocks import Block, Figure, Grid, Note, Section
from wildshape.report.funnel import FunnelStep
from wildshape.report.sections.words import DASH, missing, percent
from wildshape.report.svg_bars import Bar, funnel_chart
from wildshape.tables import SPLITS

_TONES = {"lines": "neutral", "images": "images", "animals": "animals"}


def funnel(analysis: Analysis) -> Section:
    """How many are left after each step, and why the others are not."""
    inputs = analysis.inputs
    lead = (
        "How many addresses, images and animals are left after each step, and why the others are not. The "
        "counts are taken from the tables."
    )
    blocks: list[Block] = []
    steps = analysis.funnel
    if steps:
        figure = funnel_chart(_bars(steps))
        caption = (
            "Full colour: kept. Pale: lost in that step. Images and animals have scales of their own, "
            "since an image can show several animals."
        )
        blocks += [Figure([figure], caption), _table(steps)]
    blocks += _gaps(analysis)
    labels = inputs.tables.get("labels")
    if labels is not None and len(labels):
        counts = Counter(labels["split"])
        visible = (labels["visible"] == 2).any(-1)
        cameras = np.isfinite(labels["camera"]).all(-1)
        rows = []
        for split in SPLITS:
            here = labels["split"] == split
            images = len(set(labels["image_id"][here]) - {None})
            keypoints = int((labels["visible"][here] == 2).sum())
            counted = (counts[split], images, int(visible[here].sum()), keypoints, int(cameras[here].sum()))
            rows.append((split, *(f"{count:,}" for count in counted)))
        columns = (
            "split", "animals", "images", "with visible keypoints", "visible keypoints", "with a camera",
        )  # fmt: skip
        blocks.append(Grid(columns, rows, "The labelled set", numeric=(1, 2, 3, 4, 5)))
    return Section("funnel", "From addresses to selected labels", blocks, lead)


def _bars(steps: list[FunnelStep]) -> list[Bar]:
    full = {unit: max((s.kept for s in steps if s.unit == unit), default=1) for unit in _TONES}
    steps = _joined(steps)
    return [
        Bar(
            step.name,
            step.kept,
            step.total if _same_scale(steps, step) else None,
            list(step.losses.items()),
            full[step.unit],
            _TONES[step.unit],
            step.note,
        )
        for step in steps
    ]


def _joined(steps: list[FunnelStep]) -> list[FunnelStep]:
    """Selections of one size as one step: their bars would be the same."""
    joined: list[FunnelStep] = [step for step in steps if not step.key.startswith("selected_")]
    by_size: dict[int, list[FunnelStep]] = {}
    for step in steps:
        if step.key.startswith("selected_"):
            by_size.setdefault(step.kept, []).append(step)
    for group in by_size.values():
        names = [step.name.removeprefix("selected by ") for step in group]
        note = f"as many by each of {', '.join(names)}" if len(names) > 1 else ""
        name = group[0].name if len(names) == 1 else "selected"
        joined.append(replace(group[0], name=name, note=note))
    return joined


def _same_scale(steps: list[FunnelStep], step: FunnelStep) -> bool:
    before = [s for s in steps[: steps.index(step)] if s.kept == step.total]
    return step.total is not None and any(s.unit == step.unit for s in before)


def _table(steps: list[FunnelStep]) -> Grid:
    rows = []
    for step in steps:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in step.losses.items() if count)
        share = percent(step.kept / step.total) if step.total else DASH
        came = DASH if step.total is None else f"{step.total:,}"
        rows.append((step.name, came, f"{step.kept:,}", share, reasons or step.note or DASH))
    columns = ("step", "came in", "kept", "kept (%)", "lost, and why")
    return Grid(columns, rows, "The same in numbers", numeric=(1, 2, 3), folded=True)


def _gaps(analysis: Analysis) -> list[Block]:
    """Which tables the funnel waits for; only the first, since the others need it."""
    inputs, workspace = analysis.inputs, analysis.inputs.workspace
    selection = f"python prepare_data/data_selection.py {inputs.run_flags} --filter kpconf"
    waits = [
        ("images" in inputs.tables, "No images yet.", workspace.made_by("candidates")),
        ("instances" in inputs.tables, "No animals were detected yet.", workspace.made_by("instances")),
        ("pose" in inputs.keypoints, "No pseudo-labels yet.", workspace.made_by("pose")),
        (bool(inputs.selections), "Nothing was selected yet.", selection),
    ]
    for present, what, command in waits:
        if not present:
            return [missing(what, command)]
    return [] if analysis.funnel else [Note("The tables are empty.")]
