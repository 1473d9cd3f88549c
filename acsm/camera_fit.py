"""Cameras fitted to keypoints in closed form: scaled orthography with the template at rest.

Keypoints alone leave a trap for a single camera: a thin animal seen from the front left and from the
back left projects to nearly the same points (the depth reversal of orthography), and between the two
lies a ridge that gradients do not cross. A fit looks at both sides of the ridge.
"""

from __future__ import annotations

import numpy as np

from wildshape.geometry import box_side

LEAST_KEYPOINTS = 5


def fit_cameras(
    points: np.ndarray, xy_ndc: np.ndarray, weight: np.ndarray, rounds: int = 12
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least-squares weak-perspective cameras, the better of both depth reversals.

    Alternates between the depths that a rotation gives and the rotation that fits the points with
    these depths (orthogonal Procrustes; DeMenthon and Davis' POS with a fixed shape), from several
    starts around the animal.

    Args:
        points: keypoints of the template at rest [K, 3].
        xy_ndc: observed keypoints [N, K, 2].
        weight: [N, K], 0 where unseen.
        rounds: alternations.

    Returns:
        Cameras [N, 7] and the root of the weighted mean squared error, NDC [N]; infinite with fewer
        than five keypoints, which determine a camera poorly or not at all.
    """
    from scipy.spatial.transform import Rotation

    count = len(xy_ndc)
    weight = np.asarray(weight, np.float64)
    total = weight.sum(1).clip(min=1e-9)
    shape_mean = np.einsum("nk,kd->nd", weight, points) / total[:, None]
    image_mean = np.einsum("nk,nkd->nd", weight, np.where(weight[..., None] > 0, xy_ndc, 0))
    image_mean /= total[:, None]
    shape = points[None] - shape_mean[:, None]  # [N, K, 3]
    image = np.where(weight[..., None] > 0, xy_ndc - image_mean[:, None], 0)
    best_error = np.full(count, np.inf)
    best = np.zeros((count, 7))
    best[:, 0], best[:, 3] = 1, 1
    upright = Rotation.from_rotvec([np.pi / 2, 0, 0])
    for azimuth in np.arange(8) * np.pi / 4:
        start = (Rotation.from_rotvec([0, azimuth, 0]) * upright).as_matrix()
        rotation = np.broadcast_to(start, (count, 3, 3))
        for _ in range(rounds):
            seen = np.einsum("nij,nkj->nki", rotation, shape)
            power = (weight[..., None] * seen[..., :2] ** 2).sum((1, 2)).clip(min=1e-12)
            scale = (weight[..., None] * seen[..., :2] * image).sum((1, 2)) / power
            scale = scale.clip(min=1e-3)
            target = np.concatenate((image, scale[:, None, None] * seen[..., 2:]), axis=-1)
            moment = np.einsum("nk,nki,nkj->nij", weight, target, shape)
            u, _, vt = np.linalg.svd(moment)
            u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
            rotation = u @ vt
        seen = np.einsum("nij,nkj->nki", rotation, shape)[..., :2]
        power = (weight[..., None] * seen**2).sum((1, 2)).clip(min=1e-12)
        scale = ((weight[..., None] * seen * image).sum((1, 2)) / power).clip(min=1e-3)
        squared = ((scale[:, None, None] * seen - image) ** 2).sum(-1)
        error = np.sqrt((weight * squared).sum(1) / total)
        better = error < best_error
        shift = image_mean - scale[:, None] * np.einsum("nij,nj->ni", rotation, shape_mean)[:, :2]
        quaternion = Rotation.from_matrix(rotation).as_quat()[:, [3, 0, 1, 2]]
        candidate = np.concatenate((scale[:, None], shift, quaternion), axis=1)
        best[better], best_error[better] = candidate[better], error[better]
    best_error[(weight > 0).sum(1) < LEAST_KEYPOINTS] = np.inf
    return best, best_error


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
    camera, error = fit_cameras(points, (xy_image - centre[:, None]) / half[:, None], weight)
    camera[:, :3] *= half
    camera[:, 1:3] += centre
    return camera, 1 / (1 + (error / tolerance) ** 2)
