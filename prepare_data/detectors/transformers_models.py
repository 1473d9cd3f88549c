"""Detection models of transformers: class models (RT-DETR, D-FINE, ...), and Grounding DINO by text.

Imported when used: pip install "wildshape[transformers]".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prepare_data.backends import import_transformers
from prepare_data.detectors import Detection, DetectorRequest
from wildshape.device import pick_device
from wildshape.errors import UserError

if TYPE_CHECKING:
    import torch

DEFAULT_MODEL = "PekingU/rtdetr_v2_r50vd"
# Sigmoid scores of these models run lower than those of Faster R-CNN's softmax.
CLASS_THRESHOLD = 0.6
TEXT_THRESHOLD = 0.35
_FLOOR = 0.05
_BY_TEXT = ("grounding-dino", "mm-grounding-dino")
_OPTIONS = ("text", "text_threshold")


class ClassDetector:
    """A model with a fixed list of classes.

    Args:
        model: In evaluation mode.
        processor: Its image processor.
        device: Where it runs.
    """

    default_threshold = CLASS_THRESHOLD

    def __init__(self, model: Any, processor: Any, device: torch.device) -> None:
        self._model, self._processor, self._device = model.eval().to(device), processor, device
        self.labels = {int(index): str(name) for index, name in model.config.id2label.items()}

    def __call__(self, images: list[np.ndarray]) -> list[Detection]:
        """Detect; see `Detector`."""
        import torch

        inputs = self._processor(images=images, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        found = self._processor.post_process_object_detection(
            outputs, threshold=_FLOOR, target_sizes=[image.shape[:2] for image in images]
        )
        return [
            (
                result["boxes"].cpu().numpy(),
                result["scores"].cpu().numpy(),
                [self.labels[index] for index in result["labels"].tolist()],
            )
            for result in found
        ]


class TextDetector:
    """A model that finds what a text names: "horse. pony. foal."

    A box is the category's where the phrase that it answers to has one of the words.

    Args:
        model: In evaluation mode.
        processor: Of images and text.
        device: Where it runs.
        words: What to look for.
        label: Class name to report for them.
        text_threshold: Least score of a word to count to a box's phrase.
    """

    default_threshold = TEXT_THRESHOLD

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: torch.device,
        words: Sequence[str],
        label: str,
        text_threshold: float = 0.25,
    ) -> None:
        self._model, self._processor, self._device = model.eval().to(device), processor, device
        self._words = tuple(word.strip().lower() for word in words)
        self._label, self._text_threshold = label, text_threshold
        self.text = " ".join(f"{word}." for word in self._words)

    def __call__(self, images: list[np.ndarray]) -> list[Detection]:
        """Detect; see `Detector`."""
        import torch

        inputs = self._processor(
            images=images, text=[self.text] * len(images), return_tensors="pt", padding=True
        ).to(self._device)
        with torch.inference_mode():
            outputs = self._model(**inputs)
        found = self._processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=_FLOOR,
            text_threshold=self._text_threshold,
            target_sizes=[image.shape[:2] for image in images],
        )
        return [
            (
                result["boxes"].cpu().numpy(),
                result["scores"].cpu().numpy(),
                [self.named(phrase) for phrase in result["text_labels"]],
            )
            for result in found
        ]

    def named(self, phrase: str) -> str:
        """The category's class name if the phrase has one of the words, else the phrase."""
        parts = set(re.findall(r"\w+", phrase.lower()))
        known = any(parts & set(word.split()) for word in self._words)
        return self._label if known else phrase


def make(request: DetectorRequest) -> ClassDetector | TextDetector:
    """Load a model by its name on the hub or from a folder.

    `--opts text "horse. pony."` replaces the category's names and synonyms in the question to a model that
    is asked by text; `text_threshold .25` is the least score of a word.

    Raises:
        UserError: if transformers is not installed, or the model cannot be had or does not detect.
    """
    transformers = import_transformers("--detector transformers")
    name = request.model or DEFAULT_MODEL
    if unknown := sorted(set(request.opts) - set(_OPTIONS)):
        raise UserError(f"--opts: expected some of {', '.join(_OPTIONS)}; found {', '.join(unknown)}")
    device = pick_device(request.device)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        by_text = config.model_type in _BY_TEXT
        if by_text:
            model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(name)
            processor = transformers.AutoProcessor.from_pretrained(name)
        else:
            model = transformers.AutoModelForObjectDetection.from_pretrained(name)
            processor = transformers.AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(
            f"--detector transformers:{name}: expected a detection model on the hub or in a folder; "
            f"{reason}"
        ) from error
    if not by_text:
        return ClassDetector(model, processor, device)
    category = request.workspace.category
    return TextDetector(
        model,
        processor,
        device,
        _words(request.opts, (category.name, *category.synonyms)),
        category.coco_label or category.name,
        float(request.opts.get("text_threshold", 0.25)),
    )


def _words(opts: Mapping[str, str], default: Sequence[str]) -> list[str]:
    words = opts["text"].split(".") if "text" in opts else default
    return list(dict.fromkeys(word.strip().lower() for word in words if word.strip()))
