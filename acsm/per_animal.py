"""How a 3D model did on every single animal: what breakdowns and comparisons are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from acsm.metrics import THRESHOLDS, ShapeResult, camera_errors
from acsm.viewpoint import VIEWS, flipped_camera, in_view, view_names
from wildshape.errors import UserError
from wildshape.files import atomic_path
from wildshape.metrics import bootstrap_interval, keypoint_errors

CURVE = tuple(round(0.01 * step, 2) for step in range(1, 21))
"""Thresholds of the PCK curve, in units of the box's longer side."""


@dataclass(frozen=True)
class PerAnimal:
    """N animals with K keypoints.

    Attributes:
        instance_id: N names.
        truth: N short hashes of the true keypoints, so that only like is compared with like.
        error: [N, K] in units of the box's longer side; NaN where a keypoint does not count.
        error_swapped: [N, K], the same with the predicted left and right names swapped.
        camera_error_deg: [N]; NaN without a true camera.
        camera_error_deg_flipped: [N], the same with the predicted camera flipped (`flipped_camera`).
        iou: [N], of silhouette and mask; NaN without a mask.
        view: N names of sides ("front", "back", "left", "right", or "" where unknown).
        view_is_true: [N] bool, the side is the true camera's; else the predicted one's.
    """

    instance_id: np.ndarray
    truth: np.ndarray
    error: np.ndarray
    error_swapped: np.ndarray
    camera_error_deg: np.ndarray
    camera_error_deg_flipped: np.ndarray
    iou: np.ndarray
    view: np.ndarray
    view_is_true: np.ndarray

    def __len__(self) -> int:
        return len(self.instance_id)

    def take(self, index: Sequence[int] | np.ndarray) -> PerAnimal:
        """The animals at int positions or where a mask is true."""
        return PerAnimal(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def right(self, *, mended: bool = False) -> np.ndarray:
        """Keypoints that are right [N], as a mean over the AUC's thresholds.

        Args:
            mended: count an animal that is `flipped` with its names swapped.
        """
        error = self.error
        if mended:
            error = np.where(self.flipped[:, None], self.error_swapped, error)
        return (error[..., None] < np.asarray(THRESHOLDS)).mean(-1).sum(1)

    @property
    def keypoints(self) -> np.ndarray:
        """How many keypoints count [N]."""
        return np.isfinite(self.error).sum(1)

    @property
    def flipped(self) -> np.ndarray:
        """bool [N]: the mean error falls when the predicted left and right names are swapped."""
        return np.nansum(self.error_swapped, 1) < np.nansum(self.error, 1) * (1 - 1e-9)

    def write(self, path: Path) -> None:
        """Write the animals to a Parquet file, whole or not at all."""
        import pandas as pd

        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: list(value) if value.ndim > 1 else value for name, value in columns.items()}
        with atomic_path(path) as temporary:
            pd.DataFrame(plain).to_parquet(temporary, index=False)

    @classmethod
    def read(cls, path: Path) -> PerAnimal:
        """Read what `write` wrote.

        Raises:
            UserError: the file holds something else.
        """
        import pandas as pd

        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            raise UserError(f"expected the animals of an evaluation in {path}; found {error}") from None
        absent = [field.name for field in fields(cls) if field.name not in table]
        if absent:
            raise UserError(f"expected the animals of an evaluation in {path}; missing {absent}")
        columns = {}
        for field in fields(cls):
            values = table[field.name].to_numpy()
            if field.name.startswith("error"):
                values = np.array([np.asarray(row, np.float64) for row in values]).reshape(len(table), -1)
            columns[field.name] = values
        return cls(**columns)


def per_animal(result: ShapeResult, keypoint_flip: np.ndarray, iou: np.ndarray | None = None) -> PerAnimal:
    """What a result says of each of its N animals.

    Args:
        result: predictions beside the truth.
        keypoint_flip: [K], the keypoint on the other side.
        iou: [N], NaN where unknown; None: no masks.
    """
    counts = result.visible if result.visible.dtype == bool else result.visible == 2
    errors = [
        np.where(counts, keypoint_errors(xy, result.xy_true, result.box_side), np.nan)
        for xy in (result.xy, result.xy[:, keypoint_flip])
    ]
    true_view, known = view_names(result.camera_true), np.isfinite(result.camera_true).all(-1)
    truth = [
        hashlib.sha256(np.where(seen[:, None], xy, -1.0).tobytes()).hexdigest()[:12]
        for xy, seen in zip(np.asarray(result.xy_true, np.float64), counts)
    ]
    return PerAnimal(
        instance_id=np.array(result.instance_ids, dtype=object),
        truth=np.array(truth, dtype=object),
        error=errors[0],
        error_swapped=errors[1],
        camera_error_deg=camera_errors(result.camera, result.camera_true),
        camera_error_deg_flipped=camera_errors(flipped_camera(result.camera), result.camera_true),
        iou=np.full(len(result.xy), np.nan) if iou is None else np.asarray(iou, np.float64),
        view=np.where(known, true_view, view_names(result.camera)),
        view_is_true=known,
    )


def ratio(terms: np.ndarray, totals: np.ndarray, samples: int, scale: float = 100.0) -> dict[str, Any]:
    """Sum over sum of N animals with its bootstrap interval, ``{value, interval, animals}``.

    Args:
        terms: [N]; where not finite, the animal is left out.
        totals: [N].
        samples: bootstrap draws.
        scale: factor of value and interval.
    """
    known = np.isfinite(terms) & (totals > 0)
    terms, totals = terms[known], totals[known]
    if not len(terms):
        return {"value": None, "interval": None, "animals": 0}
    low, high = bootstrap_interval(terms, totals, samples)
    value = float(terms.sum() / totals.sum())
    return {
        "value": scale * value, "interval": [scale * float(low), scale * float(high)], "animals": len(terms)
    }  # fmt: skip


def breakdown(animals: PerAnimal, keypoint_names: Sequence[str], samples: int = 2000) -> dict[str, Any]:
    """PCK curve, mask IoU, keypoints, viewpoints and flips, each with 95 % bootstrap intervals.

    Args:
        animals: N of them.
        keypoint_names: K names.
        samples: bootstrap draws.

    Returns:
        JSON-able: ``pck_curve`` (thresholds, values, interval), ``miou`` with ``miou_interval`` and
        ``masks`` (percent; None without masks), ``by_keypoint``, ``by_view``, ``flip``.
    """
    counts = np.isfinite(animals.error)
    curve = (animals.error[..., None] < np.asarray(CURVE)).sum(1)
    low, high = bootstrap_interval(curve, counts.sum(1), samples)
    right = (animals.error[..., None] < np.asarray(THRESHOLDS)).mean(-1)
    iou = ratio(animals.iou, np.ones(len(animals)), samples)
    keypoints = {}
    for k, name in enumerate(keypoint_names):
        error = animals.error[counts[:, k], k]
        keypoints[name] = {
            "auc": ratio(right[:, k], counts[:, k].astype(float), samples),
            "median_error_percent": 100 * float(np.median(error)) if len(error) else None,
        }
    return {
        "pck_curve": {
            "thresholds": CURVE,
            "values": 100 * curve.sum(0) / max(counts.sum(), 1),
            "interval": [100 * low, 100 * high],
        },
        "miou": iou["value"],
        "miou_interval": iou["interval"],
        "masks": iou["animals"],
        "by_keypoint": keypoints,
        "by_view": {view: _view(animals, view, samples) for view in VIEWS},
        "views_from_true_cameras": int(animals.view_is_true.sum()),
        "flip": flips(animals, samples),
    }


def _view(animals: PerAnimal, view: str, samples: int) -> dict[str, Any]:
    some = animals.take(np.flatnonzero(in_view(animals.view, view)))
    every = np.ones(len(some))
    return {
        "animals": len(some),
        "auc": ratio(some.right(), some.keypoints, samples),
        "camera_error_deg": ratio(some.camera_error_deg, every, samples, 1.0),
        "miou": ratio(some.iou, every, samples),
    }


def flips(animals: PerAnimal, samples: int = 2000) -> dict[str, Any]:
    """How much of the error is the left-right flip.

    An animal counts as flipped where the better of two answers is taken, so that the mended figures are
    what knowing the side would bring at most, and chance makes some animals better too: ``halved`` counts
    those whose error falls to less than half.

    Args:
        animals: N of them.
        samples: bootstrap draws.

    Returns:
        ``keypoints``: shares of animals (percent) and the AUC with their names swapped; ``camera``: the
        same of cameras, and the mean error with them flipped.
    """
    every = np.ones(len(animals))
    swapped, kept = np.nansum(animals.error_swapped, 1), np.nansum(animals.error, 1)
    plain, other = animals.camera_error_deg, animals.camera_error_deg_flipped
    known = np.where(np.isfinite(plain), 1.0, np.nan)

    def mean(values: np.ndarray, scale: float = 100.0) -> dict[str, Any]:
        return ratio(values, every, samples, scale)

    return {
        "keypoints": {
            "share_percent": mean(animals.flipped.astype(float)),
            "share_halved_percent": mean((swapped < 0.5 * kept).astype(float)),
            "auc": ratio(animals.right(), animals.keypoints, samples),
            "auc_mended": ratio(animals.right(mended=True), animals.keypoints, samples),
        },
        "camera": {
            "share_percent": mean((other < plain) * known),
            "share_halved_percent": mean((other < 0.5 * plain) * known),
            "error_deg": mean(plain, 1.0),
            "error_deg_mended": mean(np.fmin(plain, other), 1.0),
        },
    }
