"""The part of one pixel that is covered by any layer, exactly. Compiled; see ``coverage_reference``.

Contour segments cut a pixel into regions, each with a number of layers over it. Between its ends, its
crossings with others and others' ends on it, a segment has one number of layers above it, found by looking
straight up from its middle to the pixel's upper side. Where it parts covered from uncovered, the area below
it is added or taken away. The readable twin sweeps the pixel in slabs instead.

numba keeps compiled code by the file that it compiles: after a change here, save ``contours.py`` too.
"""

from __future__ import annotations

import numba
import numpy as np

SNAP = 1e-9
"""Pixels from its upper side within which a point counts as lying on it; and apart that segments lie on one
another, the earlier above."""
TOUCH = 1e-6
"""Of the distances between two segments at either end of what they share, in square pixels: with a
smaller product they are cut where they meet."""
TILT = 1e-9
"""Width in pixels that a vertical segment is given, so that something can be below it."""


SLIVER = 1e-12
"""Pieces that are narrower are left out."""

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


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _meeting(segments, k, m):
    """The columns where both segments are, and how far k lies below m at either end of them."""
    low = max(segments[k, LOW], segments[m, LOW])
    high = min(segments[k, HIGH], segments[m, HIGH])
    offset = segments[k, Y0] - segments[m, Y0]
    slope, other = segments[k, SLOPE], segments[m, SLOPE]
    at_low = offset + (low - segments[k, X0]) * slope - (low - segments[m, X0]) * other
    at_high = offset + (high - segments[k, X0]) * slope - (high - segments[m, X0]) * other
    return low, high, at_low, at_high


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def any_meet(segments, count):
    """Whether any two of the segments cross, or may touch where either ends."""
    found = False
    for k in range(1, count):
        for m in range(k):
            low, high, at_low, at_high = _meeting(segments, k, m)
            found |= (low < high) & (at_low * at_high < TOUCH)
    return found


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cut_where_they_meet(segments, count, k, breaks):
    """Fill ``breaks`` with the sorted columns of segment k's ends, its crossings, and others' ends on it.

    Returns:
        How many.
    """
    breaks[0], breaks[1] = segments[k, LOW], segments[k, HIGH]
    n = 2
    for m in range(count):
        low, high, at_low, at_high = _meeting(segments, k, m)
        if m == k or low >= high or at_low * at_high >= TOUCH:
            continue
        if low > segments[k, LOW]:
            n = _insert(breaks, n, low)
        if high < segments[k, HIGH]:
            n = _insert(breaks, n, high)
        if at_low * at_high < 0.0:
            at = low + (high - low) * at_low / (at_low - at_high)
            if low < at < high:
                n = _insert(breaks, n, at)
    return n


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def covered_on_top(segments, count, corner):
    """Length of the pixel's upper side below which there is one layer or more."""
    length = 1.0 if corner > 0.5 else 0.0
    # Without branches, which the processor would guess wrongly half the time.
    for k in range(count):
        layers, at = corner, segments[k, TOP_AT]
        for m in range(count):
            before = (segments[m, TOP_AT] < at) | ((segments[m, TOP_AT] == at) & (m < k))
            layers += segments[m, TOP_CHANGE] * before
        flips = 1.0 * (layers + segments[k, TOP_CHANGE] > 0.5) - 1.0 * (layers > 0.5)
        length += flips * (1.0 - at)
    return length


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def layers_above(segments, count, corner, k, middle, y):
    """Number of layers just above segment k at a column where it crosses no other.

    Those below what lies on the upper side, changed by what lies between; and above what lies on it.
    """
    layers = corner
    for m in range(count):
        active = (segments[m, LOW] <= middle) & (middle < segments[m, HIGH])
        other = segments[m, Y0] + (middle - segments[m, X0]) * segments[m, SLOPE]
        above = (other < y - SNAP) | ((abs(other - y) <= SNAP) & (m < k))
        layers += segments[m, TOP_CHANGE] * (segments[m, TOP_AT] < middle)
        layers += segments[m, DOWN] * (active & above) - segments[m, ON_TOP] * active
    return layers


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cover_pixel(segments, jumps, count, mean_layers, weights, breaks):
    """Area of the pixel under one layer or more, and how its segments bound that area.

    Args:
        segments: float64 [N, SLOTS], as in :func:`layers_at_corner`; changed in place.
        jumps: int64 [N].
        count: segments that are used.
        mean_layers: mean over the pixel.
        weights: float64 [N, 2], set to the integrals of (1 - t) and t over what of a segment parts
            covered from uncovered, negative where the covered side is the left one.
        breaks: float64, to work in: room for 2 + 3 N.

    Returns:
        The area, 0 to 1.
    """
    corner = layers_at_corner(segments, jumps, count, mean_layers)
    area = covered_on_top(segments, count, corner)
    meet = any_meet(segments, count)
    for k in range(count):
        num_breaks = 2
        if meet:
            num_breaks = cut_where_they_meet(segments, count, k, breaks)
        else:
            breaks[0], breaks[1] = segments[k, LOW], segments[k, HIGH]
        x0, t0 = segments[k, X0], segments[k, T0]
        along = 1.0 if segments[k, X1] > x0 else -1.0
        weights[k, 0] = weights[k, 1] = 0.0
        for piece in range(num_breaks - 1):
            left, right = breaks[piece], breaks[piece + 1]
            middle = 0.5 * (left + right)
            y = segments[k, Y0] + (middle - x0) * segments[k, SLOPE]
            layers = layers_above(segments, count, corner, k, middle, y)
            covered = layers + segments[k, DOWN] > 0.5
            if covered == (layers > 0.5):
                continue
            step = 1.0 if covered else -1.0
            if segments[k, ON_TOP] == 0.0:  # else what is below it has been counted
                area += step * (right - left) * (1.0 - y)
            ta, tb = t0 + (left - x0) * segments[k, RATE], t0 + (right - x0) * segments[k, RATE]
            first, second = edge_weights(min(ta, tb), max(ta, tb))
            weights[k, 0] += step * along * first
            weights[k, 1] += step * along * second
    return min(max(area, 0.0), 1.0)


@numba.njit(nogil=True, cache=True, inline="always")
def edge_weights(t0, t1):
    """Integrals of (1 - t) and of t from t0 to t1."""
    second = 0.5 * (t1 * t1 - t0 * t0)
    return (t1 - t0) - second, second
