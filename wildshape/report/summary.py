"""runs/<name>/metrics.json: every number of the report in one file."""

from __future__ import annotations

from typing import Any

from wildshape.files import write_json
from wildshape.report.analysis import Analysis
from wildshape.report.results import change

UNITS = {
    "arms": "auc in percent, camera_error_deg in degrees; intervals 95 %",
    "quality": "pck and auc as fractions, errors in units of the box's longer side; intervals 95 %",
    "timings": "seconds",
}


def summarise(analysis: Analysis) -> dict[str, Any]:
    """Every number of the run, JSON-able once NumPy values are plain (as `write_json` makes them)."""
    inputs = analysis.inputs
    workspace = inputs.workspace
    quality: dict[str, Any] = {"available": analysis.quality is not None}
    if analysis.quality is not None:
        quality |= {**analysis.quality, "curves": analysis.curves}
    return {
        "category": workspace.category.name,
        "name": workspace.name,
        **analysis.facts,
        "units": UNITS,
        "verdict": {"text": analysis.verdict.text, "tone": analysis.verdict.tone},
        "arms": _arms(analysis),
        "funnel": [step.as_dict() for step in analysis.funnel],
        "selections": [vars(selected) for selected in analysis.selections],
        "quality": quality,
        "training": {
            name: {key: checkpoint.manifest.get(key) for key in ("step", "steps", "best", "config")}
            for name, checkpoint in inputs.checkpoints.items()
        },
        "timings": inputs.timings(),
        "stages": {name: facts for name, facts in inputs.metrics.items() if name != "timings"},
        "problems": inputs.problems,
    }


def _arms(analysis: Analysis) -> list[dict[str, Any]]:
    others = {role: [arm for arm in analysis.arms if arm.role == role] for role in ("labels", "ceiling")}
    rows = []
    for arm in analysis.arms:
        row: dict[str, Any] = {"arm": arm.name, "title": arm.title, "role": arm.role, "split": arm.split}
        for key, measure in (("auc", arm.auc), ("camera_error_deg", arm.camera)):
            row |= {key: measure.value, f"{key}_interval": [measure.low, measure.high]}
        for role, (other, *_) in ((role, found) for role, found in others.items() if found):
            for key, what in (("auc", "auc"), ("camera_error", "camera")):
                if arm is not other:
                    gain = change(arm, other, what)
                    row[f"{key}_over_{role}"] = gain.value
                    row[f"{key}_over_{role}_interval"] = [gain.low, gain.high]
        rows.append(row)
    return rows


def write_summary(analysis: Analysis) -> dict[str, Any]:
    """Write metrics.json of the run and return it."""
    summary = summarise(analysis)
    write_json(analysis.inputs.workspace.summary_path, summary)
    return summary
