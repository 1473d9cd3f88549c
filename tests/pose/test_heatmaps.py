"""Targets, loss and decoding of heatmaps; golden numbers are the published animals3d code's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pose.heatmaps import (
    absent_mse,
    decode,
    default_sigma,
    flip_heatmaps,
    joints_mse,
    make_targets,
    xy_cell_to_crop,
    xy_crop_to_cell,
)
from wildshape.metrics import pck


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "data" / "pose" / "heatmaps.npz") as file:
        return dict(file)


def test_published_targets_loss_and_pck(golden):
    keypoints = torch.tensor(golden["keypoints"])
    targets, weight = make_targets(keypoints[..., :2], keypoints[..., 2] >= 0.3, (64, 64), published=True)
    np.testing.assert_allclose(targets, golden["target"], atol=1e-7)
    np.testing.assert_array_equal(weight, golden["weight"][..., 0])
    pred = torch.tensor(golden["pred"])
    assert float(joints_mse(pred, targets.float(), weight.float())) == pytest.approx(
        float(golden["loss"]), rel=1e-6
    )
    found, _ = decode(pred, published=True)
    truth, _ = decode(targets, published=True)
    values = pck(found.numpy(), truth.numpy(), weight.numpy() > 0, 64, golden["thresholds"])
    np.testing.assert_allclose(100 * values, golden["pck"])


@pytest.mark.parametrize("size", [16, 32, 64, 96])
def test_decoding_a_target_gives_the_keypoint(size):
    """Everywhere in the crop, its very border included, to a hundredth of a crop pixel."""
    rng = np.random.default_rng(0)
    xy = torch.tensor(rng.uniform(-0.5, 4 * size - 0.5, (8, 16, 2)), dtype=torch.float32)
    xy[0, 0] = torch.tensor([-0.5, 4 * size - 0.5])
    targets, weight = make_targets(xy_crop_to_cell(xy), torch.ones(8, 16, dtype=bool), (size, size))
    assert (weight == 1).all()
    found, confidence = decode(targets)
    np.testing.assert_allclose(xy_cell_to_crop(found), xy, atol=0.01)
    assert (confidence <= 1).all() and (confidence > 0.6).all()


def test_decoding_survives_noise():
    rng = np.random.default_rng(1)
    xy = torch.tensor(rng.uniform(2, 29, (8, 16, 2)), dtype=torch.float32)
    targets, _ = make_targets(xy, torch.ones(8, 16, dtype=bool), (32, 32))
    noisy = targets + 0.02 * torch.tensor(rng.standard_normal(targets.shape), dtype=torch.float32)
    error = (decode(noisy)[0] - xy).norm(dim=-1)
    whole_cells = (decode(noisy, published=True)[0] - xy).norm(dim=-1)
    assert error.mean() < 0.05 < 0.3 < whole_cells.mean()


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0])
def test_decoding_flat_maps_is_finite_and_inside(value):
    xy, confidence = decode(torch.full((1, 2, 8, 8), value))
    assert torch.isfinite(xy).all() and (xy >= -0.5).all() and (xy <= 7.5).all()
    assert (confidence == value).all()


def test_cells_of_the_convention():
    xy = torch.tensor([[1.5, 5.5]])
    assert torch.equal(xy_crop_to_cell(xy), torch.tensor([[0.0, 1.0]]))
    assert torch.equal(xy_cell_to_crop(xy_crop_to_cell(xy)), xy)
    assert torch.equal(xy_crop_to_cell(torch.tensor([-0.5, 63.5])), torch.tensor([-0.5, 15.5]))
    assert torch.equal(xy_crop_to_cell(xy, published=True), xy / 4)


def test_what_does_not_count_has_no_weight():
    xy = torch.tensor([[[3.0, 3.0], [-0.6, 3.0], [3.0, 7.6], [float("nan"), 0.0], [7.5, -0.5]]])
    counts = torch.tensor([[False, True, True, False, True]])
    targets, weight = make_targets(xy, counts, (8, 8))
    assert weight.tolist() == [[0, 0, 0, 0, 1]]
    assert torch.isfinite(targets).all() and not targets[:, :4].any()


def test_sigma_is_a_cell_at_least():
    assert [default_sigma(s) for s in (16, 64, 128)] == [1, 1, 2]
    targets, _ = make_targets(torch.tensor([[[8.0, 8.0]]]), torch.tensor([[True]]), (32, 32))
    assert float(targets[0, 0, 8, 9]) == pytest.approx(np.exp(-0.5))


def test_loss_by_hand_and_its_gradient():
    heatmaps = torch.zeros(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    weight = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    loss = joints_mse(heatmaps, targets, weight)
    assert loss.item() == 0.5 * 32 / 2
    loss.backward()
    assert (heatmaps.grad[:, :2] == -0.5).all() and (heatmaps.grad[:, 2] == 0).all()
    empty = joints_mse(heatmaps, targets, torch.zeros(1, 3))
    assert empty.item() == 0 and torch.isfinite(torch.autograd.grad(empty, heatmaps)[0]).all()
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: joints_mse(h, targets, weight), x)


def test_decoded_positions_pass_gradients():
    xy = torch.tensor([[[3.3, 4.8]]], dtype=torch.float64)
    targets, _ = make_targets(xy, torch.tensor([[True]]), (9, 9))
    assert torch.autograd.gradcheck(lambda h: decode(h)[0], targets.requires_grad_())


def test_flipped_heatmaps_decode_to_mirrored_swapped_keypoints():
    rng = np.random.default_rng(2)
    flip = torch.tensor([1, 0, 2])
    xy = torch.tensor(rng.uniform(1, 14, (2, 3, 2)), dtype=torch.float32)
    mirrored = torch.stack([15 - xy[..., 0], xy[..., 1]], -1)[:, flip]
    targets, _ = make_targets(mirrored, torch.ones(2, 3, dtype=bool), (16, 16))
    np.testing.assert_allclose(decode(flip_heatmaps(targets, flip))[0], xy, atol=1e-4)


def test_absent_keypoints_cost_their_heat():
    # Two keypoints seen, one not: half of 4 cells of 3 squared, over the two that are seen.
    heatmaps = torch.zeros(1, 3, 2, 2)
    heatmaps[0, 1] = 5.0
    heatmaps[0, 2] = 3.0
    weight = torch.tensor([[1.0, 1.0, 0.0]])
    assert absent_mse(heatmaps, weight).item() == pytest.approx(0.5 * 4 * 9 / 2)
    assert absent_mse(heatmaps, torch.ones(1, 3)).item() == 0
