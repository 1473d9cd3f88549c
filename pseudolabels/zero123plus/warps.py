"""Random similarity transforms of images, and the way back for what was predicted on them.

A transform is the 2 x 3 matrix of `torch.nn.functional.affine_grid` (align_corners=False): it takes a
position in the transformed image, in -1..1 from edge to edge, to the one in the image that is shown there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class WarpRanges:
    """How far random transforms go (defaults as published).

    Attributes:
        rotation_deg: largest turn, either way.
        scale: side of what is shown, relative to the image: below 1 enlarges.
        shift: largest shift, relative to half the image.
    """

    rotation_deg: float = 15.0
    scale: tuple[float, float] = (0.8, 1.0)
    shift: float = 0.25


def random_warp(ranges: WarpRanges, rng: np.random.Generator) -> Tensor:
    """One transform, float32 [2, 3]."""
    angle = math.radians(ranges.rotation_deg) * rng.uniform(-1, 1)
    scale = rng.uniform(*ranges.scale)
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    shift = ranges.shift * rng.uniform(-1, 1, 2)
    return torch.tensor([[cosine, -sine, shift[0]], [sine, cosine, shift[1]]], dtype=torch.float32)


def inverse(theta: Tensor) -> Tensor:
    """The transform back, of [..., 2, 3]."""
    linear = torch.linalg.inv(theta[..., :2])
    return torch.cat((linear, -linear @ theta[..., 2:]), -1)


def warp(images: Tensor, theta: Tensor, fill: float = 0.0) -> Tensor:
    """Images [B, C, H, W] under transforms [B, 2, 3], bilinear, ``fill`` outside."""
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    if not fill:
        return functional.grid_sample(images, grid, align_corners=False)
    return functional.grid_sample(images - fill, grid, align_corners=False) + fill


def restore(maps: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of transformed images, warped back, and where the transformed images showed anything.

    Args:
        maps: [B, N, H, W], predicted on images under ``theta``.
        theta: [B, 2, 3].

    Returns:
        [B, N, H, W], 0 where nothing was shown, and bool [B, H, W].
    """
    back = inverse(theta)
    height, width = maps.shape[-2:]
    grid = functional.affine_grid(back, [len(maps), 1, height, width], align_corners=False)
    # A pixel counts where all that bilinear sampling reads for it lies in the frame.
    margin = grid.new_tensor((1 - 1 / width, 1 - 1 / height))
    seen = (grid.abs() <= margin).all(-1)
    return functional.grid_sample(maps, grid, align_corners=False), seen


def warp_points(xy: Tensor, theta: Tensor, height: int, width: int) -> Tensor:
    """Where points [..., M, 2] of images (pixels from the edge) lie in the transformed ones."""
    size = xy.new_tensor((width, height))
    back = inverse(theta)
    ndc = 2 * xy / size - 1
    moved = ndc @ back[..., :2].transpose(-1, -2) + back[..., None, :, 2]
    return (moved + 1) / 2 * size
