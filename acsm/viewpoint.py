"""From which side an animal is seen, and the left-right flip: the mistake that keypoints forgive."""

from __future__ import annotations

import numpy as np

VIEWS = ("side", "front_back", "left", "right", "front", "back")
"""``side`` is left and right together, ``front_back`` front and back together."""


def looking_along(camera: np.ndarray) -> np.ndarray:
    """The directions [..., 3] in which cameras [..., 7] look, in the template's frame.

    The last row of the rotation; only the quaternion counts, so the camera's frame does not matter.
    """
    w, x, y, z = np.moveaxis(np.asarray(camera, np.float64)[..., 3:], -1, 0)
    return np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=-1)


def azimuth_deg(camera: np.ndarray) -> np.ndarray:
    """The way along which the viewer looks, about the template's up axis, in degrees.

    Args:
        camera: [N, 7]; only the quaternion counts, so the frame does not matter.

    Returns:
        [N] in -180..180: 0 looks into the animal's face, 90 onto its right side, -90 onto its left,
        180 from behind; NaN where the camera is NaN.
    """
    direction = looking_along(camera)
    return np.degrees(np.arctan2(direction[..., 0], direction[..., 1]))


def view_names(camera: np.ndarray) -> np.ndarray:
    """Which side is seen [N], a quarter of the circle each: front, back, left, right; "" for NaN."""
    azimuth = azimuth_deg(camera)
    names = np.array(["front", "right", "back", "left"], dtype=object)
    quarter = np.floor(np.nan_to_num(azimuth) / 90 + 0.5).astype(int) % 4
    return np.where(np.isfinite(azimuth), names[quarter], "")


def in_view(names: np.ndarray, view: str) -> np.ndarray:
    """bool [N]: which animals of `view_names` belong to one of `VIEWS`."""
    groups = {"side": ("left", "right"), "front_back": ("front", "back")}
    return np.isin(np.asarray(names, dtype=str), groups.get(view, (view,)))


def flipped_camera(camera: np.ndarray) -> np.ndarray:
    """The camera [..., 7] that sees the mirrored animal where this one sees the animal.

    With X mirrored in x = 0 and the depth turned round, R becomes D R M: another rotation, under which a
    symmetrical template projects to the very same picture with left and right names swapped. It takes the
    front for the back, above for below, and a view from straight aside for itself.
    """
    camera = np.asarray(camera, np.float64)
    w, x, y, z = np.moveaxis(camera[..., 3:], -1, 0)
    return np.concatenate([camera[..., :3], np.stack([y, -z, w, -x], axis=-1)], axis=-1)
