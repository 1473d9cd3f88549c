"""Silhouettes with exact pixel coverage and their gradient: checks, threads, and autograd."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from acsm.renderer.coverage import Method
from acsm.renderer.differentiable import check_tensor
from acsm.renderer.edges import EdgeTable, edge_table
from acsm.renderer.fragments import check_size, run_jobs, thread_count

WORTH_THREADS = 100_000
"""Segments of a batch from which on its gradient is computed in threads: waking one takes as long as some
20,000 segments."""
_local = threading.local()


def silhouette(
    vertices_ndc: Tensor, faces: Tensor | np.ndarray, size: int, method: Method = "auto"
) -> Tensor:
    """See :func:`acsm.renderer.silhouette`."""
    table = checked_table(vertices_ndc, faces, size)
    if method not in ("auto", "numba", "torch"):
        raise ValueError(f"expected method auto, numba or torch; found {method!r}")
    if method == "auto":
        method = "numba" if vertices_ndc.device.type == "cpu" else "torch"
    if method == "numba" and vertices_ndc.device.type != "cpu":
        raise ValueError(f"expected vertices on the CPU for method numba; found {vertices_ndc.device}")
    if method == "torch":
        from acsm.renderer.coverage_reference import silhouette_reference

        return silhouette_reference(vertices_ndc, table, size)
    return _Silhouette.apply(vertices_ndc, table, size)


def checked_table(vertices_ndc: Tensor, faces: Tensor | np.ndarray, size: int) -> EdgeTable:
    """The faces' edge table, once all arguments are found to be sound.

    Raises:
        ValueError: for other shapes, types or indices than :func:`acsm.renderer.silhouette` takes.
    """
    check_tensor(vertices_ndc)
    check_size(size)
    if isinstance(faces, Tensor):
        faces = faces.detach().cpu().numpy()
    table = edge_table(np.asarray(faces))
    highest = table.highest
    if highest >= vertices_ndc.shape[1]:
        raise ValueError(f"expected faces to index {vertices_ndc.shape[1]} vertices; found index {highest}")
    return table


def _scratch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Buffers that a thread keeps, since clearing them for each call would cost as much as drawing."""
    kept = getattr(_local, "kept", None)
    if kept is None or len(kept[1]) != size:
        kept = _local.kept = (np.full(size * size, -1, np.int32), np.full(size, -1, np.int32))
    return kept


def _shares(batch: int) -> list[tuple[int, int]]:
    """The batch, cut into runs of images: more than threads, since some have longer contours."""
    threads = thread_count()
    parts = min(batch, 1 if threads == 1 else 3 * threads)
    edges = [batch * k // parts for k in range(parts + 1)] if parts else [0]
    return list(zip(edges[:-1], edges[1:]))


class _Silhouette(torch.autograd.Function):
    """Forward and backward in compiled code on the CPU."""

    @staticmethod
    def forward(ctx: Any, vertices: Tensor, table: EdgeTable, size: int) -> Tensor:
        from acsm.renderer.contours import cover_images

        points = vertices.detach().contiguous().numpy()
        masks = torch.empty(len(points), size, size, dtype=vertices.dtype)
        out = masks.numpy()
        starts = np.zeros(len(points) + 1, np.int64)

        def draw(share: tuple[int, int]) -> tuple[Any, ...]:
            # Each share counts its segments from 0, so each has its own starts.
            own = starts.copy()
            kept = cover_images(points, table.arrays, *share, *_scratch(size), out, own)
            return (share, own, *kept)

        ctx.segments = run_jobs(draw, _shares(len(points)))
        ctx.table = table
        ctx.save_for_backward(vertices)
        return masks

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        from acsm.renderer.contour_gradient import pull_back

        points = ctx.saved_tensors[0].detach().contiguous().numpy()
        grad_masks = grads[0].contiguous().numpy()
        out = torch.zeros(points.shape, dtype=grads[0].dtype)
        into = out.numpy()

        def pull(drawn: tuple[Any, ...]) -> None:
            share, starts, edge, pixel, weights = drawn
            pull_back(points, ctx.table.vertices, edge, pixel, weights, starts, *share, grad_masks, into)

        if sum(len(drawn[2]) for drawn in ctx.segments) < WORTH_THREADS:
            for drawn in ctx.segments:
                pull(drawn)
        else:
            run_jobs(pull, ctx.segments)
        return out, None, None
