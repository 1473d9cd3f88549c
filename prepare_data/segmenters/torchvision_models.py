"""torchvision's Mask R-CNN: the instance that it finds at a given box."""

from __future__ import annotations

from collections.abc import Mapping, Set

import cv2
import numpy as np
import torch
import torchvision
from torchvision.models import detection

from prepare_data.backends import BackendRequest
from prepare_data.detectors.torchvision_models import load_model
from prepare_data.segmenters import Segmentation
from wildshape.geometry import box_iou

DEFAULT_MODEL = "maskrcnn_resnet50_fpn_v2"
MIN_IOU = 0.5
# What torchvision's models shrink pictures to: larger ones would only make larger masks, 100 of them each.
MAX_SIDE = 1333
_INSIDE = 0.5


class MaskRCNNSegmenter:
    """Detects, and gives each box the instance that overlaps it most.

    Instances of the category go first: one of another class is taken only where none of the category's has
    the least IoU. The quality is the instance's score times the IoU of its box with the given one.

    Args:
        model: A Mask R-CNN of torchvision, in evaluation mode.
        labels: Class name by class index.
        ours: Class names, in lower case, that mean the category.
        device: Where it runs.
    """

    def __init__(
        self, model: torch.nn.Module, labels: list[str], ours: Set[str], device: torch.device
    ) -> None:
        self._model, self._device = model.eval().to(device), device
        self._ours = np.array([label.lower() in ours for label in labels])

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray], boxes_xyxy: list[np.ndarray]) -> list[list[Segmentation]]:
        """Segment; see `Segmenter`."""
        scales = [min(1.0, MAX_SIDE / max(image.shape[:2])) for image in images]
        tensors = [self._tensor(image, scale) for image, scale in zip(images, scales)]
        results: list[list[Segmentation]] = []
        for found, image, boxes, scale in zip(self._model(tensors), images, boxes_xyxy, scales):
            iou = box_iou(boxes * scale, found["boxes"].cpu().numpy())
            results.append([self._choose(row, found, image.shape[:2]) for row in iou])
        return results

    def _tensor(self, image: np.ndarray, scale: float) -> torch.Tensor:
        if scale < 1:
            height, width = (max(1, round(side * scale)) for side in image.shape[:2])
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(planes).to(self._device).float() / 255

    def _choose(
        self, iou: np.ndarray, found: Mapping[str, torch.Tensor], size: tuple[int, ...]
    ) -> Segmentation:
        if not len(iou):
            return "Mask R-CNN finds nothing in the image"
        scores = found["scores"].cpu().numpy()
        ours = self._ours[found["labels"].cpu().numpy()]
        best = int(np.lexsort((scores, iou, ours & (iou >= MIN_IOU)))[-1])
        if iou[best] < MIN_IOU:
            return f"no instance of Mask R-CNN at the box: IoU of at most {iou[best]:.2f}"
        mask = found["masks"][best, 0].cpu().numpy()
        if mask.shape != tuple(size):
            mask = cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return mask > _INSIDE, float(scores[best] * iou[best])


def make(request: BackendRequest) -> MaskRCNNSegmenter:
    """Build the model and load its weights, as `--detector torchvision` does.

    Raises:
        UserError: if the model is unknown or its weights cannot be had.
    """
    known = [name for name in torchvision.models.list_models(module=detection) if "maskrcnn" in name]
    loaded = load_model("segmenter", request.model or DEFAULT_MODEL, sorted(known), request)
    category = request.workspace.category
    names = (category.coco_label or category.name, category.name, *category.synonyms)
    return MaskRCNNSegmenter(
        loaded.model, loaded.labels, {name.strip().lower() for name in names}, loaded.device
    )
