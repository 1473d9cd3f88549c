"""From a mesh with bones to an articulated template: parts, their tree, their mirror, the frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from acsm.template import ArticulatedTemplate, largest_distance
from acsm.template_keypoints import KeypointFinder
from acsm.template_mesh import FileMesh, edges_of
from acsm.template_settings import TemplateSettings
from wildshape.errors import UserError
from wildshape.skeleton import Skeleton

_MIRROR_LIKENESS = 0.5


@dataclass(frozen=True)
class LoadedTemplate:
    """A template with a sentence for each thing that was done to get it."""

    template: ArticulatedTemplate
    notes: tuple[str, ...] = ()


def assemble(mesh: FileMesh, settings: TemplateSettings, skeleton: Skeleton, origin: str) -> LoadedTemplate:
    """Bring a mesh into the template frame, its bones into parts, and place the keypoints.

    The root does not turn, as the camera turns the whole, nor do parts that carry no keypoint.

    Raises:
        UserError: bones or keypoints that the settings name are not there, or keypoints are missing.
    """
    if not len(mesh.faces) or not np.isfinite(mesh.vertices).all():
        raise UserError(f"{origin}: expected a surface; found faces or vertices that are none")
    tree = _attached(mesh)
    vertices, to_template = _placed(mesh, settings)
    mirrored = _nearest(vertices * [-1, 1, 1], vertices)
    if settings.parts is None:
        owner, notes = _merged(tree, mirrored, settings)
    else:
        owner, notes = _grouped(tree, settings.parts, origin)
    tops = sorted(set(owner), key=lambda bone: (_depth(tree.bone_parents, bone), bone))
    names, members, parents, centres = _parts(tree, owner, tops, settings.parts)
    membership = np.stack([tree.weights[:, own].sum(axis=1) for own in members], axis=1)
    membership[membership < 1e-4] = 0
    membership /= membership.sum(axis=1, keepdims=True)
    finder = KeypointFinder(tree, vertices, to_template, mirrored)
    keypoints, more = finder.find(skeleton, settings.keypoints, origin)
    try:
        template = ArticulatedTemplate(
            vertices=vertices,
            faces=mesh.faces,
            membership=membership,
            part_names=names,
            part_parents=parents,
            part_centres=to_template(centres),
            part_mirror=part_mirror(membership, mirrored),
            keypoint_vertices=keypoints,
            keypoint_flip=np.array(skeleton.flip),
        )
    except ValueError as error:
        raise UserError(f"{origin}: {error}") from None
    template = replace(template, active_parts=turning_parts(template))
    if template.volume() < 0 and template.is_closed():
        template = replace(template, faces=template.faces[:, ::-1])
        more = (*more, "faces turned to run anticlockwise seen from outside")
    return LoadedTemplate(template, (*tree.notes, *notes, *more))


def turning_parts(template: ArticulatedTemplate) -> np.ndarray:
    """bool [P]: parts that carry a keypoint, themselves or below them, and are no root."""
    carries = template.membership[template.keypoint_vertices].sum(axis=0) > 0
    for level in reversed(template.part_levels()):
        for part in level:
            parent = template.part_parents[part]
            if parent >= 0:
                carries[parent] |= carries[part]
    return carries & (np.array(template.part_parents) >= 0)


def part_mirror(membership: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    """int [P]: the part that moves the mirror image of what each part moves; itself, if none does.

    Args:
        membership: [V, P].
        mirrored: int [V], the vertex nearest to each vertex's mirror image.
    """
    other = membership[mirrored]
    scale = np.linalg.norm(membership, axis=0)[:, None] * np.linalg.norm(other, axis=0)
    likeness = (membership.T @ other) / np.maximum(scale, 1e-12)
    likeness = (likeness + likeness.T) / 2
    best = likeness.argmax(axis=1)
    own = np.arange(len(best))
    mutual = (best[best] == own) & (likeness[own, best] > _MIRROR_LIKENESS)
    return np.where(mutual, best, own)


def _nearest(points: np.ndarray, among: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    return cKDTree(among).query(points)[1]


def _placed(mesh: FileMesh, settings: TemplateSettings) -> tuple[np.ndarray, Any]:
    """Vertices in the template frame, and what takes points of the file there."""
    axes = settings.axes()
    turned = mesh.vertices @ axes.T
    middle = turned.mean(axis=0)
    diameter = largest_distance(turned)
    if diameter == 0:
        raise UserError("expected a mesh with vertices at more than one place")

    def to_template(points: np.ndarray) -> np.ndarray:
        return (points @ axes.T - middle) * (2 / diameter)

    return to_template(mesh.vertices), to_template


def _depth(parents: Sequence[int], bone: int) -> int:
    depth = 0
    while parents[bone] >= 0:
        bone, depth = parents[bone], depth + 1
    return depth


def _attached(mesh: FileMesh) -> FileMesh:
    """The bones that move vertices, in one tree: other roots hang on the bone they touch most."""
    share = mesh.weights.sum(axis=0)
    kept = np.flatnonzero(share > 1e-6 * len(mesh.vertices))
    place = {int(bone): i for i, bone in enumerate(kept)}
    parents = []
    for bone in kept:
        parent = mesh.bone_parents[bone]
        while parent >= 0 and parent not in place:
            parent = mesh.bone_parents[parent]
        parents.append(place[parent] if parent >= 0 else -1)
    weights = mesh.weights[:, kept] / mesh.weights[:, kept].sum(axis=1, keepdims=True)
    root_of = [_root(parents, bone) for bone in range(len(kept))]
    sizes = np.bincount(root_of, weights.sum(axis=0), minlength=len(kept))
    main = int(sizes.argmax())
    a, b = edges_of(mesh.faces).T
    touching = weights.T @ weights + weights[a].T @ weights[b] + weights[b].T @ weights[a]
    hung = []
    waiting = sorted((r for r in set(root_of) if r != main), key=lambda r: -sizes[r])
    while waiting:
        in_tree = [bone for bone in range(len(kept)) if _root(parents, bone) == main]
        best = max(waiting, key=lambda r: touching[np.ix_(_below(parents, r), in_tree)].max())
        links = touching[np.ix_(_below(parents, best), in_tree)].max(axis=0)
        parent = in_tree[int(links.argmax())]
        if links.max() <= 0:
            nearest = np.linalg.norm(mesh.heads[kept[in_tree]] - mesh.heads[kept[best]], axis=1)
            parent = in_tree[int(nearest.argmin())]
        parents[best] = parent
        waiting.remove(best)
        hung.append(f"{mesh.bones[kept[best]]} on {mesh.bones[kept[parent]]}")
    tree = replace(
        mesh,
        weights=weights,
        bones=tuple(mesh.bones[bone] for bone in kept),
        bone_parents=tuple(parents),
        heads=mesh.heads[kept],
        tips=mesh.tips[kept],
    )
    notes = []
    if len(kept) < len(mesh.bones):
        notes.append(f"{len(mesh.bones) - len(kept)} bones move no vertex")
    if hung:
        notes.append(f"bones with a root of their own hung on what they touch: {', '.join(hung)}")
    return tree.noted(*notes)


def _root(parents: Sequence[int], bone: int) -> int:
    while parents[bone] >= 0:
        bone = parents[bone]
    return bone


def _below(parents: Sequence[int], top: int) -> list[int]:
    found = []
    for bone in range(len(parents)):
        at = bone
        while at >= 0 and at != top:
            at = parents[at]
        if at == top:
            found.append(bone)
    return found


def _merged(
    mesh: FileMesh, mirrored: np.ndarray, settings: TemplateSettings
) -> tuple[list[int], tuple[str, ...]]:
    """For each bone the bone it is merged into, from the leaves upwards, sides alike."""
    count = len(mesh.bones)
    owner, parents = list(range(count)), list(mesh.bone_parents)
    share = mesh.weights.mean(axis=0)
    other = part_mirror(mesh.weights, mirrored)
    alive = set(range(count))

    def lightest(bones: list[int]) -> int | None:
        return min(bones, key=lambda b: (max(share[b], share[other[b]]), b), default=None)

    def merge(bone: int) -> None:
        into = parents[bone]
        alive.discard(bone)
        share[into] += share[bone]
        owner[:] = [into if top == bone else top for top in owner]
        parents[:] = [into if parent == bone else parent for parent in parents]

    def merge_small(bone: int) -> None:
        """A bone joins what it hangs on; a link of a chain takes the next one in, to keep its place."""
        children = [b for b in alive if parents[b] == bone]
        merge(children[0] if len(children) == 1 else bone)

    while True:
        below = Counter(parents[bone] for bone in alive)
        movable = [b for b in alive if parents[b] >= 0 or below[b] == 1]
        small = [b for b in movable if max(share[b], share[other[b]]) < settings.min_share]
        pick = lightest([b for b in small if not below[b]])
        if pick is None:
            pick = lightest(small)
        if pick is None and len(alive) > settings.most_parts:
            pick = lightest([b for b in movable if not below[b]])
        if pick is None:
            break
        pair = int(other[pick])
        alike = pair in alive and pair != pick and parents[pair] != pick != pair and parents[pick] != pair
        alike &= below[pair] == below[pick] and pair in movable
        merge_small(pick)
        if alike and pair in alive:
            merge_small(pair)
    notes = []
    members = [[mesh.bones[b] for b in range(count) if owner[b] == top] for top in sorted(alive)]
    said = [" + ".join(bones) for bones in members if len(bones) > 1]
    if said:
        notes.append(f"small bones merged: {', '.join(said)}")
    return owner, tuple(notes)


def _grouped(mesh: FileMesh, parts: Mapping[str, Any], origin: str) -> tuple[list[int], tuple[str, ...]]:
    """For each bone the top bone of its part; bones of no part go with the one above them."""
    part_of: dict[int, str] = {}
    for name, node in parts.items():
        patterns = node.get("bones", name) if isinstance(node, Mapping) else node
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            hits = [b for b, bone in enumerate(mesh.bones) if fnmatchcase(bone, str(pattern))]
            if not hits:
                raise UserError(
                    f"{origin}: part {name}: expected bones that move vertices; found none like {pattern} "
                    f"among {', '.join(mesh.bones[:60])}"
                )
            for bone in hits:
                if part_of.setdefault(bone, name) != name:
                    raise UserError(
                        f"{origin}: expected each bone in one part; found {mesh.bones[bone]} in "
                        f"{part_of[bone]} and {name}"
                    )
    first, loose = next(iter(parts)), []
    for bone in sorted(range(len(mesh.bones)), key=lambda b: _depth(mesh.bone_parents, b)):
        if bone not in part_of:
            parent = mesh.bone_parents[bone]
            part_of[bone] = part_of[parent] if parent >= 0 else first
            loose.append(f"{mesh.bones[bone]} into {part_of[bone]}")
    share = mesh.weights.sum(axis=0)
    tops = {}
    for name in parts:
        own = [bone for bone, part in part_of.items() if part == name]
        roots = [b for b in own if part_of.get(mesh.bone_parents[b]) != name]
        tops[name] = max(
            roots, key=lambda b: (-_depth(mesh.bone_parents, b), share[_below(mesh.bone_parents, b)].sum())
        )
    notes = (f"bones that parts: does not name go with those above: {', '.join(loose)}",) if loose else ()
    return [tops[part_of[bone]] for bone in range(len(mesh.bones))], notes


def _parts(
    mesh: FileMesh, owner: list[int], tops: list[int], given: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], list[list[int]], tuple[int, ...], np.ndarray]:
    """Names, bones, parents and centres (file axes) of the parts, by their top bones."""
    members = [[b for b in range(len(owner)) if owner[b] == top] for top in tops]
    parents = [
        tops.index(owner[mesh.bone_parents[top]]) if mesh.bone_parents[top] >= 0 else -1 for top in tops
    ]
    heaviest = [max(own, key=lambda b: mesh.weights[:, b].sum()) for own in members]
    names = [mesh.bones[bone] for bone in heaviest]
    centres = mesh.heads[tops].copy()
    for name, node in (given or {}).items():
        patterns = node.get("bones", name) if isinstance(node, Mapping) else node
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        for part, own in enumerate(members):
            if any(fnmatchcase(mesh.bones[b], str(p)) for b in own for p in patterns):
                names[part] = str(name)
    for name, node in (given or {}).items():
        if not isinstance(node, Mapping):
            continue
        part = names.index(str(name))
        if node.get("parent") is not None:
            if node["parent"] not in names:
                raise UserError(f"part {name}: expected parent among {names}; found {node['parent']}")
            parents[part] = names.index(node["parent"])
        if node.get("centre") is not None:
            centres[part] = np.array(node["centre"], float)
    return tuple(names), members, tuple(parents), centres
