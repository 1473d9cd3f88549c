"""The rasteriser's entry point: checks its input, shares the images out among threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

_pool: ThreadPoolExecutor | None = None


class Fragments(NamedTuple):
    """What each pixel's centre sees first; arrays, or tensors where the vertices were one.

    Attributes:
        face_ids: int32 [B, S, S], index into the faces, -1 where there is none.
        barycentrics: float32 [B, S, S, 3], weights of the face's corners (sum 1; 0 where none).
        depth: float32 [B, S, S], z of the surface, inf where there is none.
    """

    face_ids: Any
    barycentrics: Any
    depth: Any

    @property
    def mask(self) -> Any:
        """bool [B, S, S]: the pixel sees a face."""
        return self.face_ids >= 0


def check_mesh(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``vertices`` [B, V, 3] as float32 or float64 and ``faces`` [F, 3] as int64, contiguous.

    Raises:
        ValueError: for other shapes, or faces that name vertices that are not there.
    """
    vertices = np.asarray(vertices)
    precision = np.float32 if vertices.dtype == np.float32 else np.float64
    vertices = np.ascontiguousarray(vertices, precision)
    faces = np.ascontiguousarray(faces, dtype=np.int64)
    if vertices.ndim != 3 or vertices.shape[2] != 3:
        raise ValueError(f"expected vertices [B, V, 3]; found {list(vertices.shape)}")
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"expected faces [F, 3]; found {list(faces.shape)}")
    if faces.size and (faces.min() < 0 or faces.max() >= vertices.shape[1]):
        raise ValueError(
            f"expected faces to index {vertices.shape[1]} vertices; "
            f"found indices {faces.min()} to {faces.max()}"
        )
    return vertices, faces


def _forget_pool() -> None:
    global _pool
    _pool = None


# A pool's threads do not survive a fork; the child (a DataLoader worker) starts its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(thread_count(), thread_name_prefix="rasterize")
    return _pool


def thread_count() -> int:
    """Threads that a call uses: WILDSHAPE_RENDER_THREADS, else the processors it may run on."""
    wanted = os.environ.get("WILDSHAPE_RENDER_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(work: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """``[work(job) for job in jobs]``, in threads that each take the next job, the caller's among them."""
    threads = min(thread_count(), len(jobs))
    if threads < 2:
        return [work(job) for job in jobs]
    results: list[Any] = [None] * len(jobs)
    pending = iter(enumerate(jobs))

    def take_jobs() -> None:
        for number, job in pending:
            results[number] = work(job)

    others = [_shared_pool().submit(take_jobs) for _ in range(threads - 1)]
    take_jobs()
    for other in others:
        if not other.cancel():  # one that has not begun has nothing left to do
            other.result()
    return results


def rasterize(vertices_ndc: Any, faces: Any, size: int) -> Fragments:
    """Find the nearest face at every pixel's centre, with depth and barycentrics.

    Both sides of a face are drawn. A pixel's centre on an edge belongs to the face; of equal
    depths the face with the lower index wins. Faces seen edge-on, and faces with a corner that is
    not finite, are not drawn. There is no clipping in z.

    Args:
        vertices_ndc: [B, V, 3] float, corners in NDC (x right, y down, smaller z nearer): an array, or a
            tensor of float32 or float64.
        faces: [F, 3] int, shared by the batch.
        size: S, pixels on a side.

    Returns:
        Fragments of B pictures. For a tensor they are tensors of its precision, and barycentrics and
        depth carry gradients to the vertices, each pixel as long as it sees the same face: what a
        contour covers or uncovers is the business of :func:`acsm.renderer.silhouette`.

    Raises:
        ValueError: for shapes other than these.
    """
    if is_tensor(vertices_ndc):
        from acsm.renderer.differentiable import rasterize_tensors

        return rasterize_tensors(vertices_ndc, faces, size)
    vertices, faces = check_mesh(vertices_ndc, faces)
    check_size(size)
    return draw(vertices, faces, size)


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a PyTorch tensor; asking does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def check_size(size: int) -> None:
    """Raise ValueError for pictures without pixels."""
    if size < 1:
        raise ValueError(f"expected a picture of at least 1 pixel; found size {size}")


def draw(
    vertices: np.ndarray, faces: np.ndarray, size: int, dtype: type[np.floating] = np.float32
) -> Fragments:
    """Draw pictures in threads.

    Args:
        vertices: float32 or float64 [B, V, 3], contiguous.
        faces: int64 [F, 3], contiguous.
        size: S.
        dtype: of barycentrics and depth.

    Returns:
        Fragments of arrays.
    """
    from acsm.renderer.zbuffer import draw_band, to_pixels, weigh_band

    batch = len(vertices)
    # Not filled here: each thread fills its own rows, while it has them in its cache.
    ids = np.empty((batch, size, size), np.int32)
    barycentrics, depth = np.empty((batch, size, size, 3), dtype), np.empty((batch, size, size), dtype)
    # Who is in front is decided in single precision, whatever the precision of what is returned.
    nearest = depth if dtype == np.float32 else np.empty(depth.shape, np.float32)

    def work(job: tuple[int, int, int]) -> None:
        b, top, bottom = job
        corners = to_pixels(vertices[b], size)
        draw_band(corners, faces, top, bottom, ids[b], nearest[b])
        weigh_band(corners, faces, top, bottom, ids[b], barycentrics[b], depth[b])

    threads = thread_count()
    # One picture is cut into bands of rows so that it, too, keeps all threads busy.
    bands = max(1, min(threads, -(-threads // max(batch, 1)), size // 32))
    edges = [size * k // bands for k in range(bands + 1)]
    jobs = [(b, top, bottom) for b in range(batch) for top, bottom in zip(edges[:-1], edges[1:])]
    run_jobs(work, jobs)
    return Fragments(ids, barycentrics, depth)
