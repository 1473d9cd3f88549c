"""A closed surface in two halves: its mirror image, a cut into two discs, and the loop between them."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix


def exact_mirror(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray | None:
    """int [V]: each vertex's mirror image in x = 0, if the faces have theirs, too; else None."""
    from scipy.spatial import cKDTree

    size = np.ptp(vertices, axis=0).max()
    distance, mirror = cKDTree(vertices).query(vertices * [-1, 1, 1])
    if distance.max() > 1e-6 * size or (mirror[mirror] != np.arange(len(mirror))).any():
        return None
    own = {tuple(np.roll(face, -int(face.argmin()))) for face in faces}
    other = {tuple(np.roll(face, -int(face.argmin()))) for face in mirror[faces[:, ::-1]]}
    return mirror if own == other else None


def two_discs(faces: np.ndarray, inside: np.ndarray) -> np.ndarray | None:
    """The faces ``inside`` bool [F], changed so that they and the others are connected each."""
    if not inside.any() or inside.all():
        return None
    largest = _largest(faces, inside)
    rest = _largest(faces, ~largest)
    return ~rest


def _largest(faces: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """bool [F]: of the chosen faces the largest set that hangs together by edges."""
    from scipy.sparse.csgraph import connected_components

    index = np.flatnonzero(chosen)
    directed = np.sort(np.concatenate([faces[index][:, [k, (k + 1) % 3]] for k in range(3)]), axis=1)
    owner = np.tile(index, 3)
    order = np.lexsort(directed.T)
    same = (directed[order][1:] == directed[order][:-1]).all(axis=1)
    pairs = owner[order][:-1][same], owner[order][1:][same]
    links = coo_matrix((np.ones(same.sum()), pairs), shape=[len(faces)] * 2)
    _, piece = connected_components(links, directed=False)
    best = np.bincount(piece[index]).argmax()
    return chosen & (piece == best)


def border_loop(faces: np.ndarray) -> np.ndarray | None:
    """The vertices around a set of faces in the order of its edges; None if that is no single loop."""
    directed = np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)]).tolist()
    pairs = {tuple(edge) for edge in directed}
    border = {a: b for a, b in pairs if (b, a) not in pairs}
    starts = sum((b, a) not in pairs for a, b in pairs)
    if not border or len(border) != starts:
        return None
    first = min(border)
    loop, at = [first], border[first]
    while at != first and len(loop) <= len(border):
        loop.append(at)
        at = border[at]
    return np.array(loop) if len(loop) == len(border) else None
