"""The z-buffer's inner loops, compiled. ``reference.py`` and ``zbuffer_torch.py`` say the same readably.

The kernels are serial and release the interpreter's lock; ``fragments.rasterize`` runs them in
threads. numba's own parallel loops are not used: their OpenMP runtime dies in a forked worker.
"""

from __future__ import annotations

import numba
import numpy as np

NARROW = 3
"""Columns up to which every centre of a row is tried: to find where the row enters a face takes longer."""


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _span_of(slope, j):
    """First and last column where an edge's function, 0 at j, is not negative: a touch too far."""
    if slope == 0.0:
        return -np.inf, np.inf
    slack = 1e-6 + 1e-9 * abs(j)
    return (j - slack, np.inf) if slope > 0.0 else (-np.inf, j + slack)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def to_pixels(vertices, size):
    """Vertices, float64 [V, 3], x and y in pixels from the first pixel's centre.

    Args:
        vertices: float32 or float64 [V, 3], NDC. One that is not finite is NaN throughout.
        size: S.
    """
    half = 0.5 * size
    corners = np.empty(vertices.shape, np.float64)
    for v in range(len(vertices)):
        x, y, z = np.float64(vertices[v, 0]), np.float64(vertices[v, 1]), np.float64(vertices[v, 2])
        odd = (x - x) + (y - y) + (z - z)
        corners[v, 0] = (x + 1) * half - 0.5 + odd
        corners[v, 1] = (y + 1) * half - 0.5 + odd
        corners[v, 2] = z + odd
    return corners


@numba.njit(nogil=True, cache=True, error_model="numpy")
def draw_band(corners, faces, top, bottom, face_ids, depth):
    """Draw all faces into rows ``top`` to ``bottom`` (exclusive) of one picture, in place.

    Args:
        corners: float64 [V, 3], of :func:`to_pixels`.
        faces: int64 [F, 3].
        top: first row.
        bottom: row after the last.
        face_ids: int32 [S, S], written: -1 where nothing is seen.
        depth: float32 [S, S], written: inf where nothing is seen.
    """
    size = face_ids.shape[0]
    face_ids[top:bottom] = -1
    depth[top:bottom] = np.inf
    for f in range(faces.shape[0]):
        v0, v1, v2 = faces[f, 0], faces[f, 1], faces[f, 2]
        x0, x1, x2 = corners[v0, 0], corners[v1, 0], corners[v2, 0]
        y0, y1, y2 = corners[v0, 1], corners[v1, 1], corners[v2, 1]
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if not (area > 0 or area < 0):  # NaN, too
            continue
        z0, z1, z2 = corners[v0, 2], corners[v1, 2], corners[v2, 2]
        # Box and spans may be a touch too wide: whether a centre is inside, the edges alone decide.
        row_low = max(min(y0, min(y1, y2)), float(top)) - 1e-6
        row_high = min(max(y0, max(y1, y2)), bottom - 1.0) + 1e-6
        col_low = max(min(x0, min(x1, x2)), 0.0) - 1e-6
        col_high = min(max(x0, max(x1, x2)), size - 1.0) + 1e-6
        if not (row_low <= row_high and col_low <= col_high):  # and so may not fit an integer
            continue
        row_first, row_last = int(np.ceil(row_low)), int(np.floor(row_high))
        col_first, col_last = int(np.ceil(col_low)), int(np.floor(col_high))
        if row_first > row_last or col_first > col_last:
            continue
        turn = 1.0 if area > 0 else -1.0
        # w_k = a_k x + b_k y + c_k is twice the area between the point and the edge across from k.
        a0, b0 = turn * (y1 - y2), turn * (x2 - x1)
        a1, b1 = turn * (y2 - y0), turn * (x0 - x2)
        a2, b2 = turn * (y0 - y1), turn * (x1 - x0)
        wide = col_last - col_first >= NARROW
        per_a0 = per_a1 = per_a2 = 0.0
        if wide:
            per_a0, per_a1, per_a2 = 1.0 / a0, 1.0 / a1, 1.0 / a2

        for i in range(row_first, row_last + 1):
            r0 = b0 * (i - y1)
            r1 = b1 * (i - y2)
            r2 = b2 * (i - y0)
            first, last = col_first, col_last
            if wide:
                from0, to0 = _span_of(a0, x1 - r0 * per_a0)
                from1, to1 = _span_of(a1, x2 - r1 * per_a1)
                from2, to2 = _span_of(a2, x0 - r2 * per_a2)
                low = max(col_low, max(from0, max(from1, from2)))
                high = min(col_high, min(to0, min(to1, to2)))
                if low > high:
                    continue
                first, last = int(np.ceil(low)), int(np.floor(high))
            for j in range(first, last + 1):
                w0 = a0 * (j - x1) + r0
                w1 = a1 * (j - x2) + r1
                w2 = a2 * (j - x0) + r2
                if w0 >= 0 and w1 >= 0 and w2 >= 0:
                    total = w0 + w1 + w2
                    if total <= 0:
                        continue
                    z = np.float32((w0 * z0 + w1 * z1 + w2 * z2) / total)
                    if z < depth[i, j]:
                        depth[i, j] = z
                        face_ids[i, j] = f


@numba.njit(nogil=True, cache=True, error_model="numpy")
def weigh_band(corners, faces, top, bottom, face_ids, barycentrics, depth):
    """Barycentrics and depth of the faces seen in rows ``top`` to ``bottom`` (exclusive), in place.

    Args:
        corners: float64 [V, 3], of :func:`to_pixels`.
        faces: int64 [F, 3].
        top: first row.
        bottom: row after the last.
        face_ids: int32 [S, S].
        barycentrics: [S, S, 3], of any precision, written: 0 where nothing is seen.
        depth: [S, S], of the same, written: inf where nothing is seen.
    """
    size = face_ids.shape[0]
    f = -1
    x0 = x1 = x2 = y0 = y1 = y2 = z0 = z1 = z2 = a0 = a1 = a2 = b0 = b1 = b2 = 0.0
    for i in range(top, bottom):
        for j in range(size):
            if face_ids[i, j] < 0:
                barycentrics[i, j, 0] = barycentrics[i, j, 1] = barycentrics[i, j, 2] = 0.0
                depth[i, j] = np.inf
                continue
            if face_ids[i, j] != f:
                f = face_ids[i, j]
                v0, v1, v2 = faces[f, 0], faces[f, 1], faces[f, 2]
                x0, y0, z0 = corners[v0, 0], corners[v0, 1], corners[v0, 2]
                x1, y1, z1 = corners[v1, 0], corners[v1, 1], corners[v1, 2]
                x2, y2, z2 = corners[v2, 0], corners[v2, 1], corners[v2, 2]
                turn = 1.0 if (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0) > 0 else -1.0
                a0, b0 = turn * (y1 - y2), turn * (x2 - x1)
                a1, b1 = turn * (y2 - y0), turn * (x0 - x2)
                a2, b2 = turn * (y0 - y1), turn * (x1 - x0)
            w0 = a0 * (j - x1) + b0 * (i - y1)
            w1 = a1 * (j - x2) + b1 * (i - y2)
            w2 = a2 * (j - x0) + b2 * (i - y0)
            each = 1.0 / (w0 + w1 + w2)
            w0, w1, w2 = w0 * each, w1 * each, w2 * each
            barycentrics[i, j, 0] = w0
            barycentrics[i, j, 1] = w1
            barycentrics[i, j, 2] = w2
            depth[i, j] = w0 * z0 + w1 * z1 + w2 * z2


@numba.njit(nogil=True, cache=True, error_model="numpy")
def pull_back_fragments(
    vertices, faces, face_ids, barycentrics, grad_barycentrics, grad_depth, grad_vertices
):
    """Carry gradients of one picture's barycentrics and depth to its vertices, in place.

    With the pixel's centre fixed, moving corner n by d moves the centre by -b_n d as the face sees it.

    Args:
        vertices: [V, 3], NDC.
        faces: int64 [F, 3].
        face_ids: int32 [S, S].
        barycentrics: [S, S, 3].
        grad_barycentrics: [S, S, 3].
        grad_depth: [S, S].
        grad_vertices: float64 [V, 3], added to.
    """
    for i in range(face_ids.shape[0]):
        for j in range(face_ids.shape[1]):
            f = face_ids[i, j]
            if f < 0:
                continue
            gz = grad_depth[i, j]
            g0, g1, g2 = grad_barycentrics[i, j, 0], grad_barycentrics[i, j, 1], grad_barycentrics[i, j, 2]
            if gz == 0 and g0 == 0 and g1 == 0 and g2 == 0:
                continue
            v0, v1, v2 = faces[f, 0], faces[f, 1], faces[f, 2]
            b0, b1, b2 = barycentrics[i, j, 0], barycentrics[i, j, 1], barycentrics[i, j, 2]
            grad_vertices[v0, 2] += b0 * gz
            grad_vertices[v1, 2] += b1 * gz
            grad_vertices[v2, 2] += b2 * gz
            # depth = sum of b_n z_n, so its gradient goes through the barycentrics too.
            g0 += gz * vertices[v0, 2]
            h1 = g1 + gz * vertices[v1, 2] - g0
            h2 = g2 + gz * vertices[v2, 2] - g0
            ux, uy = vertices[v1, 0] - vertices[v0, 0], vertices[v1, 1] - vertices[v0, 1]
            wx, wy = vertices[v2, 0] - vertices[v0, 0], vertices[v2, 1] - vertices[v0, 1]
            per_area = 1.0 / (ux * wy - wx * uy)
            along_x = (h1 * wy - h2 * uy) * per_area
            along_y = (h2 * ux - h1 * wx) * per_area
            grad_vertices[v0, 0] -= b0 * along_x
            grad_vertices[v0, 1] -= b0 * along_y
            grad_vertices[v1, 0] -= b1 * along_x
            grad_vertices[v1, 1] -= b1 * along_y
            grad_vertices[v2, 0] -= b2 * along_x
            grad_vertices[v2, 1] -= b2 * along_y


@numba.njit(nogil=True, cache=True)
def blend_corners(attributes, faces, face_ids, barycentrics, out):
    """Interpolate corner values over one picture, in place.

    Args:
        attributes: [V, C].
        faces: int64 [F, 3].
        face_ids: int32 [S, S].
        barycentrics: [S, S, 3].
        out: [S, S, C], zero on entry.
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


@numba.njit(nogil=True, cache=True)
def pull_back_corners(attributes, faces, face_ids, barycentrics, grad, grad_attributes, grad_barycentrics):
    """Carry the gradient of :func:`blend_corners` back over one picture, in place.

    Args:
        attributes: [V, C].
        faces: int64 [F, 3].
        face_ids: int32 [S, S].
        barycentrics: [S, S, 3].
        grad: [S, S, C].
        grad_attributes: float64 [V, C], added to.
        grad_barycentrics: [S, S, 3], written where a face is seen.
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
                along = 0.0
                for c in range(channels):
                    along += grad[i, j, c] * attributes[vertex, c]
                    grad_attributes[vertex, c] += weight * grad[i, j, c]
                grad_barycentrics[i, j, corner] = along
