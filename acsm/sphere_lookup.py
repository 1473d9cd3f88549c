"""From points on the sphere to places on the template's surface, fast and with gradients.

A point of the sphere lies over one triangle of the sphere map, seen from the centre. Its shares of that
triangle's corners are its barycentric coordinates after central projection onto the triangle's plane;
they vary continuously over the whole sphere.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CELLS = 32
"""Cells along an edge of each side of the cube map."""
AT_ONCE = 1 << 22
"""Pairs of a point and a face that are looked at together."""


class SphereLookup:
    """Faces and barycentric coordinates of points on a template's sphere map.

    The sphere is a cube map of cells, each with a list of the faces that reach into it; a point is
    tried against its cell's faces only.

    Args:
        sphere_vertices: unit vectors [V, 3], no triangle turned over.
        faces: [F, 3] int.
        cells: along an edge of a side of the cube.
        device: where points will be.
    """

    def __init__(
        self,
        sphere_vertices: np.ndarray,
        faces: np.ndarray,
        cells: int = CELLS,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cells = cells
        sphere = np.asarray(sphere_vertices, np.float64)
        self.faces = torch.as_tensor(np.array(faces, np.int64), device=device)
        # Row k of a face's matrix gives, for a point p, its (unnormalised) share of corner k.
        inverse = np.linalg.inv(sphere[np.asarray(faces)].transpose(0, 2, 1))
        # Scaled, so that a face's rows compare with another's: distances from its sides' planes.
        self._shares = torch.as_tensor(inverse, device=device)
        length = np.linalg.norm(inverse, axis=2, keepdims=True)
        self._planes = torch.as_tensor(inverse / length, device=device)
        lists = _faces_of_cells(sphere[np.asarray(faces)], inverse / length, cells)
        width = max(len(found) for found in lists)
        padded = np.zeros((len(lists), width), np.int64)
        for row, found in zip(padded, lists):
            row[: len(found)] = found
            row[len(found) :] = found[0]  # again: of equal ones the first is taken
        self._lists = torch.as_tensor(padded, device=device)

    def faces_of(self, points: Tensor) -> Tensor:
        """The face under each unit vector [N, 3]: int64 [N]."""
        points = points.detach().to(self._planes.dtype)
        lists = self._lists
        found = [
            _best(part, self._planes, lists[cell_of(part, self.cells)])
            for part in points.split(max(AT_ONCE // lists.shape[1], 1))
        ]
        return torch.cat(found) if found else points.new_zeros(0, dtype=torch.int64)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Places on the surface under unit vectors.

        Args:
            points: [N, 3]; their length does not matter, but is above 0.

        Returns:
            Vertices of the faces, int64 [N, 3], and the shares of these, [N, 3], which sum to 1 and carry
            gradients to the points.
        """
        face = self.faces_of(points)
        shares = (self._shares[face].to(points.dtype) @ points[:, :, None]).squeeze(-1)
        return self.faces[face], shares / shares.sum(dim=1, keepdim=True)


def lookup_reference(sphere_vertices: Tensor, faces: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The readable twin of `SphereLookup`: every point [N, 3] is tried against every face [F, 3]."""
    corners = sphere_vertices[faces]  # [F, 3, 3]
    shares = torch.linalg.solve(corners.transpose(1, 2), points.T.expand(len(faces), 3, len(points)))
    inverse = torch.linalg.inv(corners.transpose(1, 2))
    inside = (shares / inverse.norm(dim=2, keepdim=True)).amin(dim=1)  # [F, N]
    face = inside.argmax(dim=0)
    chosen = shares[face, :, torch.arange(len(points))]
    return faces[face], chosen / chosen.sum(dim=1, keepdim=True)


def _best(points: Tensor, planes: Tensor, candidates: Tensor) -> Tensor:
    """Of each point's candidate faces [N, M] the one whose nearest side it is farthest within."""
    inside = torch.einsum("nmkc,nc->nmk", planes[candidates], points).amin(dim=2)
    return candidates.gather(1, inside.argmax(dim=1, keepdim=True)).squeeze(1)


def cell_of(points: Tensor, cells: int) -> Tensor:
    """Cell of the cube map that each point [N, 3] falls into: int64 [N], below 6 * cells**2."""
    size, axis = points.abs().max(dim=1)
    rows = torch.arange(len(points), device=points.device)
    side = 2 * axis + (points[rows, axis] < 0)
    u = points[rows, (axis + 1) % 3] / size
    v = points[rows, (axis + 2) % 3] / size
    column = ((u + 1) * (cells / 2)).long().clamp(0, cells - 1)
    row = ((v + 1) * (cells / 2)).long().clamp(0, cells - 1)
    return (side * cells + row) * cells + column


def _faces_of_cells(corners: np.ndarray, planes: np.ndarray, cells: int) -> list[np.ndarray]:
    """The faces [F, 3, 3] that reach into each cell of the cube map, or might.

    A cell and a face are kept apart only where a plane through the centre parts them for certain: a side of
    the face with all of the cell's corners behind it, or a side of the cell likewise.
    """
    edge = np.linspace(-1, 1, cells + 1)
    lists = []
    for side in range(6):
        axis, sign = side // 2, -1.0 if side % 2 else 1.0
        # Cell corners, as directions: [cells + 1, cells + 1, 3], rows along v.
        grid = np.empty((cells + 1, cells + 1, 3))
        grid[..., axis] = sign
        grid[..., (axis + 1) % 3] = edge[None, :]
        grid[..., (axis + 2) % 3] = edge[:, None]
        deep = corners[..., axis] * sign  # [F, 3]: above 0 where a corner is on this side of the cube
        reach = [corners[..., (axis + k) % 3] for k in (1, 2)]
        for row in range(cells):
            quad = np.stack([grid[row, :-1], grid[row, 1:], grid[row + 1, :-1], grid[row + 1, 1:]], 1)
            low_v, high_v = edge[row] - 1e-9, edge[row + 1] + 1e-9
            band = ~((reach[1] < low_v * deep).all(1) | (reach[1] > high_v * deep).all(1))
            near = np.flatnonzero(band & (deep > 0).any(1))
            across = planes[near].reshape(-1, 3) @ quad.reshape(-1, 3).T
            behind = (across < -1e-9).reshape(len(near), 3, cells, 4)
            apart = behind.all(axis=3).any(axis=1)  # [near, cells]
            low_u, high_u = edge[:-1] - 1e-9, edge[1:] + 1e-9
            u, d = reach[0][near][:, None], deep[near][:, None]
            apart |= (u < low_u[:, None] * d).all(2) | (u > high_u[:, None] * d).all(2)
            lists += [near[~apart[:, cell]] for cell in range(cells)]
    return lists
