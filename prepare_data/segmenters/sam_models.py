"""Segment Anything (SAM, SAM 2) of the transformers library, prompted by boxes.

Imported when used: pip install "wildshape[transformers]".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from prepare_data.backends import BackendRequest, import_transformers
from prepare_data.segmenters import Segmentation
from wildshape.device import pick_device
from wildshape.errors import UserError

if TYPE_CHECKING:
    import torch

DEFAULT_SAM = "facebook/sam-vit-base"
DEFAULT_SAM2 = "facebook/sam2.1-hiera-small"
_BOXES_A_CALL = 16  # their masks are held at the image's size, as floats


class SamSegmenter:
    """One mask a box; the quality is the IoU with the true mask that the model predicts, cut to 0..1.

    Args:
        model: In evaluation mode.
        processor: Of images and boxes.
        device: Where it runs.
    """

    def __init__(self, model: Any, processor: Any, device: torch.device) -> None:
        self._model, self._processor, self._device = model.eval().to(device), processor, device

    def __call__(self, images: list[np.ndarray], boxes_xyxy: list[np.ndarray]) -> list[list[Segmentation]]:
        """Segment; see `Segmenter`."""
        return [
            [
                result
                for first in range(0, len(boxes), _BOXES_A_CALL)
                for result in self._segment(image, boxes[first : first + _BOXES_A_CALL])
            ]
            for image, boxes in zip(images, boxes_xyxy)
        ]

    def _segment(self, image: np.ndarray, boxes: np.ndarray) -> list[Segmentation]:
        import torch

        prompts = [np.asarray(boxes, dtype=np.float64).tolist()]
        inputs = self._processor(images=image, input_boxes=prompts, return_tensors="pt")
        inputs["input_boxes"] = inputs["input_boxes"].float()
        sizes = {key: inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs}
        # Three masks for an ambiguous prompt are for points; a box says which object is meant.
        with torch.inference_mode():
            outputs = self._model(
                **{key: inputs[key].to(self._device) for key in ("pixel_values", "input_boxes")},
                multimask_output=False,
            )
        (masks,) = self._processor.post_process_masks(outputs.pred_masks.cpu(), **sizes)
        quality = outputs.iou_scores.cpu().numpy().reshape(-1).clip(0, 1)
        return [(mask[0], float(value)) for mask, value in zip(masks.numpy(), quality)]


def make_sam(request: BackendRequest) -> SamSegmenter:
    """Load SAM, or another model of its kind, by its name on the hub or from a folder.

    Raises:
        UserError: if transformers is not installed, or the model cannot be had or does not segment.
    """
    return _make(request, DEFAULT_SAM)


def make_sam2(request: BackendRequest) -> SamSegmenter:
    """The same for SAM 2."""
    return _make(request, DEFAULT_SAM2)


def _make(request: BackendRequest, default: str) -> SamSegmenter:
    transformers = import_transformers("--segmenter sam")
    if request.opts:
        raise UserError(f"--segmenter sam: expected no --opts; found {', '.join(sorted(request.opts))}")
    name = request.model or default
    device = pick_device(request.device)
    try:
        model = transformers.AutoModelForMaskGeneration.from_pretrained(name)
        processor = transformers.AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(
            f"--segmenter sam:{name}: expected a model that segments by box, on the hub or in a folder; "
            f"{reason}"
        ) from error
    return SamSegmenter(model, processor, device)
