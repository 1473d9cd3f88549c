"""Measures of keypoints, shared by the 2D and the 3D stages. NumPy only."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_BLOCK = 1 << 20
"""Numbers drawn at a time by the bootstrap."""


def _counting(visible: np.ndarray) -> np.ndarray:
    visible = np.asarray(visible)
    return visible if visible.dtype == bool else visible == 2


def keypoint_errors(xy: np.ndarray, xy_true: np.ndarray, box_side: np.ndarray) -> np.ndarray:
    """Distances in units of the box's longer side.

    Args:
        xy: predictions [N,K,2], in the frame of `xy_true`.
        xy_true: [N,K,2].
        box_side: longer side of each instance's box, [N] (or a scalar), in the same unit.

    Returns:
        [N,K]; NaN where either position is NaN.
    """
    distance = np.linalg.norm(np.asarray(xy, float) - np.asarray(xy_true, float), axis=-1)
    return distance / np.broadcast_to(np.asarray(box_side, float), distance.shape[:1])[:, None]


def pck(
    xy: np.ndarray,
    xy_true: np.ndarray,
    visible: np.ndarray,
    box_side: np.ndarray,
    thresholds: Sequence[float],
    strict: bool = False,
) -> np.ndarray:
    """Percentage of correct keypoints, as a fraction: how many lie within t * box side of the truth.

    Args:
        xy: predictions [N,K,2]; NaN counts as missed.
        xy_true: [N,K,2].
        visible: [N,K], the keypoints that count: true, or 2 in the tables' integer code.
        box_side: longer side of each box, [N] or a scalar, in the unit of `xy`.
        thresholds: T fractions t of the box side.
        strict: distance < t * side (published ACSM evaluation) in place of <=.

    Returns:
        [T]; NaN if no keypoint counts.
    """
    correct, total = pck_counts(xy, xy_true, visible, box_side, thresholds, strict)
    with np.errstate(invalid="ignore"):
        return correct.sum((0, 1)) / total.sum()


def pck_counts(
    xy: np.ndarray,
    xy_true: np.ndarray,
    visible: np.ndarray,
    box_side: np.ndarray,
    thresholds: Sequence[float],
    strict: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The terms of `pck` (same arguments) before they are summed, for other groupings.

    Returns:
        correct [N,K,T] and total [N,K], both 0 or 1.
    """
    counts = _counting(visible)
    error = keypoint_errors(xy, xy_true, box_side)[..., None]
    within = error < np.asarray(thresholds) if strict else error <= np.asarray(thresholds)
    return (within & counts[..., None]).astype(np.int64), counts.astype(np.int64)


def bootstrap_interval(
    correct: np.ndarray,
    total: np.ndarray,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of sum(correct) / sum(total), instances drawn with replacement.

    Keypoints of one animal err together, so that whole instances are drawn, not keypoints.

    Args:
        correct: numerators [N,...].
        total: denominators, [N] or the shape of `correct`.
        samples: bootstrap draws.
        level: coverage of the interval.
        seed: of the draws.

    Returns:
        Lower and upper bound, each of the shape [...] of one instance; NaN without instances.
    """
    correct = np.asarray(correct, float)
    total = np.asarray(total, float)
    total = total.reshape(total.shape + (1,) * (correct.ndim - total.ndim))
    instances = len(correct)
    if instances == 0 or not total.any():
        return np.full(correct.shape[1:], np.nan), np.full(correct.shape[1:], np.nan)
    columns = correct.reshape(instances, -1)
    totals = np.ascontiguousarray(np.broadcast_to(total, correct.shape).reshape(instances, -1))
    ratios = np.empty((samples, columns.shape[1]))
    block = max(1, _BLOCK // instances)
    rng = np.random.default_rng(seed)
    for first in range(0, samples, block):
        rows = slice(first, min(first + block, samples))
        times = _draws(rng, instances, rows.stop - rows.start)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios[rows] = (times @ columns) / (times @ totals)
    ratios = ratios.reshape(samples, *correct.shape[1:])
    tail = (1 - level) / 2
    lower, upper = np.nanquantile(ratios, [tail, 1 - tail], axis=0)
    return lower, upper


def _draws(rng: np.random.Generator, instances: int, samples: int) -> np.ndarray:
    """How often each of N instances comes up in each of so many draws of N, float64 [samples, N]."""
    drawn = rng.integers(0, instances, (samples, instances))
    drawn += instances * np.arange(samples)[:, None]
    times = np.bincount(drawn.ravel(), minlength=samples * instances)
    return times.reshape(samples, instances).astype(float)


def paired_change(
    new: Sequence[Mapping[str, Any]],
    old: Sequence[Mapping[str, Any]],
    what: str = "auc",
    samples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """How much higher one model's AUC, camera error or mask IoU is than another's, on the same animals.

    Args:
        new: by test set, its animals as `acsm.metrics.ShapeResult.by_instance` lists them.
        old: the other model's, of the same test sets.
        what: ``auc`` (points), ``camera`` (degrees, animals whose camera both know) or ``iou`` (points,
            animals with a mask, where ``iou`` is listed beside the others).
        samples: bootstrap draws over animals; both models share each draw.
        seed: of the draws.

    Returns:
        ``gain`` = new - old, its 95 % ``interval``, and the number of ``animals`` that count (one that
        stands in several test sets counts as one). NaN where nothing can be compared.

    Raises:
        ValueError: if they list different animals.
    """
    gains: dict[str, float] = {}
    weights: dict[str, float] = {}
    for a, b in zip(new, old, strict=True):
        if a["instance_id"] != b["instance_id"]:
            raise ValueError("expected the same animals")
        if what == "auc":
            gain = 100 * (np.asarray(a["keypoints_right"], float) - np.asarray(b["keypoints_right"], float))
            weight = np.asarray(a["keypoints"], float)
        else:
            key, unit = {"camera": ("camera_error_deg", 1.0), "iou": ("iou", 100.0)}[what]
            gain = unit * (np.asarray(a[key], float) - np.asarray(b[key], float))
            weight = np.isfinite(gain).astype(float)
            gain = np.nan_to_num(gain)
        for name, value, count in zip(a["instance_id"], gain, weight):
            gains[name] = gains.get(name, 0.0) + value
            weights[name] = weights.get(name, 0.0) + count
    terms, totals = np.array(list(gains.values())), np.array(list(weights.values()))
    low, high = bootstrap_interval(terms, totals, samples, seed=seed)
    value = float(terms.sum() / totals.sum()) if totals.sum() else math.nan
    return {"gain": value, "interval": [float(low), float(high)], "animals": int((totals > 0).sum())}
