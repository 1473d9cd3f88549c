"""Silhouettes of predicted meshes against the masks of a table."""

from __future__ import annotations

import cv2
import numpy as np

from acsm.renderer import silhouette
from wildshape.formats.masks import decode_mask

LARGEST = 512
"""Longer side in pixels of the window that is compared; larger windows are shrunk to it."""


def covered_pixels(vertices_image: np.ndarray, faces: np.ndarray, side: int) -> np.ndarray:
    """The pixels of a square window more than half of which the mesh covers.

    Args:
        vertices_image: [V, 3] in pixels of the window.
        faces: [F, 3].
        side: of the window, pixels.

    Returns:
        bool [side, side].
    """
    ndc = np.array(vertices_image, np.float64)
    ndc[:, :2] = (2 * ndc[:, :2] + 1) / side - 1
    return silhouette(ndc[None], faces, side)[0] > 0.5


def mask_iou(vertices_image: np.ndarray, faces: np.ndarray, mask_rle: str) -> float:
    """Intersection over union of a mesh's silhouette and a mask, within the picture.

    Both are compared at the picture's pixels where mask and mesh lie within `LARGEST` pixels; larger ones
    are shrunk. A pixel counts where more than half of it is covered. What of the mesh lies outside the
    picture is left out: no mask can be there.

    Args:
        vertices_image: [V, 3], x and y in pixels of the picture, z in pixels away from the viewer.
        faces: [F, 3].
        mask_rle: of the whole picture.

    Returns:
        0 to 1; NaN for an empty mask.
    """
    mask = decode_mask(mask_rle)
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return float("nan")
    xy = vertices_image[:, :2]
    low = np.minimum([columns[0], rows[0]], np.floor(xy.min(0))).clip(0).astype(int)
    high = (
        np.maximum([columns[-1], rows[-1]], np.ceil(xy.max(0))).clip(0, [width - 1, height - 1]).astype(int)
    )
    extent = high - low + 1
    factor = -(-int(extent.max()) // LARGEST)
    blocks = -(-extent // factor)  # [columns, rows] of blocks that are compared
    window = np.zeros(blocks[::-1] * factor, np.uint8)
    part = mask[low[1] : high[1] + 1, low[0] : high[0] + 1]
    window[: part.shape[0], : part.shape[1]] = part
    # A block's middle lies half a block less half a pixel behind its first pixel.
    placed = np.array(vertices_image, np.float64)
    placed[:, :2] = (placed[:, :2] - low - (factor - 1) / 2) / factor
    drawn = covered_pixels(placed, faces, int(blocks.max()))[: blocks[1], : blocks[0]]
    if factor > 1:
        cover = cv2.resize(
            window.astype(np.float32), tuple(int(n) for n in blocks), interpolation=cv2.INTER_AREA
        )
        window = cover > 0.5
    truth = window.astype(bool)
    return float((drawn & truth).sum() / max((drawn | truth).sum(), 1))
