"""The part of one pixel that is covered by any layer, exactly. Compiled; see ``coverage_reference``.

Contour segments cut a pixel into regions, each with a number of layers over it. The pixel is swept from
left to right in slabs between the points where segments begin, end or cross. Within a slab the
segments are ordered from top to bottom, and the number of layers steps from one to the next.

numba keeps compiled code by the file that it compiles: after a change here, save ``contours.py`` too.
"""

from __future__ import annotations

import numba
import numpy as np

SNAP = 1e-9
"""Pixels from its upper side within which a point counts as lying on it."""
TILT = 1e-9
"""Width in pixels that a vertical segment is given, so that slabs can hold it."""


SLIVER = 1e-12
"""Slabs that are narrower are left out."""

X0, Y0, X1, Y1, T0, T1, SLOPE, RATE, LOW, HIGH, DOWN, TOP_AT, TOP_CHANGE, ON_TOP, SLOTS = range(15)
"""What is kept of a segment: its ends in the pixel and there the edge's parameter t; dy/dx and dt/dx; its
range of columns; layers below it less those above; where it leaves the upper side, and by how much the
layers change there to the right; DOWN again if it lies on the upper side, else 0."""


@numba.njit(nogil=True, cache=True, error_model="numpy")
def layers_at_corner(segments, jumps, count, mean_layers):
    """Number of layers just outside the pixel's upper left corner.

    The mean number of layers over the pixel is that number plus what the segments add; solved for it.

    Args:
        segments: float64 [N, SLOTS], of which X0 to T1 are given. Changed in place: snapped to the upper
            side, no longer vertical, the rest filled in.
        jumps: int64 [N], layers on the right of a segment, seen along it, less those on its left.
        count: segments that are used.
        mean_layers: mean over the pixel.

    Returns:
        The number.
    """
    added = 0.0
    for k in range(count):
        x0, y0, x1, y1 = segments[k, X0], segments[k, Y0], segments[k, X1], segments[k, Y1]
        y0 = 0.0 if y0 < SNAP else y0
        y1 = 0.0 if y1 < SNAP else y1
        if abs(x1 - x0) < TILT:
            x1 = x0 + TILT if x0 < 0.5 else x0 - TILT
        segments[k, Y0], segments[k, X1], segments[k, Y1] = y0, x1, y1
        each = 1.0 / (x1 - x0)
        segments[k, SLOPE] = (y1 - y0) * each
        segments[k, RATE] = (segments[k, T1] - segments[k, T0]) * each
        segments[k, LOW], segments[k, HIGH] = min(x0, x1), max(x0, x1)
        down = jumps[k] if x1 > x0 else -jumps[k]
        segments[k, DOWN], segments[k, ON_TOP] = down, 0.0
        segments[k, TOP_AT], segments[k, TOP_CHANGE] = 0.0, 0.0
        if y0 == 0.0 and y1 == 0.0:
            segments[k, ON_TOP] = down
            continue
        added += jumps[k] * (x1 - x0) * (1.0 - 0.5 * (y0 + y1))
        if y0 == 0.0:
            segments[k, TOP_AT], segments[k, TOP_CHANGE] = x0, -jumps[k]
        elif y1 == 0.0:
            segments[k, TOP_AT], segments[k, TOP_CHANGE] = x1, jumps[k]
        added += segments[k, TOP_CHANGE] * (1.0 - segments[k, TOP_AT])
    return np.floor(mean_layers - added + 0.5)


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _insert(breaks, n, value):
    """Insert a value into n sorted ones unless it is there; returns how many there are."""
    m = n
    while breaks[m - 1] > value:
        m -= 1
    if value - breaks[m - 1] < SLIVER:
        return n
    for k in range(n, m, -1):
        breaks[k] = breaks[k - 1]
    breaks[m] = value
    return n + 1


@numba.njit(nogil=True, cache=True, error_model="numpy")
def find_breaks(segments, count, breaks):
    """Sorted columns where slabs begin: 0, 1, ends and crossings of segments; returns how many."""
    breaks[0], breaks[1] = 0.0, 1.0
    n = 2
    for k in range(count):
        n = _insert(breaks, n, segments[k, X0])
        n = _insert(breaks, n, segments[k, X1])
        for m in range(k):
            low = max(segments[k, LOW], segments[m, LOW])
            high = min(segments[k, HIGH], segments[m, HIGH])
            apart = segments[k, SLOPE] - segments[m, SLOPE]
            if low >= high or apart == 0.0:
                continue
            at = segments[m, Y0] - segments[m, SLOPE] * segments[m, X0]
            at = (at - segments[k, Y0] + segments[k, SLOPE] * segments[k, X0]) / apart
            if low < at < high:
                n = _insert(breaks, n, at)
    return n


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cover_pixel(segments, jumps, count, mean_layers, weights, breaks, active, height):
    """Area of the pixel under one layer or more, and how its segments bound that area.

    Args:
        segments: float64 [N, SLOTS], as in :func:`layers_at_corner`; changed in place.
        jumps: int64 [N].
        count: segments that are used.
        mean_layers: mean over the pixel.
        weights: float64 [N, 2], set to the integrals of (1 - t) and t over what of a segment parts
            covered from uncovered, negative where the covered side is the left one.
        breaks: float64, to work in: room for 2 + 2 N + N (N - 1) / 2.
        active: int64 [N], to work in.
        height: float64 [N], to work in.

    Returns:
        The area, 0 to 1.
    """
    corner = layers_at_corner(segments, jumps, count, mean_layers)
    num_breaks = find_breaks(segments, count, breaks)
    weights[:count] = 0.0
    area = 0.0
    for slab in range(num_breaks - 1):
        left, right = breaks[slab], breaks[slab + 1]
        width = right - left
        middle = 0.5 * (left + right)
        layers, n = corner, 0
        for k in range(count):
            if segments[k, TOP_AT] < middle:
                layers += segments[k, TOP_CHANGE]
            if middle < segments[k, LOW] or middle >= segments[k, HIGH]:
                continue
            # Layers at the top count from below what lies on it; begin above.
            layers -= segments[k, ON_TOP]
            y = segments[k, Y0] + (middle - segments[k, X0]) * segments[k, SLOPE]
            m = n
            while m > 0 and height[m - 1] > y:
                height[m], active[m] = height[m - 1], active[m - 1]
                m -= 1
            height[m], active[m] = y, k
            n += 1
        covered = layers > 0.5
        if covered:
            area += width
        for m in range(n):
            k = active[m]
            x0 = segments[k, X0]
            layers += segments[k, DOWN]
            if (layers > 0.5) == covered:
                continue
            covered = not covered
            step = 1.0 if covered else -1.0
            along = 1.0 if segments[k, X1] > x0 else -1.0
            area += step * width * (1.0 - height[m])
            ta = segments[k, T0] + (left - x0) * segments[k, RATE]
            tb = segments[k, T0] + (right - x0) * segments[k, RATE]
            first, second = edge_weights(min(ta, tb), max(ta, tb))
            weights[k, 0] += step * along * first
            weights[k, 1] += step * along * second
    return min(max(area, 0.0), 1.0)


@numba.njit(nogil=True, cache=True, inline="always")
def edge_weights(t0, t1):
    """Integrals of (1 - t) and of t from t0 to t1."""
    second = 0.5 * (t1 * t1 - t0 * t0)
    return (t1 - t0) - second, second
