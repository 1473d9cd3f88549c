"""Detectors behind one protocol: images in; boxes, scores and COCO class names out.

A detector is named on the command line by `--detector`:

    torchvision[:MODEL]          torchvision's detection models, by default fasterrcnn_resnet50_fpn_v2
    detectron2[:CONFIG]          Detectron2's model zoo, by default the published X101 Faster R-CNN
    transformers[:MODEL]         RT-DETR, D-FINE and others, or Grounding DINO by the category's names
    mayaku:FILE.pth              Detectron2's models, converted, without Detectron2
    simulated                    that world's ground truth with stated errors
    path/to/file.py:NAME         a class (made without arguments but `--opts`) or a callable of yours
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from wildshape.errors import UserError
from wildshape.files import file_hash
from wildshape.workspace import Workspace

Detection = tuple[np.ndarray, np.ndarray, list[str]]
PUBLISHED_THRESHOLD = 0.95
SIMULATED = "ground truth with misses, false alarms and jitter"
DIORAMA_WEIGHTS = Path(__file__).parents[1] / "diorama" / "detector.pt"

_BACKENDS: Mapping[str, tuple[str, str]] = {
    "torchvision": ("prepare_data.detectors.torchvision_models", "make"),
    "detectron2": ("prepare_data.detectors.detectron2_models", "make"),
    "transformers": ("prepare_data.detectors.transformers_models", "make"),
    "mayaku": ("prepare_data.detectors.mayaku_models", "make"),
    "simulated": ("prepare_data.diorama.simulated_detector", "make"),
}


class Detector(Protocol):
    """What finds animals.

    It may have an attribute `default_threshold`, the score below which its boxes are not kept
    unless the user says otherwise (without it: .95, as published).
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


@dataclass(frozen=True)
class DetectorRequest:
    """What a backend is made from.

    Attributes:
        model: What stands after the colon, or "".
        opts: `--opts KEY VALUE ...` as a mapping, values as text.
        device: auto, cpu or cuda.
        workspace: The category's workspace.
    """

    model: str
    opts: Mapping[str, str]
    device: str
    workspace: Workspace


@dataclass(frozen=True)
class LoadedDetector:
    """A detector that is ready to be made.

    Attributes:
        name: As written in the instances table.
        settings: What its results depend on: the request, and hashes of files.
        make: Makes the detector; raises UserError if that cannot be done here.
        note: What a reader of its results must know, or "".
    """

    name: str
    make: Callable[[], Detector]
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def title(self) -> str:
        """Name and note, as shown to people."""
        return f"{self.name} ({self.note})" if self.note else self.name


def parse_opts(opts: Sequence[str]) -> dict[str, str]:
    """`KEY VALUE KEY VALUE ...` (or `KEY=VALUE ...`) as a mapping.

    Raises:
        UserError: if a key has no value.
    """
    pairs: dict[str, str] = {}
    words = iter(opts)
    for word in words:
        key, equals, value = word.partition("=")
        found = value if equals else next(words, None)
        if found is None:
            raise UserError(f"--opts: expected pairs KEY VALUE; found {' '.join(opts)}")
        pairs[key] = found
    return pairs


def find_detector(
    spec: str, workspace: Workspace, opts: Sequence[str] = (), device: str = "auto"
) -> LoadedDetector:
    """The detector that `--detector` names; nothing heavy is imported before it is made.

    Raises:
        UserError: if there is none of that name, or a file it needs is missing.
    """
    options = parse_opts(opts)
    settings: dict[str, Any] = {"detector": spec, **options}
    for key, value in options.items():
        if Path(value).is_file():
            settings[f"{key} hash"] = file_hash(value)[:16]
    head, _, tail = spec.rpartition(":")
    if head.endswith(".py"):
        file = Path(head).expanduser()
        if not file.is_file():
            raise UserError(f"--detector: expected a Python file at {head}; found none")
        settings["file hash"] = file_hash(file)[:16]
        settings["detector"] = f"{file.name}:{tail}"
        return LoadedDetector(f"{file.stem}:{tail}", lambda: _plug_in(file, tail, options), settings)
    backend, _, model = spec.partition(":")
    if backend not in _BACKENDS:
        raise UserError(
            f"--detector: expected {', '.join(_BACKENDS)} or path/to/file.py:NAME; found {spec}"
        )
    if backend == "diorama":
        settings["weights hash"] = file_hash(DIORAMA_WEIGHTS)[:16]
    module, function = _BACKENDS[backend]
    request = DetectorRequest(model, options, device, workspace)

    def make() -> Detector:
        return getattr(importlib.import_module(module), function)(request)  # type: ignore[no-any-return]

    return LoadedDetector(spec, make, settings, SIMULATED if backend == "simulated" else "")


def _plug_in(file: Path, name: str, options: Mapping[str, str]) -> Detector:
    module_name = f"detector_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    loader = importlib.util.spec_from_file_location(module_name, file)
    if loader is None or loader.loader is None:
        raise UserError(f"--detector: expected a Python file; found {file}")
    module = importlib.util.module_from_spec(loader)
    sys.modules[module_name] = module  # dataclasses and pickling look it up there
    try:
        loader.loader.exec_module(module)
    except ImportError as error:
        raise UserError(f"{file} needs {error.name or error}; run: pip install {error.name}") from error
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
        raise UserError(f"{file}: expected a class {name}; found {', '.join(own) or 'none'}")
    if not inspect.isclass(found):
        return found  # type: ignore[no-any-return]
    try:
        return found(**{key: yaml.safe_load(value) for key, value in options.items()})  # type: ignore[no-any-return]
    except ImportError as error:
        raise UserError(f"{file} needs {error.name or error}; run: pip install {error.name}") from error
    except TypeError as error:
        raise UserError(f"{file}:{name} cannot be made with --opts {dict(options)}: {error}") from error


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
