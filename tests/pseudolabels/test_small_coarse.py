"""Six views seen coarsely: where a view stands in the grid, and what of them is explained."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra wildshape[diffusion]")

from pseudolabels.zero123plus.small_coarse import (
    CoarseScale,
    coarse_grid,
    coarse_loss,
    coarse_scale,
    coarse_views,
    explained,
    halves,
)
from pseudolabels.zero123plus.small_latents import RingLatents, grid_of


def test_latents_are_averaged_cell_by_cell_of_each_view():
    views = np.zeros((6, 2, 4, 8), np.float32)
    views[0, 0, :, :4] = np.arange(16).reshape(4, 4)
    views[3, 1, 3, 7] = 16
    coarse = coarse_views(grid_of(views))
    assert coarse.shape == (6, 4) and coarse.dtype == np.float32
    assert coarse[0].tolist() == [7.5, 0, 0, 0] and coarse[3].tolist() == [0, 0, 0, 1]
    assert not coarse[[1, 2, 4, 5]].any()


def test_averages_of_a_whole_grid_are_the_same():
    grid = np.random.default_rng(0).standard_normal((3, 4, 24, 16)).astype(np.float32)
    averages = torch.nn.functional.avg_pool2d(torch.from_numpy(grid), 4)
    expected = np.stack([coarse_views(item) for item in grid])
    torch.testing.assert_close(coarse_grid(averages), torch.from_numpy(expected))


def test_colour_and_direction_are_told_apart():
    views = torch.zeros(2, 6, 1)
    views[0], views[1] = 3.0, -3.0
    views[:, 0] += 1.0
    views[:, 1] -= 1.0
    common, apart = halves(views)
    assert common.flatten().tolist() == [3, -3] and apart[0].flatten().tolist() == [1, -1, 0, 0, 0, 0]
    shares = explained(common.expand_as(views), views - views.mean(0))
    assert shares["explained"] == pytest.approx(1)
    turned = views.clone()
    turned[1] = -turned[1]
    shares = explained(torch.zeros_like(turned), turned - turned.mean(0))
    assert shares["explained"] == pytest.approx(0)


def test_the_share_of_differences_is_blind_to_what_views_have_in_common():
    views = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(0))
    common, apart = halves(views)
    assert explained(apart, views)["explained_apart"] == pytest.approx(1)
    assert explained(apart, views)["explained"] < 0.95
    half = explained(common + apart * 0.5, views)["explained_apart"]
    assert half == pytest.approx(0.75, abs=0.06)


def test_a_loss_of_one_for_a_guess_of_the_mean():
    rng = np.random.default_rng(3)
    targets = rng.standard_normal((64, 2, 6, 4, 4, 4)).astype(np.float16)
    rings = RingLatents(targets, targets, np.zeros((64, 6, 16, 16, 4), np.uint8))
    scale = coarse_scale(rings)
    assert scale.mean.shape == (6, 4)
    # 16 latents of variance 1 are averaged; six views share a sixth of that.
    assert scale.common == pytest.approx(1 / 16 / 6, rel=0.3)
    assert scale.apart == pytest.approx(5 / 16 / 6, rel=0.1)
    views = torch.from_numpy(
        np.stack([coarse_views(rings.item(n, n % 6, n % 2)["grid"]) for n in range(64)])
    )
    assert float(coarse_loss(scale.mean.expand_as(views), views, scale)) == pytest.approx(1.3, rel=1e-4)
    assert float(coarse_loss(views, views, CoarseScale(scale.mean, 1.0, 1.0))) == 0
