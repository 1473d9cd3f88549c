import acsm_toy
import numpy as np
import pytest
import torch

from acsm import geometry
from acsm.metrics import ShapeResult
from acsm.per_animal import CURVE, PerAnimal, breakdown, per_animal
from acsm.silhouettes import LARGEST, mask_iou
from acsm.viewpoint import VIEWS, azimuth_deg, flipped_camera, in_view, view_names
from wildshape.errors import UserError
from wildshape.formats.masks import encode_mask

FACING = np.array([1.0, 0, 0, 0.5**0.5, 0.5**0.5, 0, 0])


def seen_from(*azimuths):
    """Cameras [N, 7] that look along these azimuths (0: into the face, 90: onto the right side)."""
    turn = geometry.quat_from_axis_angle(
        torch.tensor([0.0, 0, 1]), torch.deg2rad(torch.tensor(azimuths, dtype=torch.float64))
    )
    facing = torch.tensor(FACING[3:]).expand(len(azimuths), 4)
    q = geometry.quat_multiply(facing, turn)
    return np.concatenate([np.tile(FACING[:3], (len(azimuths), 1)), q.numpy()], axis=1)


def test_viewpoints():
    camera = seen_from(0, 44, 46, 134, 136, 180, -46, -134)
    np.testing.assert_allclose(azimuth_deg(camera)[:5], [0, 44, 46, 134, 136], atol=1e-4)
    expected = torch.rad2deg(geometry.view_angles(torch.tensor(camera[:, 3:]))[:, 0])
    turns = np.random.default_rng(0).normal(size=(50, 4))
    turns /= np.linalg.norm(turns, axis=1, keepdims=True)
    expected = torch.rad2deg(geometry.view_angles(torch.tensor(turns))[:, 0])
    random = np.concatenate([np.ones((50, 3)), turns], axis=1)
    np.testing.assert_allclose(azimuth_deg(random), expected, atol=1e-4)
    names = view_names(np.concatenate([camera, np.full((1, 7), np.nan)]))
    assert names.tolist() == ["front", "front", "right", "right", "back", "back", "left", "left", ""]
    assert {view: int(in_view(names, view).sum()) for view in VIEWS} == {
        "side": 4, "front_back": 4, "left": 2, "right": 2, "front": 2, "back": 2
    }  # fmt: skip
    # The animal's right is at the left of the picture when one looks into its face, near when seen from 90.
    right_eye = torch.tensor([[-1.0, 0, 0]], dtype=torch.float64)
    assert geometry.quat_rotate(torch.tensor(camera[0, 3:]), right_eye)[0, 0] < 0
    assert geometry.quat_rotate(torch.tensor(seen_from(90)[0, 3:]), right_eye)[0, 2] < 0


def test_a_flipped_camera_sees_the_mirrored_animal_as_the_same_picture():
    q = np.random.default_rng(1).normal(size=(20, 4))
    camera = np.concatenate([np.full((20, 3), 0.5), q / np.linalg.norm(q, axis=1, keepdims=True)], axis=1)
    points = torch.tensor(acsm_toy.template().vertices)
    mirrored = points * torch.tensor([-1.0, 1, 1])
    plain = geometry.project(mirrored, torch.tensor(camera))
    flipped = geometry.project(points, torch.tensor(flipped_camera(camera)))
    torch.testing.assert_close(flipped, plain)
    np.testing.assert_allclose(flipped_camera(flipped_camera(camera)), camera, atol=1e-12)
    np.testing.assert_allclose(azimuth_deg(flipped_camera(seen_from(0, 60, 90))), [180, 120, 90], atol=1e-4)


SQUARE = np.array([[9.5, 19.5, 5], [29.5, 19.5, 5], [29.5, 39.5, 5], [9.5, 39.5, 5]])
FACES = np.array([[0, 1, 2], [0, 2, 3]])


def rectangle(shape, left, top, right, bottom):
    mask = np.zeros(shape, np.uint8)
    mask[top : bottom + 1, left : right + 1] = 1
    return encode_mask(mask)


def test_mask_iou_by_hand():
    # The square covers the pixels 10..29 and 20..39, 400 of them.
    assert mask_iou(SQUARE, FACES, rectangle((60, 50), 10, 20, 29, 39)) == 1
    assert mask_iou(SQUARE, FACES, rectangle((60, 50), 20, 20, 39, 39)) == pytest.approx(200 / 600)
    assert mask_iou(SQUARE, FACES, rectangle((60, 50), 40, 45, 45, 50)) == 0
    assert np.isnan(mask_iou(SQUARE, FACES, rectangle((60, 50), 40, 45, 39, 50)))
    # Outside the picture there is no mask: the part that sticks out does not count.
    beyond = SQUARE - [20, 0, 0]
    assert mask_iou(beyond, FACES, rectangle((60, 50), 0, 20, 9, 39)) == 1
    assert mask_iou(SQUARE - [500, 0, 0], FACES, rectangle((60, 50), 0, 20, 9, 39)) == 0


def test_large_masks_are_compared_smaller():
    factor = 80
    large = SQUARE * factor
    shape = (60 * factor, 50 * factor)
    assert 30 * factor > LARGEST
    mask = rectangle(shape, 760, 1560, 2359, 3159)
    assert mask_iou(large, FACES, mask) == pytest.approx(1, abs=0.01)
    half = rectangle(shape, 760, 1560, 1559, 3159)
    assert mask_iou(large, FACES, half) == pytest.approx(0.5, abs=0.01)


def toy_result():
    """Four animals of two keypoints, left and right, 20 px apart in boxes of 100 px.

    0 is right, 1 has the names swapped, 2 is off by 8 px (right for 2 of 5 thresholds), 3 is hidden.
    """
    truth = np.tile([[10.0, 0], [30, 0]], (4, 1, 1))
    xy = truth.copy()
    xy[1] = truth[1, ::-1]
    xy[2, :, 1] = 8
    visible = np.array([[2, 2], [2, 2], [2, 0], [0, 0]])
    camera_true = np.concatenate([seen_from(0, 90, 90), np.full((1, 7), np.nan)])
    camera = seen_from(180, 90, 60, 180)
    return ShapeResult(xy, truth, visible, np.full(4, 100.0), camera, camera_true, tuple("abcd"))


def test_the_breakdown_by_hand():
    animals = per_animal(toy_result(), np.array([1, 0]), np.array([0.5, 0.7, np.nan, np.nan]))
    assert animals.keypoints.tolist() == [2, 2, 1, 0]
    np.testing.assert_allclose(animals.right(), [2, 0, 0.4, 0])
    assert animals.flipped.tolist() == [False, True, False, False]
    assert animals.view.tolist() == ["front", "right", "right", "back"]
    assert animals.view_is_true.tolist() == [True, True, True, False]
    facts = breakdown(animals, ("left", "right"), samples=50)
    assert facts["miou"] == pytest.approx(60) and facts["masks"] == 2
    assert facts["by_keypoint"]["left"]["auc"]["value"] == pytest.approx(100 * 1.4 / 3)
    assert facts["by_keypoint"]["right"]["auc"]["value"] == pytest.approx(50)
    assert facts["by_keypoint"]["right"]["median_error_percent"] == pytest.approx(10)
    curve = dict(zip(CURVE, facts["pck_curve"]["values"]))
    assert curve[0.01] == pytest.approx(40) and curve[0.08] == pytest.approx(40)  # < is strict
    assert curve[0.09] == pytest.approx(60) and curve[0.2] == pytest.approx(60)  # .2 itself is wrong
    side, front = facts["by_view"]["side"], facts["by_view"]["front_back"]
    assert side["animals"] == 2 and side["auc"]["value"] == pytest.approx(100 * 0.4 / 3)
    assert side["camera_error_deg"]["value"] == pytest.approx(15, abs=1e-3)
    assert front["animals"] == 2 and front["auc"]["value"] == pytest.approx(100)
    assert facts["by_view"]["left"] == {
        "animals": 0, **dict.fromkeys(
            ("auc", "camera_error_deg", "miou"), {"value": None, "interval": None, "animals": 0}
        )
    }  # fmt: skip
    assert facts["views_from_true_cameras"] == 3

    points, camera = facts["flip"]["keypoints"], facts["flip"]["camera"]
    assert points["share_percent"]["value"] == 25 and points["share_halved_percent"]["value"] == 25
    assert points["auc"]["value"] == pytest.approx(100 * 2.4 / 5)
    assert points["auc_mended"]["value"] == pytest.approx(100 * 4.4 / 5)
    assert camera["share_percent"]["value"] == pytest.approx(100 / 3)
    assert camera["error_deg"]["value"] == pytest.approx(70, abs=1e-3)
    assert camera["error_deg_mended"]["value"] == pytest.approx(10, abs=1e-3)


def test_animals_are_written_and_read(tmp_path):
    animals = per_animal(toy_result(), np.array([1, 0]))
    animals.write(tmp_path / "a.parquet")
    again = PerAnimal.read(tmp_path / "a.parquet")
    for name in ("instance_id", "truth", "view", "view_is_true"):
        assert getattr(again, name).tolist() == getattr(animals, name).tolist()
    for name in ("error", "error_swapped", "camera_error_deg", "camera_error_deg_flipped", "iou"):
        np.testing.assert_array_equal(getattr(again, name), getattr(animals, name))
    (tmp_path / "a.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="expected the animals of an evaluation in .*a.parquet; found"):
        PerAnimal.read(tmp_path / "a.parquet")
