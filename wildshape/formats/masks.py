"""Masks as tables hold them: COCO run-length encoding as a line of JSON."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np


def encode_mask(mask: np.ndarray) -> str:
    """A mask [H, W] (non-zero is foreground) as `{"size": [H, W], "counts": "..."}`."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(np.asarray(mask) != 0, dtype=np.uint8))
    return _dump(encoded)


def decode_mask(mask_rle: str) -> np.ndarray:
    """The mask uint8 [H, W] of 0 and 1 that `encode_mask` wrote."""
    from pycocotools import mask as coco_mask

    with warnings.catch_warnings():  # pycocotools' arrays have the NumPy 1 signature of __array__
        warnings.simplefilter("ignore", DeprecationWarning)
        return coco_mask.decode(json.loads(mask_rle))


def mask_area(mask_rle: str) -> int:
    """Pixels of foreground."""
    from pycocotools import mask as coco_mask

    return int(coco_mask.area(json.loads(mask_rle)))


def mask_box(mask_rle: str) -> np.ndarray | None:
    """The smallest box_xyxy [4] about a mask's pixels, in the image frame; None for an empty mask."""
    from pycocotools import mask as coco_mask

    left, top, width, height = coco_mask.toBbox(json.loads(mask_rle)).tolist()
    if not (width and height):
        return None
    return np.array([left, top, left + width, top + height]) - 0.5


def mask_iou(mask_rle: str, other_rle: str) -> float:
    """Intersection over union of two masks of one size.

    Raises:
        ValueError: the masks are of two sizes.
    """
    from pycocotools import mask as coco_mask

    pair = [json.loads(mask_rle), json.loads(other_rle)]
    if pair[0]["size"] != pair[1]["size"]:
        raise ValueError(f"expected masks of one size, found {pair[0]['size']} and {pair[1]['size']}")
    shared = int(coco_mask.area(coco_mask.merge(pair, intersect=True)))
    union = int(coco_mask.area(coco_mask.merge(pair)))
    return shared / union if union else 0.0


def points_inside(mask: np.ndarray, xy_image: np.ndarray) -> np.ndarray:
    """Whether the pixel that each point [N, 2] falls into is a mask's: bool [N]; false outside."""
    foreground = np.asarray(mask).astype(bool)
    xy = np.floor(np.asarray(xy_image, dtype=np.float64) + 0.5)
    height, width = foreground.shape
    there: np.ndarray = np.all((xy >= 0) & (xy < (width, height)), axis=-1)
    column, row = np.where(there[:, None], xy, 0).astype(np.int64).T
    return there & foreground[row, column]


def encode_segmentation(segmentation: Any, height: int, width: int) -> str | None:
    """COCO's `segmentation` (polygons, or run lengths in either form) as a mask in our form.

    None where there is none.

    Raises:
        ValueError: it is none of these, or is made for another size.
    """
    from pycocotools import mask as coco_mask

    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        if list(segmentation.get("size", [])) != [height, width]:
            raise ValueError(f"a mask for size {segmentation.get('size')}, not {[height, width]}")
        counts = segmentation.get("counts")
        runs = _run_lengths(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
            raise ValueError("run lengths that are no whole numbers from 0 on")
        if sum(runs) != height * width:  # pycocotools would never come to an end with some of these
            raise ValueError(f"run lengths of {sum(runs)} pixels, not {height * width}")
        if isinstance(counts, str):
            return _dump(segmentation)
        return _dump(coco_mask.frPyObjects(segmentation, height, width))
    polygons = segmentation if isinstance(segmentation, list) else [None]
    if not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
        raise ValueError("a segmentation that is neither polygons nor run lengths")
    parts = coco_mask.frPyObjects(polygons, height, width)
    return _dump(coco_mask.merge(parts))


def _run_lengths(text: str) -> list[int]:
    """The run lengths that COCO's compressed form holds.

    A character holds 5 bits, the lowest first; from the fourth on, a number is a run less the last but one.

    Raises:
        ValueError: it is no such text.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"character {character!r} in run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("run lengths that are cut short")
    return runs


def _dump(encoded: dict[str, Any]) -> str:
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return json.dumps({"size": [int(side) for side in encoded["size"]], "counts": text})
