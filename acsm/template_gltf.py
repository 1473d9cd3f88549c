"""Rigged glTF 2.0 and GLB files: the skinned mesh in its rest pose, bones, weights and materials.

glTF is a JSON text beside arrays. Libraries that read it leave skins out or leave arrays packed, so the
few tables that a rig needs are read here. Formulas: glTF 2.0 specification, sections 3.6 and 3.7.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from acsm.template_mesh import FileMesh
from wildshape.errors import UserError

_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_NEAR_AXES_DEG = 20.0
_JSON, _BIN = 0x4E4F534A, 0x004E4942
_PLAIN = {"KHR_mesh_quantization", "KHR_materials_unlit", "KHR_texture_transform", "KHR_materials_specular"}


class _Document:
    """The JSON of a file with its buffers."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.path, self.blob = path, b""
        text = self._chunks(data) if data[:4] == b"glTF" else data
        self.json: dict[str, Any] = json.loads(text.decode("utf-8"))
        if not isinstance(self.json, dict) or not str(self.json["asset"]["version"]).startswith("2."):
            raise ValueError("another version of glTF than 2")
        needed = sorted(set(self.json.get("extensionsRequired", [])) - _PLAIN)
        if needed:
            raise ValueError(f"{', '.join(needed)}, which is not read (export without compression)")
        self.buffers = [self._buffer(node) for node in self.json.get("buffers", [])]

    def _chunks(self, data: bytes) -> bytes:
        if len(data) < 20 or struct.unpack_from("<I", data, 8)[0] > len(data):
            raise ValueError("a file that breaks off")
        at, text = 12, b""
        while at + 8 <= len(data):
            length, kind = struct.unpack_from("<II", data, at)
            chunk = data[at + 8 : at + 8 + length]
            if kind == _JSON:
                text = chunk
            elif kind == _BIN:
                self.blob = chunk
            at += 8 + length
        return text

    def _buffer(self, node: dict[str, Any]) -> bytes:
        uri = node.get("uri")
        if uri is None:
            data = self.blob
        elif uri.startswith("data:"):
            data = base64.b64decode(uri.split(",", 1)[1])
        else:
            beside = self.path.parent / unquote(uri)
            if not beside.is_file():
                raise ValueError(f"no file {unquote(uri)} beside it, which it refers to")
            data = beside.read_bytes()
        if len(data) < node["byteLength"]:
            raise ValueError("a buffer that breaks off")
        return data

    def nodes(self, kind: str) -> list[dict[str, Any]]:
        return self.json.get(kind, [])

    def _packed(self, view: int, offset: int, kind: str, shape: tuple[int, int]) -> np.ndarray:
        node = self.json["bufferViews"][view]
        dtype, (count, width) = np.dtype(kind), shape
        stride = node.get("byteStride", width * dtype.itemsize)
        start = node.get("byteOffset", 0) + offset
        end = start + (count - 1) * stride + width * dtype.itemsize
        buffer = self.buffers[node["buffer"]]
        if count < 1 or start < 0 or end > len(buffer):
            raise ValueError("an array that leaves its buffer")
        strides = (stride, dtype.itemsize)
        return np.ndarray((count, width), dtype, buffer, start, strides).copy()

    def array(self, index: int) -> np.ndarray:
        """An accessor as [count, width]; normalised integers become float64."""
        node = self.json["accessors"][index]
        kind, shape = _TYPES[node["componentType"]], (node["count"], _WIDTHS[node["type"]])
        if "bufferView" in node:
            values = self._packed(node["bufferView"], node.get("byteOffset", 0), kind, shape)
        else:
            values = np.zeros(shape, kind)
        if "sparse" in node:
            sparse = node["sparse"]
            where, what, count = sparse["indices"], sparse["values"], sparse["count"]
            at = self._packed(
                where["bufferView"], where.get("byteOffset", 0), _TYPES[where["componentType"]], (count, 1)
            )
            values[at[:, 0]] = self._packed(
                what["bufferView"], what.get("byteOffset", 0), kind, (count, shape[1])
            )
        if node.get("normalized") and values.dtype.kind in "iu":
            return np.maximum(values / np.iinfo(values.dtype).max, -1.0)
        return values


def _local(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], float).reshape(4, 4).T
    from scipy.spatial.transform import Rotation

    matrix = np.eye(4)
    turn = Rotation.from_quat(node.get("rotation", (0, 0, 0, 1))).as_matrix()
    matrix[:3, :3] = turn * np.array(node.get("scale", (1, 1, 1)), float)
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def _apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _as_a_whole(matrices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One similarity [4, 4] for those of all bones [J, 4, 4]: their mean, with axes on axes where near.

    Exporters turn axes and scale units in the nodes above the bones; a bone's own turn, in a file whose
    nodes hold a frame of an animation, is not to tilt the mesh.
    """
    from scipy.spatial.transform import Rotation

    mean = np.einsum("j,jab->ab", weights / weights.sum(), matrices)
    u, stretch, v = np.linalg.svd(mean[:3, :3])
    turn = u @ v
    if np.linalg.det(turn) < 0:
        raise ValueError("bones that mirror the mesh")
    axes = Rotation.create_group("O").as_matrix()
    nearest = axes[np.einsum("nab,ab->n", axes, turn).argmax()].round()
    if Rotation.from_matrix(turn @ nearest.T).magnitude() < np.radians(_NEAR_AXES_DEG):
        turn = nearest
    whole = np.eye(4)
    whole[:3, :3] = turn * stretch.mean()
    whole[:3, 3] = mean[:3, 3]
    return whole


@dataclass
class _Scene:
    """The nodes of the shown scene: global matrices [4, 4] and parents, by node."""

    world: dict[int, np.ndarray]
    parent: dict[int, int]

    def ancestors(self, node: int) -> list[int]:
        """The node's parent, its parent, and so on."""
        found = []
        while self.parent.get(node, -1) >= 0:
            node = self.parent[node]
            found.append(node)
        return found


def _scene(document: _Document) -> _Scene:
    nodes = document.nodes("nodes")
    scenes = document.nodes("scenes")
    children = {child for node in nodes for child in node.get("children", [])}
    roots = [i for i in range(len(nodes)) if i not in children]
    if scenes:
        roots = scenes[document.json.get("scene", 0)].get("nodes", [])
    scene = _Scene({}, {})
    waiting = [(root, -1, np.eye(4)) for root in roots]
    while waiting:
        node, parent, above = waiting.pop()
        if node in scene.world:
            raise ValueError(f"node {node} below two others")
        scene.world[node], scene.parent[node] = above @ _local(nodes[node]), parent
        waiting += [(child, node, scene.world[node]) for child in nodes[node].get("children", [])]
    return scene


def read_gltf(path: Path, pose: str = "rest") -> FileMesh:
    """Read all meshes of the shown scene, skinned as in the given pose.

    Args:
        path: a `.glb` or `.gltf` file.
        pose: `rest`: by linear blend skinning with the nodes' own transforms, as a viewer shows it; `bind`:
            as the mesh was bound to its bones, for files whose nodes hold a frame of an animation.

    Returns:
        The mesh in the file's axes; without skins one bone, `body`. Meshes that hang on a bone move
        with it; others beside a skinned mesh are left out, and noted.

    Raises:
        UserError: the file is none of this format, breaks off, or has no triangles.
    """
    try:
        return _read(_Document(path), pose)
    except (
        ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error, binascii.Error,
        np.linalg.LinAlgError,
    ) as error:  # fmt: skip
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: expected glTF 2.0 (.glb or .gltf); found {line}") from None


def _read(document: _Document, pose: str) -> FileMesh:
    scene, nodes = _scene(document), document.nodes("nodes")
    skins = document.nodes("skins")
    shown = [i for i in scene.world if "mesh" in nodes[i]]
    skinned = [i for i in shown if "skin" in nodes[i]]
    joints = list(dict.fromkeys(j for i in skinned for j in skins[nodes[i]["skin"]]["joints"]))
    missing = [j for j in joints if j not in scene.world]
    if missing:
        raise ValueError(f"bones that are not in the scene: nodes {missing}")
    columns = {joint: column for column, joint in enumerate(joints)}
    collected = _Collected(document, scene, columns)
    left_out = []
    for node in shown:
        holders = [j for j in scene.ancestors(node) if j in columns]
        if "skin" in nodes[node]:
            collected.add_skinned(node, pose)
        elif holders or not joints:
            collected.add_rigid(node, columns[holders[0]] if holders else 0)
        else:
            left_out.append(str(nodes[node].get("name", node)))
    if not collected.faces:
        raise ValueError("no triangles")
    if left_out:
        collected.notes.append(f"meshes on no bone left out: {', '.join(left_out)}")
    if not joints:
        collected.notes.append("no skin: one part, unless parts are given")
    return collected.mesh(joints)


class _Collected:
    """Vertices, faces, weights and groups of the meshes added so far."""

    def __init__(self, document: _Document, scene: _Scene, columns: dict[int, int]) -> None:
        self.document, self.scene, self.columns = document, scene, columns
        self.vertices: list[np.ndarray] = []
        self.faces: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.names: list[tuple[str, ...]] = []
        self.notes: list[str] = []
        self.count = 0
        self.heads = {joint: scene.world[joint][:3, 3] for joint in columns}
        self.moved: dict[int, np.ndarray] = {}

    def add_skinned(self, node: int, pose: str) -> None:
        skin = self.document.nodes("skins")[self.document.nodes("nodes")[node]["skin"]]
        joints = skin["joints"]
        inverse = np.tile(np.eye(4), (len(joints), 1, 1))
        if "inverseBindMatrices" in skin:
            packed = self.document.array(skin["inverseBindMatrices"]).astype(float)
            inverse = packed[: len(joints)].reshape(-1, 4, 4).transpose(0, 2, 1)
        if len(inverse) != len(joints):
            raise ValueError(f"{len(inverse)} inverse bind matrices for {len(joints)} bones")
        world = np.stack([self.scene.world[j] for j in joints])
        for points, faces, attributes, names in self._primitives(node):
            local = self._skin_weights(attributes, len(points), len(joints))
            matrices = world @ inverse
            if pose == "bind":
                whole = _as_a_whole(matrices, local.sum(axis=0))
                matrices = np.broadcast_to(whole, matrices.shape)
                bound = whole @ np.linalg.inv(inverse)
                self.heads.update(zip(joints, bound[:, :3, 3]))
                self.moved.update(zip(joints, bound @ np.linalg.inv(world)))
            # Linear blend skinning; the mesh node's own transform does not count.
            blended = np.einsum("vj,jab->vab", local, matrices)
            posed = np.einsum("vab,vb->va", blended[:, :3, :3], points) + blended[:, :3, 3]
            weights = np.zeros((len(points), len(self.columns)))
            for column, joint in enumerate(joints):  # a skin may name a bone twice
                weights[:, self.columns[joint]] += local[:, column]
            self._append(posed, faces, weights, names)

    def add_rigid(self, node: int, column: int) -> None:
        world = self.scene.world[node]
        # glTF 2.0, 3.7.4: a mirroring transform reverses the winding.
        mirrored = np.linalg.det(world[:3, :3]) < 0
        for points, faces, _, names in self._primitives(node):
            weights = np.zeros((len(points), max(len(self.columns), 1)))
            weights[:, column] = 1
            self._append(_apply(world, points), faces[:, ::-1] if mirrored else faces, weights, names)

    def _append(
        self, points: np.ndarray, faces: np.ndarray, weights: np.ndarray, names: tuple[str, ...]
    ) -> None:
        if not (np.isfinite(points).all() and np.isfinite(weights).all()):
            raise ValueError("positions or weights that are no numbers")
        self.vertices.append(points)
        self.faces.append(faces + self.count)
        self.weights.append(weights)
        self.names.append(names)
        self.count += len(points)

    def _skin_weights(self, attributes: dict[str, int], count: int, bones: int) -> np.ndarray:
        weights = np.zeros((count, bones))
        rows = np.arange(count)[:, None]
        for number in range(4):
            if f"JOINTS_{number}" in attributes:
                index = self.document.array(attributes[f"JOINTS_{number}"])
                share = self.document.array(attributes[f"WEIGHTS_{number}"]).astype(float)
                if not np.isfinite(share).all() or (share < 0).any():
                    raise ValueError("weights that are no shares")
                if (index[share > 0] >= bones).any():
                    raise ValueError(f"a vertex on bone {index.max()} of {bones}")
                np.add.at(weights, (rows, np.where(share > 0, index, 0)), share)
        total = weights.sum(axis=1, keepdims=True)
        unmoved = total[:, 0] <= 0
        if unmoved.any():
            weights[unmoved] = np.eye(bones)[0]
            self.notes.append(f"{int(unmoved.sum())} vertices that no bone moves put on the first bone")
        return weights / np.where(unmoved[:, None], 1, total)

    def _primitives(
        self, node: int
    ) -> list[tuple[np.ndarray, np.ndarray, dict[str, int], tuple[str, ...]]]:
        document = self.document
        mesh = document.json["meshes"][document.nodes("nodes")[node]["mesh"]]
        found, other = [], 0
        for primitive in mesh["primitives"]:
            mode, attributes = primitive.get("mode", 4), primitive["attributes"]
            if mode not in (4, 5, 6):
                other += 1
                continue
            points = document.array(attributes["POSITION"]).astype(float)
            index = np.arange(len(points))
            if "indices" in primitive:
                index = document.array(primitive["indices"])[:, 0]
                if index.dtype.kind != "u":
                    raise ValueError("indices that are no whole numbers")
                index = index.astype(np.int64)
            if len(index) < 3 or index.max() >= len(points) or not np.isfinite(points).all():
                raise ValueError("triangles that do not fit their vertices")
            names = [str(mesh.get("name", ""))]
            if "material" in primitive:
                names.append(str(document.json["materials"][primitive["material"]].get("name", "")))
            found.append((points, _triangles(index, mode), attributes, tuple(filter(None, names))))
        if other:
            self.notes.append(f"{other} sets of points or lines left out")
        return found

    def mesh(self, joints: list[int]) -> FileMesh:
        """All of it."""
        nodes, scene = self.document.nodes("nodes"), self.scene
        parents, tips = [], []
        for joint in joints:
            above = [j for j in scene.ancestors(joint) if j in self.columns]
            parents.append(self.columns[above[0]] if above else -1)
            below = nodes[joint].get("children", [])
            ends = [child for child in below if child not in self.columns] or below
            tip = scene.world[ends[0]][:3, 3] if len(ends) == 1 else np.full(3, np.nan)
            tips.append(_apply(self.moved.get(joint, np.eye(4)), tip))
        groups: dict[str, np.ndarray] = {}
        at = 0
        for points, names in zip(self.vertices, self.names):
            for name in names:
                inside = groups.setdefault(name, np.zeros(self.count, bool))
                inside[at : at + len(points)] = True
            at += len(points)
        vertices = np.concatenate(self.vertices)
        heads = [self.heads[j] for j in joints] or [vertices.mean(axis=0)]
        return FileMesh(
            vertices=vertices,
            faces=np.concatenate(self.faces),
            weights=np.concatenate(self.weights),
            bones=tuple(str(nodes[j].get("name", f"bone{j}")) for j in joints) or ("body",),
            bone_parents=tuple(parents) or (-1,),
            heads=np.array(heads),
            tips=np.array(tips or [np.full(3, np.nan)]),
            groups=groups,
            notes=tuple(self.notes),
        )


def _triangles(index: np.ndarray, mode: int) -> np.ndarray:
    if mode == 4:
        return index[: len(index) // 3 * 3].reshape(-1, 3)
    count = len(index) - 2
    if mode == 6:
        return np.stack([np.repeat(index[0], count), index[1:-1], index[2:]], axis=1)
    faces = np.stack([index[:-2], index[1:-1], index[2:]], axis=1)
    faces[1::2] = faces[1::2, [1, 0, 2]]
    return faces
