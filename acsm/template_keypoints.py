"""Which vertex of a mesh stands for which keypoint: from settings, and from the names of bones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from acsm.template_mesh import FileMesh
from wildshape.errors import UserError
from wildshape.skeleton import Skeleton, load_skeleton

UP, DOWN, AHEAD = np.array([0, 0, 1.0]), np.array([0, 0, -1.0]), np.array([0, -1.0, 0])
_CONE = 0.8
_MIDLINE = 0.02
_SAME_PLACE = 0.05
_SIDES = {"l": "left", "left": "left", "r": "right", "right": "right"}
_FRONT, _BACK = r"(?:front|fore|f)", r"(?:back|hind|rear|b)"

# quadruped20's keypoint without its side: patterns of bones, the end of the bone, where from it to look.
# Of several patterns the first that matches counts, and of several bones the first in the file.
_RULES: Mapping[str, tuple[tuple[str, str, np.ndarray | None], ...]] = {
    "eye": (("eye(?:ball)?", "head", None),),
    "ear": (("ear(?:base)?0*1?", "head", None),),
    "nose": (("nose|muzzle|snout", "tip", AHEAD), ("head|skull", "tip", AHEAD)),
    "throat": (("throat", "head", DOWN), ("head|skull", "head", DOWN)),
    "withers": (("withers", "head", UP), ("neck(?:base)?0*1?", "head", UP)),
    "tailbase": (("tail(?:base)?0*1?", "head", None),),
    "front_elbow": ((f"{_FRONT}(?:elbow|upperleg|thigh|leg)|upperarm|humerus", "head", None),),
    "back_elbow": ((f"{_BACK}(?:elbow|leg|thigh|upperleg)|thigh|femur|upperleg", "head", None),),
    "front_knee": ((f"{_FRONT}(?:knee|lowerleg|shin)|forearm|radius", "head", None),),
    "back_knee": ((f"{_BACK}(?:knee|lowerleg|shin)|shin|calf|tibia|lowerleg", "head", None),),
    "front_paw": (
        (f"{_FRONT}(?:foot|paw|hoof|f)|hand|ff", "head", DOWN),
        (f"{_FRONT}(?:lowerleg|leg|shin)|forearm", "tip", DOWN),
    ),
    "back_paw": (
        (f"{_BACK}(?:foot|paw|hoof)|foot|ffb", "head", DOWN),
        (f"{_BACK}(?:lowerleg|leg|shin)|shin|calf|lowerleg", "tip", DOWN),
    ),
}


def name_and_side(bone: str) -> tuple[str, str]:
    """A bone's name without separators and side, and `left`, `right` or nothing.

    Understands `FrontLeg.L`, `leg_front_R`, `L_ear`, `LeftEar` and the like; a prefix up to `:` or `|` is
    dropped.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", re.split(r"[:|]", bone)[-1])
    words = [word.lower() for word in words]
    side = ""
    for word in (*words[-1:], *words[:1], *words):
        if word in _SIDES:
            side = _SIDES[word]
            words.remove(word)
            break
    return "".join(words), side


class KeypointFinder:
    """Finds keypoints on one mesh.

    Args:
        mesh: the mesh of the file, in its own axes.
        vertices: the same vertices [V, 3] in the template frame.
        to_template: takes points [N, 3] of the file to the template frame.
        mirrored: int [V], the vertex nearest to each vertex's mirror image.
    """

    def __init__(
        self, mesh: FileMesh, vertices: np.ndarray, to_template: Any, mirrored: np.ndarray
    ) -> None:
        self.mesh, self.vertices, self.mirrored = mesh, vertices, mirrored
        self.heads, self.tips = to_template(mesh.heads), to_template(mesh.tips)
        self._to_template = to_template
        self._midline = np.abs(vertices[:, 0]) <= _MIDLINE
        self._named = [name_and_side(bone) for bone in mesh.bones]

    def find(
        self, skeleton: Skeleton, given: Mapping[str, Any], origin: str
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """A vertex for each keypoint.

        Keypoints are taken from `given`; then from the other side of those given; then from the names of
        bones; then from the other side of these, which goes before a bone of that side where the mesh is
        symmetric.

        Returns:
            int64 [K], and a note for each way that was taken.

        Raises:
            UserError: a keypoint that is unknown or not found.
        """
        found = np.full(skeleton.num_keypoints, -1, np.int64)
        for name, value in given.items():
            index = skeleton.find(str(name))
            if index is None:
                raise UserError(
                    f"{origin}: expected keypoints of {skeleton.name}; found {name}; "
                    f"there are: {', '.join(skeleton.keypoints)}"
                )
            found[index] = self._from_settings(str(name), value, origin)
        notes = self._from_other_side(found, skeleton)
        by_bone = []
        for index in np.flatnonzero(found < 0):
            other = skeleton.flip[index]
            if other < index and found[other] >= 0 and self._has_mirror_image(found[other]):
                continue  # two bones seldom choose vertices that are each other's mirror image
            vertex, bone = self._from_bones(skeleton, int(index))
            if vertex is not None:
                found[index] = vertex
                by_bone.append(f"{skeleton.keypoints[index]} at {bone}")
        if by_bone:
            notes.append(f"keypoints by bones: {', '.join(by_bone)}")
        notes += self._from_other_side(found, skeleton)
        missing = [skeleton.keypoints[index] for index in np.flatnonzero(found < 0)]
        if missing:
            raise UserError(
                f"{origin}: expected a vertex for each keypoint of {skeleton.name}; found none for "
                f"{', '.join(missing)}; give them under keypoints: (bones: "
                f"{', '.join(self.mesh.bones[:60])}; "
                f"groups: {', '.join(self.mesh.groups) or 'none'})"
            )
        return found, tuple(notes)

    def _has_mirror_image(self, vertex: int) -> bool:
        gap = self.vertices[self.mirrored[vertex]] * [-1, 1, 1] - self.vertices[vertex]
        return float(np.linalg.norm(gap)) <= _SAME_PLACE

    def _from_other_side(self, found: np.ndarray, skeleton: Skeleton) -> list[str]:
        names = []
        for index in np.flatnonzero(found < 0):
            other = found[skeleton.flip[index]]
            if other >= 0:
                found[index] = self.mirrored[other]
                names.append(skeleton.keypoints[index])
        return [f"keypoints mirrored from the other side: {', '.join(names)}"] if names else []

    def _from_settings(self, name: str, value: Any, origin: str) -> int:
        def wrong(expected: str, found: object) -> UserError:
            return UserError(f"{origin}: keypoint {name}: expected {expected}; found {found}")

        node = {"vertex": value} if isinstance(value, int) else value
        node = {"bone": value} if isinstance(value, str) else node
        kinds = ("vertex", "bone", "position", "group")
        if not isinstance(node, dict) or len(set(node) & set(kinds)) != 1:
            raise wrong(f"a vertex, a bone, or one of {', '.join(kinds)}", value)
        if "vertex" in node:
            vertex = node["vertex"]
            if not isinstance(vertex, int) or not 0 <= vertex < len(self.vertices):
                raise wrong(f"a vertex from 0 to {len(self.vertices) - 1}", vertex)
            return vertex
        if "bone" in node:
            if node["bone"] not in self.mesh.bones:
                raise wrong(f"a bone among {', '.join(self.mesh.bones[:60])}", node["bone"])
            ends = {"head": self.heads, "tip": self.tips}
            if node.get("at", "head") not in ends:
                raise wrong("at: head or tip", node["at"])
            place = ends[node.get("at", "head")][self.mesh.bones.index(node["bone"])]
            if not np.isfinite(place).all():
                raise wrong(f"at: head, as the file does not say where {node['bone']} ends", "at: tip")
            return self._nearest(place, None)
        if "position" in node:
            try:
                position = np.array(node["position"], float).reshape(3)
            except (TypeError, ValueError):
                raise wrong("position: [x, y, z] in the file's coordinates", node["position"]) from None
            return self._nearest(self._to_template(position[None])[0], None)
        inside = self.mesh.groups.get(str(node["group"]))
        if inside is None:
            raise wrong(f"a group among {', '.join(self.mesh.groups) or 'none'}", node["group"])
        side = {"left": 1, "right": -1}.get(str(node.get("side", "")), 0)
        inside = inside & (side * self.vertices[:, 0] > 0 if side else True)
        if not inside.any():
            raise wrong(f"vertices of {node['group']} on that side", "none")
        offsets = self.vertices - self.vertices[inside].mean(axis=0)
        return int(np.where(inside, np.linalg.norm(offsets, axis=1), np.inf).argmin())

    def _from_bones(self, skeleton: Skeleton, index: int) -> tuple[int | None, str]:
        name = skeleton.keypoints[index]
        for bone, own in enumerate(self.mesh.bones):
            if skeleton.find(own) == index:
                return self._nearest(self.heads[bone], None, skeleton.flip[index] == index), own
        canonical = load_skeleton("quadruped20").find(name)
        if canonical is None:
            return None, ""
        base = load_skeleton("quadruped20").keypoints[canonical]
        side = base.split("_")[0] if base.startswith(("left_", "right_")) else ""
        for pattern, end, direction in _RULES[base.removeprefix(f"{side}_")]:
            for bone, (own, own_side) in enumerate(self._named):
                if own_side == side and re.fullmatch(pattern, own):
                    middle = skeleton.flip[index] == index
                    return self._end(bone, end, direction, middle), self.mesh.bones[bone]
        return None, ""

    def _end(self, bone: int, end: str, direction: np.ndarray | None, middle: bool) -> int:
        place = (self.heads if end == "head" else self.tips)[bone]
        if np.isfinite(place).all():
            return self._nearest(place, direction, middle)
        # The file does not say where the bone ends: what it moves ends in this direction.
        own = self.mesh.weights[:, bone]
        own = own >= min(0.5, own.max())
        if middle and (own & self._midline).any():
            own &= self._midline
        return int(
            np.where(own, self.vertices @ (DOWN if direction is None else direction), -np.inf).argmax()
        )

    def _nearest(self, place: np.ndarray, direction: np.ndarray | None, middle: bool = False) -> int:
        """The vertex nearest to a point, if possible within a cone about a direction, or on the middle."""
        offsets = self.vertices - place
        distance = np.linalg.norm(offsets, axis=1)
        if middle and self._midline.any():
            distance = np.where(self._midline, distance, np.inf)
        if direction is not None:
            inside = offsets @ direction >= _CONE * np.linalg.norm(offsets, axis=1)
            if (inside & np.isfinite(distance)).any():
                distance = np.where(inside, distance, np.inf)
        return int(distance.argmin())
