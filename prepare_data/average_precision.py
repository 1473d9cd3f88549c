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
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
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
        evaluation.summarize()
    ap, ap50, ap75 = (float(max(value, 0.0)) for value in evaluation.stats[:3])
    return {"ap": 100 * ap, "ap50": 100 * ap50, "ap75": 100 * ap75}


def _entry(image: int, box: np.ndarray, label: Any) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(value) for value in box)
    width, height = x1 - x0, y1 - y0
    return {
        "image_id": image,
        "category_id": int(label),
        "bbox": [x0, y0, width, height],
        "area": width * height,
    }
