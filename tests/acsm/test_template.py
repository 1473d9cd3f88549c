"""Articulated templates: what the class promises, and what the shipped animals look like."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from acsm.procedural import _build_animal
from acsm.renderer import rasterize
from acsm.template import ArticulatedTemplate, load_template, template_for
from acsm.template_picture import WALK, draw_sheet, look_at
from wildshape.category import load_category
from wildshape.errors import UserError
from wildshape.skeleton import load_skeleton

ANIMALS = ("horse", "cow", "sheep", "giraffe", "bear", "dog")


@pytest.fixture(scope="module", params=ANIMALS)
def animal(request):
    spec = load_category(request.param)
    return spec, template_for(spec)


def keypoint(spec, template, name):
    return template.vertices[template.keypoint_vertices[spec.skeleton.find(name)]]


def octahedron(**changes):
    vertices = np.array([[1, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 1], [0, 0, -1]], float)
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    arguments = dict(
        vertices=vertices,
        faces=faces,
        membership=np.eye(3)[[1, 2, 0, 0, 0, 0]],
        part_names=("body", "left", "right"),
        part_parents=(-1, 0, 0),
        part_centres=np.zeros((3, 3)),
        part_mirror=[0, 2, 1],
        keypoint_vertices=[0, 1, 4],
        keypoint_flip=[1, 0, 2],
    )
    return ArticulatedTemplate(**{**arguments, **changes})


# The class


def test_constructor_changes_no_numbers():
    template = octahedron(part_centres=np.full((3, 3), 7.0))
    assert template.diameter() == 4.0
    assert (template.part_centres == 7).all()
    assert template.active_parts is None and template.active.tolist() == [True] * 3


def test_scaled_moves_rotation_centres_along():
    template = octahedron()
    template = replace(template, vertices=template.vertices + 3, part_centres=np.full((3, 3), 5.0))
    scaled = template.scaled()
    np.testing.assert_allclose(scaled.vertices[2], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(scaled.part_centres, np.ones((3, 3)))
    assert scaled.diameter() == pytest.approx(2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"membership": np.zeros((6, 2))}, r"membership: expected shape \[6, 3\]; found \[6, 2\]"),
        ({"vertices": np.zeros((6, 2))}, r"vertices: expected shape \[6, 3\]; found \[6, 2\]"),
        ({"keypoint_flip": [0, 1]}, r"keypoint_flip: expected shape \[3\]; found \[2\]"),
        ({"keypoint_vertices": [0, 1, 6]}, "keypoint_vertices: .* 0 to 5; found 0 to 6"),
        ({"part_parents": (-1, 2, 1)}, "expected a tree; found a circle above left"),
        ({"active_parts": ["left", "wing"]}, r"found \['wing'\]"),
        ({"active_parts": [True]}, r"active_parts: expected shape \[3\]; found \[1\]"),
    ],
)
def test_misfits_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        octahedron(**changes)


def test_active_parts_by_name_or_flag():
    by_name = octahedron(active_parts=["left", "right"])
    by_flag = octahedron(active_parts=[False, True, True])
    assert by_name.active.tolist() == by_flag.active.tolist() == [False, True, True]
    assert octahedron(active_parts=[]).active.tolist() == [False] * 3


def test_part_levels():
    template = octahedron(part_parents=(1, -1, 0))
    assert template.part_levels() == ((1,), (0,), (2,))


def test_closed_manifold_and_volume():
    whole = octahedron()
    assert whole.is_closed() and whole.is_manifold()
    assert whole.volume() == pytest.approx(8 / 3)
    opened = replace(whole, faces=whole.faces[1:])
    assert not opened.is_closed() and opened.is_manifold()
    turned = replace(whole, faces=np.concatenate([whole.faces[:1, ::-1], whole.faces[1:]]))
    assert not turned.is_closed() and not turned.is_manifold()
    bow_tie = replace(whole, faces=whole.faces[[0, 2]])
    assert not bow_tie.is_manifold()
    three_on_an_edge = replace(whole, faces=[[0, 2, 4], [2, 0, 5], [0, 2, 3]])
    assert not three_on_an_edge.is_manifold()


def test_symmetry_error_is_the_largest_miss():
    template = octahedron()
    assert template.symmetry_error() == 0
    assert template.mirror_vertices().tolist() == [1, 0, 2, 3, 4, 5]
    moved = template.vertices.copy()
    moved[0, 0] += 0.25
    assert replace(template, vertices=moved).symmetry_error() == pytest.approx(0.25)


def test_articulation_composes_own_then_parent_then_root():
    # A straight leg along -z: hip at the origin, knee at -1, foot at -2. The knee folds back by a
    # quarter turn, then the hip swings the whole leg forward by a quarter turn.
    vertices = np.array([[0, 0, 0], [0, 0, -1], [0, 0, -2.0]])
    leg = ArticulatedTemplate(
        vertices, [[0, 1, 2]], np.eye(3), ("body", "thigh", "shin"), (-1, 0, 1),
        [[0, 0, 0], [0, 0, 0], [0, 0, -1.0]], [0, 1, 2], [2], [0],
    )  # fmt: skip
    np.testing.assert_array_equal(leg.articulated({}), vertices)
    knee = leg.articulated({"shin": (np.pi / 2, 0, 0)})
    np.testing.assert_allclose(knee[2], [0, 1, -1], atol=1e-12)
    both = leg.articulated({"shin": (np.pi / 2, 0, 0), "thigh": (-np.pi / 2, 0, 0)})
    np.testing.assert_allclose(both, [[0, 0, 0], [0, -1, 0], [0, -1, -1]], atol=1e-12)
    with pytest.raises(ValueError, match=r"found \['tail'\]"):
        leg.articulated({"tail": (0, 0, 1)})


def test_save_and_load_round_trip(tmp_path):
    for template in (octahedron(), octahedron(active_parts=["left"])):
        template.save(tmp_path / "t.npz")
        back = load_template(tmp_path / "t.npz")
        assert back.part_names == template.part_names and back.part_parents == (-1, 0, 0)
        np.testing.assert_array_equal(back.active, template.active)
        assert (back.active_parts is None) == (template.active_parts is None)
        for name in ("vertices", "faces", "membership", "part_centres", "part_mirror"):
            np.testing.assert_array_equal(getattr(back, name), getattr(template, name))
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_files_that_are_no_templates(tmp_path):
    with pytest.raises(UserError, match="found nothing at"):
        load_template(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match="expected a template"):
        load_template(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", vertices=np.zeros((3, 3)))
    with pytest.raises(UserError, match="missing .*'faces'"):
        load_template(tmp_path / "other.npz")


# From a category to a template


def spec_with(node, active=None, skeleton="quadruped16"):
    return SimpleNamespace(
        name="unicorn", skeleton=load_skeleton(skeleton), template=node, active_parts=active
    )


def test_template_from_a_file(tmp_path):
    horse = template_for(load_category("horse"))
    horse.save(tmp_path / "unicorn.npz")
    node = {"file": str(tmp_path / "unicorn.npz")}
    found = template_for(spec_with(node, active=("neck", "head")))
    np.testing.assert_array_equal(found.vertices, horse.vertices)
    assert [found.part_names[k] for k in np.nonzero(found.active)[0]] == ["neck", "head"]
    with pytest.raises(UserError, match="expected 20 keypoint vertices.*found 16"):
        template_for(spec_with(node, skeleton="quadruped20"))
    with pytest.raises(UserError, match=r"category unicorn: active_parts.*found \['horn'\]"):
        template_for(spec_with(node, active=("horn",)))


def test_an_animal_may_have_no_tail():
    template = template_for(spec_with({"procedural": {"tail": {"length": 0}}}))
    assert template.is_closed() and template.is_manifold()


@pytest.mark.parametrize(
    "params, message",
    [
        ({"wings": {"length": 1}}, r"template.procedural: .*found \['wings'\]"),
        ({"neck": {"lenght": 1}}, r"template.procedural.neck: .*found \['lenght'\]"),
        ({"neck": {"length": "long"}}, "neck.length: expected a number; found 'long'"),
        ({"neck": {"length": float("nan")}}, "neck.length: expected a number; found nan"),
        ({"head": {"length": 0}}, "head.length: expected more than 0 to 10; found 0"),
        ({"trunk": {"hump": -50}}, "trunk.hump: expected -10 to 10; found -50"),
        ({"head": {"horn_length": -0.2}}, "head.horn_length: expected 0 to 10; found -0.2"),
        ({"tail": {"tip": 0}}, "tail.tip: expected more than 0 to 10; found 0"),
        ({"neck": {"rise": 400}}, "neck.rise: expected -360 to 360 degrees; found 400"),
        ({"vertices": float("inf")}, "vertices: expected a number; found inf"),
        ({"neck": 3}, "neck: expected a mapping of proportions; found 3"),
        ({"vertices": 90}, "vertices: expected 1000 to 2500; found 90"),
    ],
)
def test_proportions_that_do_not_fit(params, message):
    with pytest.raises(UserError, match=message):
        template_for(spec_with({"procedural": params}))


def test_a_belly_on_the_ground_is_refused():
    params = {"trunk": {"withers": 0.4, "back": 0.3, "croup": 0.4, "belly_depth": 0.8}}
    with pytest.raises(UserError, match="expected a place for the keypoint .*belly"):
        template_for(spec_with({"procedural": params}))


def test_a_template_node_of_neither_kind():
    with pytest.raises(UserError, match="expected template: procedural or file"):
        template_for(spec_with({"obj": "x"}))


def test_building_twice_gives_the_same():
    spec = load_category("bear")
    first = template_for(spec)
    _build_animal.cache_clear()
    again = template_for(spec)
    np.testing.assert_array_equal(first.vertices, again.vertices)
    np.testing.assert_array_equal(first.membership, again.membership)
    np.testing.assert_array_equal(first.keypoint_vertices, again.keypoint_vertices)


# The animals


def test_mesh_is_sound(animal):
    _, template = animal
    assert 1000 <= template.num_vertices <= 2500
    assert template.is_closed() and template.is_manifold()
    assert template.num_vertices - len(template.edges()) + len(template.faces) == 2  # a sphere
    assert template.volume() > 0
    assert template.symmetry_error() == 0
    np.testing.assert_allclose(template.vertices.mean(axis=0), 0, atol=1e-12)
    assert template.diameter() == pytest.approx(2)


def test_triangles_are_decent(animal):
    _, template = animal
    corners = template.vertices[template.faces]
    angles = []
    for k in range(3):
        u = corners[:, (k + 1) % 3] - corners[:, k]
        v = corners[:, (k + 2) % 3] - corners[:, k]
        cosine = (u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        angles.append(np.degrees(np.arccos(cosine)))
    smallest = np.min(angles, axis=0)
    assert np.median(smallest) > 40
    assert np.percentile(smallest, 1) > 18


def test_parts_mirror_exactly(animal):
    _, template = animal
    assert template.num_parts == 12
    other = template.mirror_vertices()
    mirrored = template.membership[other][:, template.part_mirror]
    np.testing.assert_array_equal(mirrored, template.membership)
    np.testing.assert_allclose(template.membership.sum(axis=1), 1)
    assert (template.membership >= 0).all()
    centres = template.part_centres[template.part_mirror] * [-1, 1, 1]
    np.testing.assert_array_equal(centres, template.part_centres)
    main = template.membership.argmax(axis=1)
    assert (np.bincount(main, minlength=12) >= 10).all()
    left = [k for k, name in enumerate(template.part_names) if name.startswith("L_")]
    assert (template.membership[template.vertices[:, 0] <= 0][:, left] == 0).all()


def test_keypoints_mirror_exactly(animal):
    spec, template = animal
    for name in ("quadruped16", "quadruped20"):
        skeleton = load_skeleton(name)
        known = template_for(replace(spec, skeleton=skeleton))
        at = known.vertices[known.keypoint_vertices]
        assert len(at) == skeleton.num_keypoints
        np.testing.assert_array_equal(at[list(skeleton.flip)] * [-1, 1, 1], at)
        for k, side in enumerate(skeleton.sides):
            assert np.sign(at[k, 0]) == {"left": 1, "right": -1, "middle": 0}[side]


def test_anatomy(animal):
    spec, _ = animal
    spec = replace(spec, skeleton=load_skeleton("quadruped20"))
    template = template_for(spec)
    x, y, z = range(3)
    at = {name: keypoint(spec, template, name) for name in spec.skeleton.keypoints}
    assert at["nose"][y] == pytest.approx(template.vertices[:, y].min(), abs=0.05)
    assert at["nose"][y] < at["left_eye"][y] < at["left_ear"][y] + 0.05
    assert at["left_ear"][y] < at["withers"][y] < at["tailbase"][y]
    assert at["throat"][y] < at["withers"][y] and at["throat"][z] < at["left_ear"][z]
    assert at["nose"][z] < at["left_eye"][z]
    for end in ("front", "back"):
        elbow, knee, paw = (at[f"left_{end}_{joint}"] for joint in ("elbow", "knee", "paw"))
        assert elbow[z] > knee[z] + 0.05 > paw[z] + 0.1
        assert paw[z] < template.vertices[:, z].min() + 0.08
    assert at["left_front_paw"][y] < at["left_back_paw"][y] - 0.3
    # Withers and tail base lie on the topline, not inside a fold.
    for name in ("withers", "tailbase"):
        near = np.abs(template.vertices[:, :2] - at[name][:2]).max(axis=1) < 0.02
        assert at[name][z] >= template.vertices[near, z].max() - 0.03


def test_species_differ_as_they_should():
    def extents(name):
        template = template_for(load_category(name))
        main = template.membership.argmax(axis=1)
        part = {p: template.vertices[main == k] for k, p in enumerate(template.part_names)}
        trunk = np.ptp(part["body"][:, 1])
        return {
            "height": np.ptp(template.vertices[:, 2]) / np.ptp(template.vertices[:, 1]),
            "width": np.ptp(part["body"][:, 0]) / trunk,
            "neck": np.linalg.norm(np.ptp(part["neck"], axis=0)) / trunk,
            "tail": np.linalg.norm(np.ptp(part["tail"], axis=0)) / trunk,
        }

    found = {name: extents(name) for name in ANIMALS}
    others = set(ANIMALS) - {"giraffe"}
    assert all(found["giraffe"]["neck"] > 1.5 * found[name]["neck"] for name in others)
    assert all(found["giraffe"]["height"] > 1.5 * found[name]["height"] for name in others)
    assert found["bear"]["tail"] < 0.5 * min(found[n]["tail"] for n in ("horse", "cow", "dog"))
    assert found["bear"]["width"] > 1.3 * max(found[n]["width"] for n in ("horse", "dog"))


def test_a_stride_does_not_crease(animal):
    _, template = animal
    edges = template.edges()
    walking = template.articulated(WALK)
    lengths = [
        np.linalg.norm(v[edges[:, 0]] - v[edges[:, 1]], axis=1) for v in (template.vertices, walking)
    ]
    stretch = lengths[1] / lengths[0]
    assert np.percentile(stretch, 0.5) > 0.35 and np.percentile(stretch, 99.5) < 1.9
    # A foot hardly changes its shape: it belongs to the lower leg.
    foot = np.isin(edges, template.keypoint_vertices[-4:]).any(axis=1)
    np.testing.assert_allclose(stretch[foot], 1, atol=0.1)


def test_joints_stay_put_when_their_own_part_turns(animal):
    _, template = animal
    part = template.part_names.index("L_F_lower_leg")
    distance = np.linalg.norm(template.vertices - template.part_centres[part], axis=1)
    turned = template.articulated({"L_F_lower_leg": (1.0, 0, 0)})
    moved = np.linalg.norm(turned - template.vertices, axis=1)
    assert moved[distance.argmin()] < 0.06
    paw = template.keypoint_vertices[12]  # L_F_paw
    assert moved[paw] == pytest.approx(2 * np.sin(0.5) * distance[paw], rel=0.1)
    assert moved[template.keypoint_vertices[13]] < 1e-12


def test_seen_from_the_left_the_head_is_on_the_left():
    spec = load_category("horse")
    template = template_for(spec)
    ndc = look_at(template.vertices, -90, 0)
    assert ndc[template.keypoint_vertices[spec.skeleton.find("Nose")], 0] < -0.5
    depth = ndc[template.keypoint_vertices, 2]
    assert depth[spec.skeleton.find("L_eye")] < depth[spec.skeleton.find("R_eye")]
    assert rasterize(ndc[None], template.faces, 64).mask.mean() > 0.1


def test_picture_sheet():
    sheet = draw_sheet(["horse"], cell=64)
    assert sheet.size == (6 * 64, 64)
    assert (np.asarray(sheet) < 200).any(axis=2).mean() > 0.1


def test_template_module_imports_no_torch():
    code = "import sys, acsm.template, acsm.procedural; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
