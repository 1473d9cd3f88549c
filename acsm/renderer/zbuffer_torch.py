"""The z-buffer in batched PyTorch, on any device: for a GPU, and a second opinion on gradients.

Face ids come from a list of all pairs of a face and a pixel of its bounding box. Barycentrics and depth are
plain expressions of the vertices, through which autograd finds its way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acsm.renderer.fragments import Fragments

MOST_PAIRS = 1 << 22
"""Pairs of a face and a pixel that are looked at together."""


def rasterize_torch(vertices_ndc: Tensor, faces: Tensor, size: int) -> Fragments:
    """The same as :func:`acsm.renderer.rasterize`, in PyTorch.

    Args:
        vertices_ndc: [B, V, 3], NDC.
        faces: long [F, 3], on the same device.
        size: S, pixels on a side.

    Returns:
        Fragments of tensors, differentiable in the vertices.
    """
    face_ids = nearest_faces(vertices_ndc.detach(), faces, size)
    barycentrics, depth = weigh(vertices_ndc, faces, face_ids)
    return Fragments(face_ids, barycentrics, depth)


def _in_pixels(vertices_ndc: Tensor, size: int) -> Tensor:
    """Double precision [..., 3]: x and y from the centre of the first pixel, z as it was."""
    xy = (vertices_ndc[..., :2].double() + 1) * (size / 2) - 0.5
    return torch.cat([xy, vertices_ndc[..., 2:].double()], -1)


def _corner_weights(triangles: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Twice the areas [N, 3] between a point and the edges across from each corner of [N, 3, 3]."""
    x, y = triangles[..., 0], triangles[..., 1]
    following, last = [1, 2, 0], [2, 0, 1]
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    turn = torch.where(area > 0, 1.0, -1.0).to(x.dtype)[:, None]
    weights = turn * (y[:, following] - y[:, last]) * (column[:, None] - x[:, following])
    return weights + turn * (x[:, last] - x[:, following]) * (row[:, None] - y[:, following])


def nearest_faces(vertices_ndc: Tensor, faces: Tensor, size: int) -> Tensor:
    """int32 [B, S, S]: the face that each pixel's centre sees first, -1 where there is none."""
    batch, count, device = len(vertices_ndc), len(faces), vertices_ndc.device
    triangles = _in_pixels(vertices_ndc, size)[:, faces].reshape(-1, 3, 3)
    u, w = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    drawn = (u[:, 0] * w[:, 1] != u[:, 1] * w[:, 0]) & torch.isfinite(triangles).all(-1).all(-1)
    low = (triangles[..., :2].amin(1) - 1e-6).nan_to_num().clamp(0, size).ceil().long()
    high = (triangles[..., :2].amax(1) + 1e-6).nan_to_num().clamp(-1, size - 1).floor().long()
    extent = (high - low + 1).clamp(min=0)
    pairs = extent[:, 0] * extent[:, 1] * drawn
    chosen = pairs.nonzero()[:, 0]

    # A key orders by depth and then by face: its smallest one at a pixel is what is seen there.
    nothing = torch.iinfo(torch.int64).max
    keys = torch.full((batch * size * size,), nothing, device=device)
    total = pairs[chosen].cumsum(0)
    bounds = torch.arange(0, int(total[-1]) if len(total) else 0, MOST_PAIRS, device=device)
    starts = torch.searchsorted(total, bounds, right=True).tolist()
    for begin, end in zip(starts, [*starts[1:], len(chosen)]):
        which = chosen[begin:end]
        number = pairs[which]
        one = which.repeat_interleave(number)
        place = torch.arange(len(one), device=device) - (number.cumsum(0) - number).repeat_interleave(
            number
        )
        column = place % extent[one, 0] + low[one, 0]
        row = place // extent[one, 0] + low[one, 1]
        weights = _corner_weights(triangles[one], column, row)
        inside = ((weights >= 0).all(1) & (weights.sum(1) > 0)).nonzero()[:, 0]
        one, weights = one[inside], weights[inside]
        depth = ((weights * triangles[one, :, 2]).sum(1) / weights.sum(1)).float() + 0.0  # no -0
        bits = depth.view(torch.int32).long()
        bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        image, face = one // count, one % count
        pixel = (image * size + row[inside]) * size + column[inside]
        keys.scatter_reduce_(0, pixel, (bits << 32) | face, "amin")
    found = torch.where(keys == nothing, -1, keys & 0xFFFFFFFF)
    return found.to(torch.int32).view(batch, size, size)


def weigh(vertices_ndc: Tensor, faces: Tensor, face_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Barycentrics [B, S, S, 3] and depth [B, S, S] of the faces seen, differentiable in the vertices."""
    batch, size = face_ids.shape[:2]
    image, row, column = (face_ids >= 0).nonzero(as_tuple=True)
    seen = faces[face_ids[image, row, column].long()]
    triangles = _in_pixels(vertices_ndc, size)[image[:, None], seen]
    weights = _corner_weights(triangles, column, row)
    share = weights / weights.sum(1, keepdim=True)
    barycentrics = vertices_ndc.new_zeros(batch, size, size, 3)
    depth = vertices_ndc.new_full((batch, size, size), torch.inf)
    at = (image, row, column)
    barycentrics = barycentrics.index_put(at, share.to(vertices_ndc.dtype))
    depth = depth.index_put(at, (share * triangles[..., 2]).sum(1).to(vertices_ndc.dtype))
    return barycentrics, depth
