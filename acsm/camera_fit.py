"""Cameras fitted to keypoints: scaled orthography with the template at rest.

Keypoints alone leave a trap for a single camera: a thin animal seen from the front left and from the
back left projects to nearly the same points (the depth reversal of orthography), and between the two
lies a ridge that gradients do not cross. A fit can look at both sides of the ridge.
"""

from __future__ import annotations

import numpy as np

from wildshape.geometry import box_side

LEAST_KEYPOINTS = 5
STARTS = 8


def fit_cameras(
    points: np.ndarray, xy_ndc: np.ndarray, weight: np.ndarray, rounds: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least-squares weak-perspective cameras, the best from starts all around the animal.

    Alternates between the depths that a rotation gives and the rotation that fits the points at
    these depths (orthogonal Procrustes), as iterated scaled orthography does.

    Args:
        points: keypoints of the template at rest [K, 3].
        xy_ndc: observed keypoints [N, K, 2].
        weight: [N, K], 0 where unseen.
        rounds: alternations from each start; the best goes on for four times as many.

    Returns:
        Cameras [N, 7] and the root of the weighted mean squared error, NDC [N]; infinite with fewer
        than five keypoints, which determine a camera poorly or not at all.
    """
    from scipy.spatial.transform import Rotation

    problem = _Problem(points, xy_ndc, weight)
    upright = Rotation.from_rotvec([np.pi / 2, 0, 0])
    best = np.tile(upright.as_matrix(), (len(xy_ndc), 1, 1))
    best_error = np.full(len(xy_ndc), np.inf)
    for azimuth in np.arange(STARTS) * 2 * np.pi / STARTS:
        start = (Rotation.from_rotvec([0, azimuth, 0]) * upright).as_matrix()
        rotation = problem.improve(np.tile(start, (len(xy_ndc), 1, 1)), rounds)
        error = problem.error(rotation)
        better = error < best_error
        best[better], best_error[better] = rotation[better], error[better]
    best = problem.improve(best, 4 * rounds)
    camera = np.zeros((len(best), 7))
    camera[:, 0] = problem.scale(best)
    shift = np.einsum("nij,nj->ni", best[:, :2], problem.shape_mean)
    camera[:, 1:3] = problem.image_mean - camera[:, :1] * shift
    if len(best):
        camera[:, 3:] = Rotation.from_matrix(best).as_quat()[:, [3, 0, 1, 2]]
    error = problem.error(best)
    error[(problem.weight > 0).sum(1) < LEAST_KEYPOINTS] = np.inf
    return camera, error


class _Problem:
    """Centred points of N animals and the two steps of the alternation."""

    def __init__(self, points: np.ndarray, xy_ndc: np.ndarray, weight: np.ndarray) -> None:
        self.weight = np.asarray(weight, np.float64)
        self.total = self.weight.sum(1).clip(min=1e-9)
        seen = self.weight[..., None] > 0
        image = np.where(seen, xy_ndc, 0.0)
        share = self.weight / self.total[:, None]
        self.shape_mean = share @ points
        self.image_mean = np.einsum("nk,nkd->nd", share, image)
        self.shape = points[None] - self.shape_mean[:, None]
        self.image = np.where(seen, image - self.image_mean[:, None], 0.0)

    def scale(self, rotation: np.ndarray) -> np.ndarray:
        """Best scale [N] for rotations [N, 3, 3]."""
        return self._scale(self._flat(rotation))

    def _flat(self, rotation: np.ndarray) -> np.ndarray:
        return self.shape @ rotation[:, :2].transpose(0, 2, 1)

    def _scale(self, flat: np.ndarray) -> np.ndarray:
        power = np.einsum("nk,nki,nki->n", self.weight, flat, flat).clip(min=1e-12)
        return (np.einsum("nk,nki,nki->n", self.weight, flat, self.image) / power).clip(min=1e-3)

    def error(self, rotation: np.ndarray) -> np.ndarray:
        """Root of the weighted mean squared reprojection error [N]."""
        flat = self._flat(rotation)
        squared = ((self._scale(flat)[:, None, None] * flat - self.image) ** 2).sum(-1)
        return np.sqrt((self.weight * squared).sum(1) / self.total)

    def improve(self, rotation: np.ndarray, rounds: int) -> np.ndarray:
        """Rotations [N, 3, 3] after some alternations."""
        for _ in range(rounds):
            depth = self.shape @ rotation[:, 2, :, None]
            scale = self.scale(rotation)[:, None, None]
            target = np.concatenate((self.image, scale * depth), axis=-1)
            moment = (target * self.weight[..., None]).transpose(0, 2, 1) @ self.shape
            u, _, vt = np.linalg.svd(moment)
            u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
            rotation = u @ vt
        return rotation


def guiding_cameras(
    points: np.ndarray,
    xy_image: np.ndarray,
    weight: np.ndarray,
    box_xyxy: np.ndarray,
    tolerance: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """Fitted cameras in image pixels, and how far to trust each.

    Args:
        points: keypoints of the template at rest [K, 3].
        xy_image: observed keypoints [N, K, 2].
        weight: [N, K], 0 where unseen.
        box_xyxy: [N, 4].
        tolerance: error (NDC of the box's square) at which trust falls to a half.

    Returns:
        Cameras [N, 7] and trust [N] in 0..1.
    """
    half = box_side(box_xyxy)[:, None] / 2
    centre = (box_xyxy[:, :2] + box_xyxy[:, 2:]) / 2
    xy_ndc = (xy_image - centre[:, None]) / half[:, None]
    camera, error = fit_cameras(points, xy_ndc, weight)
    camera[:, :3] *= half
    camera[:, 1:3] += centre
    return camera, 1 / (1 + (error / tolerance) ** 2)
