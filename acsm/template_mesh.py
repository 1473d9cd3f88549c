"""A mesh as a file holds it, with bones or not, before it becomes a template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from acsm.remesh import simplify

_SAME = 1e-5
"""Vertices nearer than this share of the mesh's size are one."""


@dataclass(frozen=True)
class FileMesh:
    """Geometry and rig of one file, in the file's own axes and units.

    Attributes:
        vertices: float64 [V, 3], in the rest pose.
        faces: int64 [F, 3].
        weights: float64 [V, B], rows sum to 1.
        bones: B names.
        bone_parents: B indices, -1 for a root.
        heads: float64 [B, 3], what each bone turns about.
        tips: float64 [B, 3], where each bone ends; NaN where the file does not say.
        groups: names of materials, objects or groups to bool [V].
        notes: what was done that a user may want to know, a sentence each.
    """

    vertices: np.ndarray
    faces: np.ndarray
    weights: np.ndarray
    bones: tuple[str, ...]
    bone_parents: tuple[int, ...]
    heads: np.ndarray
    tips: np.ndarray
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def noted(self, *notes: str) -> FileMesh:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def edges_of(faces: np.ndarray) -> np.ndarray:
    """int64 [E, 2]: each edge of the faces [F, 3] once, lower vertex first."""
    both = np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)])
    return np.unique(np.sort(both, axis=1), axis=0)


def pieces_of(faces: np.ndarray, count: int) -> np.ndarray:
    """int [V]: the connected piece of the surface that each of `count` vertices belongs to."""
    return _joined(edges_of(faces), count)


def _joined(pairs: np.ndarray, count: int) -> np.ndarray:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]


def welded(mesh: FileMesh) -> FileMesh:
    """Vertices at one place made one, their weights averaged; degenerate faces and strays dropped.

    Files repeat a vertex where its normal, colour or material changes.
    """
    from scipy.spatial import cKDTree

    size = float(np.ptp(mesh.vertices, axis=0).max())
    pairs = cKDTree(mesh.vertices).query_pairs(_SAME * size, output_type="ndarray")
    cluster = _joined(pairs, len(mesh.vertices))
    faces = cluster[mesh.faces]
    distinct = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
    faces = faces[distinct]
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    repeated = len(faces) - len(first)
    faces = faces[np.sort(first)]
    used = np.unique(faces)
    renumbered = np.full(int(cluster.max(initial=-1)) + 1, -1)
    renumbered[used] = np.arange(len(used))
    owner = renumbered[cluster]
    kept = owner >= 0
    count = np.bincount(owner[kept], minlength=len(used))[:, None]

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.zeros((len(used), values.shape[1]))
        np.add.at(total, owner[kept], values[kept])
        return total / count

    groups = {name: np.zeros(len(used), bool) for name in mesh.groups}
    for name, inside in mesh.groups.items():
        groups[name][owner[kept & inside]] = True
    notes = []
    if len(used) < len(mesh.vertices):
        notes.append(f"{len(mesh.vertices)} vertices welded to {len(used)}")
    if repeated:
        notes.append(f"{repeated} repeated faces dropped")
    welded = replace(
        mesh,
        vertices=mean(mesh.vertices),
        faces=renumbered[faces],
        weights=mean(mesh.weights),
        groups=groups,
    )
    return welded.noted(*notes)


def simplified(mesh: FileMesh, count: int) -> FileMesh:
    """The mesh with about `count` vertices; weights and groups come from the nearest old vertices."""
    if count >= len(mesh.vertices):
        return mesh
    from scipy.spatial import cKDTree

    size = float(np.ptp(mesh.vertices, axis=0).max())
    # The simplification keeps what lies at x = 0 there, which is meant for halves of a mesh.
    away = np.array([10.0, 0, 0]) - mesh.vertices.min(axis=0) / size
    points, faces = simplify(mesh.vertices / size + away, mesh.faces, np.ones(len(mesh.vertices)), count)
    vertices = (points - away) * size
    distance, near = cKDTree(mesh.vertices).query(vertices, k=3)
    share = 1 / np.maximum(distance, 1e-9 * size)
    share /= share.sum(axis=1, keepdims=True)
    simpler = replace(
        mesh,
        vertices=vertices,
        faces=faces,
        weights=np.einsum("vk,vkb->vb", share, mesh.weights[near]),
        groups={name: inside[near[:, 0]] for name, inside in mesh.groups.items()},
    )
    return simpler.noted(f"{len(mesh.vertices)} vertices simplified to {len(vertices)}")
