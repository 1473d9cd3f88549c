"""The gradient of silhouettes, compiled: from pixels to the contour that crosses them."""

from __future__ import annotations

import numba


@numba.njit(nogil=True, cache=True)
def pull_back(vertices, ends, edge, pixel, weights, starts, first, last, grad_masks, grad_vertices):
    """Carry gradients of masks to vertices, for images ``first`` to ``last`` (exclusive).

    Moving a point of the contour moves the silhouette's area by the part of the move that is normal to
    it; a point at t moves by (1 - t) and t of what the edge's ends move by.

    Args:
        vertices: float [B, V, 3], NDC.
        ends: int32 [E, 2].
        edge: int32 [N], as ``contours.cover_images`` returned it, and the next two.
        pixel: int32 [N].
        weights: float64 [N, 2].
        starts: int64 [B + 1].
        first: first image.
        last: image after the last.
        grad_masks: [B, S, S].
        grad_vertices: [B, V, 3], added to.
    """
    size = grad_masks.shape[1]
    # An NDC of an edge is S / 2 pixels long, and so is what an NDC of movement moves it by.
    scale = 0.25 * size * size
    for b in range(first, last):
        grads = grad_masks[b].reshape(-1)
        r = starts[b]
        while r < starts[b + 1]:
            e = edge[r]
            at_start = at_end = 0.0
            while r < starts[b + 1] and edge[r] == e:
                g = grads[pixel[r]]
                at_start += g * weights[r, 0]
                at_end += g * weights[r, 1]
                r += 1
            va, vb = ends[e, 0], ends[e, 1]
            normal_x = scale * (vertices[b, vb, 1] - vertices[b, va, 1])
            normal_y = scale * (vertices[b, va, 0] - vertices[b, vb, 0])
            grad_vertices[b, va, 0] += normal_x * at_start
            grad_vertices[b, va, 1] += normal_y * at_start
            grad_vertices[b, vb, 0] += normal_x * at_end
            grad_vertices[b, vb, 1] += normal_y * at_end
