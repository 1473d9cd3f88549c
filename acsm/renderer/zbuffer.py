"""The z-buffer's inner loop, compiled. ``reference.py`` says the same thing readably.

The kernel is serial and releases the interpreter's lock; ``fragments.rasterize`` runs it in
threads. numba's own parallel loops are not used: their OpenMP runtime dies in a forked worker.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def draw_band(vertices, faces, top, bottom, face_ids, barycentrics, depth):
    """Draw all faces into rows ``top`` to ``bottom`` (exclusive) of one picture, in place.

    Args:
        vertices: float64 [V, 3], NDC.
        faces: int64 [F, 3].
        top: first row.
        bottom: row after the last.
        face_ids: int32 [S, S], -1 where nothing has been drawn.
        barycentrics: float32 [S, S, 3].
        depth: float32 [S, S], inf where nothing has been drawn.
    """
    size = face_ids.shape[0]
    half = 0.5 * size
    for f in range(faces.shape[0]):
        v0, v1, v2 = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, x1, x2 = vertices[v0, 0], vertices[v1, 0], vertices[v2, 0]
        y0, y1, y2 = vertices[v0, 1], vertices[v1, 1], vertices[v2, 1]
        z0, z1, z2 = vertices[v0, 2], vertices[v1, 2], vertices[v2, 2]
        if not np.isfinite(x0 + x1 + x2 + y0 + y1 + y2 + z0 + z1 + z2):
            continue
        x0, x1, x2 = (x0 + 1) * half - 0.5, (x1 + 1) * half - 0.5, (x2 + 1) * half - 0.5
        y0, y1, y2 = (y0 + 1) * half - 0.5, (y1 + 1) * half - 0.5, (y2 + 1) * half - 0.5

        row_low = max(min(y0, min(y1, y2)), float(top))
        row_high = min(max(y0, max(y1, y2)), bottom - 1.0)
        col_low = max(min(x0, min(x1, x2)), 0.0)
        col_high = min(max(x0, max(x1, x2)), size - 1.0)
        if row_low > row_high + 1e-6 or col_low > col_high + 1e-6:
            continue
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0:
            continue
        turn = 1.0 if area > 0 else -1.0
        # w_k = a_k x + b_k y + c_k is twice the area between the point and the edge across from k.
        a0, b0 = turn * (y1 - y2), turn * (x2 - x1)
        a1, b1 = turn * (y2 - y0), turn * (x0 - x2)
        a2, b2 = turn * (y0 - y1), turn * (x1 - x0)

        # The box may be a touch too wide: whether a centre is inside, the edges alone decide.
        first, last = int(np.ceil(col_low - 1e-6)), int(np.floor(col_high + 1e-6))
        for i in range(int(np.ceil(row_low - 1e-6)), int(np.floor(row_high + 1e-6)) + 1):
            r0 = b0 * (i - y1)
            r1 = b1 * (i - y2)
            r2 = b2 * (i - y0)
            entered = False
            for j in range(first, last + 1):
                w0 = a0 * (j - x1) + r0
                w1 = a1 * (j - x2) + r1
                w2 = a2 * (j - x0) + r2
                if w0 >= 0 and w1 >= 0 and w2 >= 0:
                    entered = True
                    total = w0 + w1 + w2
                    if total <= 0:
                        continue
                    z = np.float32((w0 * z0 + w1 * z1 + w2 * z2) / total)
                    if z < depth[i, j]:
                        depth[i, j] = z
                        face_ids[i, j] = f
                        barycentrics[i, j, 0] = w0 / total
                        barycentrics[i, j, 1] = w1 / total
                        barycentrics[i, j, 2] = w2 / total
                elif entered:
                    break  # a triangle meets a row in one run


@numba.njit(nogil=True, cache=True)
def blend_corners(attributes, faces, face_ids, barycentrics, out):
    """Interpolate corner values over one picture, in place.

    Args:
        attributes: float32 [V, C].
        faces: int64 [F, 3].
        face_ids: int32 [S, S].
        barycentrics: float32 [S, S, 3].
        out: float32 [S, S, C], zero on entry.
    """
    channels = attributes.shape[1]
    for i in range(face_ids.shape[0]):
        for j in range(face_ids.shape[1]):
            f = face_ids[i, j]
            if f < 0:
                continue
            for corner in range(3):
                weight = barycentrics[i, j, corner]
                vertex = faces[f, corner]
                for c in range(channels):
                    out[i, j, c] += weight * attributes[vertex, c]
