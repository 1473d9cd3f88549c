"""COCO's average precision of boxes, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np


def average_precision(
    truth: Sequence[tuple[np.ndarray, np.ndarray]],
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    classes: int,
) -> dict[str, float]:
    """Average precision over images and classes.

    Args:
        truth: For each image true boxes_xyxy [N, 4] and classes [N], counted from 1.
        found: For each image boxes_xyxy [M, 4], scores [M] and classes [M].
        classes: Number of classes.

    Returns:
        In percent: ``ap`` (mean over IoU .50 to .95), ``ap50`` and ``ap75``; 0 where nothing was found.
    """
    evaluation = _evaluated(truth, found, classes)
    if evaluation is None:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    ap, ap50, ap75 = (float(max(value, 0.0)) for value in evaluation.stats[:3])
    return {"ap": 100 * ap, "ap50": 100 * ap50, "ap75": 100 * ap75}


def best_threshold(
    truth: Sequence[tuple[np.ndarray, np.ndarray]],
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    classes: int,
) -> tuple[float, float]:
    """The score from which boxes are best kept: the largest mean F1 over classes at IoU .5.

    Args:
        truth: As of `average_precision`.
        found: Likewise.
        classes: Number of classes.

    Returns:
        The score, a multiple of .01 from .05 to .95, and F1 there in 0..1; (.5, 0) where nothing was found.
    """
    evaluation = _evaluated(truth, found, classes)
    if evaluation is None:
        return 0.5, 0.0
    # [thresholds of IoU, recalls 0 to 1 by .01, classes, areas, boxes an image]; -1 for absent classes
    precision, scores = (evaluation.eval[name][0, :, :, 0, -1] for name in ("precision", "scores"))
    present = precision[0] > -1
    recall = np.linspace(0, 1, len(precision))[:, None]
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    levels = np.arange(5, 96) / 100
    # At a level each class is found up to the largest recall whose boxes score that much.
    reached = (scores[None] >= levels[:, None, None]).sum(1) - 1
    values = np.where(reached >= 0, np.take_along_axis(f1, reached.clip(0), axis=0), 0)[:, present].mean(1)
    best = len(values) - 1 - int(values[::-1].argmax())  # lower levels add only what is wrong
    return float(levels[best]), float(values[best])


def _evaluated(
    truth: Sequence[tuple[np.ndarray, np.ndarray]],
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    classes: int,
) -> Any | None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, detections = [], []
    for image, ((boxes, labels), (guesses, scores, kinds)) in enumerate(zip(truth, found, strict=True), 1):
        for box, label in zip(np.asarray(boxes, float), labels):
            entry = _entry(image, box, label)
            annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": 0})
        for box, score, kind in zip(np.asarray(guesses, float), scores, kinds):
            detections.append({**_entry(image, box, kind), "score": float(score)})
    if not detections or not annotations:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(1, len(truth) + 1)],
            "annotations": annotations,
            "categories": [{"id": number, "name": str(number)} for number in range(1, classes + 1)],
        }
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _entry(image: int, box: np.ndarray, label: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(value) for value in box)
    width, height = x1 - x0, y1 - y0
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": [x0, y0, width, height],
        "area": width * height,
    }
