import math

import numpy as np
import pytest
import torch
from acsm_golden import template, tensors

from acsm import geometry, losses
from wildshape.geometry import camera_to_crop, crop_affine


@pytest.mark.parametrize("cameras", [1, 8])
def test_matches_the_published_loss(cameras):
    golden = tensors(f"forward_cams{cameras}")
    keypoints, flip = golden["keypoints"], torch.tensor(template().keypoint_flip)
    mirrored = keypoints[:, flip] * torch.tensor([-1.0, 1.0, 1.0])
    both = torch.cat([keypoints, mirrored])
    prediction = {
        "keypoints_ndc": golden["keypoints_projected"],
        "camera_prob": golden["camera_prob"][..., 0],
        "part_transforms": golden["part_transforms"],
    }
    total, terms = losses.total_loss(prediction, both[..., :2], both[..., 2])
    assert 3 * terms["keypoints"] == pytest.approx(golden["loss_kp"].item(), rel=1e-5)
    assert terms["translation"] == golden["loss_trans_reg"].item() == 0
    assert total.item() == pytest.approx(golden["loss_kp"].item(), rel=1e-5)


def test_by_hand():
    predicted = torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [9.0, 9.0]]]])
    target = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [float("nan"), 0.0]]])
    weight = torch.tensor([[1.0, 0.5, 0.0]])
    # mean(1*1, .5*4, 0) / (mean(1, .5, 0) + 1e-4)
    expected = (3.0 / 3) / (0.5 + 1e-4)
    assert losses.keypoint_loss(predicted, target, weight).item() == pytest.approx(expected)
    moved = torch.zeros(1, 1, 2, 8)
    moved[0, 0, 0, 1] = 3.0
    assert losses.translation_loss(moved).item() == pytest.approx(9 / 6)
    moved[..., 4] = torch.tensor([1.0, 0.5**0.5])  # at rest, and a quarter turn
    assert losses.turn_loss(moved).item() == pytest.approx(0.25)


def test_unseen_keypoints_give_no_gradient():
    predicted = torch.randn(2, 1, 3, 2, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    losses.keypoint_loss(predicted, torch.full((2, 3, 2), float("inf")), weight * 0).backward()
    assert (predicted.grad == 0).all()


def test_guide_is_blind_to_the_quaternion_sign_and_scaled_by_trust():
    q = torch.nn.functional.normalize(torch.randn(3, 4), dim=-1)
    camera = torch.cat((torch.ones(3, 3), q), dim=-1)[:, None]
    prob = torch.ones(3, 1)
    same = torch.cat((-q, torch.ones(3, 1)), dim=-1)
    assert losses.camera_guide_loss(camera, same, prob).item() == pytest.approx(0, abs=1e-6)
    half_turn = torch.tensor([[0.0, 1, 0, 0, 0.5]] * 3)
    upright = torch.tensor([[[1.0, 0, 0, 1, 0, 0, 0]]] * 3)
    assert losses.camera_guide_loss(upright, half_turn, prob).item() == pytest.approx(0.5)


def test_several_hypotheses_by_hand():
    certain, even = torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 4), 0.25)
    assert losses.entropy_loss(certain).item() == pytest.approx(1)
    assert losses.entropy_loss(even).item() == pytest.approx(0, abs=1e-6)
    half = torch.tensor([[0.5, 0.5, 0, 0]])  # log 2 of log 4
    assert losses.entropy_loss(torch.cat((half, even))).item() == pytest.approx(0.25)
    turns = torch.tensor([0.0, math.pi, math.pi / 2])  # about one axis
    camera = torch.zeros(1, 3, 7)
    camera[0, :, 3], camera[0, :, 4] = (turns / 2).cos(), (turns / 2).sin()
    # opposite: 0; each against the quarter turn: cos^2(45 degrees)
    assert losses.spread_loss(camera).item() == pytest.approx((0 + 0.5 + 0.5) / 3)
    flipped = camera.clone()
    flipped[0, 1, 3:] *= -1  # the same rotation
    assert losses.spread_loss(flipped).item() == pytest.approx(1 / 3)
    one = torch.ones(2, 1)
    assert losses.entropy_loss(one) == losses.spread_loss(camera[:, :1]) == 0


def test_a_hypothesis_without_probability_is_revived():
    logits = torch.tensor([[8.0, 0.0, 0.0]], requires_grad=True)
    losses.entropy_loss(logits.softmax(1)).backward()
    assert logits.grad[0, 0] > 0 and (logits.grad[0, 1:] < 0).all()  # descent evens them out


def test_a_probability_that_underflows_has_a_finite_gradient():
    logits = torch.tensor([[200.0, 0.0, 3.0]], requires_grad=True)
    prob = logits.softmax(1)
    assert prob[0, 1] == 0
    loss = losses.entropy_loss(prob)
    loss.backward()
    assert loss.item() == pytest.approx(1) and logits.grad.isfinite().all()


def test_the_spread_stays_in_single_precision():
    rotation = torch.nn.functional.normalize(torch.randn(4, 3, 4, generator=torch.manual_seed(3)), dim=-1)
    camera = torch.cat((torch.ones(4, 3, 3), rotation), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.spread_loss(camera)
    assert found.dtype == torch.float32 and found == losses.spread_loss(camera)


def test_the_spread_pushes_rotations_apart():
    rotation = torch.nn.functional.normalize(torch.randn(4, 3, 4, generator=torch.manual_seed(0)), dim=-1)
    rotation.requires_grad_()
    before = losses.spread_loss(torch.cat((torch.ones(4, 3, 3), rotation), dim=-1))
    before.backward()
    moved = torch.nn.functional.normalize(rotation.detach() - 0.5 * rotation.grad, dim=-1)
    assert losses.spread_loss(torch.cat((torch.ones(4, 3, 3), moved), dim=-1)) < before


def test_camera_fit_finds_the_right_side():
    import acsm_toy

    from acsm.camera_fit import fit_cameras, guiding_cameras
    from acsm.metrics import camera_errors

    camera, xy = acsm_toy.scenes(60, seed=5, turn=0.0)
    points, weight = acsm_toy.template().vertices, np.ones((60, 16))
    weight[:, ::5] = 0
    found, error = fit_cameras(points, xy, weight)
    assert error.max() < 0.01 and np.median(camera_errors(found, camera)) < 0.5
    assert camera_errors(found, camera).max() < 5
    np.testing.assert_allclose(found[:, :3], camera[:, :3], atol=0.02)
    # With parts turned the fit is rough, but faces the right way.
    camera, xy = acsm_toy.scenes(60, seed=6)
    found, _ = fit_cameras(points, xy, weight)
    assert np.percentile(camera_errors(found, camera), 95) < 45
    weight[0, 4:] = 0
    boxes = np.tile([100.0, 50, 140, 90], (60, 1))
    in_image, trust = guiding_cameras(points, 120 + 20 * xy - [0, 50], weight, boxes)
    assert trust[0] == 0 and (trust[1:] > 0.3).all()
    np.testing.assert_allclose(in_image[1:, 0], 20 * found[1:, 0], rtol=1e-6)


def test_upright_counts_tilt_and_roll_but_not_azimuth():
    half = 0.5**0.5
    upright = torch.tensor((half, half, 0.0, 0.0))
    about = {axis: torch.eye(3)[axis] for axis in range(3)}

    def seen(axis, degrees):
        turn = geometry.quat_from_axis_angle(about[axis], torch.tensor(math.radians(degrees)))
        rotation = geometry.quat_multiply(turn, upright)
        return torch.cat((torch.ones(3), rotation))[None, None]

    prob = torch.ones(1, 1)
    assert losses.upright_loss(seen(1, 130.0), prob).item() == pytest.approx(0, abs=1e-6)
    assert losses.upright_loss(seen(0, 60.0), prob).item() == pytest.approx(0.5, abs=1e-6)
    assert losses.upright_loss(seen(2, -90.0), prob).item() == pytest.approx(1, abs=1e-6)
    assert losses.upright_loss(-seen(2, 180.0), prob).item() == pytest.approx(2, abs=1e-6)
    two = torch.cat((seen(0, 60.0), seen(0, 0.0)), dim=1)
    assert losses.upright_loss(two, torch.tensor([[0.25, 0.75]])).item() == pytest.approx(0.125, abs=1e-6)


def test_upright_is_the_images_up_where_the_crop_is_turned():
    box = np.array([10.0, 20.0, 50.0, 60.0])
    camera = np.array([1.0, 0.1, 0.2, *geometry.UPRIGHT_QUATERNION])
    for degrees, flip in ((0, False), (30, False), (-50, True)):
        affine = crop_affine(box, 64, rotation_deg=degrees, flip=flip)
        seen = torch.tensor(camera_to_crop(camera, affine, 64), dtype=torch.float32)[None, None]
        up = affine.matrix[:, :2] @ [0.0, -1.0]
        up = torch.tensor(up / np.linalg.norm(up), dtype=torch.float32)[None]
        one = torch.ones(1, 1)
        assert losses.upright_loss(seen, one, up).item() == pytest.approx(0, abs=1e-6)
        fallen = 1 - math.cos(math.radians(degrees))
        assert losses.upright_loss(seen, one).item() == pytest.approx(fallen, abs=1e-6)
