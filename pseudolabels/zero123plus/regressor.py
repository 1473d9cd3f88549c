"""From unsupervised points to named keypoints: a linear map, fitted on the labelled animals.

StableKeypoints evaluates its points so (Hedlin et al., CVPR 2024, section 4.1): every named coordinate is a
linear function of all the unsupervised ones. Ours adds what few labels need: a bias, ridge regression whose
strength is chosen by leave-one-out error, weights, and a variant that does not depend on the image's turn.
NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wildshape.errors import UserError

STRENGTHS = tuple(10.0**power for power in np.arange(-6, 3.5, 0.5))
"""Ridge strengths tried, relative to the mean variance of the inputs times the number of animals."""
LEAST_SPREAD = 0.05
"""Of an animal's points, in crop sides, from which they have a main axis; nearer ones have no frame."""
Frame = Literal["box", "points"]


def fit_published(points: np.ndarray, targets: np.ndarray, visible: np.ndarray | None = None) -> np.ndarray:
    """The published regressor: least squares without bias on coordinates in 0..1, less .5.

    Args:
        points: [N, 2 K].
        targets: [N, 2 J].
        visible: [N, 2 J], non-zero where a target is known; each column is then fitted on its own rows.
            None: all are.

    Returns:
        [2 K, 2 J].
    """
    x, y = np.asarray(points, float) - 0.5, np.asarray(targets, float) - 0.5
    if visible is None:
        return np.linalg.lstsq(x, y, rcond=None)[0]
    weights = np.zeros((x.shape[1], y.shape[1]))
    for column in range(y.shape[1]):
        rows = np.asarray(visible)[:, column] > 0
        weights[:, column] = np.linalg.lstsq(x[rows], y[rows, column], rcond=None)[0]
    return weights


@dataclass(frozen=True)
class Regressor:
    """A fitted map from K points to J named keypoints.

    Attributes:
        frame: ``box``: coordinates in the crop, which know left from right of the picture and up from
            down; ``points``: in the frame of the points themselves (their mean, main axis and spread), so
            that a turned picture gives turned keypoints. Points that lie closer than `LEAST_SPREAD` do not
            turn it, and it is not smaller than that.
        points_mean: [2 K], subtracted from the inputs.
        weights: [2 K, J, 2].
        bias: [J, 2].
        strength: ridge strength of each keypoint [J], NaN where it has no labels.
        error: leave-one-out error of each keypoint [J], mean distance in crop sides; NaN likewise.
    """

    frame: Frame
    points_mean: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    strength: np.ndarray
    error: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Named keypoints [N, J, 2] from points [N, K, 2], both in 0..1 of the crop."""
        points = np.asarray(points, float)
        centre, turn, scale = _frames(points, self.frame)
        local = _to_frame(points, centre, turn, scale)
        flat = local.reshape(len(local), -1) - self.points_mean
        keypoints = np.einsum("ni,ijd->njd", flat, self.weights) + self.bias
        return _from_frame(keypoints, centre, turn, scale)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, to be written as JSON."""
        arrays = ("points_mean", "weights", "bias", "strength", "error")
        return {"frame": self.frame, **{name: getattr(self, name).tolist() for name in arrays}}

    @classmethod
    def from_dict(cls, node: Mapping[str, Any]) -> Regressor:
        """What `as_dict` gave."""
        arrays = ("points_mean", "weights", "bias", "strength", "error")
        return cls(node["frame"], **{name: np.asarray(node[name], float) for name in arrays})


def fit_regressor(
    points: np.ndarray,
    keypoints: np.ndarray,
    weight: np.ndarray,
    frame: Frame = "box",
    strengths: tuple[float, ...] = STRENGTHS,
) -> Regressor:
    """Ridge regression of each keypoint on all points, its strength chosen by leave-one-out error.

    Args:
        points: [N, K, 2] in 0..1 of the crop.
        keypoints: [N, J, 2] likewise.
        weight: [N, J], 0 where a keypoint is not known (its coordinates may be NaN).
        frame: see `Regressor`.
        strengths: tried for each keypoint.

    Returns:
        The regressor; a keypoint that no animal has stays at the mean of the points.

    Raises:
        UserError: fewer than two animals, or shapes that do not fit.
    """
    points, keypoints, weight = (np.asarray(v, float) for v in (points, keypoints, weight))
    _check(points, keypoints, weight)
    centre, turn, scale = _frames(points, frame)
    x = _to_frame(points, centre, turn, scale).reshape(len(points), -1)
    y = _to_frame(np.where(weight[..., None] > 0, keypoints, 0.0), centre, turn, scale)
    mean, joints = x.mean(0), keypoints.shape[1]
    weights, bias = np.zeros((x.shape[1], joints, 2)), np.zeros((joints, 2))
    strength, error = np.full(joints, np.nan), np.full(joints, np.nan)
    for joint in range(joints):
        rows = weight[:, joint] > 0
        if not rows.any():
            continue
        fitted = _ridge(x[rows] - mean, y[rows, joint], weight[rows, joint], scale[rows], strengths)
        weights[:, joint], bias[joint], strength[joint], error[joint] = fitted
    return Regressor(frame, mean, weights, bias, strength, error)


def published_regressor(points: np.ndarray, keypoints: np.ndarray, weight: np.ndarray) -> Regressor:
    """`fit_published` in the frame of the box; arguments and errors as of `fit_regressor`."""
    points, keypoints, weight = (np.asarray(v, float) for v in (points, keypoints, weight))
    _check(points, keypoints, weight)
    x = points.reshape(len(points), -1)
    y = np.where(weight[..., None] > 0, keypoints, 0.5).reshape(len(points), -1)
    joints = keypoints.shape[1]
    weights = fit_published(x, y, np.repeat(weight, 2, axis=1)).reshape(-1, joints, 2)
    error = np.full(joints, np.nan)
    for joint in range(joints):
        rows = weight[:, joint] > 0
        if rows.sum() < 2:
            continue
        left, values, _ = np.linalg.svd(x[rows] - 0.5, full_matrices=False)
        leverage = (left[:, values > values.max() * 1e-12] ** 2).sum(1)
        residual = y.reshape(len(y), joints, 2)[rows, joint] - 0.5 - (x[rows] - 0.5) @ weights[:, joint]
        error[joint] = (np.linalg.norm(residual, axis=1) / np.clip(1 - leverage, 1e-6, None)).mean()
    strength = np.where(weight.any(0), 0.0, np.nan)
    return Regressor("box", np.zeros(x.shape[1]), weights, np.zeros((joints, 2)), strength, error)


def _check(points: np.ndarray, keypoints: np.ndarray, weight: np.ndarray) -> None:
    if len(points) < 2 or points.shape[0] != keypoints.shape[0] or weight.shape != keypoints.shape[:2]:
        raise UserError(
            "the regressor: expected points [N, K, 2], keypoints [N, J, 2] and weights [N, J] of at least "
            f"2 labelled animals; found {list(points.shape)}, {list(keypoints.shape)}, {list(weight.shape)}"
        )


def _ridge(
    x: np.ndarray, y: np.ndarray, weight: np.ndarray, scale: np.ndarray, strengths: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Weighted ridge with a free bias; all strengths by one decomposition, leave-one-out in closed form."""
    share = weight / weight.sum()
    x_mean, y_mean = share @ x, share @ y
    root = np.sqrt(weight)[:, None]
    left, values, right = np.linalg.svd(root * (x - x_mean), full_matrices=False)
    target = root * (y - y_mean)
    projected = left.T @ target
    unit = max(float((values**2).sum()) / max(x.shape[1], 1), np.finfo(float).tiny)
    best: tuple[float, float, np.ndarray] | None = None
    for strength in strengths:
        shrink = values**2 / (values**2 + strength * unit)
        fitted = left @ (shrink[:, None] * projected)
        # The bias, free of the penalty, takes its own share of each row's leverage.
        leverage = (left**2 * shrink).sum(1) + share
        residual = (target - fitted) / root / np.clip(1 - leverage, 1e-6, None)[:, None]
        error = float(share @ (np.linalg.norm(residual, axis=1) * scale))
        if best is None or error < best[0]:
            solution = right.T @ ((values / (values**2 + strength * unit))[:, None] * projected)
            best = (error, strength, solution)
    assert best is not None
    error, strength, solution = best
    if len(x) == 1:
        error = float("nan")
    return solution, y_mean - x_mean @ solution, strength, error


def _frames(points: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre [N, 2], turn [N, 2, 2] (rows are axes) and scale [N] of each animal's frame."""
    count = len(points)
    if frame == "box":
        return np.full((count, 2), 0.5), np.tile(np.eye(2), (count, 1, 1)), np.ones(count)
    if frame != "points":
        raise ValueError(f"expected the frame box or points; found {frame}")
    centre = points.mean(1)
    local = points - centre[:, None]
    covariance = np.einsum("nki,nkj->nij", local, local) / points.shape[1]
    _, vectors = np.linalg.eigh(covariance)
    main = vectors[:, :, 1]
    # Of the main axis' two directions the one to the first points: a half turn of the picture turns it.
    order = np.linspace(1, -1, points.shape[1])
    sign = np.sign(np.einsum("k,nki,ni->n", order, local, main))
    main = main * np.where(sign == 0, 1.0, sign)[:, None]
    turn = np.stack([main, np.stack([-main[:, 1], main[:, 0]], 1)], 1)
    scale = spread(points)
    turn[scale < LEAST_SPREAD] = np.eye(2)
    return centre, turn, scale.clip(LEAST_SPREAD)


def spread(points: np.ndarray) -> np.ndarray:
    """How far the points [N, K, 2] of each animal lie from their mean: root mean square distance [N]."""
    points = np.asarray(points, float)
    return np.sqrt(((points - points.mean(1, keepdims=True)) ** 2).sum(2).mean(1))


def _to_frame(xy: np.ndarray, centre: np.ndarray, turn: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.einsum("nij,nkj->nki", turn, xy - centre[:, None]) / scale[:, None, None]


def _from_frame(xy: np.ndarray, centre: np.ndarray, turn: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.einsum("nji,nkj->nki", turn, xy * scale[:, None, None]) + centre[:, None]
