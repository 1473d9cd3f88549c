"""Half meshes brought to a wanted number of vertices, finer where the shape is thin.

The mesh is one half of a symmetric one: its border lies in the plane x = 0 and stays there, so
that the half and its mirror image can be welded. Edges are collapsed, shortest relative to the
wanted length first; then edges are flipped towards Delaunay and vertices relaxed in the surface.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

MAX_VALENCE = 9


class _Surface:
    """A triangle mesh with a border, as sets of faces around vertices."""

    def __init__(self, points: np.ndarray, faces: np.ndarray) -> None:
        self.points = [tuple(p) for p in points.tolist()]
        self.faces: dict[int, tuple[int, int, int]] = dict(enumerate(map(tuple, faces.tolist())))
        self.around: list[set[int]] = [set() for _ in self.points]
        for f, corners in self.faces.items():
            for v in corners:
                self.around[v].add(f)
        self.border = np.abs(points[:, 0]) < 1e-12

    def neighbours(self, v: int) -> set[int]:
        found = {u for f in self.around[v] for u in self.faces[f]}
        found.discard(v)
        return found

    def edges(self) -> set[tuple[int, int]]:
        return {
            (min(a, b), max(a, b))
            for f in self.faces.values()
            for a, b in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))
        }

    def compact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points, faces and the old vertex numbers, without what was removed."""
        faces = np.array(list(self.faces.values()), np.int64)
        kept, renumbered = np.unique(faces, return_inverse=True)
        return np.array(self.points)[kept], renumbered.reshape(-1, 3), kept


def _normal(a: tuple, b: tuple, c: tuple) -> tuple[float, float, float]:
    ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx


def _dot(a: tuple, b: tuple) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _distance(a: tuple, b: tuple) -> float:
    return ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2) ** 0.5


def _collapse(mesh: _Surface, keep: int, gone: int, place: tuple) -> set[int] | None:
    """Merge ``gone`` into ``keep`` at ``place``; None if that would spoil the surface."""
    near_keep, near_gone = mesh.neighbours(keep), mesh.neighbours(gone)
    shared = mesh.around[keep] & mesh.around[gone]
    if len(near_keep & near_gone) != len(shared) or len(shared) not in (1, 2):
        return None
    border = mesh.border
    if border[gone] and len(shared) == 2:
        return None  # would pinch the border, or pull it off the plane
    # An edge inside the half between two border vertices would coincide with its mirror image.
    touches = any(border[v] for v in near_gone - near_keep - {keep})
    if border[keep] and not border[gone] and touches:
        return None
    ring = (near_keep | near_gone) - {keep, gone}
    if len(ring) > MAX_VALENCE:
        return None
    moved = (mesh.around[keep] | mesh.around[gone]) - shared
    changed = {}
    for f in moved:
        old = mesh.faces[f]
        new = tuple(keep if v == gone else v for v in old)
        before = _normal(*(mesh.points[v] for v in old))
        after = _normal(*(place if v == keep else mesh.points[v] for v in new))
        if _dot(before, after) <= 0.3 * (_dot(before, before) * _dot(after, after)) ** 0.5:
            return None
        changed[f] = new
    for f in shared:
        for v in mesh.faces.pop(f):
            mesh.around[v].discard(f)
    mesh.faces.update(changed)
    mesh.around[keep] |= mesh.around[gone]
    mesh.around[gone] = set()
    mesh.points[keep] = place
    return ring


def simplify(
    points: np.ndarray, faces: np.ndarray, wanted: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Collapse edges until ``count`` vertices are left.

    Args:
        points: [V, 3]; those with x = 0 are the border.
        faces: [F, 3].
        wanted: [V], relative edge length; only ratios matter.
        count: vertices to keep.

    Returns:
        Points and faces. More than ``count`` are left if no edge can go without harm.
    """
    mesh = _Surface(points, faces)
    goal = wanted.tolist()
    version = [0] * len(points)

    def priority(a: int, b: int) -> float:
        return _distance(mesh.points[a], mesh.points[b]) / (goal[a] + goal[b])

    heap = [(priority(a, b), a, b, 0, 0) for a, b in mesh.edges()]
    heapq.heapify(heap)
    left = len(points)
    while left > count and heap:
        _, a, b, version_a, version_b = heapq.heappop(heap)
        if version[a] != version_a or version[b] != version_b:
            continue
        keep, gone = (b, a) if mesh.border[b] and not mesh.border[a] else (a, b)
        pa, pb = mesh.points[keep], mesh.points[gone]
        middle = ((pa[0] + pb[0]) / 2, (pa[1] + pb[1]) / 2, (pa[2] + pb[2]) / 2)
        place = pa if mesh.border[keep] and not mesh.border[gone] else middle
        ring = _collapse(mesh, keep, gone, place)
        if ring is None:
            continue
        left -= 1
        goal[keep] = (goal[keep] + goal[gone]) / 2
        version[keep] += 1
        version[gone] = -1
        for v in ring:
            low, high = min(keep, v), max(keep, v)
            heapq.heappush(heap, (priority(low, high), low, high, version[low], version[high]))
    points, faces, _ = mesh.compact()
    return points, faces


def flip_edges(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Turn edges between two faces where that makes the sharpest angles blunter."""
    mesh = _Surface(points, faces)
    for a, b in sorted(mesh.edges()):
        pair = mesh.around[a] & mesh.around[b]
        if len(pair) != 2:
            continue
        f, g = pair
        if (a, b) not in _sides(mesh.faces[f]):
            f, g = g, f
        if (a, b) not in _sides(mesh.faces[f]) or (b, a) not in _sides(mesh.faces[g]):
            continue
        c = next(v for v in mesh.faces[f] if v not in (a, b))
        d = next(v for v in mesh.faces[g] if v not in (a, b))
        if mesh.around[c] & mesh.around[d] or (mesh.border[c] and mesh.border[d]):
            continue
        if len(mesh.around[c]) >= MAX_VALENCE or len(mesh.around[d]) >= MAX_VALENCE:
            continue
        pa, pb, pc, pd = (mesh.points[v] for v in (a, b, c, d))
        if _cosine(pa, pc, pb) + _cosine(pa, pd, pb) > -1e-6:
            continue  # angles across the edge sum to less than a half turn
        old, new = (_normal(pa, pb, pc), _normal(pb, pa, pd)), (_normal(pa, pd, pc), _normal(pd, pb, pc))
        together = tuple(x + y for x, y in zip(*old))
        if any(
            _dot(n, together) <= 0.8 * (_dot(n, n) * _dot(together, together)) ** 0.5 for n in (*old, *new)
        ):
            continue
        mesh.faces[f], mesh.faces[g] = (a, d, c), (d, b, c)
        mesh.around[a].discard(g)
        mesh.around[b].discard(f)
        mesh.around[c].add(g)
        mesh.around[d].add(f)
    return np.array([mesh.faces[f] for f in sorted(mesh.faces)], np.int64)


def _sides(face: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    return (face[0], face[1]), (face[1], face[2]), (face[2], face[0])


def _cosine(p: tuple, apex: tuple, q: tuple) -> float:
    u = (p[0] - apex[0], p[1] - apex[1], p[2] - apex[2])
    v = (q[0] - apex[0], q[1] - apex[1], q[2] - apex[2])
    return _dot(u, v) / max((_dot(u, u) * _dot(v, v)) ** 0.5, 1e-30)


def neighbour_average(faces: np.ndarray, border: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of ``values`` [V, C] over each vertex's neighbours; on the border, along the border."""
    edges = np.unique(
        np.sort(np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)]), axis=1), axis=0
    )
    a, b = np.concatenate([edges, edges[:, ::-1]]).T
    heard = ~border[a] | border[b]
    a, b = a[heard], b[heard]
    total = np.zeros_like(values)
    np.add.at(total, a, values[b])
    return total / np.maximum(np.bincount(a, minlength=len(values)), 1)[:, None]


def relax(
    points: np.ndarray,
    faces: np.ndarray,
    project: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    rounds: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Even out triangles without leaving the surface.

    Args:
        points: [V, 3]; those with x = 0 are the border.
        faces: [F, 3].
        project: takes points to the surface; returns them and unit normals there.
        rounds: how often to flip, move and project.

    Returns:
        Points and faces.
    """
    border = np.abs(points[:, 0]) < 1e-12
    points, normals = project(points)
    for _ in range(rounds):
        faces = flip_edges(points, faces)
        shift = 0.5 * (neighbour_average(faces, border, points) - points)
        shift -= np.einsum("nc,nc->n", shift, normals)[:, None] * normals
        points = points + shift
        points[border, 0] = 0
        points, normals = project(points)
        points[border, 0] = 0
    return points, faces
