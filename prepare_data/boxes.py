"""Which of a detector's boxes become instances, in which frame, under which ids and flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wildshape.geometry import box_iou

SAME_BOX_IOU = 0.9
BORDER = 2.0
CROWD_OVERLAP = 0.25


@dataclass(frozen=True)
class BoxRules:
    """Which boxes are kept.

    Attributes:
        labels: Labels, in lower case, that mean the category.
        score_threshold: Least score.
        max_per_image: At most so many an image; None keeps all.
        small_side: Longer side in pixels below which a box is flagged small.
        sure_score: Score below which a box that is kept all the same is flagged low_score.
    """

    labels: frozenset[str]
    score_threshold: float
    max_per_image: int | None = None
    small_side: float = 32.0
    sure_score: float = 0.0


@dataclass(frozen=True)
class ChosenBoxes:
    """Boxes of one image by falling score.

    Attributes:
        boxes: box_xyxy float64 [N, 4], image frame (pixel centres), clipped to the image.
        scores: float64 [N].
        flags: Comma lists of truncated (touches the border within 2 px), small, crowd (more
            than a quarter of the smaller box is shared with another kept box), and low_score.
    """

    boxes: np.ndarray
    scores: np.ndarray
    flags: list[str]


def choose_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
    image_size: tuple[int, int],
    rules: BoxRules,
) -> tuple[ChosenBoxes, dict[str, int]]:
    """Choose an image's instances among a detector's boxes.

    Args:
        boxes: box_xyxy [N, 4] in pixels counted from the image's edge, as detectors give them.
        scores: [N].
        labels: N class names.
        image_size: Height and width.
        rules: Which are kept.

    Returns:
        The chosen boxes, in the image frame: shifted by -.5, so that an image spans [-.5, W - .5].
        And how many were dropped, by the first reason that holds: `other_label`, `low_score`,
        `no_area` (also boxes outside the image and not-a-number ones), `over_limit`.
    """
    height, width = image_size
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) - 0.5
    scores = np.asarray(scores, dtype=np.float64).reshape(-1)
    limits = np.array([width, height, width, height]) - 0.5
    finite = np.isfinite(boxes).all(1)
    clipped = np.clip(np.where(finite[:, None], boxes, 0.0), -0.5, limits)
    ours = np.array([label.strip().lower() in rules.labels for label in labels], dtype=bool)
    sure = scores >= rules.score_threshold  # false for not-a-number scores
    area = finite & (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    kept = np.flatnonzero(ours & sure & area)
    kept = kept[np.lexsort((kept, -scores[kept]))]
    chosen = kept[: rules.max_per_image]
    dropped = {
        "other_label": int((~ours).sum()),
        "low_score": int((ours & ~sure).sum()),
        "no_area": int((ours & sure & ~area).sum()),
        "over_limit": len(kept) - len(chosen),
    }
    flags = _flags(clipped[chosen], scores[chosen], limits, rules)
    return ChosenBoxes(clipped[chosen], scores[chosen], flags), dropped


def _flags(boxes: np.ndarray, scores: np.ndarray, limits: np.ndarray, rules: BoxRules) -> list[str]:
    if not len(boxes):
        return []
    truncated = (boxes[:, :2] < -0.5 + BORDER).any(1) | (boxes[:, 2:] > limits[2:] - BORDER).any(1)
    sides = boxes[:, 2:] - boxes[:, :2]
    small = sides.max(1) < rules.small_side
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    area = sides.prod(-1)
    overlap = shared / np.minimum(area[:, None], area[None, :])
    np.fill_diagonal(overlap, 0.0)
    crowd = overlap.max(1) > CROWD_OVERLAP
    holds = {"truncated": truncated, "small": small, "crowd": crowd, "low_score": scores < rules.sure_score}
    return [",".join(name for name in holds if holds[name][row]) for row in range(len(boxes))]


def keep_ids(
    boxes: np.ndarray, ids: Sequence[str], previous: Sequence[tuple[str, np.ndarray]]
) -> list[str]:
    """Ids of one image's boxes: the old id where an old box is found again (IoU >= .9).

    Pairs are matched by falling IoU, one to one.

    Args:
        boxes: box_xyxy [N, 4].
        ids: Ids made from the boxes, for those that are new.
        previous: Ids and boxes of an earlier run on the same image.
    """
    chosen: list[str | None] = [None] * len(boxes)
    if previous and len(boxes):
        iou = box_iou(boxes, np.stack([box for _, box in previous]))
        taken: set[int] = set()
        for flat in np.argsort(-iou, axis=None, kind="stable"):
            new, old = divmod(int(flat), len(previous))
            if iou[new, old] < SAME_BOX_IOU:
                break
            if chosen[new] is None and old not in taken:
                chosen[new] = previous[old][0]
                taken.add(old)
    used = {name for name in chosen if name is not None}
    result: list[str] = []
    for name, fresh in zip(chosen, ids):
        if name is None:
            # an old box that moved may already go by the id that this box would get
            name = fresh if fresh not in used else f"{fresh}-{len(used)}"
            used.add(name)
        result.append(name)
    return result
