"""Detectron2's model zoo through the one protocol; imported when used.

By default the detector of the published project: Faster R-CNN X101-FPN 3x on COCO.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prepare_data.detectors import PUBLISHED_THRESHOLD, Detection, DetectorRequest
from prepare_data.detectors.coco import COCO_CLASSES
from wildshape.errors import UserError

DEFAULT_CONFIG = "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x"
_FLOOR = 0.05


class Detectron2Detector:
    """A Detectron2 predictor, fed whole batches.

    Args:
        predictor: A `DefaultPredictor`.
    """

    default_threshold = PUBLISHED_THRESHOLD

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def __call__(self, images: list[np.ndarray]) -> list[Detection]:
        """Detect; see `Detector`."""
        import torch

        predictor = self._predictor
        inputs = []
        for image in images:
            height, width = image.shape[:2]
            # the zoo's models were trained on BGR
            ordered = image if predictor.input_format == "RGB" else image[:, :, ::-1]
            ordered = np.ascontiguousarray(ordered)
            resized = predictor.aug.get_transform(ordered).apply_image(ordered)
            tensor = torch.as_tensor(np.ascontiguousarray(resized.astype("float32").transpose(2, 0, 1)))
            inputs.append({"image": tensor, "height": height, "width": width})
        with torch.inference_mode():
            outputs = predictor.model(inputs)
        return [self._read(output["instances"]) for output in outputs]

    def _read(self, instances: Any) -> Detection:
        instances = instances.to("cpu")
        return (
            instances.pred_boxes.tensor.numpy(),
            instances.scores.numpy(),
            [COCO_CLASSES[index] for index in instances.pred_classes.tolist()],
        )


def make(request: DetectorRequest) -> Detectron2Detector:
    """Build the predictor of a config of the zoo, or of a .yaml file.

    `--opts KEY VALUE ...` go to Detectron2's configuration (`MODEL.WEIGHTS file.pkl`).

    Raises:
        UserError: if Detectron2 is not installed, or the config or its weights cannot be had.
    """
    try:
        from detectron2 import model_zoo
        from detectron2.config import get_cfg
        from detectron2.engine import DefaultPredictor
    except ImportError as error:
        raise UserError(
            "--detector detectron2 needs Detectron2; run: pip install --no-build-isolation "
            "git+https://github.com/facebookresearch/detectron2.git (or take --detector torchvision)"
        ) from error
    import torch

    name = request.model or DEFAULT_CONFIG
    weights = request.opts.get("MODEL.WEIGHTS")
    if weights is not None and "://" not in weights and not Path(weights).is_file():
        raise UserError(f"--opts MODEL.WEIGHTS: expected a file at {weights}; found none")
    config = get_cfg()
    zoo_name = name if name.endswith(".yaml") else f"{name}.yaml"
    try:
        if Path(name).is_file():
            config.merge_from_file(name)
        else:
            config.merge_from_file(model_zoo.get_config_file(zoo_name))
            if weights is None:
                config.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(zoo_name)
        config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = _FLOOR
        config.MODEL.RETINANET.SCORE_THRESH_TEST = _FLOOR
        if request.device != "auto":
            config.MODEL.DEVICE = request.device
        elif not torch.cuda.is_available():
            config.MODEL.DEVICE = "cpu"
        config.merge_from_list([part for pair in request.opts.items() for part in pair])
        return Detectron2Detector(DefaultPredictor(config))
    except (RuntimeError, KeyError, OSError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"Detectron2 cannot load {name} with --opts {dict(request.opts)}: {reason}"
        ) from error
