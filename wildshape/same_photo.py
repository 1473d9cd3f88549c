"""Do two pictures show the same photograph? The question put to their pixels.

A perceptual hash (`wildshape.near_duplicates`) is cheap and blunt: a crop or a new background moves
it as far as another photograph would. Pairs that it leaves open are decided here: SIFT features
(Lowe, IJCV 2004; compared as square roots of their bins, Arandjelovic and Zisserman, CVPR 2012) that
are each other's nearest and pass the ratio test, an affine map fitted to them by RANSAC, and the
correlation of the pixels under that map, cell by cell. The last step tells two shots of one animal
from two copies of one shot: the patches of its coat agree in both, its head, legs and ground do not.
A cell that is flat in one of the pictures says nothing, so that captions and cut-out animals do not
hide a copy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from wildshape.crops import ImageError, shown

SAME_PHOTOGRAPH = 0.8
"""Least agreement of two copies of one photograph."""
SAME_SHOOT = 0.6
"""Least agreement of two frames of one animal in nearly one pose, of which a head or a leg has moved."""

LONG_SIDE = 256
MIN_INLIERS = 12
MIN_CELLS = 12
MIN_OVERLAP = 0.4

_FEATURES = 250
_RATIO = 0.8
_TOLERANCE = 4.0
_CELL = 16
_CORRELATION = 0.8
_TEXTURE = 4.0
# SIFT's 4 x 4 x 8 bins seen in a mirror: rows across the keypoint's direction swap, angles change sign.
_MIRROR = np.arange(128).reshape(4, 4, 8)[::-1][:, :, -np.arange(8) % 8].ravel()


@dataclass(frozen=True)
class Features:
    """What a picture is compared by, about 120 kB.

    Attributes:
        grey: uint8 [H, W], longer side at most `LONG_SIDE`.
        xy: Keypoints float32 [N, 2] in pixels of `grey` (centre of the first pixel is 0, 0).
        descriptors: Square roots of SIFT bins, unit float16 [N, 128].
    """

    grey: np.ndarray
    xy: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Evidence:
    """How far two pictures agree.

    Attributes:
        inliers: Matched features that fit one affine map.
        overlap: Share of the smaller picture, on the scale of the first, that the two have in common.
        cells: Cells of the common area that have texture in both.
        agreement: Share of these whose pixels correlate.
    """

    inliers: int = 0
    overlap: float = 0.0
    cells: int = 0
    agreement: float = 0.0

    def same(self, least: float = SAME_PHOTOGRAPH) -> bool:
        """Whether that is enough, with `least` agreement asked for."""
        return (
            self.inliers >= MIN_INLIERS
            and self.overlap >= MIN_OVERLAP
            and self.cells >= MIN_CELLS
            and self.agreement >= least
        )


def read_features(path: str | os.PathLike[str]) -> Features:
    """Features of an image file; a JPEG file is decoded at reduced size.

    Raises:
        ImageError: naming the file, if it is missing or not an image.
    """
    try:
        with Image.open(path) as image:
            image.draft("L", (LONG_SIDE, LONG_SIDE))
            grey = np.array(shown(image).convert("L"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"expected an image in {path}; found {error}") from None
    return find_features(grey)


def find_features(image: np.ndarray) -> Features:
    """Features of a picture, RGB uint8 [H, W, 3] or grey uint8 [H, W]."""
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = LONG_SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    found, raw = cv2.SIFT.create(_FEATURES, enable_precise_upscale=True).detectAndCompute(grey, None)
    if raw is None:
        return Features(grey, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float16))
    descriptors = np.sqrt(raw / np.maximum(raw.sum(axis=1, keepdims=True), 1e-9)).astype(np.float16)
    return Features(grey, np.array([point.pt for point in found], np.float32), descriptors)


def mirrored(picture: Features) -> Features:
    """Features of the picture's mirror image, without looking for them again."""
    xy = picture.xy.copy()
    xy[:, 0] = picture.grey.shape[1] - 1 - xy[:, 0]
    return replace(
        picture,
        grey=np.ascontiguousarray(picture.grey[:, ::-1]),
        xy=xy,
        descriptors=picture.descriptors[:, _MIRROR],
    )


def compare(first: Features, second: Features) -> Evidence:
    """Lay the second picture on the first and say how far they agree. Deterministic."""
    a, b = match(first, second)
    if len(a) < MIN_INLIERS:
        return Evidence(len(a))
    affine, fits = cv2.estimateAffine2D(
        second.xy[b], first.xy[a], method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE, maxIters=1000
    )
    if affine is None or not believable(affine):
        return Evidence()
    inliers = int(fits.sum())
    if inliers < MIN_INLIERS:
        return Evidence(inliers)
    return _look(first.grey, second.grey, affine, inliers)


def match(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
    """Indices [M] into both of features that are each other's nearest, by a clear margin."""
    if min(len(first.xy), len(second.xy)) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    similarity = first.descriptors.astype(np.float32) @ second.descriptors.astype(np.float32).T
    nearest = similarity.argmax(axis=1)
    rows = np.arange(len(nearest))
    mutual = similarity.argmax(axis=0)[nearest] == rows
    best = similarity[rows, nearest]
    similarity[rows, nearest] = -1
    clear = 1 - best < _RATIO**2 * (1 - similarity.max(axis=1))
    chosen = np.flatnonzero(mutual & clear)
    return chosen, nearest[chosen]


def believable(affine: np.ndarray) -> bool:
    """Whether a map [2, 3] is one that copies undergo: no mirror, no great stretch, turn or zoom."""
    linear = affine[:, :2]
    if not np.isfinite(affine).all() or np.linalg.det(linear) <= 0:
        return False
    large, small = np.linalg.svd(linear, compute_uv=False)
    turn = np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
    return bool(large < 1.5 * small and small > 0.2 and large < 5 and abs(turn) < 20)


def _look(first: np.ndarray, second: np.ndarray, affine: np.ndarray, inliers: int) -> Evidence:
    size = first.shape[::-1]
    scale = float(np.sqrt(np.linalg.det(affine[:, :2])))
    if scale < 1:  # or the fine texture of a picture that shrinks would alias
        second = cv2.GaussianBlur(second, (0, 0), 0.5 / scale)
    aligned = cv2.warpAffine(second, affine, size, flags=cv2.INTER_LINEAR)
    mask = cv2.warpAffine(np.ones_like(second), affine, size, flags=cv2.INTER_NEAREST)
    overlap = float(mask.sum() / min(first.size, second.size * scale**2))
    sigma = 1.5 * max(1.0, scale)
    a, b = (_cells(cv2.GaussianBlur(grey, (0, 0), sigma)) for grey in (first, aligned))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    spread_a, spread_b = np.sqrt((a**2).mean(axis=1)), np.sqrt((b**2).mean(axis=1))
    used = _cells(mask).all(axis=1) & (np.minimum(spread_a, spread_b) > _TEXTURE)
    if not used.any():
        return Evidence(inliers, overlap)
    correlation = (a * b).mean(axis=1)[used] / (spread_a * spread_b)[used]
    return Evidence(inliers, overlap, int(used.sum()), float((correlation > _CORRELATION).mean()))


def _cells(grey: np.ndarray) -> np.ndarray:
    """Square cells of a picture, a row each, float32 [cells, pixels]; the rest at the edge is left out."""
    rows, columns = grey.shape[0] // _CELL, grey.shape[1] // _CELL
    whole = grey[: rows * _CELL, : columns * _CELL].astype(np.float32)
    return whole.reshape(rows, _CELL, columns, _CELL).transpose(0, 2, 1, 3).reshape(-1, _CELL**2)
