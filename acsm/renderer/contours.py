"""Silhouettes by their contours, compiled. ``coverage_reference`` says the same thing readably.

Serial kernels that release the interpreter's lock; ``silhouettes`` runs them in threads.
"""

from __future__ import annotations

import numba
import numpy as np

from acsm.renderer.pixel_union import SLOTS, T0, cover_pixel, edge_weights

WHOLE = 1e-4
"""How near a mean number of layers has to be to 1 before the segments are looked at more closely."""
CROWD = 64
"""Segments in one pixel that room is kept for."""
NONE = -1


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _turn_of_faces(xy, faces, one_sided, turns):
    """Fill ``turns`` [F + 1]: 1 front, 0 edge-on or not finite; the back is 0 if one-sided, else -1.

    The last one, for a face that is not there, is 0.
    """
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        ux, uy = xy[b, 0] - xy[a, 0], xy[b, 1] - xy[a, 1]
        wx, wy = xy[c, 0] - xy[a, 0], xy[c, 1] - xy[a, 1]
        left, right = ux * wy, uy * wx
        if left > right:
            turns[f] = 1
        elif left < right and not one_sided:
            turns[f] = -1
        else:
            turns[f] = 0
    turns[faces.shape[0]] = 0


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_above(x0, x1, jump, size, delta):
    """A part of an edge above the picture, from column x0 to x1: it adds to whole columns."""
    low, high = min(x0, x1), max(x0, x1)
    sign = jump if x1 > x0 else -jump
    for j in range(max(int(np.floor(low)), 0), min(int(np.ceil(high)), size)):
        delta[0, j] += sign * (min(high, j + 1.0) - max(low, float(j)))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_row(column_sums, change, dust, line):
    """Add a row's changes, which are cleared, to the layers of the row above; write coverage."""
    # Constants of the arrays' own precision keep the loop in vector registers.
    zero, one = column_sums.dtype.type(0), column_sums.dtype.type(1)
    most = one - dust
    for j in range(len(line)):
        layers = column_sums[j] + change[j]
        column_sums[j] = layers
        change[j] = zero
        covered = layers if layers < most else one
        line[j] = covered if layers > dust else zero


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _cuts_at_frame(x0, y0, dx, dy, size, cuts):
    """Parameters, in order, at which an edge crosses the lines of the picture's frame; with 0 and 1."""
    cuts[0], cuts[1] = 0.0, 1.0
    n = 2
    for side in range(4):
        at = 0.0 if side % 2 == 0 else float(size)
        t = (at - x0) / dx if side < 2 else (at - y0) / dy
        if 0.0 < t < 1.0:
            cuts[n] = t
            n += 1
    cuts[:n].sort()
    return n


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _is_one_line(r, edge, spans, following, contour, ends, jumps_of, xy):
    """Whether a pixel's segments make one line, end to end, that does not turn back upon itself."""
    count = inner = 0
    rightward = leftward = downward = upward = False
    while r != NONE:
        q = edge[r]
        a, b = ends[contour[q], 0], ends[contour[q], 1]
        dx, dy = jumps_of[q] * (xy[b, 0] - xy[a, 0]), jumps_of[q] * (xy[b, 1] - xy[a, 1])
        rightward |= dx > 0
        leftward |= dx < 0
        downward |= dy > 0
        upward |= dy < 0
        inner += (spans[r, 0] == 0.0) + (spans[r, 1] == 1.0)
        count += 1
        r = following[r]
    if inner != 2 * count - 2:
        return False
    return count == 2 or not (rightward and leftward) or not (downward and upward)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _find_contour(xy, table, turns, one_sided, size, contour, jumps_of):
    """List the edges that layers begin or end at, with by how many; returns how many edges, and room for
    the segments that pixels may cut them into.
    """
    _, ends, sides, signs, _ = table
    n, most = 0, 0
    for e in range(len(ends)):
        if one_sided:
            jump = turns[sides[e, 0]] - turns[sides[e, 1]]
        else:
            jump = signs[e, 0] * turns[sides[e, 0]] + signs[e, 1] * turns[sides[e, 1]]
        if jump == 0:
            continue
        contour[n], jumps_of[n] = e, jump
        n += 1
        a, b = ends[e, 0], ends[e, 1]
        most += 6 + int(min(abs(xy[a, 0] - xy[b, 0]), float(size)))
        most += int(min(abs(xy[a, 1] - xy[b, 1]), float(size)))
    return n, most


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _walk_contour(xy, ends, contour, jumps_of, used, size, delta, lists, segments):
    """Scatter the contour's areas into ``delta`` and list its segments by pixel, pixels by row.

    Args:
        xy: float64 [V, 2], in pixels from the picture's upper left corner.
        ends: int32 [E, 2].
        contour: edges of the contour.
        jumps_of: their jumps.
        used: segments that earlier images have.
        size: S.
        delta: [S + 1, S], added to: each row's change of the layers of the row above.
        lists: first segment of a pixel; first pixel of a row; column of a listed pixel; the next one.
        segments: index into ``contour``; pixel; range of t; the next segment of the pixel.

    Returns:
        Segments used.
    """
    heads, row_heads, touched, touched_next = lists
    edge, pixel, spans, following = segments
    cuts = np.empty(6)
    num_touched = 0
    for q in range(len(contour)):
        e, jump = contour[q], jumps_of[q]
        x0, y0 = xy[ends[e, 0], 0], xy[ends[e, 0], 1]
        x1, y1 = xy[ends[e, 1], 0], xy[ends[e, 1], 1]
        dx, dy = x1 - x0, y1 - y0
        inside = min(x0, x1) >= 0 and max(x0, x1) < size and min(y0, y1) >= 0 and max(y0, y1) < size
        cuts[0], cuts[1], parts = 0.0, 1.0, 2
        if not inside:
            parts = _cuts_at_frame(x0, y0, dx, dy, size, cuts)
        for part in range(parts - 1):
            t, stop = cuts[part], cuts[part + 1]
            if not inside:
                middle = 0.5 * (t + stop)
                mx, my = x0 + middle * dx, y0 + middle * dy
                if not (0 <= mx < size and my < size):
                    continue
                if my < 0:
                    _add_above(x0 + t * dx, x0 + stop * dx, jump, size, delta)
                    continue
            j = min(max(int(np.floor(x0 + t * dx)), 0), size - 1)
            i = min(max(int(np.floor(y0 + t * dy)), 0), size - 1)
            # From pixel to pixel, as Amanatides and Woo (1987).
            step_j, step_i = (1 if dx > 0 else -1), (1 if dy > 0 else -1)
            next_x = ((j + 1 if dx > 0 else j) - x0) / dx if dx != 0 else np.inf
            next_y = ((i + 1 if dy > 0 else i) - y0) / dy if dy != 0 else np.inf
            each_x = abs(1.0 / dx) if dx != 0 else np.inf
            each_y = abs(1.0 / dy) if dy != 0 else np.inf
            while t < stop and 0 <= j < size and 0 <= i < size:
                after = min(min(next_x, next_y), stop)
                if after > t:
                    across = jump * dx * (after - t)
                    lower = across * (y0 + 0.5 * (t + after) * dy - i)
                    delta[i, j] += across - lower
                    delta[i + 1, j] += lower
                    at = i * size + j
                    edge[used], pixel[used] = q, at
                    spans[used, 0], spans[used, 1] = t, after
                    following[used] = heads[at]
                    if heads[at] == NONE:
                        touched[num_touched], touched_next[num_touched] = j, row_heads[i]
                        row_heads[i] = num_touched
                        num_touched += 1
                    heads[at] = used
                    used += 1
                    t = after
                if next_x < next_y:
                    next_x += each_x
                    j += step_j
                else:
                    next_y += each_y
                    i += step_i
    return used


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _share_pixel(r, row, column, layers, xy, ends, contour, jumps_of, segments, work):
    """Coverage of a pixel in which layers begin and end; its segments' spans become their weights."""
    edge, _, spans, following = segments
    local, jumps, weights, breaks = work
    n, s = 0, r
    while s != NONE:
        q = edge[s]
        a, b = ends[contour[q], 0], ends[contour[q], 1]
        x0, y0 = xy[a, 0], xy[a, 1]
        dx, dy = xy[b, 0] - x0, xy[b, 1] - y0
        for end in range(2):
            t = spans[s, end]
            x, y = (xy[b, 0], xy[b, 1]) if t == 1.0 else (x0 + t * dx, y0 + t * dy)
            local[n, 2 * end] = min(max(x - column, 0.0), 1.0)
            local[n, 2 * end + 1] = min(max(y - row, 0.0), 1.0)
            local[n, T0 + end] = t
        jumps[n] = jumps_of[q]
        n += 1
        s = following[s]
    covered = cover_pixel(local, jumps, n, layers, weights, breaks)
    for k in range(n):
        spans[r, 0], spans[r, 1] = weights[k, 0], weights[k, 1]
        r = following[r]
    return covered


@numba.njit(nogil=True, cache=True)
def _room_to_work(n):
    """Arrays that :func:`_share_pixel` works in, for n segments."""
    return np.empty((n, SLOTS)), np.empty(n, np.int64), np.empty((n, 2)), np.empty(2 + 3 * n)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _fill_rows(frame, xy, ends, contour, jumps_of, one_sided, dust, delta, lists, segments, work, mask):
    """Sum ``delta`` down the columns into coverage; then set right the pixels that the contour crosses.

    ``frame`` holds the first row, the row after the last, and the same of columns, outside of which
    there is nothing. ``delta`` and the lists are left as empty as they were before the contour.
    """
    size = mask.shape[1]
    row_first, row_last, col_first, col_last = frame
    heads, row_heads, touched, touched_next = lists
    edge, _, spans, following = segments
    column_sums = np.zeros(size, mask.dtype)
    mask[:row_first] = 0
    mask[row_last:] = 0
    for i in range(row_first, row_last):
        line = mask[i]
        line[:col_first] = 0
        line[col_last:] = 0
        _add_row(
            column_sums[col_first:col_last], delta[i, col_first:col_last], dust, line[col_first:col_last]
        )
        listed = row_heads[i]
        row_heads[i] = NONE
        while listed != NONE:
            j = touched[listed]
            listed = touched_next[listed]
            r = heads[i * size + j]
            heads[i * size + j] = NONE
            layers = column_sums[j]
            alone = one_sided and (
                following[r] == NONE or _is_one_line(r, edge, spans, following, contour, ends, jumps_of, xy)
            )
            if not alone or abs(layers - 1) <= WHOLE:
                count, s = 1, following[r]
                while s != NONE:
                    count += 1
                    s = following[s]
                room = work if count <= CROWD else _room_to_work(count)
                line[j] = _share_pixel(r, i, j, layers, xy, ends, contour, jumps_of, segments, room)
                continue
            # 0 layers on one side of the line and 1 on the other; or 1 and 2, and so on.
            shown = layers < 1
            if shown:
                line[j] = max(layers, 0)
            while r != NONE:
                one, two = edge_weights(spans[r, 0], spans[r, 1])
                spans[r, 0] = jumps_of[edge[r]] * one if shown else 0.0
                spans[r, 1] = jumps_of[edge[r]] * two if shown else 0.0
                r = following[r]
    delta[row_last, :] = 0


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cover_images(vertices, table, first, last, dust, delta, heads, row_heads, masks, starts):
    """Draw the silhouettes of images ``first`` to ``last`` (exclusive).

    Args:
        vertices: float [B, V, 3], NDC.
        table: an edge table's faces, vertices, sides, signs and closed.
        first: first image.
        last: image after the last.
        dust: coverage below this is rounding.
        delta: [S + 1, S] of the precision of ``masks``; zero on entry and on return.
        heads: int32 [S * S], -1 on entry and on return.
        row_heads: int32 [S], likewise.
        masks: [B, S, S], written.
        starts: int64 [B + 1], written: where each image's segments begin in what is returned.

    Returns:
        For each segment of a contour in a pixel its edge, int32 [N], its pixel within the image,
        int32 [N], and the integrals of (1 - t) and t along what of it bounds the silhouette,
        float64 [N, 2], negative where the silhouette lies to the left.
    """
    size, count = masks.shape[1], vertices.shape[1]
    faces, ends, closed = table[0], table[1], table[4]
    half = 0.5 * size
    xy = np.empty((count, 2))
    turns = np.empty(len(faces) + 1, np.int8)
    contour, jumps_of = np.empty(len(ends), np.int32), np.empty(len(ends), np.int8)
    room = 4096 * (last - first)
    edge, pixel, spans = np.empty(room, np.int32), np.empty(room, np.int32), np.empty((room, 2))
    following, touched, touched_next = (
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
    )
    work = _room_to_work(CROWD)
    used = 0
    for b in range(first, last):
        starts[b] = used
        finite = True
        low_x, high_x, low_y, high_y = np.inf, -np.inf, np.inf, -np.inf
        for v in range(count):
            x, y = (vertices[b, v, 0] + 1.0) * half, (vertices[b, v, 1] + 1.0) * half
            xy[v, 0], xy[v, 1] = x, y
            if np.isfinite(x + y):
                low_x, high_x = min(low_x, x), max(high_x, x)
                low_y, high_y = min(low_y, y), max(high_y, y)
            else:
                finite = False
        if not (low_x < size and low_y < size and high_x > 0 and high_y > 0):
            masks[b, :] = 0
            continue
        # One pixel more on each side: a walk may step over a line that a vertex lies on.
        frame = (
            max(int(max(low_y, 0.0)) - 1, 0),
            min(int(min(high_y, float(size))) + 2, size),
            max(int(max(low_x, 0.0)) - 1, 0),
            min(int(min(high_x, float(size))) + 2, size),
        )
        # Without some of its faces a closed mesh is open, and shows its inside.
        one_sided = closed and finite
        _turn_of_faces(xy, faces, one_sided, turns)
        n, most = _find_contour(xy, table, turns, one_sided, size, contour, jumps_of)
        if used + most > room:
            room = max(2 * room, used + most)
            edge, pixel, spans = _grown(edge, room), _grown(pixel, room), _grown_pairs(spans, room)
            following, touched = np.empty(room, np.int32), np.empty(room, np.int32)
            touched_next = np.empty(room, np.int32)
        lists = (heads, row_heads, touched, touched_next)
        segments = (edge, pixel, spans, following)
        base = used
        used = _walk_contour(xy, ends, contour[:n], jumps_of[:n], used, size, delta, lists, segments)
        _fill_rows(
            frame, xy, ends, contour, jumps_of, one_sided, dust, delta, lists, segments, work, masks[b]
        )
        for r in range(base, used):
            edge[r] = contour[edge[r]]
    starts[last] = used
    return edge[:used], pixel[:used], spans[:used]


@numba.njit(nogil=True, cache=True)
def _grown(array, room):
    grown = np.empty(room, array.dtype)
    grown[: len(array)] = array
    return grown


@numba.njit(nogil=True, cache=True)
def _grown_pairs(array, room):
    grown = np.empty((room, array.shape[1]), array.dtype)
    grown[: len(array)] = array
    return grown
