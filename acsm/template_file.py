"""Template files of any kind, told apart by their names: npz, GLB, glTF, OBJ, released folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from acsm.template import ArticulatedTemplate, load_template
from acsm.template_cachedir import MEAN_SHAPE, read_cachedir
from acsm.template_gltf import read_gltf
from acsm.template_mesh import FileMesh, simplified, welded
from acsm.template_obj import read_obj, with_parts
from acsm.template_rig import LoadedTemplate, assemble
from acsm.template_settings import read_settings
from wildshape.errors import UserError
from wildshape.skeleton import Skeleton

SYMMETRY_TOLERANCE = 0.05
"""Template units (the animal is 2 across) by which a vertex may miss its mirror image."""
MANY_VERTICES = 5000


def read_template(
    path: str | Path, skeleton: Skeleton, node: Mapping[str, Any] | None = None
) -> LoadedTemplate:
    """Read a template file of any kind, in the template frame.

    Args:
        path: `.npz` (taken as it is), `.glb`, `.gltf`, `.obj`, or a released folder with `mean_shape.mat`.
        skeleton: the keypoints that the template needs.
        node: settings as in a category's `template:`; they go before those beside the file.

    Raises:
        UserError: the file is missing, of none of these kinds, or lacks a keypoint.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"expected a template file; found nothing at {path}")
    kind = path.suffix.lower()
    if kind == ".npz":
        loaded = LoadedTemplate(load_template(path))
    elif path.is_dir() or path.name == MEAN_SHAPE:
        loaded = read_cachedir(path, read_settings(path, node), skeleton)
    elif kind in (".glb", ".gltf", ".obj"):
        settings = read_settings(path, node)
        mesh = read_obj(path) if kind == ".obj" else welded(read_gltf(path, settings.pose))
        if len(mesh.bones) == 1:
            mesh = with_parts(mesh, settings, path.name)
        if settings.vertices is not None:
            settings = replace(settings, keypoints=_by_position(settings.keypoints, mesh, path.name))
            mesh = simplified(mesh, settings.vertices)
        loaded = assemble(mesh, settings, skeleton, path.name)
    else:
        raise UserError(
            f"expected a template: .npz, .glb, .gltf, .obj or a folder with {MEAN_SHAPE}; found {path}"
        )
    _check_keypoints(loaded.template, skeleton, path)
    return loaded


def _by_position(keypoints: Mapping[str, Any], mesh: FileMesh, origin: str) -> dict[str, Any]:
    """Settings of keypoints in which the file's vertices are places: simplifying numbers vertices anew."""
    found = {}
    for name, node in keypoints.items():
        vertex = node.get("vertex") if isinstance(node, Mapping) else node
        if isinstance(vertex, int) and not isinstance(vertex, bool):
            if not 0 <= vertex < len(mesh.vertices):
                raise UserError(
                    f"{origin}: keypoint {name}: expected a vertex from 0 to {len(mesh.vertices) - 1}; "
                    f"found {vertex}"
                )
            node = {"position": mesh.vertices[vertex].tolist()}
        found[name] = node
    return found


def _check_keypoints(template: ArticulatedTemplate, skeleton: Skeleton, path: Path) -> None:
    if template.num_keypoints != skeleton.num_keypoints:
        raise UserError(
            f"{path}: expected {skeleton.num_keypoints} keypoint vertices, as {skeleton.name} has "
            f"keypoints; found {template.num_keypoints}"
        )
    if tuple(template.keypoint_flip) != skeleton.flip:
        raise UserError(
            f"{path}: expected keypoint_flip {list(skeleton.flip)}, as {skeleton.name} has it; found "
            f"{template.keypoint_flip.tolist()}"
        )


def faults(template: ArticulatedTemplate, skeleton: Skeleton) -> list[str]:
    """What training would suffer from, a line each: an open, inverted or asymmetric mesh and the like."""
    found = []
    if not template.is_closed():
        edges = template.border_edges()
        found.append(f"open: expected every edge between two faces; found {edges} edges that are not")
    elif template.volume() <= 0:
        found.append("inside out: expected faces anticlockwise seen from outside; found a negative volume")
    distance = template.symmetry_error()
    if distance > SYMMETRY_TOLERANCE:
        found.append(
            f"asymmetric: expected a mirror image within {SYMMETRY_TOLERANCE} of each vertex; found "
            f"{distance:.3f} (check up and front, or pose: bind)"
        )
    mirror = template.part_mirror
    if (mirror[mirror] != range(len(mirror))).any():
        found.append("parts: expected a mirror that undoes itself; found another")
    points, flip = template.vertices[template.keypoint_vertices], template.keypoint_flip
    for index, other in enumerate(flip):
        gap = abs(points[index] - points[other] * [-1, 1, 1]).max()
        if index <= other and gap > 2 * SYMMETRY_TOLERANCE:
            names = sorted({skeleton.keypoints[index], skeleton.keypoints[other]})
            found.append(
                f"keypoints {' and '.join(names)}: expected mirror images; found them {gap:.2f} apart"
            )
    left = [i for i, other in enumerate(flip) if i < other]
    wrong = [skeleton.keypoints[i] for i in left if points[i, 0] < points[flip[i], 0]]
    if left and len(wrong) == len(left):
        found.append("sides: expected the left keypoints at positive x; found them on the right")
    shared = len(points) - len(set(template.keypoint_vertices.tolist()))
    if shared:
        found.append(f"keypoints: expected a vertex each; found {shared} that share one")
    return found
