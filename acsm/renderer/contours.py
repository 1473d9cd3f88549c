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
DUST = 1e-9
"""Layers below this, away from the contour, are rounding."""
NONE = -1
LINE_X, LINE_Y, LINE_DX, LINE_DY = range(4)
"""An edge of the contour: where it begins, in pixels, and the way to its end."""


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
def _add_above(x0, x1, jump, size, above):
    """A part of an edge above the picture, from column x0 to x1: it adds to whole columns."""
    low, high = min(x0, x1), max(x0, x1)
    sign = jump if x1 > x0 else -jump
    for j in range(max(int(np.floor(low)), 0), min(int(np.ceil(high)), size)):
        above[j] += sign * (min(high, j + 1.0) - max(low, float(j)))


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _covered(layers):
    """Coverage of a pixel that no contour crosses: of its layers only rounding is left out."""
    if layers >= 1.0 - DUST:
        return 1.0
    return layers if layers > DUST else 0.0


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
def _is_one_line(r, segments, lines, jumps_of):
    """Whether a pixel's segments make one line, end to end, that does not turn back upon itself."""
    edge, _, spans, following = segments
    count = inner = 0
    rightward = leftward = downward = upward = False
    while r != NONE:
        q = edge[r]
        dx, dy = jumps_of[q] * lines[q, LINE_DX], jumps_of[q] * lines[q, LINE_DY]
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
def _find_contour(xy, table, turns, one_sided, size, contour, jumps_of, lines):
    """List the edges that layers begin or end at, with by how many and where; returns how many edges, and
    room for the segments that pixels may cut them into.
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
        a, b = ends[e, 0], ends[e, 1]
        dx, dy = xy[b, 0] - xy[a, 0], xy[b, 1] - xy[a, 1]
        contour[n], jumps_of[n] = e, jump
        lines[n, LINE_X], lines[n, LINE_Y] = xy[a, 0], xy[a, 1]
        lines[n, LINE_DX], lines[n, LINE_DY] = dx, dy
        n += 1
        most += 6 + int(min(abs(dx), float(size))) + int(min(abs(dy), float(size)))
    return n, most


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _walk_contour(lines, jumps_of, used, size, above, pixels, segments):
    """List the contour's segments by pixel, pixels by row, with the areas that they add.

    Args:
        lines: float64 [Q, 4], the edges of the contour, in pixels from the picture's upper left corner.
        jumps_of: their jumps.
        used: segments that earlier images have.
        size: S.
        above: float64 [S], added to: layers at the picture's upper side.
        pixels: number of a listed pixel; first number in a row; column of a listed pixel; the next in its
            row; its first segment; what its segments add to the layers in it, and in those below it.
        segments: index into ``lines``; pixel; range of t; the next segment of the pixel.

    Returns:
        Segments used.
    """
    numbers, row_heads, columns, next_in_row, heads, added = pixels
    edge, pixel, spans, following = segments
    cuts = np.empty(6)
    listed = 0
    for q in range(len(lines)):
        jump = jumps_of[q]
        x0, y0, dx, dy = lines[q, LINE_X], lines[q, LINE_Y], lines[q, LINE_DX], lines[q, LINE_DY]
        x1, y1 = x0 + dx, y0 + dy
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
                    _add_above(x0 + t * dx, x0 + stop * dx, jump, size, above)
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
                    at = i * size + j
                    p = numbers[at]
                    if p == NONE:
                        p = numbers[at] = listed
                        columns[p], next_in_row[p], heads[p] = j, row_heads[i], NONE
                        added[p, 0] = added[p, 1] = 0.0
                        row_heads[i] = p
                        listed += 1
                    across = jump * dx * (after - t)
                    added[p, 0] += across * (i + 1.0 - y0 - 0.5 * (t + after) * dy)
                    added[p, 1] += across
                    edge[used], pixel[used] = q, at
                    spans[used, 0], spans[used, 1] = t, after
                    following[used] = heads[p]
                    heads[p] = used
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
def _share_pixel(r, row, column, layers, lines, jumps_of, segments, work):
    """Coverage of a pixel in which layers begin and end; its segments' spans become their weights."""
    edge, _, spans, following = segments
    local, jumps, weights, breaks = work
    n, s = 0, r
    while s != NONE:
        q = edge[s]
        for end in range(2):
            t = spans[s, end]
            x, y = lines[q, LINE_X] + t * lines[q, LINE_DX], lines[q, LINE_Y] + t * lines[q, LINE_DY]
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
def _fill_rows(frame, lines, jumps_of, one_sided, above, pixels, segments, work, mask):
    """Write coverage, row by row: what is above holds on, but for the pixels that the contour crosses.

    ``frame`` holds the first row and the row after the last, outside of which there is nothing.
    ``above`` is changed; the lists are left as empty as they were before the contour.
    """
    size = mask.shape[1]
    row_first, row_last = frame
    numbers, row_heads, columns, next_in_row, heads, added = pixels
    edge, _, spans, following = segments
    inner = np.empty(size, mask.dtype)
    for j in range(size):
        inner[j] = _covered(above[j])
    mask[:row_first] = 0
    mask[row_last:] = 0
    for i in range(row_first, row_last):
        line = mask[i]
        for j in range(size):
            line[j] = inner[j]
        p = row_heads[i]
        row_heads[i] = NONE
        while p != NONE:
            j, r = columns[p], heads[p]
            numbers[i * size + j] = NONE
            layers = above[j] + added[p, 0]
            above[j] += added[p, 1]
            inner[j] = _covered(above[j])
            p = next_in_row[p]
            alone = one_sided and (following[r] == NONE or _is_one_line(r, segments, lines, jumps_of))
            if not alone or abs(layers - 1) <= WHOLE:
                count, s = 1, following[r]
                while s != NONE:
                    count += 1
                    s = following[s]
                room = work if count <= CROWD else _room_to_work(count)
                line[j] = _share_pixel(r, i, j, layers, lines, jumps_of, segments, room)
                continue
            # 0 layers on one side of the line and 1 on the other; or 1 and 2, and so on.
            shown = layers < 1
            line[j] = max(layers, 0.0) if shown else 1.0
            while r != NONE:
                one, two = edge_weights(spans[r, 0], spans[r, 1])
                spans[r, 0] = jumps_of[edge[r]] * one if shown else 0.0
                spans[r, 1] = jumps_of[edge[r]] * two if shown else 0.0
                r = following[r]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cover_images(vertices, table, first, last, numbers, row_heads, masks, starts):
    """Draw the silhouettes of images ``first`` to ``last`` (exclusive).

    Args:
        vertices: float [B, V, 3], NDC.
        table: an edge table's faces, vertices, sides, signs and closed.
        first: first image.
        last: image after the last.
        numbers: int32 [S * S], -1 on entry and on return.
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
    lines = np.empty((len(ends), 4))
    room = 4096
    rooms = 4096 * (last - first)
    edge, pixel, spans = np.empty(rooms, np.int32), np.empty(rooms, np.int32), np.empty((rooms, 2))
    following = np.empty(rooms, np.int32)
    columns, next_in_row, heads = (
        np.empty(room, np.int32),
        np.empty(room, np.int32),
        np.empty(room, np.int32),
    )
    added = np.empty((room, 2))
    above = np.empty(size)
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
        frame = max(int(max(low_y, 0.0)) - 1, 0), min(int(min(high_y, float(size))) + 2, size)
        # Without some of its faces a closed mesh is open, and shows its inside.
        one_sided = closed and finite
        _turn_of_faces(xy, faces, one_sided, turns)
        n, most = _find_contour(xy, table, turns, one_sided, size, contour, jumps_of, lines)
        if most > room:
            room = max(2 * room, most)
            columns, next_in_row = np.empty(room, np.int32), np.empty(room, np.int32)
            heads, added = np.empty(room, np.int32), np.empty((room, 2))
        if used + most > rooms:
            rooms = max(2 * rooms, used + most)
            edge, pixel, spans = _grown(edge, rooms), _grown(pixel, rooms), _grown_pairs(spans, rooms)
            following = np.empty(rooms, np.int32)
        pixels = (numbers, row_heads, columns, next_in_row, heads, added)
        segments = (edge, pixel, spans, following)
        base = used
        above[:] = 0.0
        used = _walk_contour(lines[:n], jumps_of[:n], used, size, above, pixels, segments)
        _fill_rows(frame, lines, jumps_of, one_sided, above, pixels, segments, work, masks[b])
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
