"""Articulated templates: a category's mesh, its tree of parts and its keypoint vertices.

Frame: x to the animal's left, z up, head towards -y; by convention the origin is the vertex mean
and the largest distance between two vertices is 2 (:meth:`ArticulatedTemplate.scaled`).
``python -m acsm.template --out PICTURE.png`` draws the shipped templates.
"""

from __future__ import annotations

import contextlib
import functools
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from wildshape.category import CategorySpec
from wildshape.errors import UserError
from wildshape.files import atomic_write

MANY_POINTS = 3000


@dataclass(frozen=True, eq=False)
class ArticulatedTemplate:
    """A mesh whose parts turn. The constructor checks shapes and indices; it changes no numbers.

    Attributes:
        vertices: float64 [V, 3].
        faces: int64 [F, 3], anticlockwise seen from outside.
        membership: float64 [V, P], how much each part moves each vertex; rows sum to 1.
        part_names: P names.
        part_parents: P indices, -1 for a root.
        part_centres: float64 [P, 3], the points that parts turn about.
        part_mirror: int64 [P], the part on the other side (itself in the middle).
        keypoint_vertices: int64 [K], the vertex that stands for each keypoint.
        keypoint_flip: int64 [K], the keypoint on the other side (itself in the middle).
        active_parts: bool [P], parts that may turn, also given as names; None: all.
        sphere_vertices: float64 [V, 3], each vertex's place on the unit sphere where the template brings
            a map of its own; None: :mod:`acsm.sphere_map` computes one.

    Raises:
        ValueError: if shapes do not fit one another or an index points nowhere.
    """

    vertices: np.ndarray
    faces: np.ndarray
    membership: np.ndarray
    part_names: tuple[str, ...]
    part_parents: tuple[int, ...]
    part_centres: np.ndarray
    part_mirror: np.ndarray
    keypoint_vertices: np.ndarray
    keypoint_flip: np.ndarray
    active_parts: np.ndarray | None = None
    sphere_vertices: np.ndarray | None = None

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        put("part_names", tuple(str(name) for name in self.part_names))
        put("part_parents", tuple(int(parent) for parent in self.part_parents))
        for name in ("vertices", "membership", "part_centres"):
            put(name, np.ascontiguousarray(getattr(self, name), np.float64))
        for name in ("faces", "part_mirror", "keypoint_vertices", "keypoint_flip"):
            put(name, np.ascontiguousarray(getattr(self, name), np.int64))
        vertices, parts = len(self.vertices), len(self.part_names)
        keypoints = len(self.keypoint_vertices)
        put("active_parts", _as_flags(self.active_parts, self.part_names))
        for name, expected in (
            ("vertices", (vertices, 3)),
            ("faces", (len(self.faces), 3)),
            ("membership", (vertices, parts)),
            ("part_parents", (parts,)),
            ("part_centres", (parts, 3)),
            ("part_mirror", (parts,)),
            ("keypoint_vertices", (keypoints,)),
            ("keypoint_flip", (keypoints,)),
            *((("sphere_vertices", (vertices, 3)),) if self.sphere_vertices is not None else ()),
        ):
            found = np.shape(getattr(self, name))
            if found != expected:
                raise ValueError(f"{name}: expected shape {list(expected)}; found {list(found)}")
        for name, low, high in (
            ("faces", 0, vertices),
            ("part_parents", -1, parts),
            ("part_mirror", 0, parts),
            ("keypoint_vertices", 0, vertices),
            ("keypoint_flip", 0, keypoints),
        ):
            index = np.asarray(getattr(self, name))
            if index.size and (index.min() < low or index.max() >= high):
                raise ValueError(
                    f"{name}: expected indices from {low} to {high - 1}; "
                    f"found {index.min()} to {index.max()}"
                )
        self.part_levels()

    @property
    def num_vertices(self) -> int:
        """V."""
        return len(self.vertices)

    @property
    def num_parts(self) -> int:
        """P."""
        return len(self.part_names)

    @property
    def num_keypoints(self) -> int:
        """K."""
        return len(self.keypoint_vertices)

    @property
    def active(self) -> np.ndarray:
        """bool [P]: the part may turn."""
        return np.ones(self.num_parts, bool) if self.active_parts is None else self.active_parts

    def part_levels(self) -> tuple[tuple[int, ...], ...]:
        """Parts by their depth in the tree, roots first.

        Raises:
            ValueError: if the parents go round in a circle.
        """
        depth: list[int] = []
        for part, parent in enumerate(self.part_parents):
            steps = 0
            while parent >= 0:
                steps, parent = steps + 1, self.part_parents[parent]
                if steps > self.num_parts:
                    raise ValueError(
                        f"part_parents: expected a tree; found a circle above {self.part_names[part]}"
                    )
            depth.append(steps)
        return tuple(
            tuple(part for part in range(self.num_parts) if depth[part] == level)
            for level in range(max(depth, default=-1) + 1)
        )

    def _directed_edges(self) -> np.ndarray:
        return np.concatenate([self.faces[:, [k, (k + 1) % 3]] for k in range(3)])

    def edges(self) -> np.ndarray:
        """int64 [E, 2]: the mesh's edges, each once, lower vertex first."""
        return np.unique(np.sort(self._directed_edges(), axis=1), axis=0)

    def is_closed(self) -> bool:
        """Whether every edge joins two faces that run through it in opposite directions."""
        edges = self._directed_edges()
        forward, counts = np.unique(edges, axis=0, return_counts=True)
        backward = np.unique(edges[:, ::-1], axis=0)
        return bool(len(edges)) and bool((counts == 1).all()) and np.array_equal(forward, backward)

    def border_edges(self) -> int:
        """Edges that do not join two faces which run through them in opposite directions."""
        edges = self._directed_edges()
        _, number = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
        low = edges[:, 0] < edges[:, 1]
        count = int(number.max(initial=-1)) + 1
        forward = np.bincount(number.ravel()[low], minlength=count)
        backward = np.bincount(number.ravel()[~low], minlength=count)
        return int(((forward != 1) | (backward != 1)).sum())

    def is_manifold(self) -> bool:
        """Whether edges have at most two faces and vertices one fan of faces that run one way."""
        _, counts = np.unique(np.sort(self._directed_edges(), axis=1), axis=0, return_counts=True)
        if (counts > 2).any():
            return False
        opposite: dict[int, list[tuple[int, int]]] = {}
        for a, b, c in self.faces.tolist():
            opposite.setdefault(a, []).append((b, c))
            opposite.setdefault(b, []).append((c, a))
            opposite.setdefault(c, []).append((a, b))
        return all(_is_one_fan(links) for links in opposite.values())

    def volume(self) -> float:
        """Signed volume; positive where faces are anticlockwise seen from outside."""
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        return float((a * np.cross(b, c)).sum() / 6)

    def mirror_vertices(self) -> np.ndarray:
        """int64 [V]: the vertex nearest to each vertex's mirror image in x = 0."""
        return self._nearest_to_mirrored()[1]

    def symmetry_error(self) -> float:
        """Largest distance from a vertex's mirror image in x = 0 to the nearest vertex."""
        return float(self._nearest_to_mirrored()[0].max(initial=0.0))

    def mirror_distances(self) -> np.ndarray:
        """float64 [V]: from each vertex's mirror image in x = 0 to the nearest vertex."""
        return self._nearest_to_mirrored()[0]

    def _nearest_to_mirrored(self) -> tuple[np.ndarray, np.ndarray]:
        from scipy.spatial import cKDTree

        return cKDTree(self.vertices).query(self.vertices * [-1, 1, 1])

    def diameter(self) -> float:
        """Largest distance between two vertices."""
        return largest_distance(self.vertices)

    def scaled(self) -> ArticulatedTemplate:
        """The template about its vertex mean, with the largest distance between vertices 2.

        Rotation centres move along with the vertices.

        Raises:
            ValueError: if all vertices coincide.
        """
        diameter = self.diameter()
        if diameter == 0:
            raise ValueError("scaled: expected vertices at more than one place")
        middle = self.vertices.mean(axis=0)
        return replace(
            self,
            vertices=(self.vertices - middle) * (2 / diameter),
            part_centres=(self.part_centres - middle) * (2 / diameter),
        )

    def articulated(self, turns: dict[str, tuple[float, float, float]]) -> np.ndarray:
        """Vertices [V, 3] with parts turned: own, parent, ..., root, blended by membership.

        A small NumPy counterpart of ``acsm.articulation`` for pictures and checks.

        Args:
            turns: part name to a rotation vector (axis times angle) in radians.

        Raises:
            ValueError: for a name that is no part.
        """
        from scipy.spatial.transform import Rotation

        unknown = sorted(set(turns) - set(self.part_names))
        if unknown:
            raise ValueError(f"expected parts among {list(self.part_names)}; found {unknown}")
        moved = np.zeros_like(self.vertices)
        for part in range(self.num_parts):
            positions, ancestor = self.vertices, part
            while ancestor >= 0:
                turn = Rotation.from_rotvec(turns.get(self.part_names[ancestor], (0, 0, 0)))
                centre = self.part_centres[ancestor]
                positions = turn.apply(positions - centre) + centre
                ancestor = self.part_parents[ancestor]
            moved += self.membership[:, part, None] * positions
        return moved

    def save(self, path: str | Path) -> None:
        """Write the template to an ``.npz`` file, whole or not at all."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: np.asarray(value) for name, value in arrays.items() if value is not None}
        with atomic_write(Path(path)) as handle:
            np.savez_compressed(handle, **arrays)


def largest_distance(points: np.ndarray) -> float:
    """Largest distance between two of the points [N, 3]; 0 for fewer than two."""
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import pdist

    if len(points) > MANY_POINTS:  # all pairs of many points do not fit in memory
        with contextlib.suppress(QhullError):  # of flat points
            points = points[ConvexHull(points).vertices]
    return float(pdist(points).max(initial=0.0))


def _as_flags(active: object, names: tuple[str, ...]) -> np.ndarray | None:
    if active is None:
        return None
    active = np.asarray(active)
    if active.dtype.kind == "U" or active.size == 0 < len(names):
        unknown = sorted(set(active.tolist()) - set(names))
        if unknown:
            raise ValueError(f"active_parts: expected names among {list(names)}; found {unknown}")
        return np.isin(names, active)
    if active.shape != (len(names),):
        raise ValueError(f"active_parts: expected shape [{len(names)}]; found {list(active.shape)}")
    return active.astype(bool)


def _is_one_fan(links: list[tuple[int, int]]) -> bool:
    """Whether the edges across from a vertex form one path or one ring."""
    following = dict(links)
    if len(following) != len(links):
        return False
    starts = set(following) - set(following.values())
    if len(starts) > 1:
        return False
    at = first = starts.pop() if starts else links[0][0]
    for step in range(1, len(links) + 1):
        at = following.get(at, -1)
        if at < 0 or (at == first and step < len(links)):
            return False
    return True


def load_template(path: str | Path) -> ArticulatedTemplate:
    """Read a template that :meth:`ArticulatedTemplate.save` wrote.

    Raises:
        UserError: if there is no such file, or it holds no template.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"expected a template file; found nothing at {path}")
    names = [field.name for field in fields(ArticulatedTemplate)]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = sorted(set(names) - {"active_parts", "sphere_vertices"} - set(arrays.files))
            if missing:
                raise UserError(f"{path}: expected the arrays of a template; missing {missing}")
            return ArticulatedTemplate(**{n: arrays[n] for n in names if n in arrays.files})
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: expected a template (.npz); found: {error}") from None


def template_for(spec: CategorySpec) -> ArticulatedTemplate:
    """The template of a category, in the template frame, its active parts as the category says.

    ``spec.template`` is ``{procedural: {...}}``, the proportions of
    :class:`acsm.proportions.Proportions`, or ``{file: path}`` with the settings of
    :class:`acsm.template_settings.TemplateSettings`; an ``.npz`` is taken as it is.

    Raises:
        UserError: if the node, the file, the keypoints or the active parts do not fit.
    """
    node = spec.template
    if "file" in node:
        from acsm.template_file import read_template

        template = read_template(node["file"], spec.skeleton, node).template
    elif "procedural" in node:
        from acsm.procedural import build_quadruped

        skeleton = spec.skeleton
        template = build_quadruped(node["procedural"] or {}, skeleton.keypoints, skeleton.flip)
    else:
        raise UserError(
            f"category {spec.name}: expected template: procedural or file; found {sorted(node)}"
        )
    if spec.active_parts is None:
        return template
    try:
        return replace(template, active_parts=np.array(spec.active_parts, dtype=str))
    except ValueError as error:
        raise UserError(f"category {spec.name}: {error}") from None


if __name__ == "__main__":
    from acsm.template_picture import main

    main()
