"""Square crops of animals on white: what tokens are learnt on and points are found in.

The method wants the animal alone, on a plain background: what lies outside its mask, or without one outside
its box, is white.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.crops import ImageReader, instance_problem
from wildshape.files import sha256_bytes
from wildshape.formats.masks import decode_mask, mask_area
from wildshape.geometry import Affine2D, crop_affine, warp_crop
from wildshape.stage import progress
from wildshape.tables import Table

PADDING = 0.1
"""Of the box's longer side, on every side of the crop."""
WHITE = 255


def animal_affine(box_xyxy: np.ndarray, size: int) -> Affine2D:
    """The map from image pixels to those of an animal's crop (pixel centres are integers in both)."""
    return crop_affine(box_xyxy, size, scale=1 + 2 * PADDING)


def unit_affine(box_xyxy: np.ndarray) -> Affine2D:
    """The map from image pixels to an animal's crop with edges at 0 and 1."""
    return Affine2D.translation(0.5, 0.5).compose(animal_affine(box_xyxy, 1))


def matted_crop(
    image: np.ndarray, box_xyxy: np.ndarray, size: int, mask: np.ndarray | None = None
) -> tuple[np.ndarray, Affine2D]:
    """A square crop about an animal, white beyond the image and outside the mask, or the box.

    A mask is resampled like the picture; a pixel that an edge crosses is partly white.

    Args:
        image: RGB uint8 [H, W, 3].
        box_xyxy: [4] in image pixels.
        size: S.
        mask: [H, W], not 0 where the animal is; None: it fills its box.

    Returns:
        uint8 [S, S, 3], and the map from image pixels to the crop's.

    Raises:
        ValueError: the mask is not of the image's size.
    """
    affine = animal_affine(box_xyxy, size)
    crop = warp_crop(image, affine, size, WHITE)
    if mask is None:
        (left, top), (right, bottom) = affine.apply(np.reshape(box_xyxy, (2, 2)))
        share = np.outer(_covered(top, bottom, size), _covered(left, right, size))
    elif mask.shape != image.shape[:2]:
        raise ValueError(f"expected a mask {list(image.shape[:2])}; found {list(mask.shape)}")
    else:
        share = warp_crop((mask != 0).astype(np.uint8) * 255, affine, size).astype(np.float32) / 255
    return np.rint(WHITE + share[..., None] * (crop.astype(np.float32) - WHITE)).astype(np.uint8), affine


def _covered(low: float, high: float, size: int) -> np.ndarray:
    """Share [S] of each pixel, a half to each side of its centre, that lies from ``low`` to ``high``."""
    centre = np.arange(size)
    return np.clip(np.minimum(centre + 0.5, high) - np.maximum(centre - 0.5, low), 0, 1)


def usable_mask(mask_rle: str | None, image: np.ndarray) -> np.ndarray | None:
    """A mask [H, W] that fits its image and has an animal in it, or None."""
    if mask_rle is None:
        return None
    mask = decode_mask(mask_rle)
    return mask if mask.shape == image.shape[:2] and mask.any() else None


@dataclass(frozen=True)
class AnimalCrops:
    """Crops of some animals.

    Attributes:
        instance_ids: N ids.
        crops: uint8 [N, S, S, 3].
        affines: [N, 2, 3], from image pixels to the crops'.
        matted: bool [N], whether a mask cut the animal out.
        skipped: id and reason of each row that gave none.
    """

    instance_ids: tuple[str, ...]
    crops: np.ndarray
    affines: np.ndarray
    matted: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.instance_ids)


class CropReader:
    """Reads the crops of a table's rows; neighbouring rows of one image decode it once.

    Args:
        paths: file of each image id.
        size: S.
    """

    def __init__(self, paths: Mapping[str, Path], size: int) -> None:
        self.paths, self.size = paths, size
        self._image = ImageReader()

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why a row of an instances or labels table has no crop, or None."""
        return instance_problem(row, self.paths, self._image)

    def read(self, row: Mapping[str, Any]) -> tuple[np.ndarray, Affine2D, bool]:
        """The crop, its affine and whether it is matted, of a row without a problem."""
        image = self._image(self.paths[row["image_id"]])
        mask = usable_mask(row["mask_rle"], image)
        crop, affine = matted_crop(image, row["box_xyxy"], self.size, mask)
        return crop, affine, mask is not None


def read_crops(table: Table, paths: Mapping[str, Path], size: int, title: str = "crops") -> AnimalCrops:
    """The crops of a table's animals.

    Args:
        table: of kind instances or labels.
        paths: file of each image id.
        size: S.
        title: shown by the progress bar.
    """
    reader = CropReader(paths, size)
    ids, crops, affines, matted, skipped = [], [], [], [], []
    for row in progress(table.rows(), title, total=len(table), unit="animal"):
        problem = reader.problem(row)
        if problem is not None:
            skipped.append((row["instance_id"], problem))
            continue
        crop, affine, cut_out = reader.read(row)
        ids.append(row["instance_id"])
        crops.append(crop)
        affines.append(affine.matrix)
        matted.append(cut_out)
    return AnimalCrops(
        tuple(ids),
        np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8),
        np.stack(affines) if affines else np.zeros((0, 2, 3)),
        np.array(matted, bool),
        tuple(skipped),
    )


def mattes_of(table: Table) -> str:
    """In a word, which animals of a table have which masks: masks are no part of a table's hash."""
    found = [
        f"{name} {text}" for name, text in zip(table["instance_id"], table["mask_rle"]) if text is not None
    ]
    return f"{len(found)}, {sha256_bytes(repr(found).encode())[:8]}" if found else "none"


def count_matted(table: Table, images: Table) -> int:
    """How many animals have a mask that fits their image and has an animal in it.

    Args:
        table: of kind instances or labels.
        images: their images.
    """
    rows = images.lookup("image_id")
    count = 0
    for name, text in zip(table["image_id"], table["mask_rle"]):
        if text is not None and name in rows:
            size = [int(images[side][rows[name]]) for side in ("height", "width")]
            count += json.loads(text)["size"] == size and mask_area(text) > 0
    return count


def mattes_note(matted: int, count: int, command: str) -> str:
    """What to expect of crops of which some are not matted; empty if all are.

    Args:
        matted: how many are.
        count: of how many.
        command: that segments the animals.
    """
    if matted == count:
        return ""
    return (
        f"{matted} of {count} crops are matted; of others all of the box shows: expect less of them; "
        f"to cut the animals out, run: {command}"
    )


def sample_rows(count: int, most: int | None, seed: int) -> Sequence[int]:
    """Rows 0 to ``count`` in random order, ``most`` of them at the most."""
    return np.random.default_rng([seed, 23]).permutation(count)[:most].tolist()
