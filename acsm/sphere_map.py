"""A template's surface on the unit sphere: one place on the sphere for each place on the surface.

The closed surface is cut into a left and a right disc. Each disc is laid flat with convex combinations
(Tutte), reweighted until no part is squeezed (Yoshizawa, Belyaev, Seidel; SMI 2004), and lifted to its
hemisphere. Then the vertices move on the sphere so as to lower the symmetric Dirichlet energy (Smith,
Schaefer; SIGGRAPH 2015) by damped Newton steps, without ever turning a triangle over. All of it is
deterministic; what is symmetric in x = 0 stays so.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.linalg import splu

from acsm.surface_halves import border_loop, exact_mirror, two_discs
from acsm.template_mesh import edges_of, pieces_of
from wildshape.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from acsm.template import ArticulatedTemplate

FLATTEN_ROUNDS = 40
RELAX_ROUNDS = 120
PATIENCE = 8
"""Rounds in a row with less than a thousandth to gain, after which the map is left as it is."""
_CUTS = ((0, 0.0), (1, 0.0), (2, 0.0), (1, 0.25), (1, -0.25))
"""Planes that may part the surface into two discs: axis, and offset in template units."""


@dataclass(frozen=True, eq=False)
class Distortion:
    """What a map to the sphere does to areas and angles, over all triangles.

    Attributes:
        flipped: triangles that lie the wrong way round on the sphere.
        area_ratio: shares of the sphere over shares of the surface; the 5th, 50th and 95th percentile
            over the surface's area.
        area_smallest: the smallest of these ratios.
        angle_deg: mean difference of a triangle's corner angles in degrees, weighted by area.
        stretch: mean over the area of the larger singular value over the smaller one (1: conformal).
    """

    flipped: int
    area_ratio: tuple[float, float, float]
    area_smallest: float
    angle_deg: float
    stretch: float

    def __str__(self) -> str:
        low, middle, high = self.area_ratio
        return (
            f"{self.flipped} triangles flipped, area times {low:.2f} to {high:.2f} on nine tenths of the "
            f"surface (median {middle:.2f}, least {self.area_smallest:.3f}), angles off by "
            f"{self.angle_deg:.1f} degrees, stretch {self.stretch:.2f}"
        )


def sphere_fault(template: ArticulatedTemplate) -> str | None:
    """Why a template has no map to the sphere, in a few words; None if it can have one."""
    pieces = int(pieces_of(template.faces, template.num_vertices).max(initial=0)) + 1
    if not template.is_closed():
        return f"a closed surface; found {template.border_edges()} edges that do not join two faces"
    if pieces > 1:
        return f"one connected surface; found {pieces} pieces"
    if not template.is_manifold():
        return "a manifold; found vertices or edges where the surface touches itself"
    euler = template.num_vertices - len(edges_of(template.faces)) + len(template.faces)
    if euler != 2:
        return f"a surface without handles; found {(2 - euler) // 2}"
    return None


def sphere_vertices(template: ArticulatedTemplate) -> np.ndarray:
    """Place of every vertex on the unit sphere, float64 [V, 3], in the template's axes.

    A template that brings its own map, such as a released one, keeps it, unless that turns triangles over.

    Raises:
        UserError: the surface is open, in pieces, or has handles.
    """
    fault = sphere_fault(template)
    if fault is not None:
        raise UserError(
            f"a map to the sphere needs {fault}; mend the template and look with: wildshape template "
            "check, or train with --supervise keypoints"
        )
    own = template.sphere_vertices
    if own is not None and not flipped_faces(own, template.faces).any():
        return own
    shape = (template.vertices.tobytes(), template.faces.tobytes())
    return _computed(*shape).copy()


@functools.lru_cache(maxsize=16)
def _computed(vertices: bytes, faces: bytes) -> np.ndarray:
    surface = _Surface(
        np.frombuffer(vertices, np.float64).reshape(-1, 3), np.frombuffer(faces, np.int64).reshape(-1, 3)
    )
    start = surface.flattened()
    return surface.relaxed(start)


def flipped_faces(sphere: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """bool [F]: triangles of the sphere that are turned over or have no area."""
    a, b, c = (sphere[faces[:, k]] for k in range(3))
    return np.einsum("fc,fc->f", a, np.cross(b, c)) <= 0


def distortion(vertices: np.ndarray, faces: np.ndarray, sphere: np.ndarray) -> Distortion:
    """Compare the triangles [F, 3] of a surface [V, 3] with those of its map [V, 3]."""
    area, mapped = _areas(vertices, faces), _areas(sphere, faces)
    weight = area / area.sum()
    ratio = mapped / mapped.sum() / np.maximum(weight, 1e-300)
    order = np.argsort(ratio)
    reached = np.cumsum(weight[order])
    percentiles = ratio[order[np.searchsorted(reached, (0.05, 0.5, 0.95)).clip(max=len(order) - 1)]]
    angles = np.abs(_corner_angles(vertices, faces) - _corner_angles(sphere, faces))
    dirichlet = _dirichlet(_cotangents(vertices, faces), sphere, faces)
    # Of singular values s1 >= s2: d = (s1^2 + s2^2) / 2 area, a = s1 s2 area.
    half = dirichlet / np.maximum(mapped, 1e-300)
    stretch = half + np.sqrt(np.maximum(half**2 - 1, 0))
    return Distortion(
        int(flipped_faces(sphere, faces).sum()),
        (float(percentiles[0]), float(percentiles[1]), float(percentiles[2])),
        float(ratio.min()),
        float(np.degrees((weight[:, None] * angles).sum() / 3)),
        float((weight * stretch).sum()),
    )


def _areas(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = (points[faces[:, k]] for k in range(3))
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _cotangents(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Cotangents [F, 3] of the corners' angles."""
    found = np.empty(faces.shape)
    for k in range(3):
        u = points[faces[:, (k + 1) % 3]] - points[faces[:, k]]
        v = points[faces[:, (k + 2) % 3]] - points[faces[:, k]]
        across = np.linalg.norm(np.cross(u, v), axis=1)
        found[:, k] = np.einsum("fc,fc->f", u, v) / np.maximum(across, 1e-12)
    return found


def _corner_angles(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    return np.arctan2(1.0, _cotangents(points, faces))


def _dirichlet(cotangents: np.ndarray, points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Dirichlet energy [F] of the affine maps from triangles with these angles to ``points``."""
    total = np.zeros(len(faces))
    for k in range(3):
        edge = points[faces[:, (k + 1) % 3]] - points[faces[:, (k + 2) % 3]]
        total += cotangents[:, k] * np.einsum("fc,fc->f", edge, edge) / 4
    return total


class _Surface:
    """A closed surface of one piece without handles, on its way to the sphere."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        area = _areas(vertices, faces).sum()
        self.points = vertices * np.sqrt(4 * np.pi / area)
        self.faces = faces
        self.area = np.maximum(_areas(self.points, faces), 1e-9)
        self.mirror = exact_mirror(vertices, faces)

    def flattened(self) -> np.ndarray:
        """A first map: two discs, lifted to the hemispheres."""
        for axis, offset in _CUTS:
            left = self._half(axis, offset)
            loop = None if left is None else border_loop(self.faces[left])
            if left is None or loop is None:
                continue
            angle = self._angles(loop, axis)
            border = np.stack([np.cos(angle), np.sin(angle)], 1)
            flat = np.zeros((len(self.points), 2))
            sphere = np.zeros((len(self.points), 3))
            flat[loop] = border
            for inside, sign in ((left, 1.0), (~left, -1.0)):
                self._flatten_half(flat, sphere, self.faces[inside], loop, sign)
            # The cut was made across an axis; the sphere's axes are those of the template.
            sphere = np.roll(sphere, axis, axis=1)
            sphere = self._untangled(self._symmetric(sphere))
            if sphere is not None:
                return sphere
        raise UserError(
            "expected a surface that a plane parts into two discs which lie flat; found none; run: "
            "wildshape template check"
        )

    def _half(self, axis: int, offset: float) -> np.ndarray | None:
        """bool [F]: a connected side of a plane whose other side is connected, too."""
        middle = self.points[self.faces].mean(axis=1)[:, axis]
        return two_discs(self.faces, middle > offset * np.abs(middle).max())

    def _angles(self, loop: np.ndarray, axis: int) -> np.ndarray:
        """Places of the border on the circle: by length, turned to lie as in the template."""
        at = np.roll(self.points[loop], -axis, axis=1)[:, 1:]
        step = np.linalg.norm(self.points[np.roll(loop, -1)] - self.points[loop], axis=1)
        share = np.concatenate([[0], np.cumsum(step)[:-1]]) / step.sum()
        offset = at - at.mean(axis=0)
        turn = np.angle(((offset[:, 0] + 1j * offset[:, 1]) * np.exp(-2j * np.pi * share) * step).sum())
        return 2 * np.pi * share + turn

    def _flatten_half(
        self, flat: np.ndarray, sphere: np.ndarray, faces: np.ndarray, loop: np.ndarray, sign: float
    ) -> None:
        count = len(flat)
        fixed = np.zeros(count, bool)
        fixed[loop] = True
        inner = np.setdiff1d(np.unique(faces), loop)
        directed = np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)])
        a, b = np.unique(np.concatenate([directed, directed[:, ::-1]]), axis=0).T
        weight = np.ones(len(a))
        area, cotangents = np.maximum(_areas(self.points, faces), 1e-9), _cotangents(self.points, faces)
        total = np.bincount(faces.ravel(), np.repeat(area, 3), minlength=count)
        best, least = np.zeros((count, 3)), np.inf
        for _ in range(FLATTEN_ROUNDS):
            heard = ~fixed[a]
            matrix = csr_matrix((weight[heard], (a[heard], b[heard])), shape=(count, count))
            degree = np.asarray(matrix.sum(axis=1)).ravel()
            if len(inner):
                system = (coo_matrix((degree, (range(count), range(count)))).tocsr() - matrix)[inner]
                known = matrix[inner][:, loop] @ flat[loop]
                flat[inner] = splu(system[:, inner].tocsc()).solve(known)
            lifted = _lift(flat, sign)
            covered = _areas(lifted, faces)
            squeeze = (area / np.maximum(covered, 1e-30)) ** 2
            score = float((_dirichlet(cotangents, lifted, faces) * (1 + squeeze)).sum())
            if score < least:
                best, least = lifted, score
            elif score > 2 * least:
                break  # from here on the reweighting only crumples
            mapped = np.bincount(faces.ravel(), np.repeat(covered, 3), minlength=count)
            squeezed = np.sqrt(total / np.maximum(mapped, 1e-30))
            weight = weight / np.clip(squeezed[b], 1e-3, 1e3)
            # Only ratios between a vertex's weights matter.
            weight /= np.bincount(a, weight, minlength=count)[a]
        used = np.unique(faces)
        sphere[used] = best[used]

    def _symmetric(self, sphere: np.ndarray) -> np.ndarray:
        if self.mirror is not None:
            sphere = (sphere + sphere[self.mirror] * [-1, 1, 1]) / 2
        return sphere / np.linalg.norm(sphere, axis=1, keepdims=True)

    def _untangled(self, sphere: np.ndarray) -> np.ndarray | None:
        """Move what is turned over between its neighbours; None if it stays turned over."""
        edges = edges_of(self.faces)
        both = np.concatenate([edges, edges[:, ::-1]])
        count = len(sphere)
        ones = csr_matrix((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(count, count))
        for _ in range(200):
            bad = flipped_faces(sphere, self.faces)
            if not bad.any():
                return sphere
            moving = np.unique(self.faces[bad])
            moved = ones[moving] @ sphere
            sphere = sphere.copy()
            sphere[moving] = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
            sphere = self._symmetric(sphere)
        return None

    def relaxed(self, sphere: np.ndarray) -> np.ndarray:
        """Lower the symmetric Dirichlet energy; every step keeps all triangles the right way round."""
        cotangents = _cotangents(self.points, self.faces)
        frames = _tangents(sphere)
        energy, gradient, hessian = self._energy(sphere, cotangents, derivatives=True)
        index = (2 * self.faces[:, :, None] + np.arange(2)).reshape(-1, 6)
        size, slow, damping = 2 * len(sphere), 0, 1e-3
        for _ in range(RELAX_ROUNDS):
            slope = np.bincount(index.ravel(), gradient.ravel(), minlength=size)
            values, vectors = np.linalg.eigh(hessian)
            positive = (vectors * np.maximum(values, 1e-6)[:, None]) @ vectors.transpose(0, 2, 1)
            where = np.repeat(index, 6, axis=1).ravel(), np.tile(index, 6).ravel()
            system = coo_matrix((positive.ravel(), where), shape=(size, size)).tocsc()
            damped = system + damping * diags(system.diagonal(), format="csc")
            moves = splu(damped, "MMD_AT_PLUS_A").solve(-slope).reshape(-1, 2)
            step = np.einsum("vct,vt->vc", frames, moves)
            trial, halvings = self._line_search(sphere, step, energy, cotangents)
            damping = np.clip(damping * (4 if halvings > 2 else 0.25), 1e-6, 1e3)
            if trial is None:
                slow += 1
            else:
                sphere, frames, before = trial, _tangents(trial), energy
                energy, gradient, hessian = self._energy(sphere, cotangents, derivatives=True)
                slow = slow + 1 if before - energy < 1e-3 * energy else 0
            if slow == PATIENCE:
                break
        return sphere

    def _line_search(
        self, sphere: np.ndarray, step: np.ndarray, energy: float, cotangents: np.ndarray
    ) -> tuple[np.ndarray | None, int]:
        """The map after a step, shortened first where it would turn triangles over, and how often it
        was; None: none is better."""
        share = np.ones((len(sphere), 1))
        for halvings in range(40):
            trial = self._symmetric(sphere + share * step)
            flipped = flipped_faces(trial, self.faces)
            if flipped.any():
                share[np.unique(self.faces[flipped])] /= 2
            elif self._energy(trial, cotangents)[0] < energy:
                return trial, halvings
            else:
                share /= 2
        return None, 40

    def _energy(
        self, sphere: np.ndarray, cotangents: np.ndarray, derivatives: bool = False
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Symmetric Dirichlet energy, inf where a triangle is turned over, and its derivatives by the
        tangential moves of each triangle's corners, [F, 6] and [F, 6, 6]."""
        import torch

        nothing = np.empty(0)
        if flipped_faces(sphere, self.faces).any():
            return np.inf, nothing, nothing
        corners, rest = (torch.from_numpy(part) for part in (sphere[self.faces], cotangents))
        frames = torch.from_numpy(_tangents(sphere)[self.faces])
        moves = torch.zeros(len(corners), 6, dtype=torch.float64, requires_grad=derivatives)
        energy = _triangle_energy(moves, corners, frames, rest, torch.from_numpy(self.area)).sum()
        if not derivatives:
            return float(energy), nothing, nothing
        (gradient,) = torch.autograd.grad(energy, moves, create_graph=True)
        rows = [torch.autograd.grad(gradient[:, k].sum(), moves, retain_graph=True)[0] for k in range(6)]
        return float(energy.detach()), gradient.detach().numpy(), torch.stack(rows, 1).numpy()


def _triangle_energy(moves: Tensor, corners: Tensor, frames: Tensor, rest: Tensor, area: Tensor) -> Tensor:
    """Symmetric Dirichlet energy [F] of triangles on the sphere.

    Args:
        moves: of the corners along their tangents [F, 6].
        corners: [F, 3, 3].
        frames: tangents of each corner [F, 3, 3, 2].
        rest: cotangents of the corners on the surface [F, 3].
        area: on the surface [F].
    """
    import torch

    moved = corners + (frames @ moves.view(-1, 3, 2, 1)).squeeze(-1)
    moved = torch.nn.functional.normalize(moved, dim=-1)
    edges = moved[:, [2, 0, 1]] - moved[:, [1, 2, 0]]
    dirichlet = (rest * edges.square().sum(-1)).sum(-1) / 4
    mapped = torch.linalg.cross(edges[:, 2], -edges[:, 1]).norm(dim=-1) / 2
    return dirichlet * (1 + (area / mapped).square())


def _lift(flat: np.ndarray, sign: float) -> np.ndarray:
    """Points [V, 2] of the unit disc on the hemisphere of x >= 0 (sign 1) or x <= 0."""
    square = (flat**2).sum(axis=1)
    x = sign * (1 - square) / (1 + square)
    return np.column_stack([x, 2 * flat / (1 + square)[:, None]])


def _tangents(sphere: np.ndarray) -> np.ndarray:
    """Two orthonormal tangents at each point, [V, 3, 2]."""
    axis = np.eye(3)[np.abs(sphere).argmin(axis=1)]
    first = np.cross(sphere, axis)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(sphere, first)], axis=2)
