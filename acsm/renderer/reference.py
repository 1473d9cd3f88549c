"""The z-buffer in plain NumPy: one face at a time over the whole picture. For tests and reading."""

from __future__ import annotations

import numpy as np

from acsm.renderer.fragments import Fragments, check_mesh


def rasterize_reference(vertices_ndc: np.ndarray, faces: np.ndarray, size: int) -> Fragments:
    """The same as :func:`acsm.renderer.rasterize`, slowly and without compiled code.

    Args:
        vertices_ndc: [B, V, 3] float, NDC.
        faces: [F, 3] int.
        size: S, pixels on a side.

    Returns:
        Fragments of B pictures.
    """
    vertices, faces = check_mesh(vertices_ndc, faces)
    shape = (len(vertices), size, size)
    out = Fragments(
        np.full(shape, -1, np.int32), np.zeros((*shape, 3), np.float32), np.full(shape, np.inf, np.float32)
    )
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    for b, xyz in enumerate(vertices.astype(np.float64)):
        for f, corners in enumerate(faces):
            triangle = xyz[corners]
            if not np.isfinite(triangle).all():
                continue
            x, y = ((triangle[:, :2] + 1) * (0.5 * size) - 0.5).T
            area = (x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0])
            if area == 0:
                continue
            weights = np.empty((3, size, size))
            for k in range(3):
                p, q = (k + 1) % 3, (k + 2) % 3  # the edge across from corner k
                weights[k] = np.sign(area) * (y[p] - y[q]) * (columns - x[p])
                weights[k] += np.sign(area) * (x[q] - x[p]) * (rows - y[p])
            total = weights[0] + weights[1] + weights[2]
            inside = (weights >= 0).all(axis=0) & (total > 0)
            share = weights[:, inside] / total[inside]
            z = np.full((size, size), np.inf, np.float32)
            z[inside] = (weights[:, inside] * triangle[:, 2:]).sum(axis=0) / total[inside]
            nearer = z < out.depth[b]
            out.depth[b][nearer] = z[nearer]
            out.face_ids[b][nearer] = f
            out.barycentrics[b][nearer] = share.T[nearer[inside]]
    return out
