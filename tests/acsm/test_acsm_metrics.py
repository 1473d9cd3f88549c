import json

import numpy as np
import pytest
import torch
from acsm_golden import FOLDER, arrays

from acsm import geometry, metrics
from acsm.crops import (
    cut_patch,
    padded_box,
    published_crop,
    published_keypoints_ndc,
    published_square,
)
from wildshape.geometry import crop_affine, warp_crop


def result(error, visible, camera_angle):
    """A ShapeResult with these errors (over a box side of 50 px) and camera angles."""
    n, k = error.shape
    xy_true = np.zeros((n, k, 2))
    xy = np.stack([50 * error, np.zeros((n, k))], axis=-1)
    half = np.radians(camera_angle) / 2
    camera = np.zeros((n, 7))
    camera[:, 3], camera[:, 5] = np.cos(half), np.sin(half)
    camera_true = np.tile([1.0, 0, 0, 1, 0, 0, 0], (n, 1))
    return metrics.ShapeResult(xy, xy_true, visible > 0, np.full(n, 50.0), camera, camera_true)


def test_matches_the_published_evaluation():
    golden = arrays("metrics")
    expected = json.loads((FOLDER / "metrics.json").read_text())
    found = result(golden["error"], golden["visible"], golden["camera_error_deg"])
    summary = found.summary([f"k{i}" for i in range(16)], samples=50)
    assert list(summary["pck"].values()) == pytest.approx(expected["pck"], abs=1e-9)
    assert summary["auc"] == pytest.approx(expected["auc"], abs=1e-9)
    assert summary["camera_error_deg_published"] == pytest.approx(expected["camera_error"], abs=1e-6)
    assert summary["camera_error_deg"] == pytest.approx(golden["camera_error_deg"].mean(), abs=1e-6)
    low, high = summary["auc_interval"]
    assert low < summary["auc"] < high
    direct = metrics.auc(found.xy, found.xy_true, found.visible, found.box_side)
    assert direct == pytest.approx(expected["auc"], abs=1e-9)


def test_measures_by_hand():
    # Errors .05 (all thresholds), .075 (above .06 and .07), .2 (none); the last is hidden.
    error = np.array([[0.05, 0.075, 0.2, 0.0]])
    visible = np.array([[1, 1, 1, 0]])
    summary = result(error, visible, np.array([np.nan])).summary("abcd", samples=10)
    assert summary["auc"] == pytest.approx(100 * (1 + 0.6 + 0) / 3)
    assert summary["auc_by_keypoint"] == {
        "a": 100.0, "b": pytest.approx(60.0), "c": 0.0, "d": None
    }  # fmt: skip
    assert summary["cameras"] == 0 and summary["camera_error_deg"] is None
    assert summary["keypoints"] == 3


def test_a_keypoint_exactly_at_the_threshold_is_wrong():
    error = np.array([[3 / 50.0]])  # .06 of the side, exactly representable as 3 px of 50
    summary = result(error, np.ones((1, 1)), np.zeros(1)).summary("a", samples=10)
    assert summary["pck"]["0.06"] == 0 and summary["pck"]["0.07"] == 100


def test_camera_errors_agree_with_torch():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 7))
    expected = geometry.geodesic_degrees(
        *(torch.nn.functional.normalize(torch.tensor(c[:, 3:]), dim=-1) for c in (a, b))
    )
    np.testing.assert_allclose(metrics.camera_errors(a, b), expected, atol=1e-5)
    b[3] = np.nan
    assert np.isnan(metrics.camera_errors(a, b)[3])


def test_published_crop_matches():
    golden = arrays("crop_eval")
    crop = published_crop(golden["image"], golden["box_xywh"], 64)
    np.testing.assert_allclose(crop.transpose(2, 0, 1), golden["crop"], atol=1e-6)
    seen = golden["keypoints"][:, 2] > 0
    found = published_keypoints_ndc(golden["keypoints"][seen, :2], golden["box_xywh"], 64)
    np.testing.assert_allclose(found, golden["keypoints_ndc"][seen, :2], atol=1e-12)


def test_published_crop_is_white_outside():
    crop = published_crop(np.zeros((10, 10, 3), np.uint8), np.array([-30, -30, 8, 8]), 16)
    assert (crop == 1).all()
    assert published_square(np.array([0, 0, 9, 3])).tolist() == [0, -3, 9, 6]


def test_padding_and_jitter():
    box = np.array([10.0, 20, 110, 70])
    assert padded_box(box, 0.05).tolist() == [5.0, 17.5, 115.0, 72.5]
    rng = np.random.default_rng(0)
    moved = np.array([padded_box(box, 0.05, 0.05, rng) for _ in range(200)])
    assert np.abs(moved - [5, 17.5, 115, 72.5]).max(0) == pytest.approx([5, 2.5, 5, 2.5], rel=0.1)


@pytest.mark.parametrize("box", [[30.0, 40, 90, 80], [-5.0, -10, 60, 70], [100.3, 50.6, 420, 333]])
def test_crops_from_a_patch_equal_crops_from_the_image(box):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (60, 75, 3)).astype(np.uint8)
    image = np.kron(small, np.ones((6, 6, 1), np.uint8))
    box = np.array(box)
    for jittered in (padded_box(box, 0.05), padded_box(box, 0.05, 0.05, rng)):
        affine = crop_affine(jittered, 48)
        patch = cut_patch(image, box, 48, reach=1.3)
        cut = warp_crop(patch.image, affine.compose(patch.to_image), 48, 255).astype(int)
        whole = warp_crop(image, affine, 48, 255).astype(int)
        # Blocks may start elsewhere; the pictures agree but for the resampling of edges.
        assert np.abs(cut - whole).mean() < 6
        assert np.corrcoef(cut.ravel(), whole.ravel())[0, 1] > 0.97
