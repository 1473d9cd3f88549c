"""Masks of animals, cut like their crops: what the losses on masks need of each sample."""

from __future__ import annotations

import json
from collections.abc import Mapping

import cv2
import numpy as np

from acsm.crops import Patch, cut_patch
from wildshape.cli import say
from wildshape.formats.masks import decode_mask
from wildshape.geometry import Affine2D, warp_crop, xy_crop_to_ndc
from wildshape.records import AnimalRecords

STRIDE = 4
"""Crop pixels along a side of a cell of the pixel map."""
CONTOUR_POINTS = 100
SHOWN = 3
"""Masks that are named where some do not fit."""
MASK_PIXELS = 400
"""Cells of the mask that are followed to the surface and back, of each sample."""


def mask_problem(mask_rle: str, whole: tuple[int, int]) -> str | None:
    """Why a mask does not fit its image of this width and height, or None."""
    height, width = json.loads(mask_rle)["size"]
    if (width, height) == tuple(whole):
        return None
    return f"a mask of {width} x {height} pixels for an image of {whole[0]} x {whole[1]}"


def tell_wrong_masks(wrong: Mapping[str, str], what: str) -> None:
    """Say which masks (id and reason) of ``what`` animals are left out, the first few by name."""
    if wrong:
        named = [f"{name}: {reason}" for name, reason in list(wrong.items())[:SHOWN]]
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        say(f"left out {len(wrong)} masks of {what} animals ({'; '.join(named)}{more})")


class MaskCrops:
    """Crops of masks, cut from run lengths when they are first needed.

    Args:
        image_size: side S of the crops.
        reach: side of all that a crop may show, over the box's longer side.
        cache_bytes: patches are kept up to this size in all.
    """

    def __init__(self, image_size: int, reach: float, cache_bytes: int = 1 << 28) -> None:
        self.image_size, self.reach = image_size, reach
        self.wrong: dict[str, str] = {}
        self._cache: dict[str, Patch] = {}
        self._room = cache_bytes

    def check(self, records: AnimalRecords, index: int, whole: tuple[int, int]) -> None:
        """Keep in ``wrong`` why a mask does not fit its image of this width and height, if it does not."""
        text = records.mask_rle[index]
        problem = None if text is None else mask_problem(text, whole)
        if problem is not None:
            self.wrong[records.instance_ids[index]] = problem

    def usable(self, records: AnimalRecords) -> np.ndarray:
        """Which animals have a mask that fits their image: bool [N]."""
        pairs = zip(records.instance_ids, records.mask_rle)
        return np.array([text is not None and name not in self.wrong for name, text in pairs], bool)

    def patch(self, records: AnimalRecords, index: int) -> Patch:
        """What the crops of one mask are cut from, 0 to 255."""
        name, text = records.instance_ids[index], records.mask_rle[index]
        assert text is not None
        patch = self._cache.get(name)
        if patch is None:
            box = records.box_xyxy[index]
            patch = cut_patch(255 * decode_mask(text), box, self.image_size, self.reach)
            if patch.image.nbytes <= self._room:
                self._cache[name] = patch
                self._room -= patch.image.nbytes
        return patch

    def sample(
        self, records: AnimalRecords, index: int, affine: Affine2D, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The mask of one crop.

        Args:
            records: the animals.
            index: of the record.
            affine: from image to crop pixels.
            rng: chooses the cells.

        Returns:
            ``mask`` uint8 [S, S], 0 to 255; ``known`` uint8 [S, S], 1 where the crop shows the photo;
            ``outside`` float32 [S, S], distance to the mask in NDC, 0 where not known; ``contour``
            float32 [100, 2], points of the mask's contour in NDC, without those where the photo or the crop
            ends; ``cells`` int64 [400], cells of the pixel map within the mask, row by row;
            ``mask_weight`` float32, 0 where there is no mask to learn from.
        """
        size, side = self.image_size, -(-self.image_size // STRIDE)
        nothing = {
            "mask": np.zeros((size, size), np.uint8),
            "known": np.zeros((size, size), np.uint8),
            "outside": np.zeros((size, size), np.float32),
            "contour": np.zeros((CONTOUR_POINTS, 2), np.float32),
            "cells": np.zeros(MASK_PIXELS, np.int64),
            "mask_weight": np.float32(0),
        }
        if records.mask_rle[index] is None or records.instance_ids[index] in self.wrong:
            return nothing
        patch = self.patch(records, index)
        mask = warp_crop(patch.image, affine.compose(patch.to_image), size)
        known = known_pixels(affine, patch.whole, size)
        contour = contour_points(mask, known)
        cover = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)
        inside = np.flatnonzero(cover.ravel() > 127)
        if not len(inside) or not len(contour):
            return nothing
        away = cv2.distanceTransform((mask < 128).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        return {
            "mask": mask,
            "known": known,
            "outside": away * np.float32(2 / size) * known,
            "contour": xy_crop_to_ndc(spread(contour, CONTOUR_POINTS), size).astype(np.float32),
            "cells": spread(rng.permutation(inside), MASK_PIXELS),
            "mask_weight": np.float32(np.asarray(records.mask_weight)[index]),
        }


def known_pixels(affine: Affine2D, whole: tuple[int, int], size: int) -> np.ndarray:
    """uint8 [S, S]: 1 where a crop's pixel lies in its photo of width and height ``whole``."""
    corners = np.array([[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]], np.float64)
    low, high = -0.5, np.array(whole) - 0.5
    back = affine.inverse()
    at = back.apply(corners)
    if ((at >= low) & (at <= high)).all():  # a photo is convex
        return np.ones((size, size), np.uint8)
    xy = back.apply(np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1))
    return ((xy >= low) & (xy <= high)).all(axis=-1).astype(np.uint8)


def contour_points(mask: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pixels of the mask's contours [N, 2] (x, y), without those beside what is not known.

    There the photo or the crop ends, not the animal.
    """
    contours, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return np.zeros((0, 2))
    points = np.concatenate([contour[:, 0] for contour in contours])
    inner = cv2.erode(known, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return points[inner[points[:, 1], points[:, 0]] > 0].astype(np.float64)


def spread(values: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the values, evenly spread over them; some again where there are fewer."""
    return values[np.arange(count) * len(values) // count]
