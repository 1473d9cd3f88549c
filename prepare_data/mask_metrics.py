"""How good masks are: against their boxes, against labelled keypoints, against true masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from wildshape.formats.masks import decode_mask, mask_box, mask_iou, points_inside
from wildshape.geometry import box_iou
from wildshape.stage import progress
from wildshape.tables import Table

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_PROBLEMS = 5


def describe_masks(
    masks: Table, truth: Table | None = None, pairs: Mapping[int, int] | None = None
) -> dict[str, Any]:
    """Counts and measures of a masks table.

    Args:
        masks: Table of kind masks.
        truth: Table of kind labels of the same animals, if some are labelled.
        pairs: Row of the truth by row of the masks.

    Returns:
        `masks`, `by_status`, `problems` (a few), and of the masks that are there, each with its mean and
        quantiles: `quality`; `box_iou`, of the mask's own box with the given one; `true_iou`, with the true
        mask where there is one. `keypoints_inside` has the share of labelled keypoints whose pixel is the
        mask's, of those that are seen and of all, with their numbers.
    """
    there = np.flatnonzero(masks["status"] == "ok")
    boxes = [mask_box(masks["mask_rle"][row]) for row in there]
    overlaps = [
        float(box_iou(box, masks["box_xyxy"][row])[0, 0])
        for row, box in zip(there, boxes)
        if box is not None
    ]
    failed = masks.take(masks["status"] != "ok")
    problems = Counter(f"{row['status']}: {row['error']}" for row in failed.rows())
    metrics: dict[str, Any] = {
        "masks": len(there),
        "by_status": dict(Counter(masks["status"].tolist())),
        "problems": [f"{text} ({count})" for text, count in problems.most_common(MAX_PROBLEMS)],
        "quality": spread(masks["quality"][there]),
        "box_iou": spread(overlaps),
    }
    if truth is not None and pairs:
        metrics.update(_against_truth(masks, there, truth, pairs))
    return metrics


def _against_truth(
    masks: Table, there: np.ndarray, truth: Table, pairs: Mapping[int, int]
) -> dict[str, Any]:
    overlaps, other_size = [], 0
    inside, visible = [np.zeros(0, dtype=bool)], [np.zeros(0, dtype=np.int64)]
    for row in progress(there, "comparing masks", unit="mask"):
        if row not in pairs:
            continue
        labelled = pairs[row]
        true_mask, mask_rle = truth["mask_rle"][labelled], masks["mask_rle"][row]
        if true_mask is not None:
            try:
                overlaps.append(mask_iou(mask_rle, true_mask))
            except ValueError:
                other_size += 1
        shown = truth["visible"][labelled] > 0
        if shown.any():
            inside.append(points_inside(decode_mask(mask_rle), truth["xy"][labelled][shown]))
            visible.append(truth["visible"][labelled][shown])
    hit, seen = np.concatenate(inside), np.concatenate(visible) == 2
    metrics: dict[str, Any] = {"compared_with_labels": sum(int(row) in pairs for row in there)}
    if overlaps:
        metrics["true_iou"] = spread(overlaps)
    if other_size:
        metrics["true_masks_of_another_size"] = other_size
    if len(hit):
        metrics["keypoints_inside"] = {
            "visible": float(hit[seen].mean()) if seen.any() else None,
            "visible_keypoints": int(seen.sum()),
            "labelled": float(hit.mean()),
            "labelled_keypoints": len(hit),
        }
    return metrics


def spread(values: Any) -> dict[str, Any] | None:
    """Number, mean and quantiles of some values; None if there are none."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return None
    quantiles = {f"p{round(100 * q):02d}": float(np.quantile(values, q)) for q in QUANTILES}
    return {"n": len(values), "mean": float(values.mean()), **quantiles}
