"""Measures of predicted shapes: AUC of reprojected keypoints and camera error. NumPy only.

A keypoint's error is its distance from the truth over the longer side of the animal's box. In the
square crop of the unpadded box that is half the NDC distance, as published. PCK@t is the share of
visible keypoints of all images with error < t; AUC is the mean of PCK at .06, .07, .08, .09, .10.
Both are percentages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wildshape.metrics import bootstrap_interval, keypoint_errors, pck_counts

THRESHOLDS = (0.06, 0.07, 0.08, 0.09, 0.10)


def auc(xy: np.ndarray, xy_true: np.ndarray, visible: np.ndarray, box_side: np.ndarray | float) -> float:
    """AUC in percent of predictions [N, K, 2]; ``visible`` [N, K] is bool or 2 where it counts."""
    correct, total = pck_counts(xy, xy_true, visible, box_side, THRESHOLDS, strict=True)
    count = total.sum()
    return float(100 * correct.mean(-1).sum() / count) if count else float("nan")


def camera_errors(camera: np.ndarray, camera_true: np.ndarray) -> np.ndarray:
    """Geodesic angles in degrees between the rotations of cameras [..., 7]; NaN where one is NaN."""
    q, r = (np.asarray(c, np.float64)[..., 3:] for c in (camera, camera_true))
    with np.errstate(invalid="ignore", divide="ignore"):
        q = q / np.linalg.norm(q, axis=-1, keepdims=True)
        r = r / np.linalg.norm(r, axis=-1, keepdims=True)
    # Half the chord between q and the nearer of r and -r is the sine of a quarter of the turn.
    chord = np.minimum(np.linalg.norm(q - r, axis=-1), np.linalg.norm(q + r, axis=-1))
    return np.degrees(4 * np.arcsin(np.clip(chord / 2, 0, 1)))


def published_camera_error(errors_deg: np.ndarray) -> float:
    """Mean over the images with an error above 0, as the released evaluation takes it."""
    errors = np.asarray(errors_deg, np.float64)
    errors = errors[errors > 0]
    return float(errors.mean()) if errors.size else float("nan")


@dataclass(frozen=True)
class ShapeResult:
    """Predictions beside the truth, N instances with K keypoints.

    Attributes:
        xy: predicted [N, K, 2], image pixels.
        xy_true: [N, K, 2].
        visible: [N, K], 2 (or True) where a keypoint counts.
        box_side: longer side of each box [N], pixels.
        camera: predicted [N, 7].
        camera_true: [N, 7], NaN where there is none.
        instance_ids: N ids, so that two models can be compared animal by animal; or none.
    """

    xy: np.ndarray
    xy_true: np.ndarray
    visible: np.ndarray
    box_side: np.ndarray
    camera: np.ndarray
    camera_true: np.ndarray
    instance_ids: tuple[str, ...] = ()

    def by_instance(self) -> dict[str, list[Any]]:
        """Per animal: keypoints right (mean over thresholds), keypoints that count, camera error."""
        correct, total = pck_counts(
            self.xy, self.xy_true, self.visible, self.box_side, THRESHOLDS, strict=True
        )
        return {
            "instance_id": list(self.instance_ids),
            "keypoints_right": correct.mean(-1).sum(1).round(6).tolist(),
            "keypoints": total.sum(1).astype(int).tolist(),
            "camera_error_deg": camera_errors(self.camera, self.camera_true).round(6).tolist(),
        }

    def summary(self, keypoint_names: Sequence[str], samples: int = 2000, seed: int = 0) -> dict[str, Any]:
        """All measures with bootstrap 95 % intervals over instances.

        Args:
            keypoint_names: K names, for the table per keypoint.
            samples: bootstrap draws.
            seed: of the draws.

        Returns:
            JSON-able: ``auc``, ``auc_interval``, ``pck`` by threshold, ``auc_by_keypoint``,
            ``median_error_percent`` of the box side, ``camera_error_deg`` (mean over all valid
            cameras) with interval and median, ``camera_error_deg_published``, and counts.
        """
        correct, total = pck_counts(
            self.xy, self.xy_true, self.visible, self.box_side, THRESHOLDS, strict=True
        )
        within = correct.mean(-1)  # mean over thresholds: its mean over keypoints is the AUC
        count = max(int(total.sum()), 1)
        result: dict[str, Any] = {"instances": len(self.xy), "keypoints": int(total.sum())}
        result["auc"] = 100 * float(within.sum() / count) if total.any() else float("nan")
        low, high = bootstrap_interval(within.sum(1), total.sum(1), samples, seed=seed)
        result["auc_interval"] = [100 * float(low), 100 * float(high)]
        result["pck"] = {
            f"{t:.2f}": 100 * float(correct[..., i].sum() / count) for i, t in enumerate(THRESHOLDS)
        }
        per_keypoint = total.sum(0)
        result["auc_by_keypoint"] = {
            name: 100 * float(within[:, k].sum() / per_keypoint[k]) if per_keypoint[k] else None
            for k, name in enumerate(keypoint_names)
        }
        error = keypoint_errors(self.xy, self.xy_true, self.box_side)[total > 0]
        result["median_error_percent"] = 100 * float(np.median(error)) if error.size else None
        result.update(self._camera_summary(samples, seed))
        return result

    def _camera_summary(self, samples: int, seed: int) -> dict[str, Any]:
        errors = camera_errors(self.camera, self.camera_true)
        errors = errors[np.isfinite(errors)]
        if not errors.size:
            return {"cameras": 0, "camera_error_deg": None, "camera_error_deg_published": None}
        low, high = bootstrap_interval(errors, np.ones(len(errors)), samples, seed=seed)
        return {
            "cameras": len(errors),
            "camera_error_deg": float(errors.mean()),
            "camera_error_deg_interval": [float(low), float(high)],
            "camera_error_deg_median": float(np.median(errors)),
            "camera_error_deg_published": published_camera_error(errors),
        }
