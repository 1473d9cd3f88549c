"""Six views seen coarsely, which two stages of the small model's training predict from one picture.

Most of their variance is the animal's colour, which every view shows. Where it faces stands in how the
views differ, so a loss and a figure of their own are kept for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pseudolabels.zero123plus.pipeline import GRID
from pseudolabels.zero123plus.small_data import moved
from pseudolabels.zero123plus.small_latents import GROUNDS, RingLatents

CELL = 4  # latents a side that are averaged
_COMMON = 0.3  # weight of what the views have in common
_MEASURED = 512  # animals whose views' variances are measured


def coarse_views(grid: np.ndarray) -> np.ndarray:
    """Latents of six views [C, 3 H, 2 W], averaged over cells: float32 [6, C * H / 4 * W / 4]."""
    rows, columns = GRID
    channels, height, width = grid.shape
    cells = grid.reshape(
        channels, rows, height // (rows * CELL), CELL, columns, width // (columns * CELL), CELL
    )
    means = cells.mean((3, 6), dtype=np.float32)
    return means.transpose(1, 3, 0, 2, 4).reshape(rows * columns, -1)


def coarse_grid(grid: Tensor) -> Tensor:
    """`coarse_views` from averages in a grid [B, C, 3 h, 2 w]: [B, 6, C * h * w]."""
    rows, columns = GRID
    count, channels, height, width = grid.shape
    cells = grid.reshape(count, channels, rows, height // rows, columns, width // columns)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(count, rows * columns, -1)


def coarse_item(rings: RingLatents, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One of an animal's inputs, moved a little, uint8 [S, S, 3], and its coarse views [6, D]."""
    first, ground = int(rng.integers(6)), int(rng.integers(2))
    item = rings.item(index, first, ground)
    return {"image": moved(item["image"], GROUNDS[ground], rng), "views": coarse_views(item["grid"])}


@dataclass(frozen=True)
class CoarseScale:
    """Coarse views of many animals: their mean [6, D], and the variances that a loss divides by."""

    mean: Tensor
    common: float
    apart: float


def halves(views: Tensor) -> tuple[Tensor, Tensor]:
    """What six views [B, 6, D] have in common [B, 1, D], and how they differ from it [B, 6, D]."""
    common = views.mean(1, keepdim=True)
    return common, views - common


def coarse_scale(rings: RingLatents) -> CoarseScale:
    """Mean and variances of the coarse views of the first animals, each from one of its inputs."""
    count = min(len(rings), _MEASURED)
    items = [rings.item(number, number % 6, number % 2)["grid"] for number in range(count)]
    views = torch.from_numpy(np.stack([coarse_views(grid) for grid in items]))
    mean = views.mean(0)
    common, apart = (half.square().mean().clamp_min(1e-8) for half in halves(views - mean))
    return CoarseScale(mean, float(common), float(apart))


def coarse_loss(predicted: Tensor, views: Tensor, scale: CoarseScale) -> Tensor:
    """Squared errors of coarse views [B, 6, D], of how they differ and of their mean.

    Each is divided by its variance among animals; how views differ weighs more.
    """
    common, apart = halves(predicted - views)
    return apart.square().mean() / scale.apart + _COMMON * common.square().mean() / scale.common


def explained(predicted: Tensor, views: Tensor) -> dict[str, float]:
    """Shares of the variance of coarse views [N, 6, D] that are explained: 1 is all of it.

    Returns:
        Of all of it (`explained`), and of how an animal's views differ (`explained_apart`).
    """
    spread = views - views.mean(0)
    shares = {"explained": (predicted - views, spread)}
    shares["explained_apart"] = (halves(predicted - views)[1], halves(spread)[1])
    return {
        name: float(1 - missed.square().sum() / of.square().sum()) for name, (missed, of) in shares.items()
    }
