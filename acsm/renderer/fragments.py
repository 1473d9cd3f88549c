"""The rasteriser's entry point: checks its input, shares the images out among threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

_pool: ThreadPoolExecutor | None = None


class Fragments(NamedTuple):
    """What each pixel's centre sees first.

    Attributes:
        face_ids: int32 [B, S, S], index into the faces, -1 where there is none.
        barycentrics: float32 [B, S, S, 3], weights of the face's corners (sum 1; 0 where none).
        depth: float32 [B, S, S], z of the surface, inf where there is none.
    """

    face_ids: np.ndarray
    barycentrics: np.ndarray
    depth: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """bool [B, S, S]: the pixel sees a face."""
        return self.face_ids >= 0


def check_mesh(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``vertices`` [B, V, 3] as float64 and ``faces`` [F, 3] as int64, contiguous.

    Raises:
        ValueError: for other shapes, or faces that name vertices that are not there.
    """
    vertices = np.ascontiguousarray(vertices, dtype=np.float64)
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


def empty_fragments(batch: int, size: int) -> Fragments:
    """Fragments of ``batch`` pictures in which nothing is seen."""
    return Fragments(
        np.full((batch, size, size), -1, np.int32),
        np.zeros((batch, size, size, 3), np.float32),
        np.full((batch, size, size), np.inf, np.float32),
    )


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
    """``[work(job) for job in jobs]`` in as many threads as there are jobs, the caller's among them."""
    if len(jobs) < 2 or thread_count() == 1:
        return [work(job) for job in jobs]
    others = [_shared_pool().submit(work, job) for job in jobs[1:]]
    first = work(jobs[0])
    return [first, *(other.result() for other in others)]


def rasterize(vertices_ndc: np.ndarray, faces: np.ndarray, size: int) -> Fragments:
    """Find the nearest face at every pixel's centre, with depth and barycentrics.

    Both sides of a face are drawn. A pixel's centre on an edge belongs to the face; of equal
    depths the face with the lower index wins. Faces seen edge-on, and faces with a corner that is
    not finite, are not drawn. There is no clipping in z.

    Args:
        vertices_ndc: [B, V, 3] float, corners in NDC (x right, y down, smaller z nearer).
        faces: [F, 3] int, shared by the batch.
        size: S, pixels on a side.

    Returns:
        Fragments of B pictures.

    Raises:
        ValueError: for shapes other than these.
    """
    from acsm.renderer.zbuffer import draw_band

    vertices, faces = check_mesh(vertices_ndc, faces)
    if size < 1:
        raise ValueError(f"expected a picture of at least 1 pixel; found size {size}")
    out = empty_fragments(len(vertices), size)
    if not len(vertices) or not len(faces):
        return out

    threads = thread_count()
    # One picture is cut into bands of rows so that it, too, keeps all threads busy.
    bands = max(1, min(threads, -(-threads // len(vertices)), size // 32))
    edges = [size * k // bands for k in range(bands + 1)]
    jobs = [
        (vertices[b], faces, top, bottom, out.face_ids[b], out.barycentrics[b], out.depth[b])
        for b in range(len(vertices))
        for top, bottom in zip(edges[:-1], edges[1:])
    ]
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            draw_band(*job)
    else:
        list(_shared_pool().map(lambda job: draw_band(*job), jobs))
    return out
