"""A segmenter plug-in: DeepLab as a TensorFlow Lite file, on the Pascal VOC classes.

    pip install "wildshape[litert]"
    python prepare_data/save_masks.py --category cow \
        --segmenter examples/deeplab_litert.py:DeepLab --opts model deeplabv3_mnv2_pascal_quant.tflite

The network says for each pixel of a picture which class it is of, not which animal. It is shown a crop
about each box, `margin` times the box's longer side, and the animal is made of the connected pieces that
lie mostly in the box. benchmarks/masks.py measures which crop is best.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from wildshape.errors import UserError
from wildshape.geometry import box_iou, crop_affine, warp_crop

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
ANIMALS = "cat,cow,dog,horse,sheep"


class DeepLab:
    """Masks of a TensorFlow Lite model whose output is a class per pixel.

    The quality is the IoU of the mask's own box with the given one: the model does not say how sure it is.

    Args:
        model: The file, with input uint8 or float32 [1, S, S, 3] and output [1, S, S] of class numbers.
        classes: Classes that count as the animal, with commas between. By default all that have four legs:
            which of them a box holds is the detector's to say.
        margin: Side of the crop relative to the box's longer side; 0 shows the whole picture instead.
        slack: By how much of its sides the box is grown before what lies outside of it is cut off.
        threads: Cores.
    """

    def __init__(
        self, model: str, classes: str = ANIMALS, margin: float = 1.1, slack: float = 0.05, threads: int = 1
    ) -> None:
        if not Path(model).is_file():
            raise UserError(f"--opts model: expected a TensorFlow Lite file at {model}; found none")
        names = [name.strip() for name in classes.split(",")]
        if unknown := [name for name in names if name not in CLASSES]:
            raise UserError(f"--opts classes: expected some of {', '.join(CLASSES)}; found {unknown[0]}")
        self._numbers = [CLASSES.index(name) for name in names]
        self._margin, self._slack = margin, slack
        self._interpreter = Interpreter(os.fspath(model), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]
        self._size = int(self._input["shape"][1])

    def __call__(self, images, boxes_xyxy):
        """Masks of images RGB uint8 [H, W, 3] in boxes [N, 4] counted from the image's edge."""
        return [[self._segment(image, box) for box in boxes] for image, boxes in zip(images, boxes_xyxy)]

    def _segment(self, image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, float] | str:
        height, width = image.shape[:2]
        box = np.asarray(box, dtype=np.float64) - 0.5
        if self._margin:
            affine = crop_affine(box, self._size, scale=self._margin)
        else:
            affine = crop_affine(np.array([0, 0, width, height]) - 0.5, self._size)
        classes = self._classes(warp_crop(image, affine, self._size, fill=127))
        found = np.isin(classes, self._numbers).astype(np.uint8) * 255
        back = affine.inverse()
        mask = cv2.warpAffine(found, back.matrix, (width, height), flags=cv2.INTER_LINEAR) > 127
        mask = self._of_box(mask, box)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return "no pixel of an animal in the box"
        own = np.array([columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5])
        return mask, float(box_iou(own, box)[0, 0])

    def _classes(self, crop: np.ndarray) -> np.ndarray:
        pixels = crop[None]
        if self._input["dtype"] == np.float32:
            pixels = pixels.astype(np.float32) / 127.5 - 1
        self._interpreter.set_tensor(self._input["index"], pixels)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._output["index"])[0]

    def _of_box(self, mask: np.ndarray, box: np.ndarray) -> np.ndarray:
        """The pieces that lie mostly in the box, and of them what lies in the box grown a little."""
        height, width = mask.shape
        reach = self._slack * (box[2:] - box[:2])
        x0, y0 = np.maximum(np.ceil(box[:2] - reach), 0).astype(int)
        x1, y1 = np.minimum(np.floor(box[2:] + reach), [width - 1, height - 1]).astype(int)
        inside = np.zeros_like(mask)
        inside[y0 : y1 + 1, x0 : x1 + 1] = True
        count, pieces = cv2.connectedComponents(mask.astype(np.uint8))
        area = np.bincount(pieces.ravel(), minlength=count)
        within = np.bincount(pieces[inside], minlength=count)
        keep = within > 0.5 * area
        keep[0] = False
        if not keep.any() and within[1:].any():
            keep[1 + int(within[1:].argmax())] = True  # animals that touch: the box cuts the piece
        return keep[pieces] & inside
