"""Animals: anatomy, surface, skinning and pose."""

import numpy as np
import pytest

from prepare_data.diorama.anatomy import BONE_PARENT, SPECIES, find_species, sample_anatomy
from prepare_data.diorama.body import build_body, vertex_normals
from prepare_data.diorama.coat import sample_coat
from prepare_data.diorama.pose import POSES, Pose, apply_pose, rotation_xyz, sample_pose
from prepare_data.diorama.zoo import Zoo
from wildshape.errors import UserError
from wildshape.skeleton import load_skeleton

SKELETON = load_skeleton("quadruped16")


@pytest.fixture(scope="module")
def horse():
    return build_body(sample_anatomy(SPECIES["horse"], np.random.default_rng(3)), SKELETON.keypoints)


@pytest.mark.parametrize("name", sorted(SPECIES))
def test_every_species_gives_one_closed_surface(name):
    anatomy = sample_anatomy(SPECIES[name], np.random.default_rng(1))
    body = build_body(anatomy, SKELETON.keypoints, cell=0.03)
    edges = np.sort(body.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, counts = np.unique(edges, axis=0, return_counts=True)
    assert (counts == 2).all()
    a, b, c = (body.vertices[body.faces[:, i]] for i in range(3))
    assert np.einsum("ij,ij->i", a, np.cross(b, c)).sum() > 0  # seen from outside anticlockwise
    np.testing.assert_allclose(body.weights.sum(1), 1)
    assert abs(body.vertices[:, 2].min()) < 0.05


@pytest.mark.parametrize("name", sorted(SPECIES))
def test_keypoints_lie_where_their_names_say(name):
    body = build_body(
        sample_anatomy(SPECIES[name], np.random.default_rng(2)), SKELETON.keypoints, cell=0.03
    )
    at = dict(zip(SKELETON.keypoints, body.vertices[body.keypoint_vertices]))
    x, forward, z = ({k: v[i] * s for k, v in at.items()} for i, s in ((0, 1), (1, -1), (2, 1)))
    for left in (k for k in at if k.startswith("L_")):
        assert x[left] > 0.01 > -0.01 > x["R_" + left[2:]]
    for middle in ("Nose", "Throat", "Tail", "Withers"):
        assert abs(x[middle]) < 0.05
    assert forward["Nose"] > forward["L_eye"] > forward["Withers"] > forward["Tail"]
    assert z["L_eye"] > z["Throat"] and z["Withers"] > z["L_F_elbow"] > z["L_F_paw"]
    assert z["L_F_paw"] < 0.12 and z["L_B_paw"] < 0.12
    assert forward["L_F_elbow"] > forward["L_B_elbow"]


def test_animals_differ_from_one_another_in_more_than_size(horse):
    other = build_body(sample_anatomy(SPECIES["horse"], np.random.default_rng(8)), SKELETON.keypoints)
    a, b = (o.vertices[o.keypoint_vertices] for o in (horse, other))
    scale = (a * b).sum() / (b * b).sum()
    assert np.linalg.norm(a - scale * b, axis=1).max() > 0.03
    assert len(horse.vertices) != len(other.vertices)


def test_unknown_names_are_refused(horse):
    with pytest.raises(UserError, match="expected a diorama species, one of bear, .*; found 'yeti'"):
        find_species("yeti")
    with pytest.raises(UserError, match="expected keypoints that .* found hump"):
        build_body(horse.anatomy, ("Nose", "hump"), cell=0.05)


def test_twenty_keypoints_are_carried_too():
    names = load_skeleton("quadruped20").keypoints
    body = build_body(sample_anatomy(SPECIES["cow"], np.random.default_rng(2)), names, cell=0.03)
    z = dict(zip(names, body.vertices[body.keypoint_vertices][:, 2]))
    assert z["left_front_elbow"] > z["left_front_knee"] > z["left_front_paw"]
    assert z["left_back_elbow"] > z["left_back_knee"] > z["left_back_paw"]


def test_rest_pose_keeps_the_body(horse):
    count = len(BONE_PARENT)
    rest = Pose("stand", np.tile(np.eye(3), (count, 1, 1)), np.ones(count), 0.0)
    vertices, turn = apply_pose(horse, rest)
    shift = vertices - horse.vertices
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=5e-4)
    np.testing.assert_allclose(turn, np.eye(3), atol=1e-9)
    assert vertices[:, 2].min() == pytest.approx(0)


@pytest.mark.parametrize("kind", POSES)
def test_poses_stand_on_the_ground_and_turn_about_three_axes(horse, kind):
    pose = sample_pose(SPECIES["horse"], np.random.default_rng(5), 1.0, kind)
    vertices, turn = apply_pose(horse, pose)
    assert vertices[:, 2].min() == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(turn) == pytest.approx(1)
    # a hinge keeps one axis fixed for all of a body's joints; ball joints do not
    axes = np.stack([r[[2, 0, 1], [1, 2, 0]] - r[[1, 2, 0], [2, 0, 1]] for r in pose.rotations[1:]])
    axes = axes[np.linalg.norm(axes, axis=1) > 0.02]
    assert np.linalg.svd(axes, compute_uv=False)[2] > 0.02


def test_sitting_raises_the_chest_and_grazing_lowers_the_head():
    body = build_body(sample_anatomy(SPECIES["dog"], np.random.default_rng(1)), SKELETON.keypoints)
    index = {name: body.keypoint_vertices[i] for i, name in enumerate(SKELETON.keypoints)}
    height = {}
    for kind in ("stand", "sit", "graze"):
        pose = sample_pose(SPECIES["dog"], np.random.default_rng(5), 1.0, kind)
        vertices, turn = apply_pose(body, pose)
        height[kind] = {name: vertices[v, 2] for name, v in index.items()}
        forward = turn @ [0, -1, 0]
        assert (forward[2] > 0.35) == (kind == "sit")
    assert height["sit"]["Withers"] - height["sit"]["Tail"] > 0.3
    assert height["graze"]["Nose"] < height["stand"]["Nose"] - 0.3


def test_rotations_turn_as_documented():
    # a positive pitch takes what hangs down backwards (+y)
    np.testing.assert_allclose(rotation_xyz(np.array([90.0, 0, 0])) @ [0, 0, -1], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation_xyz(np.array([0, 0, 90.0])) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    r = rotation_xyz(np.array([20.0, -30, 40]))
    np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-12)


def test_normals_point_outwards_and_coats_are_colours(horse):
    normals = vertex_normals(horse.vertices, horse.faces)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-6)
    assert normals[horse.vertices[:, 2] > np.quantile(horse.vertices[:, 2], 0.99), 2].mean() > 0
    albedo, pattern = sample_coat(horse, np.random.default_rng(0))
    assert albedo.shape == horse.vertices.shape and pattern
    assert 0 < albedo.min() < albedo.max() < 1


def test_the_zoo_repeats_itself():
    first, second = (Zoo(7, SKELETON.keypoints).body("bear", 1) for _ in range(2))
    np.testing.assert_array_equal(first.vertices, second.vertices)
    other = Zoo(7, SKELETON.keypoints).body("bear", 2)
    assert len(other.vertices) != len(first.vertices)
