"""Detectron2's models without Detectron2: mayaku reads their converted checkpoints in pure Python.

Imported when used: pip install "wildshape[mayaku]". `mayaku convert-d2 model_final.pth --d2-config cfg.yaml
-o model.pth` converts a checkpoint of the zoo or of your own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prepare_data.detectors import PUBLISHED_THRESHOLD, Detection, DetectorRequest
from prepare_data.detectors.coco import COCO_CLASSES
from wildshape.device import pick_device
from wildshape.errors import UserError


class MayakuDetector:
    """A mayaku predictor, which takes one image at a time.

    Args:
        predictor: What `mayaku.from_pretrained` returns.
    """

    default_threshold = PUBLISHED_THRESHOLD

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor
        self.labels = list(predictor.class_names or COCO_CLASSES)

    def __call__(self, images: list[np.ndarray]) -> list[Detection]:
        """Detect; see `Detector`."""
        import torch

        with torch.inference_mode():
            return [self._read(self._predictor(image)) for image in images]

    def _read(self, found: Any) -> Detection:
        return (
            found.pred_boxes.tensor.cpu().numpy(),
            found.scores.cpu().numpy(),
            [self.labels[index] for index in found.pred_classes.tolist()],
        )


def make(request: DetectorRequest) -> MayakuDetector:
    """Load a checkpoint, `mayaku:FILE.pth`.

    Raises:
        UserError: if mayaku is not installed, or the checkpoint cannot be had.
    """
    try:
        import mayaku
    except ImportError as error:
        raise UserError('--detector mayaku needs mayaku; run: pip install "wildshape[mayaku]"') from error
    if not Path(request.model).is_file():
        raise UserError(
            "--detector mayaku:FILE.pth: expected a converted checkpoint; found "
            f"{request.model or 'no name'}; run: mayaku convert-d2 model_final.pth "
            "--d2-config cfg.yaml -o FILE.pth"
        )
    if request.opts:
        raise UserError(f"--detector mayaku: expected no --opts; found {', '.join(sorted(request.opts))}")
    try:
        predictor = mayaku.from_pretrained(request.model, device=pick_device(request.device).type)
    except Exception as error:  # whatever the checkpoint makes it raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{request.model}: expected a converted checkpoint; {reason}") from error
    return MayakuDetector(predictor)
