"""Templates from rigs and OBJ files: frames, skinning, parts, keypoints, bad input."""

from dataclasses import replace

import acsm_mask_world
import numpy as np
import pytest
import rig_files as rig
from scipy.spatial.transform import Rotation

from acsm.template import template_for
from acsm.template_file import faults, read_template
from acsm.template_gltf import read_gltf
from acsm.template_keypoints import name_and_side
from acsm.template_mesh import FileMesh, simplified, welded
from acsm.template_settings import settings_from
from wildshape.category import load_category
from wildshape.errors import UserError
from wildshape.skeleton import load_skeleton

EACH_BONE = {"keypoints": rig.KEYPOINTS, "min_share": 0.0}


# glTF


@pytest.mark.parametrize("write, name", [(rig.write_glb, "tube.glb"), (rig.write_gltf, "tube.gltf")])
def test_a_rig_comes_into_the_template_frame(tmp_path, skeleton, write, name):
    template = read_template(write(tmp_path / name, *rig.gltf()), skeleton, EACH_BONE).template
    assert template.num_vertices == 20  # welded from 108
    assert template.is_closed() and template.is_manifold() and template.volume() > 0
    np.testing.assert_allclose(template.vertices.mean(axis=0), 0, atol=1e-6)
    assert template.diameter() == pytest.approx(2)
    assert template.symmetry_error() < 1e-5
    expected = np.sort((rig.VERTICES @ rig.FRAME.T * 2 / rig.size()).round(5), axis=0)
    np.testing.assert_allclose(np.sort(template.vertices, axis=0), expected, atol=2e-5)
    nose = template.vertices[template.keypoint_vertices[0]]
    assert nose[1] == pytest.approx(-4 / rig.size(), abs=1e-5)  # the head towards -y


def test_bones_become_parts_and_weights_membership(glb, skeleton):
    loaded = read_template(glb, skeleton, EACH_BONE)
    template = loaded.template
    assert template.part_names == ("Hips", "Head", "Wing.L", "Wing.R", "IKTail")
    assert template.part_parents == (-1, 0, 0, 0, 0)
    assert template.part_mirror.tolist() == [0, 1, 3, 2, 4]
    assert any("IKTail on Hips" in note for note in loaded.notes)
    np.testing.assert_allclose(template.part_centres, rig.HEADS @ rig.FRAME.T * 2 / rig.size(), atol=1e-5)
    file_order = np.array([np.abs(rig.VERTICES @ rig.FRAME.T * 2 / rig.size() - v).sum(axis=1).argmin()
                           for v in template.vertices])  # fmt: skip
    np.testing.assert_allclose(template.membership, rig.weights()[file_order], atol=0.005)
    # The camera turns the root; every other part carries a keypoint.
    assert template.active.tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("bone", ["Head", "Wing.L", "Hips"])
def test_the_articulated_template_is_the_skin_posed_by_its_bones(tmp_path, glb, skeleton, bone):
    """Against the formula of linear blend skinning, and against the file with that node turned."""
    vector = np.array([0.3, -0.5, 0.4])
    turned = rig.write_glb(tmp_path / "turned.glb", *rig.gltf({bone: vector}))
    posed = welded(read_gltf(turned)).vertices
    moved = np.eye(5)[rig.BONES.index(bone)]
    moved += np.array(rig.PARENTS) == rig.BONES.index(bone)
    share = (rig.weights() @ moved)[:, None]
    head = rig.HEADS[rig.BONES.index(bone)]
    by_hand = (1 - share) * rig.VERTICES
    by_hand += share * (Rotation.from_rotvec(vector).apply(rig.VERTICES - head) + head)
    nearest = np.linalg.norm(posed[:, None] - by_hand, axis=2).min(axis=1)
    assert nearest.max() < 0.005  # weights are bytes

    settings = EACH_BONE | {"parts": {name: {"bones": name} for name in rig.BONES}}
    template = read_template(glb, skeleton, settings).template
    articulated = template.articulated({bone: tuple(rig.FRAME @ vector)})
    if bone == "Hips":  # in the file the hanging bone stays where it is
        rear = template.membership[:, template.part_names.index("IKTail")] > 0
        articulated, posed = articulated[~rear], posed[~rear]
    order = np.linalg.norm(posed[:, None] @ rig.FRAME.T * 2 / rig.size() - articulated, axis=2).min(axis=1)
    assert order.max() < 1e-5


def test_a_file_whose_nodes_hold_a_pose_may_be_read_as_bound(tmp_path, glb, skeleton):
    bent = rig.write_glb(tmp_path / "bent.glb", *rig.gltf({"Head": (0, 0.9, 0)}))
    settings = EACH_BONE | {"keypoints": {"nose": 16}}
    assert read_template(bent, skeleton, settings).template.symmetry_error() > 0.1
    bound = read_template(bent, skeleton, settings | {"pose": "bind"}).template
    straight = read_template(glb, skeleton, settings).template
    np.testing.assert_allclose(bound.vertices, straight.vertices, atol=1e-5)
    np.testing.assert_allclose(bound.part_centres, straight.part_centres, atol=1e-5)


def test_a_model_that_faces_elsewhere_is_turned(tmp_path, glb, skeleton):
    document, blob = rig.gltf()
    turn = rig.matrix(Rotation.from_euler("y", 90, degrees=True).as_matrix(), (1, 2, 3))  # +z to +x
    document["nodes"].append({"matrix": turn.T.ravel().tolist(), "children": [0, 6]})
    document["scenes"][0]["nodes"] = [8]
    sideways = rig.write_glb(tmp_path / "sideways.glb", document, blob)
    expected = read_template(glb, skeleton, EACH_BONE).template
    found = read_template(sideways, skeleton, EACH_BONE | {"front": "+x"}).template
    np.testing.assert_allclose(found.vertices, expected.vertices, atol=1e-5)
    np.testing.assert_allclose(found.part_centres, expected.part_centres, atol=1e-5)


def test_small_bones_are_merged_and_a_chain_keeps_its_place(glb, skeleton):
    loaded = read_template(glb, skeleton, {"keypoints": rig.KEYPOINTS, "min_share": 0.11})
    assert loaded.template.part_names == ("Hips", "Head", "IKTail")  # each wing moves a twentieth
    assert any("small bones merged: Hips + Wing.L + Wing.R" in note for note in loaded.notes)
    few = read_template(glb, skeleton, {"keypoints": rig.KEYPOINTS, "min_share": 0, "most_parts": 3})
    assert few.template.num_parts == 3 and few.template.part_mirror.tolist() == [0, 1, 2]
    np.testing.assert_allclose(few.template.membership.sum(axis=1), 1)


def test_bones_are_put_into_parts_by_name(glb, skeleton):
    parts = {"trunk": ["Hips", "IKTail"], "head": {"bones": "Hea*"}, "wings": {"bones": "Wing.?"}}
    template = read_template(glb, skeleton, EACH_BONE | {"parts": parts}).template
    assert template.part_names == ("trunk", "head", "wings")
    assert template.part_parents == (-1, 0, 0)
    with pytest.raises(UserError, match=r"part ear: .* none like Ear\* among Hips, Head"):
        read_template(glb, skeleton, EACH_BONE | {"parts": {"ear": "Ear*"}})
    with pytest.raises(UserError, match=r"each bone in one part; found Head in a and b"):
        read_template(glb, skeleton, EACH_BONE | {"parts": {"a": "Head", "b": "H*"}})


def test_keypoints_are_found_in_every_way(glb, skeleton):
    def place(**keypoints):
        template = read_template(glb, skeleton, {"min_share": 0, "keypoints": keypoints}).template
        return (template.vertices[template.keypoint_vertices] * rig.size() / 2) @ rig.FRAME

    corner = [-0.5, 0.4, 2]
    np.testing.assert_allclose(place(nose={"position": corner})[0], corner, atol=1e-5)
    np.testing.assert_allclose(abs(place(nose="Head")[0]), [0.5, 0.4, 1], atol=1e-5)
    found = place(nose=0, left_wing={"position": [0.5, 0.4, 0]})
    np.testing.assert_allclose(found[3], [-0.5, 0.4, 0], atol=1e-5)  # mirrored from the left
    assert place(nose={"group": "Fur", "side": "right"})[0, 0] == pytest.approx(-0.5)
    assert place(nose=0)[1, 2] == pytest.approx(-2)  # tail, by the skeleton's alias of a bone


@pytest.mark.parametrize(
    "keypoints, message",
    [
        ({"beak": 3}, "expected keypoints of tube; found beak; there are: nose, tail"),
        ({"nose": 20}, "keypoint nose: expected a vertex from 0 to 19; found 20"),
        ({"nose": "Jaw"}, "keypoint nose: expected a bone among Hips, Head"),
        ({"nose": {"bone": "Wing.L", "at": "tip"}}, "the file does not say where Wing.L ends"),
        ({"nose": {"group": "Eye"}}, "expected a group among Tube, Fur; found Eye"),
        ({"nose": {"position": [1, 2]}}, r"expected position: \[x, y, z\]"),
        ({"nose": [1]}, "expected a vertex, a bone, or one of vertex, bone, position, group"),
    ],
)
def test_a_keypoint_that_is_none_is_named(glb, skeleton, keypoints, message):
    with pytest.raises(UserError, match=message):
        read_template(glb, skeleton, {"keypoints": keypoints})


def test_a_template_that_lacks_keypoints_names_them_all(tmp_path, glb):
    (tmp_path / "bird.yaml").write_text("name: bird\nkeypoints: [nose, crest, claw]\n")
    message = "tube.glb: expected a vertex for each keypoint of bird; found none for crest, claw; give them"
    with pytest.raises(UserError, match=message + r" under keypoints: \(bones: Hips, .*groups: Tube, Fur"):
        read_template(glb, load_skeleton(tmp_path / "bird.yaml"))


@pytest.mark.parametrize(
    "name, expected",
    [("FrontUpperLeg.L", ("frontupperleg", "left")), ("mixamorig:LeftArm", ("arm", "left")),
     ("leg_front_R", ("legfront", "right")), ("Ear4.R_end", ("ear4end", "right")),
     ("Neck1", ("neck1", "")), ("IKLegR", ("ikleg", "right"))],
)  # fmt: skip
def test_names_of_bones_are_taken_apart(name, expected):
    assert name_and_side(name) == expected


def test_a_skin_may_name_a_bone_twice(tmp_path, skeleton):
    document, blob = rig.gltf()
    document["skins"][0]["joints"] = [1, 2, 3, 4, 1]
    twice = rig.write_glb(tmp_path / "twice.glb", document, blob)
    settings = {"min_share": 0, "keypoints": {"nose": 0, "tail": 1}}
    template = read_template(twice, skeleton, settings).template
    assert template.part_names == ("Hips", "Head", "Wing.L", "Wing.R")
    np.testing.assert_allclose(template.membership.sum(axis=1), 1)


def test_a_mesh_without_skin_has_one_part(tmp_path, skeleton):
    path = rig.write_glb(tmp_path / "tube.glb", *rig.gltf(skin=False))
    keypoints = {"nose": 0, "tail": 1, "left_wing": 2, "right_wing": 3}
    loaded = read_template(path, skeleton, {"keypoints": keypoints})
    assert loaded.template.part_names == ("body",) and not loaded.template.active.any()
    assert any("one part" in note for note in loaded.notes)


def test_a_mirrored_node_is_not_inside_out(tmp_path, skeleton):
    document, blob = rig.gltf(skin=False)
    document["nodes"].append({"name": "other", "mesh": 0, "translation": [50, 5, 5], "scale": [-1, 1, 1]})
    document["scenes"][0]["nodes"].append(len(document["nodes"]) - 1)
    mesh = read_gltf(rig.write_glb(tmp_path / "two.glb", document, blob))
    half = len(mesh.faces) // 2

    def volume(faces):
        a, b, c = (mesh.vertices[faces[:, k]] for k in range(3))
        return float(np.einsum("fc,fc->f", a, np.cross(b, c)).sum())

    assert volume(mesh.faces[:half]) == pytest.approx(volume(mesh.faces[half:])) != 0


def test_keypoints_by_vertex_stay_where_they_are_in_a_simplified_mesh(tmp_path, skeleton):
    vertices, faces = acsm_mask_world.ball(3)
    vertices = vertices * [0.5, 1.0, 0.4]
    lines = [f"v {x} {y} {z}" for x, y, z in vertices] + [f"f {a} {b} {c}" for a, b, c in faces + 1]
    path = tmp_path / "ball.obj"
    path.write_text("\n".join(lines))
    keypoints = {"nose": 250, "tail": {"vertex": 1}, "left_wing": 2, "right_wing": 3}
    full, small = (
        read_template(path, skeleton, {"keypoints": keypoints, **more}).template
        for more in ({}, {"vertices": 120})
    )
    assert full.num_vertices == 258 and small.num_vertices <= 120
    places = [template.vertices[template.keypoint_vertices] for template in (full, small)]
    assert np.linalg.norm(places[0] - places[1], axis=1).max() < 0.15
    with pytest.raises(UserError, match="keypoint nose: expected a vertex from 0 to 257; found 258"):
        read_template(path, skeleton, {"vertices": 120, "keypoints": {**keypoints, "nose": 258}})


def broken(change):
    def write(path):
        document, blob = rig.gltf()
        change(document)
        return rig.write_glb(path, document, blob)

    return write


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: path.write_bytes(b"glTF"), "breaks off"),
        (lambda path: path.write_bytes(b"\x89PNG"), "expected glTF 2.0"),
        (lambda path: path.write_text("[]"), "expected glTF 2.0"),
        (lambda path: path.write_bytes(rig.write_glb(path, *rig.gltf()).read_bytes()[:2000]), "breaks off"),
        (broken(lambda d: d["asset"].update(version="1.0")), "another version"),
        (broken(lambda d: d.update(extensionsRequired=["KHR_draco_mesh_compression"])), "KHR_draco"),
        (broken(lambda d: d["accessors"][0].update(count=10**6)), "an array that leaves its buffer"),
        (broken(lambda d: d["accessors"][1].update(count=0)), "expected glTF 2.0"),
        (broken(lambda d: d["meshes"][0]["primitives"][0].update(mode=1)), "no triangles"),
        (broken(lambda d: d["nodes"][3].update(children=[1])), "below two others"),
        (broken(lambda d: d["buffers"][0].update(uri="far.bin")), "no file far.bin beside it"),
        (broken(lambda d: d["skins"][0].update(joints=[1, 2])), "on bone 4 of 2"),
    ],
)
def test_a_broken_rig_says_what_was_expected(tmp_path, skeleton, write, message):
    path = tmp_path / "broken.glb"
    write(path)
    with pytest.raises(UserError, match=rf"broken.glb: expected glTF 2.0.*{message}|{message}"):
        read_template(path, skeleton, EACH_BONE)


def test_a_fine_mesh_is_simplified():
    horse = template_for(load_category("horse"))
    mesh = FileMesh(
        horse.vertices, horse.faces, horse.membership, horse.part_names, horse.part_parents,
        horse.part_centres, horse.part_centres, {"all": np.ones(horse.num_vertices, bool)},
    )  # fmt: skip
    few = simplified(mesh, 700)
    assert len(few.vertices) == 700 and few.groups["all"].all()
    np.testing.assert_allclose(few.weights.sum(axis=1), 1)
    smaller = replace(horse, vertices=few.vertices, faces=few.faces, membership=few.weights,
                      keypoint_vertices=np.zeros(16, int))  # fmt: skip
    assert smaller.is_closed() and smaller.volume() == pytest.approx(horse.volume(), rel=0.05)
    assert simplified(mesh, 10**6) is mesh


# OBJ

OBJ_SETTINGS = """\
parts:
  trunk: {group: rear}
  head: {vertices: [12-15, 16-19], parent: trunk}
  left: {segment: [[0.3, 0, 0], [0.6, 0, 0]], parent: trunk}
keypoints: {nose: 16, tail: 0, left_wing: 8}
"""


def test_an_obj_with_settings_beside_it(tmp_path, skeleton):
    path = rig.write_obj(tmp_path / "tube.obj")
    (tmp_path / "tube.template.yaml").write_text(
        OBJ_SETTINGS.replace("group: rear", "vertices: [0-7, 9, 10]")
    )
    template = read_template(path, skeleton).template
    assert template.num_vertices == 20 and template.is_closed()
    assert template.part_names == ("trunk", "head", "left")
    np.testing.assert_allclose(template.vertices, rig.VERTICES @ rig.FRAME.T * 2 / rig.size(), atol=1e-9)
    assert template.keypoint_vertices.tolist() == [16, 0, 8, 9]
    main = template.membership.argmax(axis=1)
    assert main[[0, 4, 8, 11, 16]].tolist() == [0, 0, 2, 2, 1]
    np.testing.assert_allclose(template.membership.sum(axis=1), 1)
    # The head turns about the middle of its border, a part with a segment about its start.
    centres = template.part_centres * rig.size() / 2 @ rig.FRAME
    np.testing.assert_allclose(centres[2], [0.3, 0, 0], atol=1e-9)
    assert 0 < centres[1, 2] < 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("v 0 0\nf 1 1 1\n", "a vertex that is no three numbers in line 1"),
        ("v 0 0 0\nf 1 2\n", "fewer than three vertices.* in line 2"),
        ("v 0 0 0\nf 1 2 3\n", "faces between 1 vertices; found one beyond"),
        ("v 0 0 0\n", "faces between 1 vertices; found none"),
        ("v 0 0 x\n", "could not convert .* in line 1"),
    ],
)
def test_a_broken_obj_says_where(tmp_path, skeleton, text, message):
    (tmp_path / "a.obj").write_text(text)
    with pytest.raises(UserError, match=message):
        read_template(tmp_path / "a.obj", skeleton)


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"head": "Head"}, "expected part head with group, vertices or segment, as there are no bones"),
        ({"head": {"group": "horn"}}, "expected a group among rear, front, Muzzle, Fur"),
        ({"head": {"vertices": "18-25"}}, "vertices from 0 to 19"),
        ({"head": {"group": "front", "parent": "neck"}}, r"expected parent among \['head'\]; found neck"),
        ({"a": {"vertices": "0-19"}, "b": {"vertices": [5, "0-19"]}}, "found none for a"),
        ({"a": {"grp": "front"}}, "expected part a as bones, or with .*; found grp"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, skeleton, parts, message):
    path = rig.write_obj(tmp_path / "tube.obj")
    with pytest.raises(UserError, match=message):
        read_template(
            path, skeleton, {"parts": parts, "keypoints": {"nose": 16, "tail": 0, "left_wing": 8}}
        )


@pytest.mark.parametrize(
    "node, message",
    [
        ({"fronts": "+z"}, "expected settings among up, front, .*; found fronts"),
        ({"front": "north"}, "expected front: an axis: .*; found 'north'"),
        ({"front": "-y"}, "expected up: and front: along different axes"),
        ({"pose": "sitting"}, "expected pose: rest or bind; found 'sitting'"),
        ({"vertices": 3}, "expected vertices: a number from 100; found 3"),
        ({"min_share": 2}, "expected min_share: a share below 1; found 2"),
        ({"keypoints": [3]}, r"expected keypoints: a mapping of names; found \[3\]"),
    ],
)
def test_settings_that_are_none_are_named(node, message):
    with pytest.raises(UserError, match=message):
        settings_from(node, "x")


# What all have in common


def test_a_category_names_a_rig(tmp_path):
    (tmp_path / "categories").mkdir()
    rig.write_glb(tmp_path / "categories/tube.glb", *rig.gltf())
    (tmp_path / "categories/bones.yaml").write_text(rig.SKELETON)
    (tmp_path / "categories/tube.yaml").write_text(
        "name: tube\nskeleton: bones.yaml\nactive_parts: [Head]\n"
        "template: {file: tube.glb, min_share: 0, keypoints: {nose: {bone: Head, at: tip}}}\n"
    )
    template = template_for(load_category("tube", tmp_path))
    assert template.num_parts == 5 and template.active.tolist() == [False, True, False, False, False]
    (tmp_path / "categories/more.yaml").write_text("min_share: 0.11\nkeypoints: {nose: 3}\n")
    text = (tmp_path / "categories/tube.yaml").read_text()
    text = text[: text.index("template:")] + "template: {file: tube.glb, settings: more.yaml}\n"
    (tmp_path / "categories/tube.yaml").write_text(text)
    assert template_for(load_category("tube", tmp_path)).num_parts == 3


def test_other_files_are_refused(tmp_path, skeleton):
    (tmp_path / "a.stl").write_text("solid")
    with pytest.raises(UserError, match=r"expected a template: \.npz, \.glb, .*; found .*a\.stl"):
        read_template(tmp_path / "a.stl", skeleton)
    with pytest.raises(UserError, match="found nothing at"):
        read_template(tmp_path / "b.glb", skeleton)


def test_faults_are_named(tmp_path, skeleton, glb):
    def found(path, **settings):
        return faults(read_template(path, skeleton, EACH_BONE | settings).template, skeleton)

    assert found(glb) == ["keypoints nose: expected mirror images; found them 0.48 apart",
                          "keypoints tail: expected mirror images; found them 0.48 apart"]  # fmt: skip
    holed = rig.write_glb(tmp_path / "holed.glb", *rig.gltf(open_end=True))
    assert found(holed)[0] == "open: expected every edge between two faces; found 4 edges that are not"
    crooked = rig.write_obj(tmp_path / "crooked.obj", shift=0.6)
    keypoints = {"nose": 16, "tail": 0, "left_wing": 8, "right_wing": 9}
    assert any(f.startswith("asymmetric: expected") for f in found(crooked, keypoints=keypoints))
    swapped = {"nose": 16, "tail": 0, "left_wing": 9, "right_wing": 8}
    straight = rig.write_obj(tmp_path / "tube.obj")
    assert any(f.startswith("sides: expected the left") for f in found(straight, keypoints=swapped))
    assert any("found 3 that share one" in f for f in found(glb, keypoints=dict.fromkeys(swapped, 3)))
