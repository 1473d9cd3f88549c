"""Segmenters behind one protocol: images and boxes in; for each box a mask and its quality out.

A segmenter is named on the command line by `--segmenter`:

    torchvision[:MODEL]          torchvision's Mask R-CNN, by default maskrcnn_resnet50_fpn_v2
    sam[:MODEL], sam2[:MODEL]    Segment Anything of transformers, by its name on the hub or a folder
    grounded-sam[:MODEL]         text to boxes to masks: save_boxes by text, then sam
    simulated                    ground truth, for the synthetic world only
    path/to/file.py:NAME         a class (made without arguments but `--opts`) or a callable of yours
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from prepare_data.backends import Backends, LoadedBackend
from wildshape.errors import UserError
from wildshape.workspace import Workspace

Segmentation = tuple[np.ndarray, float] | str
GROUNDED = "grounded-sam"

BACKENDS = Backends(
    "segmenter",
    {
        "torchvision": ("prepare_data.segmenters.torchvision_models", "make"),
        "sam": ("prepare_data.segmenters.sam_models", "make_sam"),
        "sam2": ("prepare_data.segmenters.sam_models", "make_sam2"),
        GROUNDED: ("prepare_data.segmenters.sam_models", "make_sam"),
        "simulated": ("prepare_data.diorama.simulated_segmenter", "make"),
    },
    {"simulated": "the synthetic world's true masks"},
)


class Segmenter(Protocol):
    """What finds the animals' pixels, given their boxes."""

    def __call__(
        self, images: list[np.ndarray], boxes_xyxy: list[np.ndarray]
    ) -> Sequence[Sequence[Segmentation]]:
        """Segment.

        Args:
            images: RGB uint8 [H, W, 3] each, of any sizes.
            boxes_xyxy: For each image float32 [N, 4], N of at least 1, in pixels counted from the
                image's edge (an image spans [0, W]), clipped to the image.

        Returns:
            For each image, for each of its boxes, in their order: `(mask [H, W], quality)`, with the
            quality in 0..1; or a text that says why there is no mask. A mask's pixel is the animal's
            where it is true or not 0; where the mask is of floats, over .5.
        """
        ...


def find_segmenter(
    spec: str, workspace: Workspace, opts: Sequence[str] = (), device: str = "auto"
) -> LoadedBackend:
    """The segmenter that `--segmenter` names; nothing heavy is imported before it is made.

    Raises:
        UserError: if there is none of that name, or a file it needs is missing.
    """
    return BACKENDS.find(spec, workspace, opts, device)


def segment(
    segmenter: Segmenter, name: str, images: list[np.ndarray], boxes_xyxy: list[np.ndarray]
) -> list[list[Segmentation]]:
    """Run a segmenter and check what it returns; masks come as bool [H, W].

    Raises:
        UserError: if that is not what the protocol says.
    """
    results = list(segmenter(images, boxes_xyxy))
    if len(results) != len(images):
        raise UserError(f"{name}: expected {len(images)} results, one an image; found {len(results)}")
    checked = []
    for image, boxes, result in zip(images, boxes_xyxy, results):
        if len(result) != len(boxes):
            raise UserError(f"{name}: expected {len(boxes)} results, one a box; found {len(result)}")
        checked.append([_checked(name, one, image.shape[:2]) for one in result])
    return checked


def _checked(name: str, result: Segmentation, size: tuple[int, ...]) -> Segmentation:
    if isinstance(result, str):
        return result
    try:
        mask, quality = result
        mask, quality = np.asarray(mask), float(quality)
    except (TypeError, ValueError):
        found = type(result).__name__
        raise UserError(f"{name}: expected (mask, quality) or a text for each box; found {found}") from None
    if mask.shape != tuple(size) or mask.dtype.kind not in "buif":
        raise UserError(
            f"{name}: expected a mask of numbers {list(size)}, as the image; found {mask.dtype} "
            f"{list(mask.shape)}"
        )
    if not 0 <= quality <= 1:
        raise UserError(f"{name}: expected a quality in 0..1; found {quality}")
    return (mask > 0.5 if mask.dtype.kind == "f" else mask != 0), quality
