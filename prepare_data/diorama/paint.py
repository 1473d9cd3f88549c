"""Light on the animals' skin, and their pixels into the picture."""

from __future__ import annotations

import cv2
import numba as nb
import numpy as np

from acsm.renderer import rasterize
from prepare_data.diorama.body import bounds

SUPERSAMPLE = 2


@nb.njit(cache=True, nogil=True, fastmath=True)
def light_vertices(albedo, normals, openness, sun, sky, bounce, towards_sun, towards_eye, gloss):
    """Colours [V, 3]: sun, sky from above, light from the ground, and a highlight."""
    out = np.empty(albedo.shape, np.float32)
    half = towards_sun + towards_eye
    half = half / np.sqrt((half * half).sum())
    for i in range(albedo.shape[0]):
        n = normals[i]
        direct = max(n[0] * towards_sun[0] + n[1] * towards_sun[1] + n[2] * towards_sun[2], 0.0)
        shine = max(n[0] * half[0] + n[1] * half[1] + n[2] * half[2], 0.0)
        shine = gloss * shine**24 * openness[i]
        up = 0.5 + 0.5 * n[2]
        for c in range(3):
            light = (
                sun[c] * direct * (0.3 + 0.7 * openness[i])
                + (sky[c] * up + bounce[c] * (1 - up)) * openness[i]
            )
            out[i, c] = albedo[i, c] * light + shine * sun[c]
    return out


@nb.njit(cache=True, nogil=True, fastmath=True)
def _blend(picture, alpha, top, left, face_ids, barycentrics, faces, colours, factor):
    share = 1.0 / (factor * factor)
    for i in range(face_ids.shape[0] // factor):
        y = top + i
        if y < 0 or y >= picture.shape[0]:
            continue
        for j in range(face_ids.shape[1] // factor):
            x = left + j
            if x < 0 or x >= picture.shape[1]:
                continue
            r = g = b = a = 0.0
            for p in range(factor * i, factor * (i + 1)):
                for q in range(factor * j, factor * (j + 1)):
                    f = face_ids[p, q]
                    if f < 0:
                        continue
                    a += share
                    for corner in range(3):
                        w = barycentrics[p, q, corner] * share
                        v = faces[f, corner]
                        r += w * colours[v, 0]
                        g += w * colours[v, 1]
                        b += w * colours[v, 2]
            if a > 0:
                picture[y, x, 0] = picture[y, x, 0] * (1 - a) + r
                picture[y, x, 1] = picture[y, x, 1] * (1 - a) + g
                picture[y, x, 2] = picture[y, x, 2] * (1 - a) + b
                alpha[y, x] = a


def image_window(xy: np.ndarray, height: int, width: int) -> tuple[int, int, int] | None:
    """Smallest square (left, top, side) of whole pixels around the part of xy_image in view."""
    lowest, highest = bounds(xy)
    low = np.floor(np.maximum(lowest, [-0.5, -0.5]) + 0.5).astype(int)
    high = np.ceil(np.minimum(highest, [width - 0.5, height - 0.5]) + 0.5).astype(int)
    side = int((high - low).max())
    if (high <= low).any():
        return None
    return int(low[0]), int(low[1]), max(side, 1)


def to_window_ndc(projected: np.ndarray, window: tuple[int, int, int]) -> np.ndarray:
    """xy_image and depth [V, 3] to NDC of a window (left, top, side)."""
    left, top, side = window
    out = projected.copy()
    out[:, 0] = (projected[:, 0] - left + 0.5) * (2.0 / side) - 1
    out[:, 1] = (projected[:, 1] - top + 0.5) * (2.0 / side) - 1
    return out


def draw_mesh(picture: np.ndarray, projected: np.ndarray, faces: np.ndarray, colours: np.ndarray):
    """Draws a lit mesh into a picture, in place, antialiased.

    Args:
        picture: float32 [H, W, 3].
        projected: [V, 3], xy_image and depth.
        faces: int64 [F, 3].
        colours: float32 [V, 3].

    Returns:
        alpha float32 [H, W]; the window (left, top, side); depth float32 of the window at
        `SUPERSAMPLE` times its side. None if the mesh is out of view.
    """
    height, width = picture.shape[:2]
    window = image_window(projected[:, :2], height, width)
    if window is None:
        return None
    fragments = rasterize(to_window_ndc(projected, window)[None], faces, SUPERSAMPLE * window[2])
    alpha = np.zeros((height, width), np.float32)
    _blend(
        picture, alpha, window[1], window[0], fragments.face_ids[0], fragments.barycentrics[0],
        faces, colours, SUPERSAMPLE,
    )  # fmt: skip
    return alpha, window, fragments.depth[0]


def cast_shadow(
    picture: np.ndarray, projected: np.ndarray, faces: np.ndarray, strength: float, softness: float
) -> None:
    """Darkens the ground under a mesh that was flattened onto it, in place.

    Args:
        picture: float32 [H, W, 3].
        projected: [V, 3], xy_image and depth of the flattened vertices.
        faces: int64 [F, 3].
        strength: 0 to 1.
        softness: blur in pixels.
    """
    height, width = picture.shape[:2]
    window = image_window(projected[:, :2], height, width)
    if window is None:
        return
    left, top, side = window
    size = int(np.clip(side // 2, 8, 96))
    seen = rasterize(to_window_ndc(projected, window)[None], faces, size).face_ids[0] >= 0
    shade = cv2.resize(seen.astype(np.float32), (side, side), interpolation=cv2.INTER_LINEAR)
    pad = int(np.ceil(2 * softness)) + 1
    shade = cv2.copyMakeBorder(shade, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=0)
    shade = cv2.GaussianBlur(shade, (0, 0), max(softness, 0.5))
    y0, y1 = max(top - pad, 0), min(top + side + pad, height)
    x0, x1 = max(left - pad, 0), min(left + side + pad, width)
    part = shade[y0 - top + pad : y1 - top + pad, x0 - left + pad : x1 - left + pad]
    picture[y0:y1, x0:x1] *= (1 - strength * part)[..., None]
