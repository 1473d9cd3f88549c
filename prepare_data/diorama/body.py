"""The surface of an individual: an implicit body, marching cubes, skinning weights, landmarks."""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from prepare_data.diorama.anatomy import BONE_NAMES, Anatomy
from prepare_data.diorama.noise import fractal_noise
from wildshape.errors import UserError

_FAR = 0.2  # field value away from any primitive


@dataclass(frozen=True)
class Body:
    """A posable animal at rest (x left, y backwards, z up; unit: withers height of the species).

    Attributes:
        vertices: [V, 3]; faces: [F, 3] seen from outside anticlockwise.
        bones: int32 [V, 4] and weights: float64 [V, 4], the four strongest bones of each vertex.
        material: int64 [V], material of the nearest primitive.
        normals: [V, 3], outward unit normals at rest.
        openness: [V] in [0, 1], how little of the body shades the vertex.
        keypoint_vertices: int64 [K] in the order of the skeleton.
    """

    anatomy: Anatomy
    vertices: np.ndarray
    faces: np.ndarray
    bones: np.ndarray
    weights: np.ndarray
    material: np.ndarray
    normals: np.ndarray
    openness: np.ndarray
    keypoint_vertices: np.ndarray


@nb.njit(cache=True, nogil=True, fastmath=True)
def _segment_distance(p, a, b, radii, flat):
    """Distance-like value of a tapered segment that is squashed along x; negative inside."""
    ay, az = b[1] - a[1], b[2] - a[2]
    ax = b[0] - a[0]
    length = ax * ax + ay * ay + az * az
    t = 0.0
    if length > 1e-12:
        t = ((p[0] - a[0]) * ax + (p[1] - a[1]) * ay + (p[2] - a[2]) * az) / length
        t = min(max(t, 0.0), 1.0)
    dx = (p[0] - a[0] - t * ax) / (flat[0] + t * (flat[1] - flat[0]))
    dy = p[1] - a[1] - t * ay
    dz = p[2] - a[2] - t * az
    return np.sqrt(dx * dx + dy * dy + dz * dz) - (radii[0] + t * (radii[1] - radii[0]))


@nb.njit(cache=True, nogil=True, fastmath=True)
def _fill_field(field, origin, cell, start, end, radii, flat, blend):
    """Smooth union of all primitives on a grid [X, Y, Z], in place; polynomial smooth minimum."""
    p = np.empty(3)
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for n in range(start.shape[0]):
        reach = max(radii[n, 0], radii[n, 1])
        for axis in range(3):
            wide = reach * (max(flat[n, 0], flat[n, 1], 1.0) if axis == 0 else 1.0) + _FAR
            a = min(start[n, axis], end[n, axis]) - wide
            b = max(start[n, axis], end[n, axis]) + wide
            low[axis] = max(int((a - origin[axis]) / cell), 0)
            high[axis] = min(int((b - origin[axis]) / cell) + 2, field.shape[axis])
        k = blend[n]
        for i in range(low[0], high[0]):
            p[0] = origin[0] + i * cell
            for j in range(low[1], high[1]):
                p[1] = origin[1] + j * cell
                for m in range(low[2], high[2]):
                    p[2] = origin[2] + m * cell
                    d = _segment_distance(p, start[n], end[n], radii[n], flat[n])
                    f = field[i, j, m]
                    h = max(k - abs(f - d), 0.0) / k
                    field[i, j, m] = min(f, d) - h * h * k * 0.25


@nb.njit(cache=True, nogil=True, fastmath=True)
def _primitive_distances(points, start, end, radii, flat):
    """Values of every primitive at points [V, 3]: [V, N]."""
    out = np.empty((points.shape[0], start.shape[0]))
    for i in range(points.shape[0]):
        for n in range(start.shape[0]):
            out[i, n] = _segment_distance(points[i], start[n], end[n], radii[n], flat[n])
    return out


def build_body(anatomy: Anatomy, keypoint_names: tuple[str, ...], cell: float = 0.021) -> Body:
    """Meshes an individual and binds the mesh to its bones.

    Args:
        anatomy: the individual.
        keypoint_names: landmarks to carry on the surface, in the skeleton's order.
        cell: edge of a marching-cubes cell in withers heights; smaller is finer and slower.

    Raises:
        UserError: for a keypoint that the animals do not carry.
    """
    a = anatomy
    margin = 0.06
    reach = a.radii.max(1)[:, None] * np.maximum(a.flat.max(1), 1)[:, None] + margin
    low = np.minimum(a.start - reach, a.end - reach).min(0)
    high = np.maximum(a.start + reach, a.end + reach).max(0)
    # a grid that is off the midline by half a cell samples both sides alike
    half = np.ceil(max(-low[0], high[0]) / cell) * cell
    low[0], high[0] = -half, half
    shape = np.ceil((high - low) / cell).astype(int) + 1
    field = np.full(shape, _FAR)
    _fill_field(field, low, cell, a.start, a.end, a.radii, a.flat, a.blend)
    if a.species.wool:
        _add_wool(field, low, cell, a)
    vertices, faces, _, _ = marching_cubes(field, 0.0, gradient_direction="ascent")
    vertices = vertices.astype(np.float64) * cell + low
    vertices, faces = _largest_component(vertices, faces.astype(np.int64))
    if _signed_volume(vertices, faces) < 0:
        faces = faces[:, ::-1].copy()
    distances = _primitive_distances(vertices, a.start, a.end, a.radii, a.flat)
    adjacency = _adjacency(len(vertices), faces)
    bones, weights = _skin(distances, a.bone, adjacency)
    nearest = distances.argmin(1)
    normals = vertex_normals(vertices, faces.astype(np.int32))
    keypoints = _place_keypoints(a, vertices, bones, keypoint_names)
    return Body(
        a, vertices, faces.astype(np.int32), bones, weights, a.material[nearest],
        normals, _openness(field, low, cell, vertices, normals), keypoints,
    )  # fmt: skip


def _add_wool(field: np.ndarray, origin: np.ndarray, cell: float, anatomy: Anatomy) -> None:
    """Curls: a bumpy offset of the surface above the legs and behind the face."""
    near = np.argwhere(np.abs(field) < 3 * cell)
    points = near * cell + origin
    seed = int(abs(anatomy.factors["trunk"]) * 1e6) % 10007
    bump = fractal_noise(points, 13.0, 2, seed) - 0.45
    belly = anatomy.pivots[1, 2] * 0.55
    head = anatomy.pivots[6]  # the skull's joint
    fade = np.clip((points[:, 2] - belly) / 0.1, 0, 1) * np.clip(
        (points[:, 1] - head[1] + 0.05) / 0.06, 0, 1
    )
    field[tuple(near.T)] -= anatomy.species.wool * bump * fade


def _largest_component(vertices, faces):
    graph = _adjacency(len(vertices), faces)
    count, labels = connected_components(graph, directed=False)
    if count == 1:
        return vertices, faces
    keep = labels == np.bincount(labels).argmax()
    index = np.cumsum(keep) - 1
    return vertices[keep], index[faces[keep[faces[:, 0]]]]


def _adjacency(count: int, faces: np.ndarray) -> sparse.csr_matrix:
    i = faces[:, [0, 1, 2]].ravel()
    j = faces[:, [1, 2, 0]].ravel()
    ones = np.ones(len(i), np.float64)
    graph = sparse.coo_matrix((ones, (i, j)), shape=(count, count))
    graph = (graph + graph.T).tocsr()
    graph.data[:] = 1.0
    return graph


def _signed_volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6)


def _skin(distances, primitive_bone, adjacency, rounds: int = 10):
    """Four bones and weights per vertex: soft nearest bone, then diffused along the surface."""
    bones = np.full((len(distances), len(BONE_NAMES)), np.inf)
    for n, bone in enumerate(primitive_bone):
        np.minimum(bones[:, bone], distances[:, n], out=bones[:, bone])
    excess = bones - bones.min(1, keepdims=True)
    weights = np.exp(-excess / 0.012) * (excess < 0.06)
    weights /= weights.sum(1, keepdims=True)
    degree = np.asarray(adjacency.sum(1)).ravel()
    mean = sparse.diags(1 / np.maximum(degree, 1)) @ adjacency
    for _ in range(rounds):
        weights = 0.4 * weights + 0.6 * (mean @ weights)
    top = np.argsort(-weights, 1)[:, :4]
    strong = np.take_along_axis(weights, top, 1)
    strong /= strong.sum(1, keepdims=True)
    return top.astype(np.int32), strong


def _plain(name: str) -> str:
    """A keypoint's name without separators and with sides and ends shortened: lfelbow."""
    short = name.lower().replace("_", "").replace(" ", "").removesuffix("base")
    for long in ("left", "right", "front", "back"):
        short = short.replace(long, long[0], 1)
    return short


def _place_keypoints(anatomy, vertices, bones, names) -> np.ndarray:
    landmarks = {_plain(name): value for name, value in anatomy.landmarks.items()}
    unknown = [name for name in names if _plain(name) not in landmarks]
    if unknown:
        raise UserError(
            f"expected keypoints that the diorama's animals carry, {', '.join(anatomy.landmarks)}; "
            f"found {', '.join(unknown)}"
        )
    out = np.empty(len(names), np.int64)
    for i, name in enumerate(names):
        bone, position = landmarks[_plain(name)]
        offset = vertices - position
        if position[0] == 0:  # a point of the midline, perhaps still inside: stay on the midline
            offset = offset * [5.0, 1.0, 1.0]
        distance = np.linalg.norm(offset, axis=1)
        # a point of another limb may be nearer in space than on the body
        distance = distance + 0.5 * ~(bones[:, :2] == bone).any(1)
        out[i] = distance.argmin()
    return out


def _openness(field, origin, cell, vertices, normals) -> np.ndarray:
    """Ambient openness from the field sampled along the normal (Evans' distance-field shading)."""
    shade = np.zeros(len(vertices))
    for step, weight in ((0.04, 0.5), (0.09, 0.35), (0.15, 0.25)):
        index = np.rint((vertices + normals * step - origin) / cell).astype(int)
        inside = ((index >= 0) & (index < field.shape)).all(1)
        index = np.clip(index, 0, np.array(field.shape) - 1)
        value = np.where(inside, field[tuple(index.T)], _FAR)
        shade += weight * np.clip(step - value, 0, None) / step
    return np.clip(1 - shade, 0.15, 1)


@nb.njit(cache=True, nogil=True, fastmath=True)
def vertex_normals(vertices, faces):
    """Area-weighted unit vertex normals [V, 3] of a mesh, pointing outwards."""
    n = np.zeros(vertices.shape)
    for k in range(faces.shape[0]):
        a, b, c = faces[k, 0], faces[k, 1], faces[k, 2]
        ux, uy, uz = (vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1],
                      vertices[b, 2] - vertices[a, 2])  # fmt: skip
        vx, vy, vz = (vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1],
                      vertices[c, 2] - vertices[a, 2])  # fmt: skip
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for i in (a, b, c):
            n[i, 0] += x
            n[i, 1] += y
            n[i, 2] += z
    for i in range(n.shape[0]):
        length = np.sqrt(n[i, 0] ** 2 + n[i, 1] ** 2 + n[i, 2] ** 2) + 1e-12
        n[i] /= length
    return n


@nb.njit(cache=True, nogil=True, fastmath=True)
def bounds(points):
    """Smallest and largest coordinates of points [N, D]: two arrays [D]."""
    low, high = points[0].copy(), points[0].copy()
    for i in range(1, points.shape[0]):
        for d in range(points.shape[1]):
            low[d] = min(low[d], points[i, d])
            high[d] = max(high[d], points[i, d])
    return low, high


@nb.njit(cache=True, nogil=True, fastmath=True)
def bone_share(bones, weights, wanted):
    """How much of each vertex [V] hangs on the bones marked in ``wanted`` (bool [B])."""
    out = np.zeros(bones.shape[0])
    for i in range(bones.shape[0]):
        for n in range(bones.shape[1]):
            if wanted[bones[i, n]]:
                out[i] += weights[i, n]
    return out
