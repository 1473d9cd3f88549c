"""The released template folders: `mean_shape.mat`, `parts.pkl`, `kp2vertex.txt` and what goes with them.

    mean_shape.mat                 verts [V, 3], faces [F, 3], sphere_verts [V, 3] (not needed)
    parts.pkl                      alpha [V, P], nodes: [{id, name, is_main, children, rc}]
    kp2vertex.txt                  a keypoint's name and its vertex, a line each
    mirror_transforms.txt          pairs of parts, a line each; others are their own mirror
    part_files/<category>.txt      name, active, axis: parts that may turn; without it, all

The last two may lie in the folder or up to three above it. `parts.pkl` is read without executing what it
holds (:mod:`acsm.pickled_arrays`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from acsm.pickled_arrays import read_arrays_only
from acsm.sphere_map import flipped_faces
from acsm.template import ArticulatedTemplate
from acsm.template_rig import LoadedTemplate
from acsm.template_settings import TemplateSettings
from wildshape.errors import UserError
from wildshape.skeleton import Skeleton

MEAN_SHAPE = "mean_shape.mat"
_LEVELS_UP = 3


def read_cachedir(path: Path, settings: TemplateSettings, skeleton: Skeleton) -> LoadedTemplate:
    """Read a released template.

    Args:
        path: the folder, or its `mean_shape.mat`. The released files are in the template frame's axes.
        settings: `scale` is `template` (rotation centres move along), `published` (half the largest
            vertex distance is 1 and vertices are centred, rotation centres stay as they were, as the
            released `--scale_mesh` does) or `none`; `mirror` and `part_file` may name those files.
        skeleton: its keypoints are found in `kp2vertex.txt` by name or alias.

    Raises:
        UserError: a file is missing or does not fit the others, or a keypoint is missing.
    """
    folder = path if path.is_dir() else path.parent
    vertices, faces, sphere = _mean_shape(folder / MEAN_SHAPE)
    parts = folder / "parts.pkl"
    alpha, nodes = _nodes(parts, len(vertices))
    try:
        names, parents, centres = _tree(nodes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{parts}: expected nodes with id, name, is_main, children and rc; found a problem at {error}"
        ) from None
    notes: list[str] = []
    if sphere is not None and flipped_faces(sphere, faces).any():
        notes.append("sphere_verts turn triangles over: another map to the sphere is computed")
        sphere = None
    mirror_file = _beside(folder, settings.mirror, "mirror_transforms.txt")
    mirror = np.arange(len(names))
    if mirror_file is None:
        notes.append("no mirror_transforms.txt: parts are their own mirror")
    else:
        for left, right in _lines(mirror_file, 2):
            a, b = (_place(names, name, mirror_file) for name in (left, right))
            mirror[a], mirror[b] = b, a
    active = None
    part_file = _part_file(folder, settings)
    if part_file is None:
        notes.append("no part file: all parts may turn")
    else:
        active = np.zeros(len(names), bool)
        for name, flag, *_ in _lines(part_file, 2):
            active[_place(names, name, part_file)] = float(flag) > 0
    keypoints, unknown = _keypoints(folder / "kp2vertex.txt", skeleton, len(vertices))
    if unknown:
        notes.append(f"keypoints that {skeleton.name} does not have: {', '.join(unknown)}")
    try:
        template = ArticulatedTemplate(
            vertices,
            faces,
            alpha,
            names,
            parents,
            centres,
            mirror,
            keypoints,
            np.array(skeleton.flip),
            active,
            sphere,
        )
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None
    return LoadedTemplate(_scaled(template, settings.scale), tuple(notes))


def _scaled(template: ArticulatedTemplate, scale: str) -> ArticulatedTemplate:
    if scale == "none":
        return template
    scaled = template.scaled()
    return scaled if scale == "template" else replace(scaled, part_centres=template.part_centres)


def _mean_shape(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise UserError(f"expected {MEAN_SHAPE} of a released template; found no file {path}")
    try:
        content = loadmat(path)
        vertices, faces = np.asarray(content["verts"], float), np.asarray(content["faces"]).astype(np.int64)
        sphere = np.asarray(content["sphere_verts"], float) if "sphere_verts" in content else None
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{path}: expected verts and faces; found a problem at {error}") from None
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise UserError(
            f"{path}: expected verts [V, 3] and faces [F, 3]; found {list(vertices.shape)} and "
            f"{list(faces.shape)}"
        )
    if sphere is not None:
        length = np.linalg.norm(sphere, axis=-1, keepdims=True)
        if sphere.shape != vertices.shape or not (length > 0).all():
            raise UserError(
                f"{path}: expected sphere_verts {list(vertices.shape)} off the origin; found "
                f"{list(sphere.shape)}"
            )
        sphere = sphere / length
    return vertices, faces, sphere


def _nodes(path: Path, num_vertices: int) -> tuple[np.ndarray, list[Any]]:
    content = read_arrays_only(path)
    if not isinstance(content, dict) or not {"alpha", "nodes"} <= set(content):
        raise UserError(f"{path}: expected alpha and nodes; found {type(content).__name__}")
    nodes = list(content["nodes"])
    try:
        alpha = np.asarray(content["alpha"], float)
    except (TypeError, ValueError):
        alpha = np.empty(0)
    if alpha.shape != (num_vertices, len(nodes)):
        raise UserError(
            f"{path}: expected alpha [{num_vertices}, {len(nodes)}], as there are vertices and nodes; "
            f"found {list(alpha.shape)}"
        )
    total = alpha.sum(axis=1, keepdims=True)
    if not np.isfinite(total).all() or (total <= 0).any():
        raise UserError(f"{path}: expected every vertex on a part; found rows of alpha that sum to none")
    return alpha / total, nodes


def _tree(nodes: list[Any]) -> tuple[tuple[str, ...], tuple[int, ...], np.ndarray]:
    """Names, parents and centres; the root's centre counts as zero."""
    place = {int(node["id"]): i for i, node in enumerate(nodes)}
    names = tuple(str(node["name"]).strip() for node in nodes)
    place_of_name = {name: i for i, name in enumerate(names)}
    parents = [-1] * len(nodes)
    for i, node in enumerate(nodes):
        for child in np.atleast_1d(np.asarray(node["children"], object)).tolist():
            child = child["id"] if isinstance(child, dict) else child
            index = place_of_name[child] if isinstance(child, str) else place[int(child)]
            parents[index] = i
    centres = np.array([np.zeros(3) if parents[i] < 0 else np.ravel(node["rc"])[:3]
                        for i, node in enumerate(nodes)], float)  # fmt: skip
    return names, tuple(parents), centres


def _above(folder: Path) -> Iterator[Path]:
    folder = folder.resolve()
    yield from (folder, *list(folder.parents)[:_LEVELS_UP])


def _beside(folder: Path, given: str | None, name: str) -> Path | None:
    if given is not None:
        path = folder / given
        if not path.is_file():
            raise UserError(f"expected a file at {path}, as the settings say; found none")
        return path
    return next((place / name for place in _above(folder) if (place / name).is_file()), None)


def _part_file(folder: Path, settings: TemplateSettings) -> Path | None:
    if settings.part_file is not None:
        return _beside(folder, settings.part_file, "")
    return _beside(folder, None, f"part_files/{folder.resolve().name}.txt")


def _lines(path: Path, least: int) -> list[list[str]]:
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"expected {path.name} of a released template; found no file {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected text; found other bytes") from None
    for row in rows:
        if len(row) < least:
            raise UserError(f"{path}: expected {least} words a line; found {' '.join(row)}")
    return rows


def _place(names: tuple[str, ...], name: str, origin: Path) -> int:
    if name not in names:
        raise UserError(f"{origin}: expected parts among {', '.join(names)}; found {name}")
    return names.index(name)


def _keypoints(path: Path, skeleton: Skeleton, count: int) -> tuple[np.ndarray, list[str]]:
    names, vertices = [], []
    for *words, vertex in _lines(path, 2):
        if not vertex.isdigit() or int(vertex) >= count:
            raise UserError(f"{path}: expected vertices from 0 to {count - 1}; found {vertex}")
        names.append(" ".join(words).rstrip(":,"))
        vertices.append(int(vertex))
    mapping = skeleton.map_from(names)
    missing = [name for name, index in zip(skeleton.keypoints, mapping) if index < 0]
    if missing:
        raise UserError(
            f"{path}: expected a vertex for each keypoint of {skeleton.name}; found none for "
            f"{', '.join(missing)} (there are: {', '.join(names)})"
        )
    unknown = [name for name in names if skeleton.find(name) is None]
    return np.array(vertices)[mapping], unknown
