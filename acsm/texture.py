"""Colours of a predicted shape's whole surface, from the one photo that shows a side of it.

What the photo shows is taken from it; what it hides is taken from the other side of the body, which the
template mirrors in x = 0; the rest from what lies nearest on the template.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from acsm.renderer import rasterize, vertex_normals
from wildshape.geometry import crop_affine, warp_crop

if TYPE_CHECKING:
    from acsm.template import ArticulatedTemplate

PHOTO, MIRRORED, FILLED = 0, 1, 2
"""Where a colour is from (`surface_colours`)."""

FACING = 0.2
"""Least cosine between the surface's normal and the direction to the viewer for a colour to be taken."""
MIRROR_REACH = 0.03
"""How far from a mirrored place a colour may be taken, of the template whose diameter is 2."""
EDGE = 0.008
"""Width of the rim of a mask that is not read, of the shape's longer side in the photo."""
_LARGEST = 1024  # pixels of a side of the picture that colours are read from
_BEHIND = 4.0  # pixels of depth by which a place may lie behind what its pixel sees: slanted faces


@dataclass(frozen=True)
class Surface:
    """M places on a mesh.

    Attributes:
        face: [M] index of the face.
        barycentric: [M, 3] weights of the face's corners.
    """

    face: np.ndarray
    barycentric: np.ndarray

    def at(self, values: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Values at vertices [V, C], blended to the places [M, C]."""
        return np.einsum("mk,mkc->mc", self.barycentric, np.asarray(values)[faces[self.face]])


@dataclass(frozen=True)
class Atlas:
    """A texture in which every face has a triangle of texels of its own; two share a cell.

    Attributes:
        width: of the texture, texels.
        height: of the texture, texels.
        uv: [F, 3, 2] of the faces' corners, 0..1, v downwards from the first row.
        surface: the places of the T texels that are used.
        texel: [T, 2], their column and row.
    """

    width: int
    height: int
    uv: np.ndarray
    surface: Surface
    texel: np.ndarray

    def paint(self, colours: np.ndarray) -> np.ndarray:
        """The texture uint8 [height, width, 3] of colours [T, 3]; unused texels have their mean."""
        mean = colours.mean(0) if len(colours) else np.zeros(3)
        picture = np.tile(np.rint(mean).astype(np.uint8), (self.height, self.width, 1))
        picture[self.texel[:, 1], self.texel[:, 0]] = colours
        return picture


def make_atlas(num_faces: int, size: int = 1024) -> Atlas:
    """Lay out an atlas of about ``size`` texels a side.

    A cell of n rows and n + 1 columns holds two triangles of n (n + 1) / 2 texels. Corners are texels'
    middles; the diagonal beyond a triangle's long edge repeats that edge, so that bilinear reading stays
    within the face.
    """
    columns = max(1, math.ceil(math.sqrt(max(num_faces, 1) / 2)))
    n = int(np.clip(size // columns, 4, 64))
    rows = max(1, math.ceil(num_faces / 2 / columns))
    width, height = columns * (n + 1), rows * n
    i, j = (grid.ravel() for grid in np.meshgrid(np.arange(n), np.arange(n)))
    i, j = i[i + j < n], j[i + j < n]
    along = np.stack([i, j], axis=1) / (n - 2)
    along /= np.maximum(along.sum(1, keepdims=True), 1)  # the outer diagonal, back onto the edge
    weights = np.concatenate([1 - along.sum(1, keepdims=True), along], axis=1)
    face = np.arange(num_faces)
    corner = np.stack([face // 2 % columns * (n + 1), face // 2 // columns * n], axis=1)
    second = (face % 2 == 1)[:, None, None]

    def placed(local: np.ndarray) -> np.ndarray:
        """Texels [F, L, 2] of places in the first triangle's texels [L, 2]."""
        return corner[:, None] + np.where(second, [n, n - 1] - local, local)

    texel = placed(np.stack([i, j], axis=1))
    uv = (placed(np.array([[0, 0], [n - 2, 0], [0, n - 2]])) + 0.5) / [width, height]
    surface = Surface(np.repeat(face, len(i)), np.tile(weights, (num_faces, 1)))
    return Atlas(width, height, uv, surface, texel.reshape(-1, 2).astype(int))


def surface_colours(
    image: np.ndarray,
    vertices_image: np.ndarray,
    template: ArticulatedTemplate,
    surface: Surface,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours of places on a predicted shape.

    Args:
        image: RGB uint8 [H, W, 3].
        vertices_image: [V, 3], x and y in pixels, z in pixels away from the viewer.
        template: for faces, and for the symmetry at rest.
        surface: M places.
        mask: [H, W], non-zero on the animal: nothing is read beside it. None: the whole picture.

    Returns:
        uint8 [M, 3], and where each is from [M] (PHOTO, MIRRORED or FILLED). Grey where the photo shows
        nothing of the shape.
    """
    from scipy.spatial import cKDTree

    colours, seen = _from_photo(image, vertices_image, template, surface, mask)
    source = np.where(seen, PHOTO, FILLED)
    if not seen.any():
        return np.full((len(seen), 3), 128, np.uint8), source
    rest = surface.at(template.vertices, template.faces)
    hidden = np.flatnonzero(~seen)
    reach = MIRROR_REACH * max(template.diameter() / 2, 1e-12)
    distance, nearest = cKDTree(rest[seen]).query(rest[hidden] * [-1, 1, 1], distance_upper_bound=reach)
    found = np.isfinite(distance)
    colours[hidden[found]] = colours[seen][nearest[found]]
    source[hidden[found]] = MIRRORED
    left = np.flatnonzero(source == FILLED)
    if len(left):
        known = np.flatnonzero(source != FILLED)
        # Few of them: the nearest of all would lie on one spot of the border, and make patches.
        known = known[:: max(1, len(known) // 2000)]
        distance, nearest = cKDTree(rest[known]).query(rest[left], k=min(16, len(known)))
        distance, nearest = distance.reshape(len(left), -1), nearest.reshape(len(left), -1)
        weight = 1 / np.maximum(distance, 1e-9)
        weight /= weight.sum(1, keepdims=True)
        colours[left] = (weight[..., None] * colours[known][nearest]).sum(1)
    return np.rint(colours).clip(0, 255).astype(np.uint8), source


def _from_photo(
    image: np.ndarray,
    vertices_image: np.ndarray,
    template: ArticulatedTemplate,
    surface: Surface,
    mask: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours float [M, 3] read from the photo, and whether it shows the place [M]."""
    low, high = vertices_image[:, :2].min(0) - 1, vertices_image[:, :2].max(0) + 1
    size = int(np.clip(math.ceil((high - low).max()), 64, _LARGEST))
    affine = crop_affine(np.concatenate([low, high]), size)
    inside = np.full(image.shape[:2], 255, np.uint8)
    if mask is not None:
        inside = np.where(np.asarray(mask) != 0, inside, 0).astype(np.uint8)
    crop, inside = warp_crop(image, affine, size), warp_crop(inside, affine, size)
    # At the very edge of an animal its pixels are mixed with the background's.
    inside = cv2.erode(inside, np.ones((3, 3), np.uint8), iterations=max(1, round(size * EDGE)))

    placed = np.array(vertices_image, np.float64)
    placed[:, :2] = affine.apply(placed[:, :2])
    placed[:, 2] *= affine.scale
    # Depth in pixels, so that normals and depths are in the unit of x and y.
    ndc = np.concatenate([(2 * placed[:, :2] + 1) / size - 1, placed[:, 2:]], axis=1)
    depth = rasterize(ndc[None], template.faces, size).depth[0]
    where = surface.at(placed, template.faces)
    normals = surface.at(vertex_normals(placed, template.faces), template.faces)
    facing = -normals[:, 2] > FACING * np.linalg.norm(normals, axis=1).clip(1e-12)
    column, row = np.rint(where[:, :2]).astype(int).clip(0, size - 1).T
    # At the silhouette the pixel's own centre may miss the mesh: the farthest of its neighbourhood counts.
    behind = cv2.dilate(np.where(np.isfinite(depth), depth, -np.inf).astype(np.float32), np.ones((3, 3)))
    seen = facing & (where[:, 2] <= behind[row, column] + _BEHIND)
    xy = where[:, :2].astype(np.float32)
    seen &= _read(inside, xy) > 254
    return _read(crop, xy).astype(np.float64).reshape(-1, 3), seen


def _read(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Bilinear values of a picture at places [M, 2], in rows that OpenCV can take."""
    width = 4096
    rows = -(-len(xy) // width)
    grid = np.zeros((rows * width, 2), np.float32)
    grid[: len(xy)] = xy
    grid = grid.reshape(rows, width, 2)
    values = cv2.remap(picture, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return values.reshape(rows * width, *picture.shape[2:])[: len(xy)]
