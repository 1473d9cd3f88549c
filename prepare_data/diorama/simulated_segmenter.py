"""A simulated segmenter for the synthetic world: its true masks, not a network."""

from __future__ import annotations

from typing import Any

import numpy as np

from prepare_data.diorama.lookup import Lookup
from prepare_data.diorama.world import world_dir
from prepare_data.segmenters import Segmentation
from wildshape.errors import UserError
from wildshape.formats.masks import decode_mask
from wildshape.geometry import box_iou
from wildshape.tables import Table, read_table

MIN_IOU = 0.5


class SimulatedSegmenter:
    """Looks a picture up by its pixels and gives each box the true mask of the animal there.

    The quality is the IoU of the given box with the true one. A picture that is not of this world gives
    no masks.

    Args:
        lookup: Finds web pictures by their pixels.
        truth: Table of kind labels of the web pictures.
    """

    def __init__(self, lookup: Lookup, truth: Table) -> None:
        self._lookup, self._truth = lookup, truth
        self._rows: dict[str, list[int]] = {}
        for row, image_id in enumerate(truth["image_id"]):
            self._rows.setdefault(image_id, []).append(row)

    def __call__(self, images: list[np.ndarray], boxes_xyxy: list[np.ndarray]) -> list[list[Segmentation]]:
        """Segment; see `Segmenter`."""
        return [self._segment(image, boxes) for image, boxes in zip(images, boxes_xyxy)]

    def _segment(self, image: np.ndarray, boxes: np.ndarray) -> list[Segmentation]:
        image_id = self._lookup.find(image)
        if image_id is None:
            return ["no picture of the synthetic web"] * len(boxes)
        rows = self._rows.get(image_id, [])
        if not rows:
            return ["no animal in the picture"] * len(boxes)
        iou = box_iou(boxes, self._truth["box_xyxy"][rows] + 0.5)
        results: list[Segmentation] = []
        for overlap in iou:
            best = int(overlap.argmax())
            mask = self._truth["mask_rle"][rows[best]]
            if overlap[best] < MIN_IOU or mask is None:
                results.append(f"no animal at the box: IoU of at most {overlap[best]:.2f}")
            else:
                results.append((decode_mask(mask), float(overlap[best])))
        return results


def make(request: Any) -> SimulatedSegmenter:
    """The segmenter that `--segmenter simulated` names.

    Raises:
        UserError: if there is no world, or there are options.
    """
    if request.opts:
        raise UserError(
            f"--segmenter simulated: expected no --opts; found {', '.join(sorted(request.opts))}"
        )
    workspace = request.workspace
    path = workspace.require(
        workspace.table_path("truth"), workspace.made_by("truth"), "the simulated segmenter"
    )
    return SimulatedSegmenter(Lookup(world_dir(workspace)), read_table(path, "labels"))
