"""Square crops of animals for the 3D model: ours to the fraction of a pixel, and as published."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from wildshape.geometry import Affine2D, box_side

WHITE = 255


def padded_box(
    box_xyxy: np.ndarray,
    padding: float = 0.0,
    jitter: float = 0.0,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """A box [4] widened on each side by ``padding`` and moved by up to ``jitter`` of its size.

    Each of the four edges moves on its own, uniformly in +-jitter of the box's width or height.
    """
    box = np.asarray(box_xyxy, np.float64)
    size = np.tile(box[2:] - box[:2], 2)
    box = box + np.array([-1, -1, 1, 1]) * padding * size
    if jitter and rng is not None:
        box = box + jitter * size * rng.uniform(-1, 1, 4)
    return box


@dataclass(frozen=True)
class Patch:
    """The part of an image that an animal's crops can need, shrunk to about their resolution.

    Attributes:
        image: RGB uint8 [h, w, 3], or of a mask uint8 [h, w].
        to_image: map from patch pixels to image pixels.
        whole: width and height of the image in pixels.
    """

    image: np.ndarray
    to_image: Affine2D
    whole: tuple[int, int]


def cut_patch(image: np.ndarray, box_xyxy: np.ndarray, size: int, reach: float) -> Patch:
    """Cut what crops of ``size`` pixels within ``reach`` times the box's longer side can need.

    The cut lies on whole pixels and the shrinking averages whole blocks, so that nothing is
    resampled twice.

    Args:
        image: RGB uint8 [H, W, 3], or a mask uint8 [H, W].
        box_xyxy: [4] in image pixels.
        size: side of the crops.
        reach: side of the kept square over the box's longer side.
    """
    side = float(box_side(box_xyxy))
    centre = (np.asarray(box_xyxy)[:2] + np.asarray(box_xyxy)[2:]) / 2
    factor = max(int(side / size / 1.5), 1)
    half = reach * side / 2 + 2 * factor
    limit = np.array(image.shape[1::-1])
    low = np.clip(np.floor(centre - half), 0, limit - 1).astype(int)
    high = np.clip(np.ceil(centre + half) + 1, low + 1, limit).astype(int)
    patch = image[low[1] : high[1], low[0] : high[0]]
    whole = np.array(patch.shape[1::-1]) // factor
    if factor > 1 and (whole >= 1).all():
        # Trailing rows that do not fill a block are dropped: at most factor - 1 pixels.
        width, height = whole * factor
        small = tuple(int(n) for n in whole)
        patch = cv2.resize(patch[:height, :width], small, interpolation=cv2.INTER_AREA)
    else:
        factor = 1
    offset = low + (factor - 1) / 2
    matrix = np.array([[factor, 0, offset[0]], [0, factor, offset[1]]], np.float64)
    return Patch(np.ascontiguousarray(patch), Affine2D(matrix), (int(limit[0]), int(limit[1])))


def published_square(box_xywh: np.ndarray) -> np.ndarray:
    """The released evaluation's square [4] about a box: whole pixels, x1 y1 x2 y2 inclusive.

    Sides count one pixel more than the box says, and centring rounds to whole pixels.
    """
    x, y, w, h = (int(round(float(v))) for v in box_xywh)
    side = max(w, h) + 1
    x -= int(round((side - (w + 1)) / 2))
    y -= int(round((side - (h + 1)) / 2))
    return np.array([x, y, x + side - 1, y + side - 1])


def published_crop(image: np.ndarray, box_xywh: np.ndarray, size: int) -> np.ndarray:
    """The released evaluation's crop: float64 RGB [size, size, 3] in 0..1, white outside.

    Args:
        image: RGB uint8 [H, W, 3].
        box_xywh: [4] in image pixels.
        size: side of the crop.
    """
    x0, y0, x1, y1 = published_square(box_xywh)
    height, width = image.shape[:2]
    crop = np.ones((y1 - y0 + 1, x1 - x0 + 1, 3))
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1 + 1, width), min(y1 + 1, height)
    if right > left and bottom > top:
        inside = image[top:bottom, left:right] / 255.0
        crop[top - y0 : bottom - y0, left - x0 : right - x0] = inside
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)


def published_affine(box_xywh: np.ndarray, size: int) -> Affine2D:
    """Image to crop as the released keypoints take it: the square's corner to (0, 0), scaled."""
    x0, y0, x1, _ = published_square(box_xywh)
    scale = size / (x1 - x0 + 1)
    return Affine2D(np.array([[scale, 0, -scale * x0], [0, scale, -scale * y0]]))


def published_keypoints_ndc(xy_image: np.ndarray, box_xywh: np.ndarray, size: int) -> np.ndarray:
    """Image keypoints [..., 2] to the released NDC, 2x / S - 1."""
    return 2 * published_affine(box_xywh, size).apply(xy_image) / size - 1
