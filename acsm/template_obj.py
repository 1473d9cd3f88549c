"""Wavefront OBJ meshes, whose parts come from settings: groups, vertex lists or segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from acsm.template_mesh import FileMesh, edges_of
from acsm.template_settings import TemplateSettings
from wildshape.errors import UserError

_SOFTENING = 2


def read_obj(path: Path) -> FileMesh:
    """Read vertices and faces; polygons become fans. `o`, `g` and `usemtl` name groups.

    Vertices keep their order, so that vertex i (from 0) is the file's (i + 1)th.

    Returns:
        The mesh in the file's axes with one bone, `body`.

    Raises:
        UserError: the file is no OBJ, or has no faces.
    """
    vertices: list[list[float]] = []
    faces: list[tuple[int, int, int]] = []
    members: dict[str, list[int]] = {}
    current: dict[str, list[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected a Wavefront OBJ text; found other bytes") from None
    for number, line in enumerate(lines, 1):
        words = line.split("#")[0].split()
        try:
            if words[:1] == ["v"]:
                vertices.append([float(word) for word in words[1:4]])
                if len(vertices[-1]) != 3 or not np.isfinite(vertices[-1]).all():
                    raise ValueError("a vertex that is no three numbers")
            elif words[:1] == ["f"]:
                corners = [int(word.split("/")[0]) for word in words[1:]]
                corners = [c - 1 if c > 0 else len(vertices) + c for c in corners]
                if len(corners) < 3 or min(corners) < 0:
                    raise ValueError("a face of fewer than three vertices, or of one before the first")
                faces += [(corners[0], *pair) for pair in zip(corners[1:], corners[2:])]
                for name in sorted({name for names in current.values() for name in names}):
                    members.setdefault(name, []).extend(corners)
        except ValueError as error:
            raise UserError(f"{path}: expected Wavefront OBJ; found {error} in line {number}") from None
        if words and words[0] in ("o", "g", "usemtl"):
            current[words[0]] = words[1:]
    if not faces or max(map(max, faces)) >= len(vertices):
        raise UserError(
            f"{path}: expected faces between {len(vertices)} vertices; found "
            f"{'one beyond' if faces else 'none'}"
        )
    points = np.array(vertices, float)
    groups = {name: np.isin(np.arange(len(points)), own) for name, own in members.items()}
    return FileMesh(
        vertices=points,
        faces=np.array(faces, np.int64),
        weights=np.ones((len(points), 1)),
        bones=("body",),
        bone_parents=(-1,),
        heads=points.mean(axis=0)[None],
        tips=np.full((1, 3), np.nan),
        groups=groups,
    )


def _indices(value: Any) -> list[int]:
    found: list[int] = []
    for item in value if isinstance(value, list) else [value]:
        low, _, high = str(item).partition("-")
        found += range(int(low), int(high or low) + 1)
    return found


def with_parts(mesh: FileMesh, settings: TemplateSettings, origin: str) -> FileMesh:
    """A mesh without bones given a bone for each part of the settings.

    A part owns its `group`, its `vertices` (numbers and ranges `3-17`), or, of what is left, what lies
    nearest to its `segment` ([[x, y, z], [x, y, z]] in the file's coordinates); vertices that no part owns
    go to the first part. Borders are softened over two rings. A part turns about its `centre`, else
    the start of its segment, else the middle of its border with its parent.

    Raises:
        UserError: a part that names no group, vertex or parent of this mesh.
    """
    parts = settings.parts
    if not parts:
        return mesh if len(mesh.bones) > 1 else mesh.noted("one part: give parts: to let it articulate")
    names = [str(name) for name in parts]
    count = len(mesh.vertices)
    owner = np.full(count, -1)
    segments: dict[int, np.ndarray] = {}
    for part, (name, node) in enumerate(parts.items()):
        if not isinstance(node, Mapping) or not set(node) & {"group", "vertices", "segment"}:
            raise UserError(
                f"{origin}: expected part {name} with group, vertices or segment, as there are no bones; "
                f"found {node}"
            )
        try:
            if "group" in node:
                owner[mesh.groups[str(node["group"])]] = part
            if "vertices" in node:
                owner[_indices(node["vertices"])] = part
            if "segment" in node:
                segments[part] = np.array(node["segment"], float).reshape(2, 3)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise UserError(
                f"{origin}: part {name}: expected a group among {', '.join(mesh.groups) or 'none'}, "
                f"vertices from 0 to {count - 1}, or a segment [[x, y, z], [x, y, z]]; found {error}"
            ) from None
        if node.get("parent") is not None and str(node["parent"]) not in names:
            raise UserError(f"{origin}: part {name}: expected parent among {names}; found {node['parent']}")
    if segments:
        free = owner < 0
        distances = [_to_segment(mesh.vertices[free], *ends) for ends in segments.values()]
        owner[free] = np.array(list(segments))[np.argmin(distances, axis=0)]
    loose = int((owner < 0).sum())
    owner[owner < 0] = 0
    empty = [name for part, name in enumerate(names) if not (owner == part).any()]
    if empty:
        raise UserError(f"{origin}: expected vertices for each part; found none for {', '.join(empty)}")
    parents = [names.index(str(node["parent"])) if node.get("parent") is not None else -1
               for node in parts.values()]  # fmt: skip
    edges = edges_of(mesh.faces)
    heads = []
    for part in range(len(names)):
        a, b = edges.T
        across = (owner[a] == part) & (owner[b] == parents[part])
        across |= (owner[b] == part) & (owner[a] == parents[part])
        border = mesh.vertices[edges[across]].reshape(-1, 3)
        place = border if len(border) else mesh.vertices[owner == part]
        heads.append(segments[part][0] if part in segments else place.mean(axis=0))
    prepared = replace(
        mesh,
        weights=_softened(np.eye(len(names))[owner], edges),
        bones=tuple(names),
        bone_parents=tuple(parents),
        heads=np.array(heads),
        tips=np.array([segments[p][1] if p in segments else np.full(3, np.nan) for p in range(len(names))]),
    )
    return prepared.noted(f"{loose} vertices of no part put into {names[0]}") if loose else prepared


def _to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    along = end - start
    share = np.clip((points - start) @ along / max(along @ along, 1e-30), 0, 1)
    return np.linalg.norm(points - start - share[:, None] * along, axis=1)


def _softened(weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
    a, b = edges.T
    count = np.bincount(edges.ravel(), minlength=len(weights))[:, None]
    for _ in range(_SOFTENING):
        total = np.zeros_like(weights)
        np.add.at(total, a, weights[b])
        np.add.at(total, b, weights[a])
        weights = np.where(count > 0, 0.5 * weights + 0.5 * total / np.maximum(count, 1), weights)
    return weights
