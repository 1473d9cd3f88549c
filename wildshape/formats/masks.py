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
        if isinstance(segmentation.get("counts"), str):
            return _dump(segmentation)
        return _dump(coco_mask.frPyObjects(segmentation, height, width))
    polygons = segmentation if isinstance(segmentation, list) else [None]
    if not all(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
        raise ValueError("a segmentation that is neither polygons nor run lengths")
    parts = coco_mask.frPyObjects(polygons, height, width)
    return _dump(coco_mask.merge(parts))


def _dump(encoded: dict[str, Any]) -> str:
    counts = encoded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return json.dumps({"size": [int(side) for side in encoded["size"]], "counts": text})
