"""Silhouettes with exact coverage in plain PyTorch, on any device: the readable twin, and the way on a GPU.

The contour's edges are cut at pixels. The segments' areas, summed down each column, give the mean number of
layers over each pixel. In the pixels that the contour crosses the covered area is then found exactly, by
slabs between the columns where segments begin, end or cross.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from acsm.renderer.edges import EdgeTable

SNAP = 1e-9
TILT = 1e-9
MOST_ELEMENTS = 1 << 22
"""Numbers in one array of slabs; more pixels are taken in turn."""


class Segments(NamedTuple):
    """What pixels cut the contour into.

    Attributes:
        image: long [N].
        edge: long [N], row of the edge table.
        jump: [N], layers on the right of a segment less those on its left.
        t0: [N], where along its edge it begins.
        t1: [N], and ends.
        start: [N, 2], there, in pixels from the picture's upper left corner.
        end: [N, 2].
        row: long [N], of its pixel.
        column: long [N].
    """

    image: Tensor
    edge: Tensor
    jump: Tensor
    t0: Tensor
    t1: Tensor
    start: Tensor
    end: Tensor
    row: Tensor
    column: Tensor


def silhouette_reference(vertices_ndc: Tensor, table: EdgeTable, size: int) -> Tensor:
    """The same as :func:`acsm.renderer.silhouette` with ``method="torch"``.

    Args:
        vertices_ndc: [B, V, 3], NDC, on any device.
        table: the mesh's edges.
        size: S, pixels on a side.

    Returns:
        [B, S, S] in the vertices' precision.
    """
    if vertices_ndc.device.type == "mps":  # has no double precision
        return silhouette_reference(vertices_ndc.cpu(), table, size).to(vertices_ndc.device)
    return _Silhouette.apply(vertices_ndc, table, size)


class _Silhouette(torch.autograd.Function):
    # Autograd could follow the forward pass, but loses in a sum down a column what single precision has.
    @staticmethod
    def forward(ctx: Any, vertices: Tensor, table: EdgeTable, size: int) -> Tensor:
        xy = (vertices[..., :2].detach().double() + 1) * (size / 2)
        tables = [torch.as_tensor(a, device=xy.device).long() for a in table[:4]]
        segments = cut_contour(xy, *tables, table.closed, size)
        layers = mean_layers(segments, len(xy), size)
        inside = segments.row >= 0
        segments = Segments(*(part[inside] for part in segments))
        pixel = (segments.image * size + segments.row) * size + segments.column
        masks = (layers > 0.5).double().flatten()
        weights = xy.new_zeros(len(pixel), 2)
        for pixels, chosen in by_pixel(pixel):
            masks[pixels], weights[chosen] = _cover_pixels(segments, chosen, layers.flatten()[pixels])
        ctx.save_for_backward(xy, tables[1][segments.edge], segments.image, pixel, weights)
        ctx.size = size
        return masks.view(layers.shape).to(vertices.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        xy, ends, image, pixel, weights = ctx.saved_tensors
        grad = grads[0].double().flatten()[pixel]
        along = xy[image, ends[:, 1]] - xy[image, ends[:, 0]]
        normal = torch.stack([along[:, 1], -along[:, 0]], 1) * (ctx.size / 2)
        out = torch.zeros_like(xy)
        for corner in range(2):
            moved = normal * (grad * weights[:, corner])[:, None]
            out.index_put_((image, ends[:, corner]), moved, accumulate=True)
        return torch.nn.functional.pad(out, (0, 1)).to(grads[0].dtype), None, None


def contour_edges(
    xy: Tensor, faces: Tensor, sides: Tensor, signs: Tensor, closed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Image, edge and jump of the edges that layers begin or end at.

    Layers of a closed mesh are its front faces; of any other mesh, and where vertices are not finite,
    all its faces, each seen as a front.
    """
    corners = xy[:, faces]
    u, w = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    left, right = u[..., 0] * w[..., 1], u[..., 1] * w[..., 0]
    turns = (left > right).long() - (left < right).long()
    one_sided = torch.isfinite(xy).all(-1).all(-1) & closed
    turns = torch.where(one_sided[:, None], turns.clamp(min=0), turns)
    turns = torch.nn.functional.pad(turns, (0, 1))  # for a face that is not there
    jumps = signs[:, 0] * turns[:, sides[:, 0]] + signs[:, 1] * turns[:, sides[:, 1]]
    image, edge = jumps.nonzero(as_tuple=True)
    return image, edge, jumps[image, edge].double()


def cut_contour(
    xy: Tensor, faces: Tensor, ends: Tensor, sides: Tensor, signs: Tensor, closed: bool, size: int
) -> Segments:
    """Cut the contour's edges at the lines between pixels; parts left, right and below are dropped.

    Above the picture, where they are not cut at rows, the segments' row is -1.
    """
    image, edge, jump = contour_edges(xy, faces, sides, signs, closed)
    start, end = xy[image, ends[edge, 0]], xy[image, ends[edge, 1]]
    along = end - start
    # Of the lines 0 to S, in x and in y, those that lie strictly between the ends.
    first = (torch.minimum(start, end).floor() + 1).clamp(0, size + 1)
    last = (torch.maximum(start, end).ceil() - 1).clamp(-1, size)
    counts = (last - first + 1).clamp(min=0).long()
    which, cut = [torch.arange(len(edge), device=xy.device)], [torch.zeros_like(jump)]
    for axis in range(2):
        number = counts[:, axis]
        one = which[0].repeat_interleave(number)
        line = (
            torch.arange(len(one), device=xy.device) - (number.cumsum(0) - number)[one] + first[one, axis]
        )
        which.append(one)
        cut.append(((line - start[one, axis]) / along[one, axis]).clamp(0, 1))
    t0, order = torch.cat(cut).sort()
    q, again = torch.cat(which)[order].sort(stable=True)
    t0 = t0[again]
    t1 = torch.ones_like(t0)
    same = q[1:] == q[:-1]
    t1[:-1][same] = t0[1:][same]

    points = []
    for t in (t0, t1):
        point = start[q] + t[:, None] * along[q]
        points.append(torch.where((t == 1)[:, None], end[q], point))
    pixel = ((points[0] + points[1]) / 2).floor().long()
    column, row = pixel[:, 0], pixel[:, 1].clamp(min=-1)
    keep = (t1 > t0) & (column >= 0) & (column < size) & (row < size)
    found = Segments(image[q], edge[q], jump[q], t0, t1, points[0], points[1], row, column)
    return Segments(*(part[keep] for part in found))


def mean_layers(segments: Segments, batch: int, size: int) -> Tensor:
    """Mean number of layers over each pixel [B, S, S]: the segments' areas, summed down the columns."""
    across = segments.jump * (segments.end[:, 0] - segments.start[:, 0])
    height = (segments.start[:, 1] + segments.end[:, 1]) / 2 - segments.row
    height = torch.where(segments.row < 0, 0, height)  # above, a segment adds to whole columns
    at = (segments.image * (size + 1) + segments.row.clamp(min=0)) * size + segments.column
    change = across.new_zeros(batch * (size + 1) * size)
    change.index_add_(0, at, across * (1 - height))
    change.index_add_(0, at + size, across * height)
    return change.view(batch, size + 1, size)[:, :size].cumsum(1)


def by_pixel(pixel: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Group segments by pixel: for each number n of them the pixels [P] and their segments [P, n]."""
    order = pixel.argsort(stable=True)
    pixels, counts = pixel[order].unique_consecutive(return_counts=True)
    begins = counts.cumsum(0) - counts
    groups = []
    for n in counts.unique().tolist():
        slabs = 1 + 2 * n + n * (n - 1) // 2
        chosen = (counts == n).nonzero()[:, 0]
        for part in chosen.split(max(1, MOST_ELEMENTS // (slabs * n))):
            groups.append((pixels[part], order[begins[part, None] + torch.arange(n, device=pixel.device)]))
    return groups


def _cover_pixels(segments: Segments, chosen: Tensor, layers: Tensor) -> tuple[Tensor, Tensor]:
    """Covered area [P] of pixels that n segments each cross [P, n], and the segments' weights [P, n, 2].

    The weights are the integrals of (1 - t) and t over what of a segment bounds the covered area,
    negative where that lies to the left.
    """
    corner = torch.stack([segments.column[chosen], segments.row[chosen]], -1)
    (x0, y0), (x1, y1) = (
        (point[chosen] - corner).clamp(0, 1).unbind(-1) for point in (segments.start, segments.end)
    )
    jump, t0, t1 = segments.jump[chosen], segments.t0[chosen], segments.t1[chosen]
    y0, y1 = torch.where(y0 < SNAP, 0, y0), torch.where(y1 < SNAP, 0, y1)
    tilted = torch.where(x0 < 0.5, x0 + TILT, x0 - TILT)
    x1 = torch.where((x1 - x0).abs() < TILT, tilted, x1)
    slope, rate = (y1 - y0) / (x1 - x0), (t1 - t0) / (x1 - x0)
    low, high, along = torch.minimum(x0, x1), torch.maximum(x0, x1), (x1 - x0).sign()

    # Layers along the pixel's upper side change where segments leave it, and below those that lie on it.
    lies_on = (y0 == 0) & (y1 == 0)
    leaves_at = torch.where(y0 == 0, x0, x1)
    change = torch.where(lies_on, 0, torch.where(y0 == 0, -jump, torch.where(y1 == 0, jump, 0)))
    area = torch.where(lies_on, 0, jump * (x1 - x0) * (1 - (y0 + y1) / 2))
    at_corner = (layers - (area + change * (1 - leaves_at)).sum(1)).round()

    k, m = torch.triu_indices(x0.shape[1], x0.shape[1], 1, device=x0.device)
    offset = y0 - slope * x0
    meet = (offset[:, m] - offset[:, k]) / (slope[:, k] - slope[:, m])
    meet = torch.where(
        (meet > torch.maximum(low[:, k], low[:, m])) & (meet < torch.minimum(high[:, k], high[:, m])),
        meet,
        0,
    )
    breaks = torch.cat([x0.new_tensor([[0, 1]]).expand(len(x0), 2), x0, x1, meet], 1).sort(1).values
    left, right = breaks[:, :-1, None], breaks[:, 1:, None]
    middle, width = (left + right) / 2, right - left

    # [P, slabs, n]
    active = (low[:, None] <= middle) & (middle < high[:, None])
    height = torch.where(active, y0[:, None] + (middle - x0[:, None]) * slope[:, None], np.inf)
    height, order = height.sort(dim=2, stable=True)
    down = (jump * along)[:, None] * active
    on_top = at_corner[:, None] + (change[:, None] * (leaves_at[:, None] < middle)).sum(2)
    on_top = on_top - (down * lies_on[:, None]).sum(2)
    above = on_top[..., None] + torch.cat([torch.zeros_like(middle), down.gather(2, order).cumsum(2)], 2)
    covered = (above > 0.5).double()
    step = covered[..., 1:] - covered[..., :-1]
    part = (step * torch.where(active.gather(2, order), 1 - height, 0)).sum(2)
    area = (width[..., 0] * (covered[..., 0] + part)).sum(1)

    step = torch.zeros_like(step).scatter(2, order, step) * along[:, None]
    ta, tb = (t0[:, None] + (x - x0[:, None]) * rate[:, None] for x in (left, right))
    first, second = torch.minimum(ta, tb), torch.maximum(ta, tb)
    half_squares = (second**2 - first**2) / 2
    weights = torch.stack([step * (second - first - half_squares), step * half_squares], -1)
    return area.clamp(0, 1), weights.sum(1)
