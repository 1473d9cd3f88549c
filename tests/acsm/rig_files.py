"""Small template files written by hand: a rigged tube as GLB or glTF, as OBJ, and as a released folder."""

import base64
import json
import pickle
import struct

import numpy as np
from scipy.io import savemat
from scipy.spatial.transform import Rotation

# A tube along +z, y up, five rings of four corners: left front, right front, right bottom, left bottom.
RINGS = np.array([-2.0, -1, 0, 1, 2])
CORNERS = np.array([(0.5, 0.4), (-0.5, 0.4), (-0.5, -0.4), (0.5, -0.4)])
VERTICES = np.array([(x, y, z) for z in RINGS for x, y in CORNERS])
BONES = ("Hips", "Head", "Wing.L", "Wing.R", "IKTail")
PARENTS = (-1, 0, 0, 0, -1)
HEADS = np.array([(0, 0, -1.0), (0, 0, 1), (0.3, 0, 0), (-0.3, 0, 0), (0, 0, -2)])
FRAME = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])  # x left, y = -z of the file, z = y of the file
HEAD_END = np.array([0, 0, 2.0])
SKELETON = """\
name: tube
keypoints: [nose, tail, left_wing, right_wing]
pairs: [[left_wing, right_wing]]
aliases: {IKTail: tail, Wing.L: left_wing, Wing.R: right_wing}
"""
KEYPOINTS = {"nose": {"bone": "Head", "at": "tip"}}


def size():
    """The largest distance between two vertices of the tube."""
    return np.linalg.norm([1, 0.8, 4])


def faces(open_end=False):
    found = []
    for ring in range(len(RINGS) - 1):
        for k in range(4):
            a, b = 4 * ring + k, 4 * ring + (k + 1) % 4
            found += [(a, b, b + 4), (a, b + 4, a + 4)]
    last = 4 * (len(RINGS) - 1)
    if not open_end:
        found += [(2, 1, 0), (3, 2, 0)]
    return np.array([*found, (last, last + 1, last + 2), (last, last + 2, last + 3)])


def weights():
    """[20, 5] over BONES."""
    found = np.zeros((20, 5))
    found[0:4, [0, 4]] = 0.2, 0.8
    found[4:8, 0] = 1
    found[8:12, 0] = 0.5
    found[[8, 11], 2] = 0.5
    found[[9, 10], 3] = 0.5
    found[12:16, [0, 1]] = 0.5
    found[16:20, 1] = 1
    return found


def matrix(turn, translation):
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = turn, translation
    return found


ABOVE = matrix(Rotation.from_euler("x", -90, degrees=True).as_matrix() * 100, (0, 0, 0))
REST = [
    matrix(Rotation.from_euler("xyz", (30 * i, 20, 70 + 10 * i), degrees=True).as_matrix(), head)
    for i, head in enumerate(HEADS)
]


def gltf(turns=None, open_end=False, split=True, skin=True):
    """The file as a dictionary and its buffer.

    Args:
        turns: bone name to a rotation vector in the file's axes, by which its node is turned.
        open_end: leave one end open.
        split: repeat vertices for each face, as exporters do.
        skin: with bones.
    """
    world = [m.copy() for m in REST]
    for name, vector in (turns or {}).items():
        top = BONES.index(name)
        about = matrix(np.eye(3), world[top][:3, 3])
        turn = about @ matrix(Rotation.from_rotvec(vector).as_matrix(), (0, 0, 0)) @ np.linalg.inv(about)
        for bone in range(len(BONES)):
            if bone == top or PARENTS[bone] == top:
                world[bone] = turn @ world[bone]
    index = faces(open_end)
    rows = index.ravel() if split else np.arange(20)
    index = np.arange(len(rows)) if split else index.ravel()
    raw = np.linalg.inv(ABOVE)
    positions = VERTICES[rows] @ raw[:3, :3].T + raw[:3, 3]
    order = np.argsort(-weights(), axis=1, kind="stable")[:, :4]
    shares = np.take_along_axis(weights(), order, axis=1)[rows]
    inverse = np.stack([np.linalg.inv(rest) @ ABOVE for rest in REST])
    arrays = [
        (positions.astype("<f4"), 5126, "VEC3", {}),
        (index.astype("<u2"), 5123, "SCALAR", {}),
        (order[rows].astype("u1"), 5121, "VEC4", {}),
        ((shares * 255).round().astype("u1"), 5121, "VEC4", {"normalized": True}),
        (inverse.transpose(0, 2, 1).astype("<f4"), 5126, "MAT4", {}),
    ]
    blob, views, accessors = b"", [], []
    for values, kind, shape, more in arrays:
        blob += b"\0" * (-len(blob) % 4)
        data = values.tobytes()
        accessors.append(
            {"bufferView": len(views), "componentType": kind, "type": shape, "count": len(values), **more}
        )
        views.append({"buffer": 0, "byteOffset": len(blob), "byteLength": len(data)})
        blob += data
    nodes = [{"name": "Armature", "matrix": ABOVE.T.ravel().tolist(), "children": [1, 5]}]
    for bone, name in enumerate(BONES):
        above = ABOVE if PARENTS[bone] < 0 else world[PARENTS[bone]]
        local = np.linalg.inv(above) @ world[bone]
        nodes.append({"name": name, "matrix": local.T.ravel().tolist(), "children": []})
    nodes[1]["children"] = [2, 3, 4]
    end = np.linalg.inv(world[1]) @ np.append(HEAD_END, 1) if not turns else np.array([0, 0, 0, 1.0])
    nodes[2]["children"] = [7]
    nodes.append({"name": "tube", "mesh": 0, "translation": [5, 5, 5], **({"skin": 0} if skin else {})})
    nodes.append({"name": "Head_end", "translation": end[:3].tolist()})
    attributes = {"POSITION": 0, "JOINTS_0": 2, "WEIGHTS_0": 3} if skin else {"POSITION": 0}
    document = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0, 6]}],
        "nodes": nodes,
        "meshes": [
            {"name": "Tube", "primitives": [{"attributes": attributes, "indices": 1, "material": 0}]}
        ],
        "materials": [{"name": "Fur"}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(blob)}],
    }
    # The hanging bone IKTail is node 5, below the armature.
    if skin:
        document["skins"] = [{"joints": [1, 2, 3, 4, 5], "inverseBindMatrices": 4}]
    return document, blob


def write_glb(path, document, blob):
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    blob += b"\0" * (-len(blob) % 4)
    total = 12 + 8 + len(text) + 8 + len(blob)
    data = struct.pack("<4sII", b"glTF", 2, total) + struct.pack("<I4s", len(text), b"JSON") + text
    path.write_bytes(data + struct.pack("<I4s", len(blob), b"BIN\0") + blob)
    return path


def write_gltf(path, document, blob):
    uri = "data:application/octet-stream;base64," + base64.b64encode(blob).decode()
    path.write_text(json.dumps({**document, "buffers": [{"byteLength": len(blob), "uri": uri}]}))
    return path


def write_obj(path, open_end=False, shift=0.0):
    """The tube in quads and triangles, with groups by ring; x of the first vertex shifted."""
    moved = VERTICES.copy()
    moved[0, 0] += shift
    lines = [f"v {x} {y} {z}" for x, y, z in moved]
    for ring in range(len(RINGS) - 1):
        lines.append(f"g {'rear' if ring < 2 else 'front'}")
        for k in range(4):
            a, b = 4 * ring + k + 1, 4 * ring + (k + 1) % 4 + 1
            lines.append(f"f {a}//1 {b}//1 {b + 4}//1 {a + 4}//1")
    lines += ["g front", "usemtl Muzzle", "f -4 -3 -2 -1"]
    lines += [] if open_end else ["g rear", "usemtl Fur", "f 4 3 2 1"]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_cachedir(folder, name="tube"):
    """A released folder of the tube in the template frame's axes, with its files above it."""
    target = folder / name
    target.mkdir(parents=True)
    points = VERTICES[:, [0, 2, 1]] * [1, -1, 1] + [3, 0, 0]
    savemat(target / "mean_shape.mat", {"verts": points, "faces": faces()})
    nodes = [
        {"id": 0, "name": "body", "is_main": True, "children": [1, 2, 3], "rc": np.array([9.0, 9, 9])},
        {"id": 1, "name": "head", "is_main": False, "children": [], "rc": np.array([3.0, -1, 0])},
        {"id": 2, "name": "l_wing", "is_main": False, "children": [], "rc": np.array([3.3, 0, 0])},
        {"id": 3, "name": "r_wing", "is_main": False, "children": [], "rc": np.array([2.7, 0, 0])},
    ]
    alpha = weights()[:, :4]
    alpha[:, 0] += weights()[:, 4]
    (target / "parts.pkl").write_bytes(pickle.dumps({"alpha": alpha, "nodes": nodes}, protocol=2))
    (target / "kp2vertex.txt").write_text("right_wing 9\nnose 17\ntail 1\nleft_wing 8\nhorn 3\n")
    (folder / "mirror_transforms.txt").write_text("l_wing r_wing\n")
    (folder / "part_files").mkdir()
    (folder / "part_files" / f"{name}.txt").write_text(
        "body 0 1 0 0\nhead 1 1 0 0\nl_wing 1 0 1 0\nr_wing 1 0 1 0\n"
    )
    return target
