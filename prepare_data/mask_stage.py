"""Boxes in, masks out: the Map stage of save_masks, and how its masks come into other tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prepare_data.segmenters import Segmenter, segment
from wildshape.annotations import annotate_table
from wildshape.crops import ImageError, read_image
from wildshape.formats.masks import encode_mask
from wildshape.stage import MapStage
from wildshape.tables import Table, read_table


class MaskStage(MapStage):
    """Instances rows in, a masks row out for each.

    Args:
        segmenter: Finds the masks.
        name: The segmenter's name, written in the table.
        paths: File of each image id.
        min_quality: Masks of less are not kept.
        known: Rows of an earlier masks table by instance id; a box that it has is not segmented again.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        name: str,
        paths: Mapping[str, Path],
        min_quality: float = 0.0,
        known: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self._segmenter, self._name, self._paths = segmenter, name, paths
        self._min_quality, self._known = min_quality, dict(known or {})
        self._last: tuple[Any, np.ndarray | None, str] = (None, None, "")

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its image decoded, or the reason why it cannot be."""
        known = self._known.get(row["instance_id"])
        if known is not None and not np.array_equal(known["box_xyxy"], row["box_xyxy"]):
            known = None  # the id of a box that is found again stays, the box may move
        image, problem = (None, "") if known is not None else self._image(row["image_id"])
        return {
            "instance_id": row["instance_id"],
            "image_id": row["image_id"],
            "box_xyxy": row["box_xyxy"],
            "image": image,
            "problem": problem,
            "known": known,
        }

    def _image(self, image_id: str | None) -> tuple[np.ndarray | None, str]:
        """The picture; animals of one picture stand in a row, so that the last one is kept."""
        if image_id is None or self._last[0] != image_id:
            image, problem, path = None, f"no file of image {image_id}", self._paths.get(image_id or "")
            if path is not None:
                try:
                    image, problem = read_image(path), ""
                except ImageError as error:
                    problem = str(error)
            self._last = (image_id, image, problem)
        return self._last[1], self._last[2]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Masks of a batch of boxes, in their order; the boxes of one image go in one call."""
        count = len(batch["instance_id"])
        rows: list[dict[str, Any]] = [{}] * count
        places_of: dict[str, list[int]] = {}
        for place in range(count):
            image, known = batch["image"][place], batch["known"][place]
            if known is not None:
                rows[place] = dict(known)
            elif image is None:
                rows[place] = self._row(batch, place, "unreadable", batch["problem"][place])
            elif not (self._edges(batch, place)[2:] > self._edges(batch, place)[:2]).all():
                rows[place] = self._row(batch, place, "bad_box", "a box of no area in the image")
            else:
                places_of.setdefault(batch["image_id"][place], []).append(place)
        groups = list(places_of.values())
        if groups:
            images = [batch["image"][places[0]] for places in groups]
            boxes = [np.stack([self._edges(batch, place) for place in places]) for places in groups]
            found = segment(self._segmenter, self._name, images, [box.astype(np.float32) for box in boxes])
            for places, results in zip(groups, found):
                for place, result in zip(places, results):
                    rows[place] = self._judge(batch, place, result)
        return dict(Table.from_rows("masks", rows).columns)

    def _edges(self, batch: Mapping[str, np.ndarray], place: int) -> np.ndarray:
        """The box in pixels from the image's edge, clipped to the image."""
        height, width = batch["image"][place].shape[:2]
        box = np.asarray(batch["box_xyxy"][place], dtype=np.float64) + 0.5
        return np.clip(box, 0, [width, height, width, height])

    def _judge(
        self, batch: Mapping[str, np.ndarray], place: int, result: tuple[np.ndarray, float] | str
    ) -> dict[str, Any]:
        if isinstance(result, str):
            return self._row(batch, place, "no_mask", result)
        mask, quality = result
        if not mask.any():
            return self._row(batch, place, "empty", "a mask without a pixel", quality)
        if quality < self._min_quality:
            reason = f"quality below {self._min_quality:g}"
            return self._row(batch, place, "low_quality", reason, quality)
        return {**self._row(batch, place, "ok", None, quality), "mask_rle": encode_mask(mask)}

    def _row(
        self,
        batch: Mapping[str, np.ndarray],
        place: int,
        status: str,
        error: str | None,
        quality: float | None = None,
    ) -> dict[str, Any]:
        return {
            "instance_id": batch["instance_id"][place],
            "box_xyxy": batch["box_xyxy"][place],
            "quality": quality,
            "segmenter": self._name,
            "status": status,
            "error": error,
        }


def true_masks(table: Table) -> np.ndarray:
    """Which rows' masks came with the table, not from a segmenter: bool [N]."""
    there = np.array([mask is not None for mask in table["mask_rle"]], dtype=bool)
    return there & np.isnan(table["mask_quality"])


def join_masks(path: Path, kind: str, masks: Table, *, keep: np.ndarray) -> Table:
    """Write masks and qualities into a table's file, which stays what it was otherwise.

    Args:
        path: File of a table that has the same rows as the masks, in their order.
        kind: instances or labels.
        masks: Table of kind masks.
        keep: Rows whose mask and quality stay as they are, bool [N].

    Returns:
        The table with its masks.
    """
    table = read_table(path, kind)
    ok = masks["status"] == "ok"
    texts = np.where(keep, table["mask_rle"], np.where(ok, masks["mask_rle"], None))
    quality = np.where(keep, table["mask_quality"], np.where(ok, masks["quality"], np.nan))
    same = texts.tolist() == table["mask_rle"].tolist() and np.array_equal(
        quality, table["mask_quality"], equal_nan=True
    )
    return table if same else annotate_table(path, kind, mask_rle=texts, mask_quality=quality)
