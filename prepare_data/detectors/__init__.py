"""Detectors behind one protocol: images in; boxes, scores and COCO class names out.

A detector is named on the command line by `--detector`:

    torchvision[:MODEL]          torchvision's detection models, by default fasterrcnn_resnet50_fpn_v2
    detectron2[:CONFIG]          Detectron2's model zoo, by default the published X101 Faster R-CNN
    transformers[:MODEL]         RT-DETR, D-FINE and others, or Grounding DINO by the category's names
    mayaku:FILE.pth              Detectron2's models, converted, without Detectron2
    diorama                      an SSDlite trained on the synthetic world; comes with the package
    simulated                    that world's ground truth with stated errors
    path/to/file.py:NAME         a class (made without arguments but `--opts`) or a callable of yours
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from prepare_data.backends import BackendRequest, Backends, LoadedBackend, parse_opts
from wildshape.errors import UserError
from wildshape.workspace import Workspace

__all__ = [
    "BACKENDS", "DIORAMA_WEIGHTS", "PUBLISHED_THRESHOLD", "Detection", "Detector", "DetectorRequest",
    "LoadedDetector", "default_threshold", "detect", "find_detector", "parse_opts",
]  # fmt: skip

DetectorRequest = BackendRequest
LoadedDetector = LoadedBackend
Detection = tuple[np.ndarray, np.ndarray, list[str]]
PUBLISHED_THRESHOLD = 0.95
SIMULATED = "ground truth with misses, false alarms and jitter"
DIORAMA_WEIGHTS = Path(__file__).parents[1] / "diorama" / "detector.pt"

BACKENDS = Backends(
    "detector",
    {
        "torchvision": ("prepare_data.detectors.torchvision_models", "make"),
        "detectron2": ("prepare_data.detectors.detectron2_models", "make"),
        "transformers": ("prepare_data.detectors.transformers_models", "make"),
        "mayaku": ("prepare_data.detectors.mayaku_models", "make"),
        "diorama": ("prepare_data.detectors.torchvision_models", "make_diorama"),
        "simulated": ("prepare_data.diorama.simulated_detector", "make"),
    },
    {"simulated": SIMULATED},
    {"diorama": DIORAMA_WEIGHTS},
)


class Detector(Protocol):
    """What finds animals.

    It may have an attribute `default_threshold`, the score below which its boxes are not kept
    unless the user says otherwise (without it: .95, as published), and `labels`, the names of all its
    classes, in a list or by number, if they are fixed.
    """

    def __call__(self, images: list[np.ndarray]) -> Sequence[Detection]:
        """Detect.

        Args:
            images: RGB uint8 [H, W, 3] each, of any sizes.

        Returns:
            For each image: boxes_xyxy float32 [N, 4] in pixels counted from the image's edge (an
            image spans [0, W]), scores float32 [N] in 0..1, and N COCO class names.
        """
        ...


def find_detector(
    spec: str, workspace: Workspace, opts: Sequence[str] = (), device: str = "auto"
) -> LoadedDetector:
    """The detector that `--detector` names; nothing heavy is imported before it is made.

    Raises:
        UserError: if there is none of that name, or a file it needs is missing.
    """
    return BACKENDS.find(spec, workspace, opts, device)


def default_threshold(detector: Detector) -> float:
    """The score below which a detector's boxes are dropped unless the user says otherwise."""
    return float(getattr(detector, "default_threshold", PUBLISHED_THRESHOLD))


def detect(detector: Detector, name: str, images: list[np.ndarray]) -> list[Detection]:
    """Run a detector and check what it returns.

    Raises:
        UserError: if that is not what the protocol says.
    """
    results = list(detector(images))
    if len(results) != len(images):
        raise UserError(f"{name}: expected {len(images)} results, one an image; found {len(results)}")
    checked: list[Detection] = []
    for result in results:
        if len(result) != 3:
            raise UserError(f"{name}: expected (boxes, scores, labels) an image; found {len(result)} parts")
        boxes = np.asarray(result[0], dtype=np.float64).reshape(-1, *np.shape(result[0])[1:])
        if boxes.size == 0:
            boxes = np.zeros((0, 4))
        scores, labels = np.asarray(result[1], dtype=np.float64).reshape(-1), list(result[2])
        if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) == len(scores) == len(labels):
            raise UserError(
                f"{name}: expected boxes [N, 4], N scores and N labels; found boxes "
                f"{list(boxes.shape)}, {len(scores)} scores, {len(labels)} labels"
            )
        checked.append((boxes, scores, [str(label) for label in labels]))
    return checked
