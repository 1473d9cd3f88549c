"""Maps of attention, one a token: where they peak, how peaked they are, and which tokens to learn from.

After StableKeypoints (Hedlin et al., CVPR 2024, sections 3.2 and 3.3). Maps are [N, H, W]; positions are
[N, 2] as (x, y) in pixels of the map, counted from its edge: the centre of the first pixel is (.5, .5).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SIGMA = 2.0
"""Of the Gaussian that a map should look like, in pixels of a map of 128 (published)."""
RADIUS = 5.0
"""Within which the weighted mean about a peak is taken, in pixels (published)."""
POWER = 3.0
"""To which maps are raised before their mean position is taken; see `soft_peaks`."""


def pixel_centres(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, W] and y [H, 1] of the pixels' centres."""
    options = {"dtype": like.dtype, "device": like.device}
    return torch.arange(width, **options)[None] + 0.5, torch.arange(height, **options)[:, None] + 0.5


def peaks(maps: Tensor) -> Tensor:
    """Centre of the largest pixel of each map [..., H, W], as [..., 2].

    Of several equally large ones, as where attention is saturated, the one nearest to their mean position:
    the middle of a plateau, not its first corner.
    """
    width = maps.shape[-1]
    flat = maps.detach().flatten(-2)
    top, place = flat.max(-1)
    ties = flat == top[..., None]
    several = ties.sum(-1) > 1
    if several.any():
        place = place.clone()
        place[several] = _middle(ties[several], width)
    return torch.stack((place % width, place // width), -1).to(maps.dtype) + 0.5


def _middle(ties: Tensor, width: int) -> Tensor:
    """Of the pixels marked in each row of bool [M, H * W], the one [M] nearest to their mean."""
    index = torch.arange(ties.shape[-1], device=ties.device)
    x, y = (index % width).double(), (index // width).double()
    share = ties.double() / ties.sum(-1, keepdim=True)
    distance = (x - (share @ x)[:, None]).square() + (y - (share @ y)[:, None]).square()
    # Rounding must not decide between pixels that lie equally near: the first one does.
    return torch.where(ties, (1e6 * distance).round(), torch.inf).argmin(-1)


def _relative(maps: Tensor, empty: float = 0.0) -> Tensor:
    """Maps [..., H, W] relative to their largest value; ``empty`` everywhere where that is 0.

    Shares of a token that hardly anything attends to underflow when they are multiplied as they are.
    """
    largest = maps.amax((-2, -1), keepdim=True)
    return torch.where(largest > 0, maps / largest, torch.full_like(maps, empty))


def _first_moment(weight: Tensor) -> Tensor:
    """Sum [..., 2] of the pixels' positions, each times its weight [..., H, W]."""
    x, y = pixel_centres(*weight.shape[-2:], weight)
    return torch.stack(((weight * x).sum((-2, -1)), (weight * y).sum((-2, -1))), -1)


def _about_peak(maps: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Peaks [..., 2], and maps [..., H, W] relative to their largest value, 0 beyond a radius."""
    x, y = pixel_centres(*maps.shape[-2:], maps)
    top = peaks(maps)
    distance = (x - top[..., 0, None, None]).square() + (y - top[..., 1, None, None]).square()
    return top, _relative(maps) * (distance <= radius**2)


def weighted_peaks(maps: Tensor, radius: float = RADIUS) -> Tensor:
    """Mean position [..., 2] within a radius of each map's peak, weighted by the map.

    Args:
        maps: [..., H, W], at least 0; one that is 0 everywhere has its peak in the middle.
        radius: in pixels, itself included.
    """
    top, near = _about_peak(maps, radius)
    mass = near.sum((-2, -1))[..., None]
    return torch.where(mass > 0, _first_moment(near) / mass.clamp_min(0.5), top)


def soft_peaks(maps: Tensor, power: float = POWER) -> Tensor:
    """Mean position [..., 2] of each whole map, raised to a power.

    Integral regression (Sun et al., ECCV 2018, section 2). A map with several modes jumps from one to the
    other by its maximum, and moves little by its mean; with a larger power the highest mode weighs more.

    Args:
        maps: [..., H, W], at least 0; one that is 0 everywhere has its mean in the middle.
        power: above 0.
    """
    weight = _relative(maps, empty=1.0).pow(power)
    return _first_moment(weight) / weight.sum((-2, -1))[..., None]


def peak_mass(maps: Tensor, radius: float = RADIUS) -> Tensor:
    """Share [...] of each map [..., H, W] that lies within a radius of its peak.

    It is 1 for a map with one sharp peak, about the disc's share of the map for a flat one, and 0 for a map
    that is 0 everywhere.
    """
    _, near = _about_peak(maps, radius)
    return near.sum((-2, -1)) / _relative(maps).sum((-2, -1)).clamp_min(1.0)


def gaussians(centre: Tensor, height: int, width: int, sigma: float = SIGMA) -> Tensor:
    """Gaussians [..., H, W] of height 1 about positions [..., 2]."""
    x, y = pixel_centres(height, width, centre)
    distance = (x - centre[..., 0, None, None]).square() + (y - centre[..., 1, None, None]).square()
    return torch.exp(-distance / (2 * sigma**2))


def gaussian_kl(maps: Tensor, sigma: float = SIGMA) -> Tensor:
    """Kullback-Leibler divergence [N] from each softmaxed map to a Gaussian at its largest pixel.

    KL(g || softmax(map)), both over pixels: the lower, the more a map looks like one blob.
    """
    centre = peaks(maps)
    x, y = pixel_centres(*maps.shape[-2:], maps)
    # A Gaussian is a product of one along x and one along y: neither it nor its logarithm is written down.
    across = _normal(x[0], centre[..., 0, None], sigma)
    down = _normal(y[:, 0], centre[..., 1, None], sigma)
    expected = ((maps @ across[..., None])[..., 0] * down).sum(-1)
    negative_entropy = torch.special.xlogy(across, across).sum(-1) + torch.special.xlogy(down, down).sum(-1)
    return negative_entropy - expected + maps.flatten(-2).logsumexp(-1)


def _normal(place: Tensor, centre: Tensor, sigma: float) -> Tensor:
    """Gaussian over places that sums to 1."""
    return torch.softmax(-(place - centre).square() / (2 * sigma**2), -1)


def map_entropy(maps: Tensor) -> Tensor:
    """Entropy [N] of each softmaxed map, in nats: the published alternative to `gaussian_kl`."""
    log_map = functional.log_softmax(maps.flatten(-2), -1)
    return -(log_map.exp() * log_map).sum(-1)


def furthest_points(xy: Tensor, number: int) -> Tensor:
    """Indices [..., number] of points spread far apart, the two furthest of all first.

    Each further one has the largest distance to its nearest chosen one (Eldar et al., 1997), the first of
    equal ones. None is chosen twice, also where points coincide.

    Args:
        xy: [..., N, 2].
        number: 2 to N.

    Raises:
        ValueError: there are fewer points.
    """
    count = xy.shape[-2]
    if not 2 <= number <= count:
        raise ValueError(f"expected 2 to {count} points; found {number}")
    distance = (xy[..., :, None, :] - xy[..., None, :, :]).square().sum(-1)
    distance = distance - torch.eye(count, dtype=distance.dtype, device=distance.device)
    pair = distance.flatten(-2).argmax(-1)

    def row(index: Tensor) -> Tensor:
        return distance.take_along_dim(index[..., None, None], -2).squeeze(-2)

    chosen = [pair // count, pair % count]
    nearest = torch.minimum(row(chosen[0]), row(chosen[1]))
    while len(chosen) < number:
        chosen.append(nearest.argmax(-1))
        nearest = torch.minimum(nearest, row(chosen[-1]))
    return torch.stack(chosen, -1)


@torch.no_grad()
def choose_tokens(
    maps: Tensor, moved: Tensor, candidates: int = 25, number: int = 10, sigma: float = SIGMA
) -> Tensor:
    """Indices [..., number] of the tokens that each image teaches.

    The candidates whose maps are nearest to a Gaussian, and of these the ones whose peaks in the
    transformed image lie far apart.

    Args:
        maps: of the images [..., N, H, W].
        moved: of the transformed images [..., N, H, W].
        candidates: how many are looked at (published: 25).
        number: how many are kept (published: 10).
        sigma: of the Gaussian, in pixels of the map.
    """
    best = gaussian_kl(maps, sigma).argsort(dim=-1, stable=True)[..., :candidates]
    top = peaks(moved).take_along_dim(best[..., None], -2)
    return best.take_along_dim(furthest_points(top, number), -1)


def of_tokens(maps: Tensor, index: Tensor) -> Tensor:
    """The maps [..., M, H, W] of some tokens [..., M] of [..., N, H, W]."""
    return maps.take_along_dim(index[..., None, None], -3)


def sharpening_loss(maps: Tensor, sigma: float = SIGMA) -> Tensor:
    """Mean squared difference between maps [..., H, W] and Gaussians of height 1 at their peaks."""
    target = gaussians(peaks(maps.detach()), *maps.shape[-2:], sigma)
    return (maps - target).square().mean()


def equivariance_loss(maps: Tensor, restored: Tensor, seen: Tensor | None = None) -> Tensor:
    """Mean squared difference between maps and those of the transformed image, warped back.

    Args:
        maps: [..., N, H, W].
        restored: likewise.
        seen: bool [..., H, W], pixels that the transformed image shows, each image counting alike; None:
            all count, as published, and what has left the frame is compared with 0.
    """
    squared = (maps - restored).square()
    if seen is None:
        return squared.mean()
    weight = seen.to(squared.dtype)
    total = (squared.sum(-3) * weight).sum((-2, -1))
    return (total / (squared.shape[-3] * weight.sum((-2, -1))).clamp_min(1)).mean()
