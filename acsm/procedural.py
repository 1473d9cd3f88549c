"""Procedural quadrupeds: proportions in, articulated template out.

An implicit solid is meshed on the half x >= 0, simplified so that thin limbs keep their roundness,
relaxed on the surface, mirrored and welded: closed, manifold and exactly symmetric.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from acsm.anatomy import MIRROR, PARENTS, PARTS, Anatomy, build_anatomy
from acsm.implicit import (
    Chain,
    chain_field,
    gradient,
    local_size,
    smooth_min,
    solid_field,
    solid_grid,
)
from acsm.proportions import Proportions, read_proportions
from acsm.remesh import neighbour_average, relax, simplify
from acsm.template import ArticulatedTemplate
from wildshape.errors import UserError
from wildshape.skeleton import load_skeleton

FEWEST_STEPS, MOST_STEPS = 90, 140
HEAD_START = 0.06
"""How far the head reaches into the neck, in trunk lengths: the skull is stiff."""
FLOOR = 0.0


def build_quadruped(
    node: Mapping[str, Any], keypoints: Sequence[str], flip: Sequence[int]
) -> ArticulatedTemplate:
    """Build a template in the template frame.

    Args:
        node: proportions, see :class:`acsm.proportions.Proportions`.
        keypoints: K names that quadruped20 knows, by name or alias.
        flip: K indices, the keypoint on the other side.

    Returns:
        A template of 1,000 to 2,500 vertices and 12 parts, all active but the body and the tail; the
        same for the same arguments.

    Raises:
        UserError: if a proportion or a keypoint is unknown, or the proportions give no sound mesh.
    """
    template, landmarks, other = _build_animal(read_proportions(node))
    return replace(
        template,
        keypoint_vertices=_keypoint_vertices(keypoints, landmarks, other),
        keypoint_flip=np.array(flip),
    )


@functools.lru_cache(maxsize=32)
def _build_animal(
    proportions: Proportions,
) -> tuple[ArticulatedTemplate, dict[str, int], np.ndarray]:
    """A template without keypoints, its left half's landmarks, and the half's mirror images."""
    anatomy = build_anatomy(proportions)
    points, faces = half_mesh(anatomy.chains, proportions)
    weights = part_weights(points, faces, anatomy.chains)
    landmarks = place_landmarks(points, weights, anatomy)
    vertices, all_faces, other = weld_mirror_image(points, faces)
    membership = np.concatenate([weights, weights[:, list(MIRROR)]])[_kept(points)]
    template = ArticulatedTemplate(
        vertices=vertices,
        faces=all_faces,
        membership=membership,
        part_names=PARTS,
        part_parents=PARENTS,
        part_centres=_pivots(anatomy),
        part_mirror=np.array(MIRROR),
        # The camera turns the body as a whole, and no keypoint sees the tail turn.
        active_parts=np.array([name not in ("body", "tail") for name in PARTS]),
        keypoint_vertices=np.empty(0, np.int64),
        keypoint_flip=np.empty(0, np.int64),
    ).scaled()
    template = _made_symmetric(template, other)
    if not (template.is_closed() and template.is_manifold() and template.volume() > 0):
        raise UserError(
            "template.procedural: expected proportions of a solid animal; found a mesh that is "
            "not closed (parts thinner than the grid, or a gap between parts?)"
        )
    return template, landmarks, other


def _made_symmetric(template: ArticulatedTemplate, other: np.ndarray) -> ArticulatedTemplate:
    """Undo the rounding by which centring moved the middle plane off x = 0."""
    vertices, centres = template.vertices.copy(), template.part_centres.copy()
    half = np.arange(len(other))
    vertices[half[other == half], 0] = 0
    vertices[other] = vertices[half] * [-1, 1, 1]
    vertices[half[other == half], 0] = 0
    for part, mirror in enumerate(MIRROR):
        if mirror == part:
            centres[part, 0] = 0
        elif mirror > part:
            centres[mirror] = centres[part] * [-1, 1, 1]
    return replace(template, vertices=vertices, part_centres=centres)


def half_mesh(chains: Sequence[Chain], proportions: Proportions) -> tuple[np.ndarray, np.ndarray]:
    """Mesh the solid on x >= 0: points [V, 3] and faces [F, 3], outwards, border at x = 0."""
    from skimage.measure import marching_cubes

    boxes = [chain.bounds(chain.blend) for chain in chains]
    low = np.min([box[0] for box in boxes], axis=0)
    high = np.max([box[1] for box in boxes], axis=0)
    low[2] = min(low[2], FLOOR)
    extent = float((high - low).max())
    # A tip may fall between the grid's lines, but nothing that carries on beyond may.
    carrying = [s for chain in chains for s in chain.stations[:-1] or chain.stations]
    thinnest = min(min(s.radius, s.thickness) for s in carrying)
    step = float(np.clip(1.2 * thinnest, extent / MOST_STEPS, extent / FEWEST_STEPS))
    low = np.array([0.0, low[1] - 2 * step, FLOOR - 2.5 * step])
    counts = np.ceil((high + 2 * step - low) / step).astype(int) + 1
    axes = [low[k] + step * np.arange(counts[k]) for k in range(3)]
    field = solid_grid(axes, chains, FLOOR)
    field[np.abs(field) < 1e-6 * step] = 1e-6 * step  # a surface through a grid point degenerates
    points, faces, _, _ = marching_cubes(field, 0.0, gradient_direction="ascent")
    points = points.astype(np.float64) * step + low
    points[points[:, 0] < 1e-6 * step, 0] = 0
    points, faces = _largest_piece(points, faces.astype(np.int64))
    if _signed_volume(points, faces) < 0:
        faces = faces[:, ::-1]

    size = np.clip(local_size(points, chains), 0.016, 0.11) ** 0.8
    border = points[:, 0] == 0
    for _ in range(8):
        size = 0.5 * size + 0.5 * neighbour_average(faces, border, size[:, None])[:, 0]
    midline = 0.045 * proportions.vertices  # welded vertices count once
    count = int((proportions.vertices + midline) / 2)
    points, faces = simplify(points, faces, size, count)

    def project(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        for _ in range(2):
            slope = gradient(at, chains, FLOOR)
            length2 = np.maximum(np.einsum("nc,nc->n", slope, slope), 1e-3)
            move = (solid_field(at, chains, FLOOR) / length2)[:, None] * slope
            at = at - np.clip(move, -step, step)
        return at, slope / np.sqrt(length2)[:, None]

    points, faces = relax(points, faces, project, rounds=5)
    inside = points[:, 0] != 0
    points[inside, 0] = np.maximum(points[inside, 0], 0.1 * step)
    return points, faces


def _signed_volume(points: np.ndarray, faces: np.ndarray) -> float:
    a, b, c = (points[faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum())


def _largest_piece(points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = (np.ones(len(faces) * 2), (faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel()))
    _, piece = connected_components(coo_matrix(links, shape=[len(points)] * 2), directed=False)
    faces = faces[piece[faces[:, 0]] == np.bincount(piece).argmax()]
    kept, renumbered = np.unique(faces, return_inverse=True)
    return points[kept], renumbered.reshape(-1, 3)


def part_weights(points: np.ndarray, faces: np.ndarray, chains: Sequence[Chain]) -> np.ndarray:
    """Soft membership [V, P] of the left half's vertices; rows sum to 1.

    A part weighs exp(-its field / a third of the local radius), limbs fade out towards the middle
    plane, and the result is averaged over neighbours so that joints bend without creases.
    """
    fields = np.full((len(points), len(PARTS)), np.inf)
    for chain in chains:
        if not chain.part.startswith("R_"):
            column = PARTS.index(chain.part)
            field = chain_field(points, chain)[0]
            old = fields[:, column]
            fields[:, column] = np.where(
                np.isinf(old), field, smooth_min(np.where(np.isinf(old), field, old), field, 0.02)
            )
    fields[:, PARTS.index("head")] -= HEAD_START
    fields -= fields.min(axis=1, keepdims=True)
    reach = 0.35 * np.clip(local_size(points, chains), 0.03, 0.15)
    weights = np.exp(-fields / reach[:, None])
    across = np.clip(points[:, 0] / 0.05, 0, 1)
    sided = [k for k, name in enumerate(PARTS) if name.startswith("L_")]
    weights[:, sided] *= (across**2 * (3 - 2 * across))[:, None]
    weights /= weights.sum(axis=1, keepdims=True)
    anywhere = np.zeros(len(points), bool)
    for _ in range(4):
        weights = 0.5 * weights + 0.5 * neighbour_average(faces, anywhere, weights)
        weights[points[:, 0] == 0, sided[0] :] = 0
    weights[weights < 0.01] = 0
    return weights / weights.sum(axis=1, keepdims=True)


def place_landmarks(points: np.ndarray, weights: np.ndarray, anatomy: Anatomy) -> dict[str, int]:
    """The left half's vertex nearest to each landmark of the left side and the middle."""
    found = {}
    main = weights.argmax(axis=1)
    for name, landmark in anatomy.landmarks.items():
        allowed = np.isin(main, [PARTS.index(part) for part in landmark.parts])
        allowed &= (points[:, 0] == 0) if landmark.midline else (points[:, 0] > 0)
        if not allowed.any():
            raise UserError(
                f"template.procedural: expected a place for the keypoint {name} on "
                f"{' or '.join(landmark.parts)}; found none (is that part inside another, or does "
                "the belly reach the ground?)"
            )
        distance = np.linalg.norm(points - np.array(landmark.position), axis=1)
        found[name] = int(np.where(allowed, distance, np.inf).argmin())
    return found


def _kept(points: np.ndarray) -> np.ndarray:
    """Rows that stay when a half is followed by its mirror image: the border stays once."""
    return np.concatenate([np.ones(len(points), bool), points[:, 0] != 0])


def weld_mirror_image(points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join a half mesh to its mirror image.

    Returns:
        Vertices and faces of the whole, and for each vertex of the half its mirror image's index.
    """
    inner = points[:, 0] != 0
    other = np.arange(len(points))
    other[inner] = len(points) + np.arange(inner.sum())
    vertices = np.concatenate([points, points[inner] * [-1, 1, 1]])
    return vertices, np.concatenate([faces, other[faces[:, ::-1]]]), other


def _pivots(anatomy: Anatomy) -> np.ndarray:
    centres = np.array([anatomy.pivots.get(part, (0, 0, 0)) for part in PARTS], float)
    for part, name in enumerate(PARTS):
        if name.startswith("R_"):
            centres[part] = centres[MIRROR[part]] * [-1, 1, 1]
    return centres


def _keypoint_vertices(
    keypoints: Sequence[str], landmarks: Mapping[str, int], other: np.ndarray
) -> np.ndarray:
    known = load_skeleton("quadruped20")
    chosen = []
    for keypoint in keypoints:
        index = known.find(keypoint)
        if index is None:
            raise UserError(
                f"template.procedural: expected keypoints among {', '.join(known.keypoints)} (or "
                f"their aliases); found {keypoint}. Another skeleton needs template: file"
            )
        name = known.keypoints[index]
        if name.startswith("right_"):
            chosen.append(int(other[landmarks["left_" + name.removeprefix("right_")]]))
        else:
            chosen.append(landmarks[name])
    return np.array(chosen)
