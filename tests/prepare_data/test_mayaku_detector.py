"""The mayaku adapter, on a stand-in for its predictor."""

import sys
import types

import numpy as np
import pytest
import torch

from prepare_data.detectors import find_detector
from wildshape.errors import UserError


def test_mayaku_reads_boxes_and_names(monkeypatch, tmp_path, workspace):
    found = types.SimpleNamespace(
        pred_boxes=types.SimpleNamespace(tensor=torch.tensor([[1.0, 2.0, 30.0, 40.0]])),
        scores=torch.tensor([0.99]),
        pred_classes=torch.tensor([1]),
    )

    class Predictor:
        class_names = ["sheep", "cow"]

        def __call__(self, image):
            assert image.dtype == np.uint8
            return found

    asked = []

    def from_pretrained(source, device):
        asked.append((source, device))
        return Predictor()

    monkeypatch.setitem(sys.modules, "mayaku", types.SimpleNamespace(from_pretrained=from_pretrained))
    file = tmp_path / "model.pth"
    with pytest.raises(UserError, match="expected a converted checkpoint; found .*mayaku convert-d2"):
        find_detector(f"mayaku:{file}", workspace, device="cpu").make()
    file.write_bytes(b"x")
    detector = find_detector(f"mayaku:{file}", workspace, device="cpu").make()
    assert asked == [(str(file), "cpu")]
    boxes, scores, labels = detector([np.zeros((50, 60, 3), np.uint8)])[0]
    assert boxes.tolist() == [[1, 2, 30, 40]] and labels == ["cow"]
    with pytest.raises(UserError, match="expected no --opts; found a"):
        find_detector(f"mayaku:{file}", workspace, ("a", "1")).make()
    monkeypatch.setitem(sys.modules, "mayaku", None)
    with pytest.raises(UserError, match=r'pip install "wildshape\[mayaku\]"'):
        find_detector(f"mayaku:{file}", workspace).make()
