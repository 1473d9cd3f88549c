"""CF-All for a workspace: which sources there are, and what they said of the labelled animals of val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from pseudolabels.candidates import stack_transforms
from pseudolabels.combined import DOUBTS, Calibration, calibrate, combine, equal_weights
from pseudolabels.criteria import Candidates, Criterion
from wildshape.metrics import keypoint_errors
from wildshape.records import AnimalRecords
from wildshape.tables import Table, read_facts
from wildshape.training_data import labelled, labelled_name

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


_ANIMALS = ("instances", "images", "labels", "labelled_images", "masks", "labelled_masks")
"""Tables that say what is labelled, not by what."""


def fitted(criterion: Criterion, workspace: Workspace) -> Criterion:
    """CF-All with the sources that a run has, weighed on its labelled animals of val.

    A source counts that labelled the web animals and, where weights are fitted, those of val.

    Raises:
        UserError: the pose network's keypoints are missing, or a table is unreadable.
    """
    workspace.load_keypoints("pose", criterion.name)
    there = tuple(source for source in DOUBTS if workspace.keypoints_path(source).exists())
    calibration = _calibration(workspace, there)
    used = tuple(source for source, weight in calibration.weights.items() if weight > 0)
    sources = ("pose", *(source for source in used if source != "pose"))
    return replace(
        criterion,
        sources=sources,
        value=lambda data: combine({s: DOUBTS[s](data) for s in used}, calibration.weights),
        facts=calibration.facts(),
    )


def _calibration(workspace: Workspace, there: tuple[str, ...]) -> Calibration:
    made = [s for s in there if workspace.keypoints_path(labelled_name(s)).exists()]
    with_val = [s for s in made if _of_one_model(workspace, s)]
    missing = [source for source in there if source not in with_val]
    mend = "; ".join(_command(workspace, source, source in made) for source in missing)
    tables = all(workspace.table_path(name).exists() for name in ("labels", "labelled_images"))
    if not tables or "pose" not in with_val:
        what = f"no keypoints of them, or another model's; run: {mend}" if tables else "no labelled photos"
        return equal_weights(there, f"equal weights: not fitted on labelled animals of val ({what})")
    records = labelled(workspace, "val", workspace.category.skeleton)[0]
    doubts, error = val_doubts(records, {s: workspace.load_keypoints(labelled_name(s)) for s in with_val})
    calibration = calibrate(doubts, error)
    if not missing:
        return calibration
    why = "of which there are no keypoints of labelled animals, or another model's"
    note = f"without {', '.join(missing)}, {why}; run: {mend}"
    return replace(calibration, note="; ".join(part for part in (calibration.note, note) if part))


def _command(workspace: Workspace, source: str, again: bool) -> str:
    """What labels the labelled animals by the model that labelled the web animals."""
    facts = read_facts(workspace.keypoints_path(source)).get("provenance") or {}
    arm = (facts.get("config") or {}).get("arm")
    named = f" --arm {arm}" if source == "acsm" and arm not in (None, "labels") else ""
    return workspace.made_by(labelled_name(source)) + named + " --overwrite" * again


def _of_one_model(workspace: Workspace, source: str) -> bool:
    """Whether the same model labelled web and labelled animals, as far as the tables say."""
    models = []
    for name in (source, labelled_name(source)):
        inputs = (read_facts(workspace.keypoints_path(name)).get("provenance") or {}).get("inputs") or {}
        models.append({k: v for k, v in inputs.items() if PurePath(k).stem not in _ANIMALS})
    return models[0] == models[1] or not all(models)


def val_doubts(
    records: AnimalRecords, keypoints: Mapping[str, Table]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Doubts and the pose network's error on labelled animals that all sources cover.

    Args:
        records: labelled animals.
        keypoints: of these animals, by source; "pose" among them.

    Returns:
        Doubts [N] by source, and the mean error [N] over visible keypoints in sides of the box, NaN where
        none is visible.
    """
    found: dict[str, tuple[dict[str, int], np.ndarray, np.ndarray]] = {}
    for source, table in keypoints.items():
        if source == "pose_mt":
            ids, xy, confidence = stack_transforms(table)
        else:
            plain = table.take(table["transform"] == "none")
            ids, xy, confidence = plain["instance_id"], plain["xy"], plain["confidence"]
        found[source] = {name: row for row, name in enumerate(ids)}, xy, confidence
    covered = [
        i
        for i, name in enumerate(records.instance_ids)
        if all(name in place for place, _, _ in found.values())
    ]
    animals = records.take(covered)
    rows = {source: _rows(place, animals.instance_ids) for source, (place, _, _) in found.items()}
    xy = {source: found[source][1][rows[source]] for source in found}
    confidence = {source: found[source][2][rows[source]] for source in found}
    if "pose_mt" in keypoints and "none" not in keypoints["pose_mt"]["transform"]:
        xy["pose_mt"] = np.concatenate([xy["pose"][:, None], xy["pose_mt"]], axis=1)
    data = Candidates(np.array(animals.instance_ids, dtype=object), animals.box_xyxy, xy, confidence)
    errors = keypoint_errors(xy["pose"], animals.xy, animals.box_side)
    counted, total = animals.counts, animals.counts.sum(1)
    mean = np.where(counted, errors, 0).sum(1) / np.maximum(total, 1)
    return {source: DOUBTS[source](data) for source in keypoints}, np.where(total > 0, mean, np.nan)


def _rows(place: Mapping[str, int], ids: Sequence[str]) -> np.ndarray:
    return np.array([place[name] for name in ids], dtype=np.int64)
