"""A mesh's edges, each with the two faces that meet there: what a silhouette is drawn from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class EdgeTable(NamedTuple):
    """The edges of a triangle mesh.

    An edge with more than two faces stands in several rows, two faces in each. Signs say which way a face
    runs through the edge: 1 from the first vertex to the second, -1 back, 0 for a face that is not there.

    Attributes:
        faces: int32 [F, 3], the mesh.
        vertices: int32 [E, 2].
        sides: int32 [E, 2], the faces; F for one that is not there.
        signs: int8 [E, 2].
        closed: every row has two faces that run opposite ways, so that the mesh has an inside.
        highest: the highest vertex that a face names, -1 without faces.
    """

    faces: np.ndarray
    vertices: np.ndarray
    sides: np.ndarray
    signs: np.ndarray
    closed: bool
    highest: int

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
        """What compiled code takes."""
        return self.faces, self.vertices, self.sides, self.signs, self.closed


KEPT_TABLES = 8
_tables: list[EdgeTable] = []


def build_edge_table(faces: np.ndarray) -> EdgeTable:
    """List the edges of ``faces`` [F, 3]; a face that names a vertex twice has no part in it.

    Raises:
        ValueError: for another shape or negative indices.
    """
    faces = np.ascontiguousarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise ValueError(f"expected faces [F, 3] of integers; found {list(faces.shape)} of {faces.dtype}")
    if faces.size and faces.min() < 0:
        raise ValueError(f"expected faces to index vertices; found index {faces.min()}")
    faces = faces.astype(np.int32)
    count = len(faces)

    a, b, c = faces.T
    whole = np.nonzero((a != b) & (b != c) & (c != a))[0]
    start = faces[whole].reshape(-1)
    end = np.roll(faces[whole], -1, axis=1).reshape(-1)
    face = np.repeat(whole, 3)
    low, high = np.minimum(start, end).astype(np.int64), np.maximum(start, end).astype(np.int64)
    backward = start > end
    edge = low * (high.max(initial=0) + 1) + high

    # Two faces that run opposite ways share a row: rank those of each way, then put equal ranks together.
    order = np.lexsort((backward, edge))
    run = _position_in_run(edge[order] * 2 + backward[order])
    rank = np.empty(len(order), np.int64)
    rank[order] = run
    order = np.lexsort((backward, rank, edge))
    position = _position_in_run(edge[order])
    second = position % 2 == 1
    row = np.cumsum(~second) - 1

    rows = int((~second).sum())
    vertices = np.zeros((rows, 2), np.int32)
    sides = np.full((rows, 2), count, np.int32)
    signs = np.zeros((rows, 2), np.int8)
    column = second.astype(np.int64)
    vertices[row] = np.stack([low, high], 1)[order]
    sides[row, column] = face[order]
    signs[row, column] = np.where(backward[order], -1, 1)
    closed = bool((signs.sum(axis=1) == 0).all())
    return EdgeTable(faces, vertices, sides, signs, closed, int(faces.max(initial=-1)))


def _position_in_run(keys: np.ndarray) -> np.ndarray:
    """0, 1, 2 ... within each run of equal keys."""
    index = np.arange(len(keys))
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    return index - np.maximum.accumulate(np.where(first, index, 0))


def edge_table(faces: np.ndarray) -> EdgeTable:
    """The table of ``faces``, built at the first call and kept for the last few meshes.

    Args:
        faces: [F, 3] int.

    Returns:
        The table; do not change its arrays.

    Raises:
        ValueError: as :func:`build_edge_table`.
    """
    for table in _tables:
        # Comparing contents costs microseconds, and no array that was changed in place is taken for itself.
        if table.faces.shape == faces.shape and np.array_equal(table.faces, faces):
            return table
    table = build_edge_table(faces)
    _tables.insert(0, table)
    del _tables[KEPT_TABLES:]
    return table
