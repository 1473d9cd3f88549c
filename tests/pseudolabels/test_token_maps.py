"""Attention maps and warps, against numbers of the released StableKeypoints code and by hand.

tests/data/stable_keypoints/keypoint_maths.npz holds that code's answers on random inputs (sigma 2, 25
candidates, 10 tokens).
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pseudolabels.zero123plus import maps, tokens_reference, warps

GOLDEN = Path(__file__).parents[1] / "data/stable_keypoints/keypoint_maths.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as archive:
        return {name: torch.from_numpy(np.asarray(archive[name])) for name in archive}


def test_peaks_gaussians_and_order_are_the_released_ones(golden):
    found = golden["maps"]
    torch.testing.assert_close(maps.peaks(found).flip(-1), golden["max_pixel_yx"])
    torch.testing.assert_close(
        maps.weighted_peaks(found).flip(-1), golden["weighted_yx"], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(maps.gaussians(maps.peaks(found), 32, 32), golden["gaussian"])
    order = maps.gaussian_kl(found).argsort()[:25]
    assert order.tolist() == golden["top_gaussian"].tolist()
    assert maps.map_entropy(found).argsort()[:25].tolist() == golden["top_entropy"].tolist()


def test_tokens_and_losses_are_the_released_ones(golden):
    found, moved, theta = golden["maps"], golden["maps_transformed"], golden["theta"]
    chosen = maps.choose_tokens(found, moved)
    assert chosen.tolist() == golden["furthest"].tolist()
    torch.testing.assert_close(maps.sharpening_loss(found[chosen]), golden["sharpening_loss"])
    restored, _ = warps.restore(moved[None, chosen], theta)
    torch.testing.assert_close(
        maps.equivariance_loss(found[None, chosen], restored), golden["equivariance_loss"]
    )


def test_warps_are_the_released_ones(golden):
    image, theta = golden["image"], golden["theta"]
    moved = warps.warp(image, theta)
    torch.testing.assert_close(moved, golden["image_transformed"])
    restored, seen = warps.restore(moved, theta)
    torch.testing.assert_close(restored, golden["image_restored"])
    assert restored[0, :, ~seen[0]].abs().mean() < restored[0, :, seen[0]].abs().mean()


@pytest.mark.parametrize("seed", range(4))
def test_furthest_points_one_at_a_time(seed):
    points = np.random.default_rng(seed).normal(size=(17, 2))
    expected = tokens_reference.furthest_points(points.tolist(), 9)
    assert maps.furthest_points(torch.from_numpy(points), 9).tolist() == expected


def test_divergence_one_map_at_a_time():
    """Maps of any scale and shape, peaks at the border included."""
    generator = torch.Generator().manual_seed(4)
    found = torch.rand((7, 24, 15), generator=generator, dtype=torch.float64)
    found *= torch.logspace(-2, 2, 7, dtype=torch.float64)[:, None, None]
    found[2, 0, 14] = found[5, 23, 3] = 200.0
    for sigma in (0.5, 2.0, 9.0):
        expected = [tokens_reference.gaussian_kl(map_, sigma) for map_ in found]
        torch.testing.assert_close(maps.gaussian_kl(found, sigma).tolist(), expected)
    assert min(expected) > 0


def test_no_point_is_taken_twice():
    """Where all tokens peak on one spot, each still teaches once."""
    assert maps.furthest_points(torch.zeros(6, 2), 4).tolist() == [0, 1, 2, 3]
    xy = torch.tensor([[3.0, 3], [3, 3], [9, 3], [3, 3], [3, 4]])
    assert maps.furthest_points(xy, 5).tolist() == [2, 4, 0, 1, 3]


def test_furthest_points_need_points():
    with pytest.raises(ValueError, match="expected 2 to 3 points; found 4"):
        maps.furthest_points(torch.zeros(3, 2), 4)


def test_a_blob_is_found_to_a_fraction_of_a_pixel():
    centre = torch.tensor([[10.3, 20.8], [4.0, 30.5]], dtype=torch.float64)
    blobs = maps.gaussians(centre, 40, 32, sigma=1.5)
    assert maps.peaks(blobs).tolist() == [[10.5, 20.5], [3.5, 30.5]]
    torch.testing.assert_close(maps.weighted_peaks(blobs), centre, rtol=0, atol=0.03)
    assert (maps.peak_mass(blobs) > 0.99).all()
    flat = torch.ones(1, 40, 32)
    inside = sum(x**2 + y**2 <= 25 for x in range(-5, 6) for y in range(-5, 6))
    assert float(maps.peak_mass(flat)) == pytest.approx(inside / (40 * 32))


def test_the_peak_of_a_plateau_is_its_middle():
    """Saturated attention is 1 over several pixels: the first of them is its corner."""
    plateau = torch.rand((2, 20, 24), generator=torch.Generator().manual_seed(1)) * 0.2
    plateau[0, 4:11, 6:15] = 1.0  # 9 wide, 7 high
    plateau[1, 12, 3:5] = 1.0  # of two pixels the first
    assert maps.peaks(plateau).tolist() == [[10.5, 7.5], [3.5, 12.5]]
    assert maps.weighted_peaks(plateau, radius=2)[0].tolist() == [10.5, 7.5]
    apart = torch.zeros(1, 9, 9)
    apart[0, 1, 1] = apart[0, 7, 7] = apart[0, 6, 7] = 1.0
    assert maps.peaks(apart).tolist() == [[7.5, 6.5]]  # on a peak, never between two
    flat = torch.full((3, 5, 7, 9), 0.3)
    assert maps.peaks(flat).unique(dim=0).shape[0] == 1
    assert maps.weighted_peaks(flat)[0, 0].tolist() == [4.5, 3.5]


def test_a_token_that_nothing_attends_to_stays_where_it_peaks():
    """Its shares underflow; multiplied by a position and summed they would lead to the corner."""
    blob = maps.gaussians(torch.tensor([[20.3, 11.6]]), 32, 32, sigma=1.5)
    faint = torch.cat((blob, blob * 1e-42, blob * 0))
    found = maps.weighted_peaks(faint)
    torch.testing.assert_close(found[0], torch.tensor([20.3, 11.6]), rtol=0, atol=0.03)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.05)
    assert found[2].tolist() == [15.5, 15.5]
    assert maps.peak_mass(faint)[2] == 0 and maps.peak_mass(faint)[1] > 0.95
    generator = torch.Generator().manual_seed(2)
    noise = torch.rand((4, 16, 16), generator=generator)
    torch.testing.assert_close(maps.weighted_peaks(noise * 1e-30), maps.weighted_peaks(noise))


def test_mean_places_of_whole_maps_by_hand():
    two = torch.zeros(1, 4, 8)
    two[0, 1, 1], two[0, 1, 5] = 2.0, 1.0
    assert maps.soft_peaks(two, 1.0)[0].tolist() == pytest.approx([1.5 + 4 / 3, 1.5])
    assert maps.soft_peaks(two, 3.0)[0].tolist() == pytest.approx([1.5 + 4 / 9, 1.5])
    torch.testing.assert_close(maps.soft_peaks(two, 40.0), maps.peaks(two))
    torch.testing.assert_close(
        maps.soft_peaks(two * 1e-42, 3.0), maps.soft_peaks(two, 3.0), rtol=0, atol=1e-3
    )
    assert maps.soft_peaks(two * 0)[0].tolist() == [4.0, 2.0]
    centre = torch.tensor([[10.3, 20.8]], dtype=torch.float64)
    torch.testing.assert_close(maps.soft_peaks(maps.gaussians(centre, 40, 32)), centre, rtol=0, atol=1e-6)


def test_mean_places_move_little_where_two_modes_are_nearly_equal():
    one, other = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    one[0, 2, 1], one[0, 2, 6] = 1.0, 0.99
    other[0, 2, 1], other[0, 2, 6] = 0.99, 1.0
    assert float((maps.peaks(one) - maps.peaks(other)).norm()) == 5
    assert float((maps.soft_peaks(one) - maps.soft_peaks(other)).norm()) < 0.1


def test_a_blob_is_nearer_to_a_gaussian_than_two_blobs_or_noise():
    generator = torch.Generator().manual_seed(0)
    one = maps.gaussians(torch.tensor([[9.5, 9.5]]), 24, 24)
    two = one + maps.gaussians(torch.tensor([[18.5, 15.5]]), 24, 24)
    noise = torch.rand((1, 24, 24), generator=generator)
    assert maps.gaussian_kl(torch.cat((one, two, noise)) * 10).argsort().tolist() == [0, 1, 2]


def test_losses_by_hand():
    map_ = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    near, far = np.exp(-1 / 8), np.exp(-2 / 8)
    assert float(maps.sharpening_loss(map_)) == pytest.approx((2 * near**2 + far**2) / 4)
    other = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]])
    assert float(maps.equivariance_loss(map_, other)) == pytest.approx(5 / 4)
    seen = torch.tensor([[True, True], [False, False]])
    assert float(maps.equivariance_loss(map_, other, seen)) == pytest.approx(1 / 2)
    assert float(maps.equivariance_loss(map_, other, torch.zeros(2, 2, dtype=torch.bool))) == 0


def test_gradients_of_the_losses():
    generator = torch.Generator().manual_seed(3)
    found = torch.rand((2, 4, 6, 7), generator=generator, dtype=torch.float64, requires_grad=True)
    other = torch.rand((2, 4, 6, 7), generator=generator, dtype=torch.float64, requires_grad=True)
    seen = torch.rand((2, 6, 7), generator=generator) > 0.3
    torch.autograd.gradcheck(maps.sharpening_loss, (found,))
    torch.autograd.gradcheck(lambda a, b: maps.equivariance_loss(a, b, seen), (found, other))


def test_a_point_follows_its_picture():
    ranges = warps.WarpRanges()
    rng = np.random.default_rng(5)
    xy = torch.tensor([[30.2, 21.7]])
    blob = maps.gaussians(xy, 48, 64, sigma=2.5)[None]
    for _ in range(5):
        theta = warps.random_warp(ranges, rng)[None]
        moved = warps.warp(blob, theta)
        where = warps.warp_points(xy[None], theta, 48, 64)[0]
        torch.testing.assert_close(maps.weighted_peaks(moved[0]), where, rtol=0, atol=0.2)
        restored, seen = warps.restore(moved, theta)
        difference = (restored - blob).abs()[0, 0]
        assert difference[seen[0]].max() < 0.1
        assert seen.float().mean() > 0.3


def test_random_warps_stay_in_their_ranges():
    rng = np.random.default_rng(0)
    thetas = torch.stack([warps.random_warp(warps.WarpRanges(), rng) for _ in range(300)]).double()
    scale = thetas[:, :, 0].norm(dim=1)
    angle = torch.rad2deg(torch.atan2(thetas[:, 1, 0], thetas[:, 0, 0]))
    assert 0.8 <= scale.min() < 0.81 and 0.99 < scale.max() <= 1
    assert -15 <= angle.min() < -14 and 14 < angle.max() <= 15
    assert 0.24 < thetas[:, :, 2].abs().max() <= 0.25
    product = torch.cat((thetas, thetas.new_tensor([[[0, 0, 1]]]).expand(300, 1, 3)), 1)
    both = product @ torch.cat((warps.inverse(thetas), product[:, 2:]), 1)
    torch.testing.assert_close(both, torch.eye(3).double().expand(300, 3, 3))


def test_what_lies_outside_takes_the_fill():
    picture = torch.zeros(1, 1, 8, 8)
    theta = torch.tensor([[[1.0, 0, 1.0], [0, 1.0, 0]]])  # half a picture to the right
    moved = warps.warp(picture, theta, fill=1.0)
    assert moved[0, 0, :, :4].abs().max() == 0 and (moved[0, 0, :, 4:] == 1).all()


def test_images_of_a_batch_choose_on_their_own():
    generator = torch.Generator().manual_seed(2)
    found, moved = torch.rand((2, 3, 40, 16, 12), generator=generator)
    together = maps.choose_tokens(found * 5, moved, candidates=12, number=5)
    alone = [maps.choose_tokens(a * 5, b, candidates=12, number=5) for a, b in zip(found, moved)]
    assert together.tolist() == [index.tolist() for index in alone]
    picked = maps.of_tokens(found, together)
    torch.testing.assert_close(picked[1, 3], found[1, together[1, 3]], rtol=0, atol=0)
