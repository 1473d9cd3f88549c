"""A picture of points by several ways on the same animals, with their keypoints and the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.zero123plus_baselines import Labelled
from pseudolabels.zero123plus.crops import CropReader
from pseudolabels.zero123plus.sheet import draw_points
from wildshape.crops import image_paths
from wildshape.files import atomic_path
from wildshape.report.drawing import contact_sheet, draw_keypoints
from wildshape.workspace import Workspace

TILE, ANIMALS = 192, 8


@dataclass(frozen=True)
class Row:
    """One way to find points.

    Attributes:
        title: of its rows.
        points: [M, K, 2] in 0..1 of the crops; None: it has none to show.
        keypoints: [M, J, 2] in image pixels.
    """

    title: str
    points: np.ndarray | None
    keypoints: np.ndarray


def save_picture(out: Path, workspace: Workspace, test: Labelled, rows: list[Row]) -> int:
    """Draw the first animals of test: for every way its points, then its keypoints; last the truth.

    Args:
        out: a PNG file.
        workspace: whose labels and skeleton.
        test: the M animals.
        rows: the ways.

    Returns:
        How many animals were drawn.
    """
    labels, skeleton = workspace.load("labels"), workspace.category.skeleton
    place = labels.lookup("instance_id")
    reader = CropReader(image_paths(workspace.load("labelled_images"), workspace), TILE)
    count = min(ANIMALS, len(test.records))
    shown = labels.take([place[name] for name in test.records.instance_ids[:count]])
    crops = [reader.read(row)[:2] for row in shown.rows()]
    tiles, captions = [], []
    for row in rows:
        if row.points is not None:
            for i, (crop, _) in enumerate(crops):
                tiles.append(draw_points(crop, row.points[i] * TILE - 0.5))
                captions.append(f"{row.title}: points")
        for i, (crop, affine) in enumerate(crops):
            seen = test.records.weight[i]
            tiles.append(_keypoints(crop, affine.apply(row.keypoints[i]), seen, skeleton))
            captions.append(f"{row.title}: keypoints")
    for i, (crop, affine) in enumerate(crops):
        tiles.append(_keypoints(crop, affine.apply(test.records.xy[i]), test.records.weight[i], skeleton))
        captions.append("truth")
    if tiles:
        sheet = contact_sheet(tiles, count, captions, tile_size=TILE)
        with atomic_path(out) as temporary:
            Image.fromarray(sheet).save(temporary, format="PNG")
    return count


def _keypoints(crop: np.ndarray, xy: np.ndarray, seen: np.ndarray, skeleton) -> np.ndarray:
    """The keypoints that are seen in truth, which are those that count."""
    return draw_keypoints(crop, np.where(seen[:, None] > 0, xy, np.nan), None, skeleton)
