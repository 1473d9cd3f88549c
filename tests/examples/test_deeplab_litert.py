"""The example plug-in: on a stand-in interpreter, and on real dogs where there are any."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prepare_data import save_masks
from prepare_data.backends import load_plug_in
from prepare_data.segmenters import segment
from wildshape.errors import UserError
from wildshape.formats import import_command
from wildshape.workspace import Workspace

FILE = Path(__file__).parents[2] / "examples/deeplab_litert.py"
COW, DOG, PERSON = 10, 12, 15
SIZE = 32


class Interpreter:
    """Tells classes by colour: red is a cow, green a dog, blue a person."""

    def __init__(self, model_path, num_threads):
        self.shown: list[np.ndarray] = []

    def allocate_tensors(self):
        pass

    def get_input_details(self):
        return [{"index": 0, "shape": np.array([1, SIZE, SIZE, 3]), "dtype": np.uint8}]

    def get_output_details(self):
        return [{"index": 7}]

    def set_tensor(self, index, value):
        assert index == 0 and value.shape == (1, SIZE, SIZE, 3) and value.dtype == np.uint8
        self.shown.append(value[0])

    def invoke(self):
        pass

    def get_tensor(self, index):
        assert index == 7
        classes = np.zeros((1, SIZE, SIZE), np.int64)
        for channel, number in enumerate((COW, DOG, PERSON)):
            classes[0][self.shown[-1][..., channel] > 200] = number
        return classes


@pytest.fixture
def deeplab(monkeypatch, tmp_path):
    """Makes the plug-in as save_masks does, on the stand-in."""
    package, module = ModuleType("ai_edge_litert"), ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter
    monkeypatch.setitem(sys.modules, "ai_edge_litert", package)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)
    model = tmp_path / "model.tflite"
    model.write_bytes(b"weights")
    return lambda **opts: load_plug_in("segmenter", FILE, "DeepLab", {"model": str(model), **opts})


def scene():
    """A cow in x 20..39, y 10..29 of 64 x 48; a dog beside it, a person far away."""
    image = np.full((48, 64, 3), 60, np.uint8)
    image[10:30, 20:40] = (255, 0, 0)
    image[30:36, 50:60] = (0, 255, 0)
    image[2:8, 2:8] = (0, 0, 255)
    return image


@pytest.mark.parametrize("margin", ["1.1", "1.6", "0"])
def test_the_mask_is_in_the_image(deeplab, margin):
    box = np.array([[20, 10, 40, 30]], np.float32)
    ((mask, quality),) = segment(deeplab(margin=margin), "test", [scene()], [box])[0]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    # Two image pixels a network pixel where it sees the whole picture.
    assert np.abs(np.array([columns[0], rows[0], columns[-1], rows[-1]]) - [20, 10, 39, 29]).max() <= 1
    assert quality > 0.85 and mask[20, 30] and not mask[32, 55]


def test_the_box_says_which_animal(deeplab):
    boxes = np.array([[49, 29, 61, 37], [1, 1, 9, 9], [5, 35, 15, 45]], np.float32)
    (mask, _), person, nothing = segment(deeplab(margin="0"), "test", [scene()], [boxes])[0]
    assert mask[33, 55] and not mask[20, 30]
    assert person == nothing == "no pixel of an animal in the box"
    only = deeplab(margin="0", classes="cow")
    assert segment(only, "test", [scene()], [boxes[:1]])[0] == ["no pixel of an animal in the box"]


def test_animals_that_touch_are_cut_at_the_box(deeplab):
    image = np.full((48, 64, 3), 60, np.uint8)
    image[10:30, 4:60] = (255, 0, 0)
    box = np.array([[4, 10, 24, 30]], np.float32)
    ((mask, _),) = segment(deeplab(margin="0", slack="0.1"), "test", [image], [box])[0]
    assert mask[20, 24] and not mask[:, 27:].any()


def test_what_cannot_be(deeplab, tmp_path):
    with pytest.raises(UserError, match="--opts model: expected a TensorFlow Lite file at none.tflite"):
        deeplab(model="none.tflite")
    with pytest.raises(UserError, match="--opts classes: expected some of background, .*; found zebra"):
        deeplab(classes="cow, zebra")


def test_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(UserError, match="pip install ai_edge_litert"):
        load_plug_in("segmenter", FILE, "DeepLab", {"model": "x"})


@pytest.mark.real_data
def test_real_dogs(real_data, tmp_path):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
    model = real_data / "weights/deeplabv3_mnv2_pascal_quant.tflite"
    if not model.is_file():
        pytest.skip(f"needs {model.name} in weights/ of the real data")
    workspace = Workspace(tmp_path, "dog")
    source = import_command.Config(
        format="stanford_extra", category="dog", root=real_data / "stanfordextra"
    )
    import_command.run(source, workspace)
    config = save_masks.Config(
        category="dog", labelled=True, segmenter=f"{FILE}:DeepLab", opts=("model", str(model))
    )
    metrics = save_masks.run(config, workspace)
    assert metrics["masks"] == 25 and metrics["true_masks_kept"] == 25
    assert metrics["true_iou"]["mean"] > 0.88 and metrics["true_iou"]["p05"] > 0.7
    assert metrics["keypoints_inside"]["visible"] > 0.85
