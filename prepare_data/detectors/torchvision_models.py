"""torchvision's detection models, with weights from its cache, the web, or a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models import detection

from prepare_data.backends import BackendRequest
from prepare_data.detectors import DIORAMA_WEIGHTS, Detection, DetectorRequest
from wildshape.errors import UserError

DEFAULT_MODEL = "fasterrcnn_resnet50_fpn_v2"
# the score below which boxes are not kept: one-stage models and small ones are less sure of
# themselves than the published Faster R-CNN
THRESHOLDS: Mapping[str, float] = {
    "fasterrcnn_resnet50_fpn_v2": 0.95,
    "fasterrcnn_resnet50_fpn": 0.95,
    "maskrcnn_resnet50_fpn_v2": 0.95,
    "fasterrcnn_mobilenet_v3_large_fpn": 0.9,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 0.8,
    "retinanet_resnet50_fpn_v2": 0.6,
    "fcos_resnet50_fpn": 0.6,
    "ssd300_vgg16": 0.6,
    "ssdlite320_mobilenet_v3_large": 0.5,
}
_FLOOR = 0.05
_SCORE_FLAG = {"fasterrcnn": "box_score_thresh", "maskrcnn": "box_score_thresh"}


class TorchvisionDetector:
    """A torchvision detection model.

    Args:
        model: In evaluation mode.
        labels: Class name by class index; index 0 is the background.
        device: Where it runs.
        default_threshold: See `Detector`.
    """

    def __init__(
        self, model: torch.nn.Module, labels: list[str], device: torch.device, default_threshold: float
    ) -> None:
        self._model, self.labels, self._device = model.eval().to(device), labels, device
        self.default_threshold = default_threshold

    @torch.inference_mode()
    def __call__(self, images: list[np.ndarray]) -> list[Detection]:
        """Detect; see `Detector`."""
        tensors = [
            torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(self._device).float() / 255
            for image in images
        ]
        return [
            (
                found["boxes"].cpu().numpy(),
                found["scores"].cpu().numpy(),
                [self.labels[label] for label in found["labels"].tolist()],
            )
            for found in self._model(tensors)
        ]


def make(request: DetectorRequest) -> TorchvisionDetector:
    """Build the model and load its weights, see `load_model`.

    Raises:
        UserError: if the model is unknown or its weights cannot be had.
    """
    name = request.model or DEFAULT_MODEL
    known = sorted(torchvision.models.list_models(module=detection))
    loaded = load_model("detector", name, [model for model in known if "keypoint" not in model], request)
    threshold = THRESHOLDS.get(name, 0.95) if loaded.score_threshold is None else loaded.score_threshold
    return TorchvisionDetector(loaded.model, loaded.labels, loaded.device, threshold)


@dataclass(frozen=True)
class LoadedModel:
    """A detection model of torchvision with its weights.

    Attributes:
        model: The network.
        labels: Class name by class index; index 0 is the background.
        device: Where it is to run.
        score_threshold: The score from which a box is kept, if its file says.
    """

    model: torch.nn.Module
    labels: list[str]
    device: torch.device
    score_threshold: float | None


def load_model(kind: str, name: str, known: Sequence[str], request: BackendRequest) -> LoadedModel:
    """Build a model and load its weights.

    `--opts MODEL.WEIGHTS file.pt` names a state dict of the model, or a mapping with it under
    `model`, under `categories` the names of its classes (background first) if they are not COCO's, and
    under `score_threshold` the score from which a box is kept, if it is not the model's usual one.
    Without it torchvision's COCO weights are taken from its cache or downloaded into it.

    Args:
        kind: The flag that names the model, for messages.
        name: The model's name.
        known: Names that the flag may name.
        request: Options and device.

    Raises:
        UserError: if the model is unknown or its weights cannot be had.
    """
    if name not in known:
        raise UserError(f"--{kind} torchvision: expected a model among {', '.join(known)}; found {name}")
    opts = dict(request.opts)
    file = opts.pop("MODEL.WEIGHTS", None)
    if opts:
        raise UserError(f"--{kind} torchvision: expected --opts MODEL.WEIGHTS FILE; found {sorted(opts)}")
    coco = torchvision.models.get_model_weights(name).DEFAULT
    saved = {"model": _published(kind, name, coco)} if file is None else _from_file(Path(file))
    labels = [str(label) for label in saved.get("categories", coco.meta["categories"])]
    flag = _SCORE_FLAG.get(name.partition("_")[0], "score_thresh")
    model = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=len(labels), **{flag: _FLOOR}
    )
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(
            f"{file}: expected weights of {name} with {len(labels)} classes; {reason}"
        ) from None
    threshold = saved.get("score_threshold")
    return LoadedModel(
        model, labels, _device(request.device), None if threshold is None else float(threshold)
    )


def make_diorama(request: DetectorRequest) -> TorchvisionDetector:
    """The detector that comes with the package, trained on the synthetic world (train_detector.py).

    Raises:
        UserError: if it does not know the category, or options are given.
    """
    if request.opts or request.model:
        found = " ".join([request.model, *request.opts]).strip()
        raise UserError(f"--detector diorama: expected no model and no --opts; found {found}")
    saved = _from_file(DIORAMA_WEIGHTS)
    category = request.workspace.category.name
    if category not in saved["categories"]:
        known = ", ".join(saved["categories"][1:])
        raise UserError(
            f"--detector diorama: expected a category among {known}; found {category}; "
            "run: with --detector simulated, or train one with prepare_data/train_detector.py"
        )
    opts = {"MODEL.WEIGHTS": str(DIORAMA_WEIGHTS)}
    return make(DetectorRequest(saved["architecture"], opts, request.device, request.workspace))


def _device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("--device cuda: expected a CUDA device; torch finds none")
    return torch.device(device)


def _published(kind: str, name: str, weights: Any) -> Mapping[str, torch.Tensor]:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a broken download
        raise UserError(
            f"torchvision's {name} needs its weights, which are neither in {cached.parent} nor can be "
            f"downloaded ({error}); fetch {weights.url} into that folder, or add --opts MODEL.WEIGHTS "
            f"FILE, or choose another --{kind}"
        ) from None
    return state


def _from_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"--opts MODEL.WEIGHTS: expected a file at {path}; found none")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UserError(f"{path}: expected weights saved by torch; {str(error).splitlines()[0]}") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: expected a state dict; found {type(loaded).__name__}")
    return loaded if "model" in loaded else {"model": loaded}
