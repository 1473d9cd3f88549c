"""Which model predicts, and what it looks at."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from wildshape import predict
from wildshape.errors import UserError


def test_the_best_arm_has_not_seen_the_truth(workspace):
    for arm, source, auc in (("labels", "pose", 50), ("cf_cm", "pose", 60), ("ceiling", "truth", 90)):
        folder = workspace.checkpoint_dir(f"acsm/{arm}")
        folder.mkdir(parents=True)
        (folder / "best.pt").touch()
        facts = {"config": {"pl_source": source}, "best": {"auc": auc}}
        (folder / "manifest.json").write_text(json.dumps(facts))
    assert predict.best_arm(workspace) == "cf_cm"


def test_without_a_box_the_whole_picture_is_looked_at():
    seen = []
    shape = SimpleNamespace(
        keypoints=np.zeros((1, 2, 2)), camera=np.zeros((1, 7)), part_transforms=np.zeros((1, 1, 8)),
        vertices=np.zeros((1, 3, 3)), vertices_image=np.zeros((1, 3, 3)),
    )  # fmt: skip
    model = predict.Predictor.__new__(predict.Predictor)
    model.workspace = SimpleNamespace(
        category=SimpleNamespace(skeleton=SimpleNamespace(keypoints=("a", "b")))
    )
    model._shapes = SimpleNamespace(
        predict=lambda images, boxes: seen.append(boxes) or shape,
        overlay=lambda image, *_: image, template=SimpleNamespace(faces=np.zeros((0, 3))),
    )  # fmt: skip
    found = model.predict(np.zeros((20, 50, 3), np.uint8))
    assert seen[0].tolist() == [[-0.5, -0.5, 49.5, 19.5]] and found.box_xyxy.tolist() == seen[0][0].tolist()
    for wrong in (np.zeros((20, 50, 3)), np.zeros((20, 50), np.uint8), np.zeros((20, 50, 4), np.uint8)):
        with pytest.raises(UserError, match=r"expected an image uint8 \[H, W, 3\]; found"):
            model.predict(wrong)
    image = np.zeros((20, 50, 3), np.uint8)
    for box in ([0, 0, np.inf, 10], [60, 0, 70, 10], [0, -9, 10, 0]):
        with pytest.raises(UserError, match="--box: expected"):
            model.predict(image, box)
