"""Heatmap targets, their loss and their decoding, batched and on any device.

Cell j of a heatmap at stride r stands for crop x = r (j + .5) - .5: both frames count pixel centres,
so a crop of S pixels and its heatmap of S / r cells share their edges. With ``published=True`` the
arithmetic is that of the released animals3d code: x / r, cut off to whole cells.
"""

import torch
from torch import Tensor

from wildshape.distributed import shared_count

# Responses below this part of the maximum are noise, whose logarithm would bend the parabola.
_FLOOR = 1e-3


def xy_crop_to_cell(xy_crop: Tensor, stride: float = 4, published: bool = False) -> Tensor:
    """Crop pixels [...,2] to heatmap cells [...,2]; not rounded in either mode."""
    return xy_crop / stride if published else (xy_crop + 0.5) / stride - 0.5


def xy_cell_to_crop(xy_cell: Tensor, stride: float = 4, published: bool = False) -> Tensor:
    """Heatmap cells [...,2] to crop pixels [...,2]: the inverse of ``xy_crop_to_cell``."""
    return xy_cell * stride if published else (xy_cell + 0.5) * stride - 0.5


def default_sigma(width: int) -> float:
    """Standard deviation of targets, in cells: the published width / 64, but at least one cell.

    Narrower Gaussians would leave next to nothing in the cells about the maximum, from which the
    sub-pixel decoding reads the position.
    """
    return max(1.0, width / 64)


def make_targets(
    xy_cell: Tensor,
    counts: Tensor,
    size: tuple[int, int],
    sigma: float | None = None,
    published: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gaussian targets of height 1 centred on the keypoints.

    Args:
        xy_cell: keypoints [B,K,2] in heatmap cells.
        counts: bool [B,K], the keypoints that train; others may be NaN.
        size: height and width of the heatmaps in cells.
        sigma: standard deviation in cells, ``default_sigma`` if None (published: width / 64).
        published: centre the Gaussians on the truncated cell and cut them off at 4 sigma.

    Returns:
        Targets [B,K,H,W] and float weights [B,K], which are 1 for the keypoints that count and lie
        in the heatmap. Targets of the others are 0.
    """
    height, width = size
    if sigma is None:
        sigma = width / 64 if published else default_sigma(width)
    xy = torch.where(counts[..., None], xy_cell, torch.full_like(xy_cell, -1e4))
    if published:
        xy = xy.trunc()
        inside = (xy >= 0).all(-1) & (xy[..., 0] < width) & (xy[..., 1] < height)
    else:
        inside = (xy >= -0.5).all(-1) & (xy[..., 0] <= width - 0.5) & (xy[..., 1] <= height - 0.5)
    dx = torch.arange(width, device=xy.device, dtype=xy.dtype) - xy[..., :1]  # [B,K,W]
    dy = torch.arange(height, device=xy.device, dtype=xy.dtype) - xy[..., 1:]  # [B,K,H]
    gx, gy = (torch.exp(-0.5 * (d / sigma) ** 2) for d in (dx, dy))
    if published:
        # The released patch has 6 sigma + 3 cells a side.
        radius = int(3 * sigma + 1)
        gx, gy = gx * (dx.abs() <= radius), gy * (dy.abs() <= radius)
    weight = inside.to(xy.dtype)
    return weight[..., None, None] * gy[..., :, None] * gx[..., None, :], weight


def joints_mse(heatmaps: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """The published loss: half the squared error over counting keypoints, divided by their number.

    Args:
        heatmaps: predictions [B,K,H,W].
        targets: [B,K,H,W].
        weight: [B,K], 0 for keypoints that do not count.

    Returns:
        A scalar; 0 (with zero gradients) if no keypoint counts.
    """
    squared = (heatmaps - targets).square().sum((-2, -1))
    return 0.5 * (squared * weight).sum() / shared_count(weight.sum())


def absent_mse(heatmaps: Tensor, weight: Tensor) -> Tensor:
    """Half the squared heatmaps of keypoints that are not seen, divided by the number of those that are.

    It teaches the network to answer with an empty heatmap where there is nothing to see, so that its
    confidence tells visibility. The published loss leaves these heatmaps to chance.

    Args:
        heatmaps: predictions [B,K,H,W].
        weight: [B,K], 0 for keypoints that are not seen.
    """
    squared = heatmaps.square().sum((-2, -1))
    return 0.5 * (squared * (weight == 0)).sum() / shared_count(weight.sum())


def decode(heatmaps: Tensor, published: bool = False) -> tuple[Tensor, Tensor]:
    """Keypoints and confidences of heatmaps.

    The position is the top of the Gaussian fitted to the 3 x 3 cells about the maximum: a parabola
    by least squares through their logarithms, whose stationary point is taken (the Taylor step of
    DARK; Zhang et al., CVPR 2020, eq. 4-8). Exact for a noiseless Gaussian, at the border too, where
    the 3 x 3 cells are those nearest to the maximum. It moves at most one cell from the maximum.

    Args:
        heatmaps: [B,K,H,W], at least 3 x 3 cells.
        published: take the maximal cell as it is.

    Returns:
        xy_cell [B,K,2] and the maximum [B,K] as confidence.
    """
    height, width = heatmaps.shape[-2:]
    confidence, index = heatmaps.flatten(-2).max(-1)
    top_x, top_y = index % width, index // width
    xy = torch.stack([top_x, top_y], -1).to(heatmaps.dtype)
    if published:
        return xy, confidence
    centre_x, centre_y = top_x.clamp(1, width - 2), top_y.clamp(1, height - 2)
    step = torch.arange(-1, 2, device=heatmaps.device)
    cells = (centre_y[..., None] + step)[..., :, None] * width + (centre_x[..., None] + step)[..., None, :]
    patch = heatmaps.flatten(-2).gather(-1, cells.flatten(-2)).unflatten(-1, (3, 3))
    floor = _FLOOR * confidence.clamp(min=1e-12)[..., None, None]
    offset = _parabola_top(torch.log(torch.maximum(patch, floor)))
    centre = torch.stack([centre_x, centre_y], -1).to(heatmaps.dtype)
    fitted = centre + offset
    limit = torch.tensor([width - 0.5, height - 0.5], device=xy.device, dtype=xy.dtype)
    fitted = torch.minimum(fitted, limit).clamp(min=-0.5)
    usable = ((fitted - xy).abs() <= 1.0).all(-1, keepdim=True) & (confidence > 0)[..., None]
    return torch.where(usable, fitted, xy), confidence


def _parabola_top(patch: Tensor) -> Tensor:
    """Stationary point [...,2] (x, y) of the least-squares parabola through cells [...,3,3].

    NaN where the parabola has no maximum.
    """
    rows, columns = patch.sum(-1), patch.sum(-2)  # over x, over y
    gx, gy = (columns[..., 2] - columns[..., 0]) / 6, (rows[..., 2] - rows[..., 0]) / 6
    hxx = (columns[..., 0] - 2 * columns[..., 1] + columns[..., 2]) / 3
    hyy = (rows[..., 0] - 2 * rows[..., 1] + rows[..., 2]) / 3
    hxy = (patch[..., 0, 0] + patch[..., 2, 2] - patch[..., 0, 2] - patch[..., 2, 0]) / 4
    determinant = hxx * hyy - hxy * hxy
    peak = (hxx < 0) & (determinant > 1e-9)
    safe = torch.where(peak, determinant, torch.ones_like(determinant))
    offset = torch.stack([hxy * gy - hyy * gx, hxy * gx - hxx * gy], -1) / safe[..., None]
    return torch.where(peak[..., None], offset, torch.full_like(offset, torch.nan))


def flip_heatmaps(heatmaps: Tensor, flip: Tensor) -> Tensor:
    """Heatmaps [B,K,H,W] of mirrored images, mirrored back.

    Args:
        heatmaps: of the mirrored images.
        flip: the skeleton's left-right permutation, int [K].
    """
    return heatmaps.flip(-1)[:, flip]
