"""Named keypoints from unsupervised points: the regressor's frame, how sure it is, and how good.

NumPy only.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from pseudolabels.zero123plus.crops import unit_affine
from pseudolabels.zero123plus.regressor import Regressor, fit_regressor, published_regressor
from wildshape.metrics import keypoint_errors, pck
from wildshape.records import AnimalRecords
from wildshape.tables import Table

HALF_SURE = 0.1
"""Left-out error, in crop sides, at which a keypoint's confidence is halved."""
THRESHOLD = 0.1
FRAMES = ("box", "points")
PUBLISHED = "published"
FrameChoice = Literal["auto", "box", "points", "published"]


def to_unit(xy_image: np.ndarray, box_xyxy: np.ndarray) -> np.ndarray:
    """Points [N, K, 2] in image pixels as 0..1 of each animal's crop (boxes [N, 4])."""
    moved = [unit_affine(box).apply(xy) for box, xy in zip(box_xyxy, xy_image)]
    return np.stack(moved) if moved else np.zeros(np.shape(xy_image))


def to_image(xy_unit: np.ndarray, box_xyxy: np.ndarray) -> np.ndarray:
    """The inverse of `to_unit`."""
    moved = [unit_affine(box).inverse().apply(xy) for box, xy in zip(box_xyxy, xy_unit)]
    return np.stack(moved) if moved else np.zeros(np.shape(xy_unit))


def points_of(table: Table, records: AnimalRecords) -> tuple[AnimalRecords, np.ndarray]:
    """The labelled animals that have points, and these [N, K, 2] in 0..1 of their crops."""
    place = table.lookup("instance_id")
    index = [i for i, name in enumerate(records.instance_ids) if name in place]
    found = records.take(index)
    xy = table["xy"][[place[name] for name in found.instance_ids]]
    return found, to_unit(xy, found.box_xyxy)


def choose_regressor(
    points: np.ndarray, records: AnimalRecords, frame: FrameChoice = "auto"
) -> tuple[Regressor, dict[str, float]]:
    """The regressor of the frame with the lower leave-one-out error, and the errors of those tried.

    Args:
        points: [N, K, 2] in 0..1 of the crops.
        records: the N labelled animals; keypoints that are not visible do not count.
        frame: see `Regressor`; auto tries both; published: the box's, and by least squares without bias
            or ridge (`fit_published`).

    Raises:
        UserError: fewer than two animals.
    """
    keypoints = to_unit(records.xy, records.box_xyxy)
    tried: dict[str, Regressor] = {}
    if frame == PUBLISHED:
        tried[PUBLISHED] = published_regressor(points, keypoints, records.weight)
    for name in FRAMES:
        if frame in ("auto", name):
            tried[name] = fit_regressor(points, keypoints, records.weight, name)  # type: ignore[arg-type]
    errors = {name: mean_error(regressor) for name, regressor in tried.items()}
    best = min(errors, key=lambda name: (not np.isfinite(errors[name]), errors[name]))
    return tried[best], errors


def mean_error(regressor: Regressor) -> float:
    """Leave-one-out error in crop sides, mean over the keypoints that have one; NaN if none has."""
    known = regressor.error[np.isfinite(regressor.error)]
    return float(known.mean()) if len(known) else float("nan")


def sureness(regressor: Regressor) -> np.ndarray:
    """How sure a regressor is of each keypoint [J]: 1 at no error, 1/2 at `HALF_SURE`, 0 where unknown."""
    error = np.where(np.isfinite(regressor.error), regressor.error, np.inf)
    return HALF_SURE / (HALF_SURE + error)


def named(
    regressor: Regressor, points: np.ndarray, mass: np.ndarray, box_xyxy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Named keypoints of animals and their confidence.

    Args:
        regressor: from points to keypoints.
        points: [N, K, 2] in image pixels.
        mass: share [N, K] of each point's map that lies about its peak.
        box_xyxy: [N, 4].

    Returns:
        xy [N, J, 2] in image pixels; confidence [N, J]: the mean mass of the animal's peaks times
        `sureness` of the keypoint.
    """
    xy = to_image(regressor(to_unit(points, box_xyxy)), box_xyxy) if len(points) else None
    confidence = mass.mean(1, keepdims=True) * sureness(regressor)
    return np.zeros((*confidence.shape, 2)) if xy is None else xy, confidence


def measure(
    regressor: Regressor, points: np.ndarray, val: AnimalRecords, mean: np.ndarray
) -> dict[str, Any]:
    """How good the named keypoints of labelled animals are, beside those of who sees no point.

    Args:
        regressor: from points to keypoints.
        points: [N, K, 2] in 0..1 of the crops.
        val: the N labelled animals.
        mean: [J, 2], mean position of each keypoint in 0..1 of the crop, which the others guess.

    Returns:
        ``animals``, and if there are any ``pck@0.1``, ``error_percent`` (of the box's longer side),
        ``pck@0.1_of_mean_position``.
    """
    if not len(val):
        return {"animals": 0}
    xy = to_image(regressor(points), val.box_xyxy)
    guess = to_image(np.broadcast_to(mean, xy.shape), val.box_xyxy)
    rate, guessed = (
        float(pck(found, val.xy, val.counts, val.box_side, [THRESHOLD])[0]) for found in (xy, guess)
    )
    error = keypoint_errors(xy, val.xy, val.box_side)[val.counts].mean()
    return {
        "animals": len(val),
        "pck@0.1": rate,
        "error_percent": 100 * float(error),
        "pck@0.1_of_mean_position": guessed,
    }


def mean_position(records: AnimalRecords) -> np.ndarray:
    """Mean position [J, 2] of each keypoint in 0..1 of the crop; the centre where none has it."""
    keypoints, weight = to_unit(records.xy, records.box_xyxy), records.weight[..., None]
    total = weight.sum(0)
    return np.where(total > 0, (keypoints * weight).sum(0) / np.maximum(total, 1e-12), 0.5)
