"""A picture of what was found: crops with their points, and below each the named keypoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from pseudolabels.zero123plus.crops import CropReader
from wildshape.files import atomic_path
from wildshape.report.drawing import contact_sheet, draw_keypoints
from wildshape.skeleton import Skeleton
from wildshape.tables import Table

_TILE = 192
_COLUMNS = 8


def point_colours(count: int) -> np.ndarray:
    """One RGB colour a point, uint8 [K, 3]: the same point has the same colour on every animal."""
    hues = np.arange(count) * 180 // max(count, 1)
    return cv2.cvtColor(
        np.stack([hues, hues * 0 + 255, hues * 0 + 210], -1).astype(np.uint8)[None], cv2.COLOR_HSV2RGB
    )[0]


def draw_points(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Dots of `point_colours` over a copy of a picture.

    Args:
        picture: RGB uint8 [H, W, 3].
        xy: [K, 2] in its pixels.
    """
    canvas, fraction = picture.copy(), 16
    for place, colour in zip(np.rint(xy * fraction).astype(int), point_colours(len(xy)).tolist()):
        for radius, shade in ((6, (255, 255, 255)), (5, colour)):
            cv2.circle(canvas, tuple(place.tolist()), radius * fraction, shade, -1, cv2.LINE_AA, 4)
    return canvas


def save_sheet(
    out: Path,
    rows: Table,
    points: Table,
    named: Table | None,
    paths: Mapping[str, Path],
    skeleton: Skeleton,
) -> int:
    """Draw the animals that have points.

    Args:
        out: a PNG file.
        rows: of kind instances.
        points: of kind keypoints, without names.
        named: likewise with the skeleton's, or None.
        paths: file of each image id.
        skeleton: of the named keypoints.

    Returns:
        How many were drawn; without any no file is written.
    """
    place, tiles = points.lookup("instance_id"), []
    names = {} if named is None else named.lookup("instance_id")
    sharp = CropReader(paths, _TILE)
    chosen = [row for row in rows.rows() if row["instance_id"] in place and not sharp.problem(row)]
    for first in range(0, len(chosen), _COLUMNS):
        below = []
        for row in chosen[first : first + _COLUMNS]:
            crop, affine, _ = sharp.read(row)
            tiles.append(draw_points(crop, affine.apply(points["xy"][place[row["instance_id"]]])))
            if named is not None:
                index = names[row["instance_id"]]
                xy, confidence = affine.apply(named["xy"][index]), named["confidence"][index]
                below.append(draw_keypoints(crop, xy, confidence, skeleton))
        empty = np.full((_TILE, _TILE, 3), 255, np.uint8)
        gap = [empty] * (min(_COLUMNS, len(chosen)) - len(chosen[first : first + _COLUMNS]))
        tiles += [*gap, *below, *(gap if below else [])]
    if chosen:
        sheet = contact_sheet(tiles, min(_COLUMNS, len(chosen)), tile_size=_TILE)
        with atomic_path(out) as temporary:
            Image.fromarray(sheet).save(temporary)
    return len(chosen)
