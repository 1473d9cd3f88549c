"""The camera that takes a picture: a pinhole far enough away for the perspective to be mild.

World frame of a scene: z up, ground z = 0. Camera frame: x right, y down, z away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np

from prepare_data.diorama.pose import rotation_xyz


@dataclass(frozen=True)
class Viewpoint:
    """A pinhole camera.

    Attributes:
        rotation: [3, 3], world to camera.
        position: [3], in the world.
        focal: in image pixels; centre: [2], principal point in image pixels.
    """

    rotation: np.ndarray
    position: np.ndarray
    focal: float
    centre: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points [..., 3] to xy_image and depth, [..., 3]."""
        flat = np.ascontiguousarray(points, dtype=np.float64).reshape(-1, 3)
        out = _project(flat, self.rotation, self.position, self.focal, self.centre)
        return out.reshape(np.shape(points))

    def horizon(self) -> tuple[float, float]:
        """The horizon's row at the principal column, and its slope (rows per column)."""
        up = self.rotation @ np.array([0.0, 0.0, 1.0])
        # points of the image whose ray is level: (x, y, f) . up = 0
        level = -up[2] * self.focal / up[1]
        return float(self.centre[1] + level), float(-up[0] / up[1])

    def raised(self, ground: np.ndarray, elevation: float) -> Viewpoint:
        """The camera lifted to an elevation (degrees) about a point that keeps its place and size.

        A camera at or under the level of the ground sees no shadow on it; pictures look wrong
        without one.
        """
        here = self.project(ground[None])[0]
        right, forward = self.rotation[0], self.rotation[2]
        lift = np.deg2rad(elevation) - np.arcsin(np.clip(-forward[2], -1, 1))
        if lift <= 0:
            return self
        c, s = np.cos(lift), np.sin(lift)
        down = self.rotation[1]
        rotation = np.stack([right, c * down - s * forward, s * down + c * forward])
        lifted = Viewpoint(rotation, ground - here[2] * rotation[2], self.focal, self.centre)
        return Viewpoint(rotation, lifted.position, self.focal, here[:2])


@nb.njit(cache=True, nogil=True, fastmath=True)
def _project(points, rotation, position, focal, centre):
    out = np.empty(points.shape)
    for i in range(points.shape[0]):
        x, y, z = (
            points[i, 0] - position[0],
            points[i, 1] - position[1],
            points[i, 2] - position[2],
        )
        depth = max(rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z, 1e-3)
        out[i, 0] = (rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z) / depth * focal + centre[
            0
        ]
        out[i, 1] = (rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z) / depth * focal + centre[
            1
        ]
        out[i, 2] = depth
    return out


def look_at_rotation(azimuth: float, elevation: float, roll: float) -> np.ndarray:
    """World-to-camera rotation; angles in degrees.

    Azimuth 0 looks at the animal's left side (its head at the image's left), 90 from behind
    (the world's +y), 180 at its right side; elevation is the camera's height above the level.
    """
    a, e = np.deg2rad([azimuth, elevation])
    towards = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)])
    forward = -towards
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    return rotation_xyz(np.array([0.0, 0.0, roll])) @ np.stack([right, down, forward])


def sample_azimuth(rng: np.random.Generator, variety: float) -> float:
    """Side and three-quarter views, both ways, and a share of views from anywhere."""
    if rng.random() < 0.6 * variety:
        return float(rng.uniform(-180, 180))
    return float(rng.choice([0.0, 180.0]) + np.clip(rng.normal(0, 16 + 26 * variety), -75, 75))


def fit_weak_perspective(points: np.ndarray, xy_image: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Least-squares scale and translation for a known rotation.

    Args:
        points: [K, 3] in the template's frame.
        xy_image: [K, 2].
        rotation: [3, 3], template frame to camera frame.

    Returns:
        camera [7]: s, tx, ty, qw, qx, qy, qz with xy_image = s (R X)_xy + t.
    """
    flat = (points @ rotation.T)[:, :2]
    mean_flat, mean_image = flat.mean(0), xy_image.mean(0)
    centred = flat - mean_flat
    scale = float((centred * (xy_image - mean_image)).sum() / (centred**2).sum())
    return np.concatenate([[scale], mean_image - scale * mean_flat, quaternion(rotation)])


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix [3, 3]."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    q = np.array([w, x, y, z])
    return -q if w < 0 else q
