"""How good pseudo-labels are where the truth is known: all, random and selected ones.

Errors are in units of the box's longer side; keypoints count where the truth's confidence is above 0.
Keypoints of detections that match no true animal have no truth and are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from wildshape.metrics import bootstrap_interval, keypoint_errors, pck_counts
from wildshape.tables import Table, read_table
from wildshape.workspace import Workspace

THRESHOLDS = (0.02, 0.04, 0.06, 0.08, 0.10)
AUC_THRESHOLDS = (0.06, 0.07, 0.08, 0.09, 0.10)  # those of the 3D evaluation, so that both compare
_ALL = tuple(sorted({*THRESHOLDS, *AUC_THRESHOLDS}))


@dataclass(frozen=True)
class Compared:
    """Pseudo-labels against the truth, a row an instance.

    Attributes:
        ids: [N] instance ids.
        correct: [N, T] keypoints within each threshold of `_ALL`.
        total: [N] keypoints that count; 0 where the truth is not known.
        error: [N, K] errors in box sides; NaN where a keypoint does not count.
        known: [N] whether the instance is a true animal.
    """

    ids: np.ndarray
    correct: np.ndarray
    total: np.ndarray
    error: np.ndarray
    known: np.ndarray

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """Rows of the ids that are here, in their order."""
        row = {name: number for number, name in enumerate(self.ids)}
        return np.array([row[name] for name in ids if name in row], dtype=np.int64)

    def auc_terms(self) -> np.ndarray:
        """Numerator [N] of the AUC: correct keypoints, averaged over its thresholds."""
        return self.correct[:, [_ALL.index(t) for t in AUC_THRESHOLDS]].mean(1)


def compare(pseudo: Table, truth: Table, instances: Table) -> Compared:
    """Compare keypoint tables of the same skeleton (transform "none") over the detected instances.

    Args:
        pseudo: Predicted keypoints, kind keypoints.
        truth: True keypoints by the same instance ids; confidence 0 marks those that do not count.
        instances: Gives the boxes.

    Raises:
        ValueError: if the tables have different numbers of keypoints.
    """
    if len(truth) and len(pseudo) and truth["xy"].shape[1] != pseudo["xy"].shape[1]:
        raise ValueError(
            f"expected {pseudo['xy'].shape[1]} keypoints in the truth, found {truth['xy'].shape[1]}"
        )
    boxes = instances.lookup()
    keep = [
        row
        for row, (name, transform) in enumerate(zip(pseudo["instance_id"], pseudo["transform"]))
        if transform == "none" and name in boxes
    ]
    pseudo = pseudo.take(np.array(keep, dtype=np.int64))
    ids = pseudo["instance_id"]
    box = instances["box_xyxy"][np.array([boxes[name] for name in ids], dtype=np.int64)]
    side = (box[:, 2:] - box[:, :2]).max(1) if len(ids) else np.zeros(0)
    true_row = truth.lookup("instance_id")
    row = np.array([true_row.get(name, -1) for name in ids], dtype=np.int64)
    xy_true, visible = np.zeros_like(pseudo["xy"]), np.zeros(pseudo["xy"].shape[:2], dtype=bool)
    found = row >= 0
    xy_true[found] = truth["xy"][row[found]]
    visible[found] = truth["confidence"][row[found]] > 0
    correct, total = pck_counts(pseudo["xy"], xy_true, visible, side, _ALL)
    error = np.where(visible, keypoint_errors(pseudo["xy"], xy_true, side), np.nan)
    return Compared(ids, correct.sum(1), total.sum(1), error, np.asarray(visible.any(1)))


def quality(compared: Compared, rows: np.ndarray | None = None, *, samples: int = 500) -> dict[str, Any]:
    """PCK and AUC of some pseudo-labels (by default all).

    Returns:
        instances, without_truth, keypoints, pck {threshold: fraction}, auc (mean PCK at .06 ... .10) with
        auc_interval (95 %, instances bootstrapped), median_error (box sides), per_keypoint PCK@.1.
    """
    rows = np.arange(len(compared.ids)) if rows is None else rows
    correct, total, error = compared.correct[rows], compared.total[rows], compared.error[rows]
    count = int(total.sum())
    fractions = correct.sum(0) / count if count else np.full(len(_ALL), np.nan)
    terms = compared.auc_terms()[rows]
    low, high = bootstrap_interval(terms, total.astype(float), samples=samples)
    counted = np.isfinite(error)
    with np.errstate(invalid="ignore"):
        per_keypoint = ((error <= 0.1) & counted).sum(0) / counted.sum(0)
    return {
        "instances": len(rows),
        "without_truth": int((~compared.known[rows]).sum()),
        "keypoints": count,
        "pck": {f"{t:.2f}": float(fractions[_ALL.index(t)]) for t in THRESHOLDS},
        "auc": float(terms.sum() / count) if count else float("nan"),
        "auc_interval": [float(low), float(high)],
        "median_error": float(np.median(error[counted])) if counted.any() else float("nan"),
        "per_keypoint": per_keypoint,
    }


def grid_of_counts(count: int, points: int = 60) -> np.ndarray:
    """Numbers selected at which a curve is drawn: from a twentieth of all (10 at least) to all."""
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    first = min(max(count // 20, 10), count)
    return np.unique(np.linspace(first, count, points).round().astype(np.int64))


def curve(compared: Compared, order: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """AUC of the first n pseudo-labels of a ranking, for every n in `counts`; NaN where none counts."""
    terms, total = compared.auc_terms()[order].cumsum(), compared.total[order].cumsum()
    with np.errstate(invalid="ignore"):
        return terms[counts - 1] / total[counts - 1]


def random_curves(compared: Compared, counts: np.ndarray, *, draws: int = 200, seed: int = 0) -> np.ndarray:
    """`curve` [draws, len(counts)] of random rankings: what chance alone gives."""
    rng = np.random.default_rng(seed)
    draws = int(np.clip(20_000_000 // max(len(compared.ids), 1), 20, draws))
    return np.stack([curve(compared, rng.permutation(len(compared.ids)), counts) for _ in range(draws)])


def quality_table(compared: Compared, selections: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Quality of all pseudo-labels, and of each selection beside random draws of its size.

    Args:
        compared: All pseudo-labels that could be selected.
        selections: Instance ids by name.

    Returns:
        `all`: as `quality`; `selections`: by name as `quality`, with random (mean AUC of random draws),
        random_interval (the middle 95 % of the draws), gain (AUC over random), and beats_random: whether
        the AUC is above that interval.
    """
    table: dict[str, Any] = {"all": quality(compared), "selections": {}}
    for name, ids in selections.items():
        rows = compared.rows_of(ids)
        if not len(rows):
            continue
        found = quality(compared, rows)
        drawn = random_curves(compared, np.array([len(rows)]))[:, 0]
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn):
            low, high = np.quantile(drawn, [0.025, 0.975])
            found["random"] = float(drawn.mean())
            found["random_interval"] = [float(low), float(high)]
            found["gain"] = found["auc"] - found["random"]
            found["beats_random"] = bool(found["auc"] > high)
        table["selections"][name] = found
    return table


def selection_quality(workspace: Workspace, criterion: str, count: int, threshold: float = 0.10) -> float:
    """PCK in percent, at one of `THRESHOLDS`, of the pseudo-labels that a criterion selected.

    Raises:
        UserError: if the selection, its keypoints or the truth are missing.
    """
    command = f"python prepare_data/data_selection.py --category {workspace.category.name}"
    command += f" --filter {criterion} --selection_num {count}"
    path = workspace.require(workspace.selection_path(criterion, count), command)
    pose, truth = workspace.load_keypoints("pose"), workspace.load_keypoints("truth")
    compared = compare(pose, truth, workspace.load("instances"))
    rows = compared.rows_of(read_table(path, "selections")["instance_id"])
    count_all = compared.total[rows].sum()
    correct = compared.correct[rows, _ALL.index(threshold)].sum()
    return float(100 * correct / count_all) if count_all else float("nan")
