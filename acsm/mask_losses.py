"""What the mask-trained model minimises (ACSM, section 3.2), a value for each image and camera.

Everything is in NDC of the crop, so that distances are relative to half its side. Each function is short
enough to be its own reference; the tests hold them against loops.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEAREST = 4
"""Projected vertices that a point of the contour is drawn to."""


@dataclass(frozen=True)
class MaskWeights:
    """Weights of the terms, as released; ``silhouette`` is ours."""

    cycle: float = 1.0
    visibility: float = 1.0
    coverage: float = 10.0
    containment: float = 0.1
    segmentation: float = 1.0
    silhouette: float = 0.0


def cycle_loss(points_ndc: Tensor, pixels_ndc: Tensor) -> Tensor:
    """Mean squared distance from where pixels started to where they come back.

    Args:
        points_ndc: the pixels' places on the surface, articulated and projected [B, C, P, 2].
        pixels_ndc: the pixels [B, P, 2].

    Returns:
        [B, C].
    """
    return (points_ndc - pixels_ndc[:, None]).square().sum(-1).mean(-1)


def visibility_loss(points_ndc: Tensor, depth: Tensor) -> Tensor:
    """Mean squared depth by which points lie behind the surface that is seen there.

    The depth between pixels is bilinear over those that see the surface; where none of the four does, a
    point counts as visible.

    Args:
        points_ndc: x, y in NDC and z [B, C, P, 3].
        depth: rendered [B, C, S, S], inf where nothing is seen.

    Returns:
        [B, C].
    """
    size = depth.shape[-1]
    seen = torch.isfinite(depth).to(depth.dtype)
    filled = torch.where(seen > 0, depth, torch.zeros_like(depth))
    xy = (points_ndc[..., :2] + 1) * (size / 2) - 0.5
    corner = xy.detach().floor()
    flat, flat_seen = filled.flatten(-2), seen.flatten(-2)
    total = share = torch.zeros_like(points_ndc[..., 2])
    for right in (0, 1):
        for below in (0, 1):
            at = corner + corner.new_tensor((right, below))
            weight = (1 - (xy - at).abs()).clamp(min=0).prod(-1)
            within = ((at >= 0) & (at < size)).all(-1)
            column, row = at.clamp(0, size - 1).long().unbind(-1)
            index = row * size + column
            weight = weight * within * flat_seen.gather(-1, index)
            total = total + weight * flat.gather(-1, index)
            share = share + weight
    there = share > 1e-6
    surface = total / torch.where(there, share, torch.ones_like(share))
    behind = (points_ndc[..., 2] - surface).relu() * there
    return behind.square().mean(-1)


def coverage_loss(vertices_ndc: Tensor, contour_ndc: Tensor, nearest: int = NEAREST) -> Tensor:
    """Mean squared distance from points of the mask's contour to their nearest projected vertices.

    Args:
        vertices_ndc: [B, C, V, 2].
        contour_ndc: [B, M, 2].
        nearest: how many vertices of each point count.

    Returns:
        [B, C].
    """
    batch, cameras, count, _ = vertices_ndc.shape
    points = contour_ndc[:, None].expand(-1, cameras, -1, -1)
    with torch.no_grad():
        distance = torch.cdist(points, vertices_ndc.detach())
        found = distance.topk(min(nearest, count), dim=-1, largest=False).indices
    flat = found.flatten(2)[..., None].expand(-1, -1, -1, 2)
    chosen = vertices_ndc.gather(2, flat).view(batch, cameras, *found.shape[2:], 2)
    return (chosen - points[:, :, :, None]).square().sum(-1).mean((-1, -2))


def containment_loss(silhouette: Tensor, outside: Tensor) -> Tensor:
    """Mean over pixels of the silhouette times the distance to the mask.

    Args:
        silhouette: rendered [B, C, S, S].
        outside: distance to the mask, 0 within it [B, S, S].

    Returns:
        [B, C].
    """
    return (silhouette * outside[:, None]).mean((-1, -2))


def silhouette_loss(silhouette: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """One minus the intersection over union of silhouette and mask, where the photo is.

    Args:
        silhouette: rendered [B, C, S, S], 0 to 1.
        mask: [B, S, S], 0 to 1.
        known: [B, S, S], 1 where a mask can be.

    Returns:
        [B, C].
    """
    drawn, truth = silhouette * known[:, None], (mask * known)[:, None]
    shared = (drawn * truth).sum((-1, -2))
    union = (drawn + truth).sum((-1, -2)) - shared
    return 1 - shared / union.clamp(min=1e-6)


def segmentation_loss(logits: Tensor, cover: Tensor, known: Tensor) -> Tensor:
    """Mean cross-entropy of the foreground, over what is known.

    Args:
        logits: [B, s, s].
        cover: share of each cell that is foreground [B, s, s].
        known: share of each cell that the photo shows [B, s, s].

    Returns:
        [B].
    """
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, cover, reduction="none")
    return (entropy * known).sum((-1, -2)) / known.sum((-1, -2)).clamp(min=1e-6)
