"""The pose network, the 3D model and how their training went."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.report.analysis import Analysis
from wildshape.report.blocks import Block, Figure, Gallery, Grid, Note, Section
from wildshape.report.inputs import Checkpoint, RunInputs
from wildshape.report.pictures import Budget, embed_file
from wildshape.report.results import Arm, arm_role
from wildshape.report.sections.gallery import POINTS
from wildshape.report.sections.words import DASH, missing, number, percent, threshold
from wildshape.report.svg import Axes, Series, line_chart
from wildshape.report.svg_bars import bar_chart

_MODELS = {"pose": "pose network", "pose_aux": "second pose network"}
_OF_ARM = re.compile(r"^(pose_|acsm/)")
_POINTS = 160
_TELLING = (
    "val_auc", "val_camera_error_deg", "val_camera_error", "val_pck@0.04", "val_pck@0.1",
)  # fmt: skip


def pose(analysis: Analysis) -> Section:
    """PCK of the 2D networks, overall and by keypoint."""
    inputs = analysis.inputs
    lead = (
        "The 2D networks on labelled animals that they were not trained on. PCK@t: share of visible "
        "keypoints within t of the box's longer side of the true place."
    )
    measured = _pose_metrics(inputs)
    if not measured:
        note = missing("The pose network was not measured.", f"python pose/evaluate.py {inputs.run_flags}")
        return Section("pose", "2D keypoints", [note], lead)
    series, charts = [], []
    for place, (name, facts) in enumerate(item for item in measured if _model(item[0]) in _MODELS):
        low, high = facts.get("pck_low"), facts.get("pck_high")
        band = (_percents(low), _percents(high)) if low and high else None
        y = _percents(facts["pck"])
        series.append(Series(_words(name), facts["thresholds"], y, str(place + 1), band=band, markers=True))
    x_label = "threshold, fraction of the box's longer side"
    axes = Axes(x_label, "PCK (%)", y_range=(0, 100), title="PCK by threshold")
    charts.append(line_chart(series, axes, width=520, height=340))
    charts.append(_keypoint_bars(measured[0][1]))
    caption = "Bands are 95 % intervals over animals; beside each keypoint's bar, how many were visible."
    blocks: list[Block] = [Figure([chart for chart in charts if chart], caption), _pck_table(measured)]
    return Section("pose", "2D keypoints", blocks, lead)


def _pose_metrics(inputs: RunInputs) -> list[tuple[str, Mapping[str, Any]]]:
    found = []
    for stem, facts in inputs.metrics.items():
        model, _, split = stem.rpartition("_")
        pose_model = model == "pose" or model.startswith("pose_")
        whole = isinstance(facts, Mapping) and facts.get("thresholds") and facts.get("pck")
        if pose_model and whole and len(facts["pck"]) == len(facts["thresholds"]):
            found.append((f"{model} {facts.get('split', split)}", facts))
    test = [item for item in found if item[0].endswith(" test")]
    return sorted(test or found, key=lambda item: (_model(item[0]) not in _MODELS, item[0]))


def _model(name: str) -> str:
    return name.partition(" ")[0]


def _words(name: str) -> str:
    model, _, split = name.partition(" ")
    words = _MODELS.get(model) or f"after learning from arm {model.removeprefix('pose_')}"
    return words + ("" if split == "test" else f" ({split})")


def _percents(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else 100 * value for value in values]


def _nearest(thresholds: Sequence[float], wanted: float) -> int:
    return int(np.argmin(np.abs(np.asarray(thresholds) - wanted)))


def _keypoint_bars(facts: Mapping[str, Any]) -> str:
    rows = []
    column = _nearest(facts["thresholds"], 0.1)
    for name, row in (facts.get("per_keypoint") or {}).items():
        value = _percents([row["pck"][column]])[0]
        rows.append((name.replace("_", " "), value, f"({row['count']})"))
    title = f"{threshold(facts['thresholds'][column])} by keypoint (%), pose network"
    return bar_chart(rows, title, full=100, format_value=lambda v: f"{v:.0f}", width=460)


def _pck_table(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> Grid:
    thresholds = measured[0][1]["thresholds"]
    rows = []
    for name, facts in measured:
        if facts["thresholds"] == thresholds:
            values = (percent(value) for value in facts["pck"])
            count, visible = facts.get("instances", DASH), facts.get("keypoints", DASH)
            rows.append((_words(name), str(count), str(visible), *values))
    columns = ("network", "animals", "keypoints", *(threshold(t).removeprefix("PCK") for t in thresholds))
    return Grid(columns, rows, "PCK in percent", numeric=range(1, len(columns)))


def shape(analysis: Analysis, budget: Budget) -> Section:
    """The 3D model's numbers by threshold and keypoint, and its shapes over the photos."""
    inputs = analysis.inputs
    lead = "The predicted 3D animal over its photo and turned to other views, and how well each arm fits."
    blocks: list[Block] = []
    files = [p for p in inputs.pictures if not p.stem.startswith(("selection_", "pose", POINTS))]
    pictures = [embed_file(path, _caption(path, analysis.arms, inputs), budget) for path in files]
    shown = [picture for picture in pictures if picture is not None]
    if shown:
        blocks.append(Gallery(shown, size="wide"))
    else:
        command = f"python acsm/visualize.py {inputs.run_flags}"
        blocks.append(missing("No pictures of 3D results yet.", command))
    if len(shown) < len(files):
        folder = inputs.workspace.relative(files[0].parent)
        blocks.append(Note(f"{len(files) - len(shown)} more pictures lie in {folder}."))
    if analysis.arms:
        blocks.append(_arm_table(analysis.arms))
        by_keypoint = _by_keypoint(analysis.arms)
        if by_keypoint is not None:
            blocks.append(by_keypoint)
    return Section("shape", "3D shapes", blocks, lead)


def _caption(path: Path, arms: Sequence[Arm], inputs: RunInputs) -> str:
    """What a picture shows: from the JSON file beside it, or from its name (acsm_<arm>_<split>)."""
    beside = path.with_suffix(".json")
    if beside.exists():
        try:
            facts = read_json(beside)
            if isinstance(facts, Mapping) and isinstance(facts.get("caption"), str):
                return str(facts["caption"])
        except UserError:
            pass  # the name does
    for arm in sorted(arms, key=lambda arm: -len(arm.name)):
        if path.stem.startswith(f"acsm_{arm.name}_"):
            split = path.stem.removeprefix(f"acsm_{arm.name}_").replace("_", " ")
            trained = inputs.checkpoints.get(f"acsm/{arm.name}")
            masked = trained is not None and "supervise" in trained.config
            pixels = "each pixel in the colour of its place on the animal, " if masked else ""
            return (
                f"3D model trained on {arm.title}, {split} animals: the photo, the predicted shape over "
                f"it, {pixels}and the shape from other sides."
            )
    return path.stem.replace("_", " ")


def _arm_table(arms: Sequence[Arm]) -> Grid:
    thresholds = list(dict.fromkeys(key for arm in arms for key in (arm.facts.get("pck") or {})))
    rows = []
    for arm in arms:
        pck = arm.facts.get("pck") or {}
        median = arm.facts.get("camera_error_deg_median")
        published = arm.facts.get("camera_error_deg_published")
        rows.append(
            (
                arm.title,
                *(number(pck.get(key)) for key in thresholds),
                number(arm.facts.get("median_error_percent")),
                number(median),
                number((arm.facts.get("published") or {}).get("auc")),
                number(published),
            )
        )
    columns = (
        "trained on", *(threshold(float(key)) for key in thresholds),
        "median error (% of box)", "median camera error (°)",
        "AUC in the published crop", "camera error as published (°)",
    )  # fmt: skip
    caption = "The 3D model in more detail (PCK in percent)"
    return Grid(columns, rows, caption, numeric=range(1, len(columns)))


def _by_keypoint(arms: Sequence[Arm]) -> Grid | None:
    known = [arm for arm in arms if isinstance(arm.facts.get("auc_by_keypoint"), Mapping)]
    if not known:
        return None
    names = list(dict.fromkeys(name for arm in known for name in arm.facts["auc_by_keypoint"]))
    rows = [
        (name.replace("_", " "), *(number(arm.facts["auc_by_keypoint"].get(name)) for arm in known))
        for name in names
    ]
    columns = ("keypoint", *(arm.title for arm in known))
    return Grid(columns, rows, "AUC by keypoint (%)", numeric=range(1, len(columns)), folded=True)


def training(analysis: Analysis) -> Section:
    """Loss and validation metric of every model against its steps."""
    inputs = analysis.inputs
    blocks: list[Block] = []
    groups = {
        "2D networks": [c for name, c in inputs.checkpoints.items() if name in _MODELS],
        "2D networks, as each arm's encoder": [
            c for name, c in inputs.checkpoints.items() if name.startswith("pose_") and name not in _MODELS
        ],
        "3D models": [c for name, c in inputs.checkpoints.items() if name.startswith("acsm/")],
    }
    for title, members in groups.items():
        members = sorted((c for c in members if c.curve), key=_model_order)
        charts = [_loss_chart(members), *_validation_charts(members)]
        shown = [chart for chart in charts if chart]
        if shown:
            blocks.append(Figure(shown, f"{title}: training loss, and metrics on the validation split."))
    if not blocks:
        blocks.append(missing("No model was trained yet.", f"python pose/train.py {inputs.run_flags}"))
    return Section("training", "Training curves", blocks)


def _arm(checkpoint: Checkpoint) -> str | None:
    """The arm that a checkpoint belongs to, as its 3D model or its encoder."""
    belongs = checkpoint.name not in _MODELS and _OF_ARM.match(checkpoint.name)
    return _OF_ARM.sub("", checkpoint.name) if belongs else None


def _model_order(checkpoint: Checkpoint) -> tuple[int, str]:
    roles, arm = ("labels", "selected", "ceiling"), _arm(checkpoint)
    return (roles.index(arm_role(arm, checkpoint.config)) if arm else 0, checkpoint.name)


def _tone(checkpoint: Checkpoint, place: int) -> str:
    arm = _arm(checkpoint)
    return arm_role(arm, checkpoint.config) if arm else str(place + 1)


def _line(checkpoint: Checkpoint, key: str, place: int) -> Series:
    points = [
        (record["step"], record[key])
        for record in checkpoint.curve
        if isinstance(record.get(key), int | float) and math.isfinite(record[key])
    ]
    if len(points) > _POINTS:  # means of equal stretches
        chunks = np.array_split(np.array(points, dtype=float), _POINTS)
        points = [tuple(chunk.mean(0)) for chunk in chunks]
    name = _arm(checkpoint) or checkpoint.name
    x, y = [p[0] for p in points], [p[1] for p in points]
    return Series(name, x, y, _tone(checkpoint, place), markers=len(points) <= 12)


def _loss_chart(members: Sequence[Checkpoint]) -> str:
    series = [_line(member, "loss", place) for place, member in enumerate(members)]
    values = np.array([value for line in series for value in line.y])
    if not values.size:
        return ""
    top = float(np.quantile(values, 0.98)) * 1.1 or 1.0
    capped = [Series(s.name, s.x, np.minimum(s.y, top).tolist(), s.tone) for s in series]
    steps = (0.0, max(max(s.x) for s in capped if len(s.x)))
    axes = Axes("step", "loss", x_range=steps, y_range=(0.0, top))
    return line_chart(capped, axes, width=500, height=240)


def _validation_charts(members: Sequence[Checkpoint], most: int = 3) -> list[str]:
    found = dict.fromkeys(
        key for member in members for record in member.curve for key in record if key.startswith("val_")
    )
    keys = [key for key in _TELLING if key in found] or list(found)
    charts = []
    for key in keys[:most]:
        series = [_line(member, key, place) for place, member in enumerate(members)]
        label = key.removeprefix("val_").replace("_", " ") + " (validation)"
        steps = (0.0, max(max(s.x) for s in series if len(s.x)))
        charts.append(line_chart(series, Axes("step", label, x_range=steps), width=500, height=240))
    return charts
