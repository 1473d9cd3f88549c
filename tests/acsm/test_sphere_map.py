"""Maps of closed surfaces to the sphere, and the way back from the sphere to the surface."""

from dataclasses import replace

import acsm_toy
import numpy as np
import pytest
import rig_files
import torch
from acsm_mask_world import ball, legged
from scipy.io import loadmat, savemat

from acsm.sphere_lookup import SphereLookup, cell_of, lookup_reference
from acsm.sphere_map import distortion, flipped_faces, sphere_fault, sphere_vertices
from acsm.template import ArticulatedTemplate, load_template
from acsm.template_file import read_template
from wildshape.errors import UserError
from wildshape.skeleton import load_skeleton


def bare(vertices, faces):
    """A template that is only a surface."""
    return ArticulatedTemplate(
        vertices=vertices, faces=faces, membership=np.ones((len(vertices), 1)), part_names=("body",),
        part_parents=(-1,), part_centres=np.zeros((1, 3)), part_mirror=np.array([0]),
        keypoint_vertices=np.empty(0, int), keypoint_flip=np.empty(0, int),
    )  # fmt: skip


@pytest.fixture(scope="module")
def mapped():
    vertices, faces = legged()
    return vertices, faces, sphere_vertices(bare(vertices, faces))


def test_a_sphere_is_left_about_as_it_is():
    points, faces = ball()
    sphere = sphere_vertices(bare(points, faces))
    found = distortion(points, faces, sphere)
    assert found.flipped == 0 and found.angle_deg < 1.5 and found.stretch < 1.05
    low, middle, high = found.area_ratio
    assert 0.9 < low <= middle <= high < 1.1 and "0 triangles flipped" in str(found)
    # Left stays left, and the poles stay near where the template has them.
    assert (points * sphere).sum(axis=1).min() > 0.95


def test_legs_are_kept_and_both_sides_are_alike(mapped):
    vertices, faces, sphere = mapped
    np.testing.assert_allclose(np.linalg.norm(sphere, axis=1), 1, atol=1e-12)
    found = distortion(vertices, faces, sphere)
    assert found.flipped == 0 and not flipped_faces(sphere, faces).any()
    assert found.area_smallest > 0.05 and found.area_ratio[0] > 0.3 and found.area_ratio[2] < 3
    mirror = bare(vertices, faces).mirror_vertices()
    np.testing.assert_allclose(sphere[mirror], sphere * [-1, 1, 1], atol=1e-9)
    assert (np.sign(sphere[:, 0]) == np.sign(np.round(vertices[:, 0], 9))).all()
    # What the published projection from the centre would do to this shape.
    straight = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    assert distortion(vertices, faces, straight).flipped > 0


def test_the_map_is_the_same_again_and_a_template_s_own_goes_first(mapped):
    vertices, faces, sphere = mapped
    from acsm.sphere_map import _computed

    _computed.cache_clear()
    np.testing.assert_array_equal(sphere_vertices(bare(vertices, faces)), sphere)
    turned = sphere @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    own = replace(bare(vertices, faces), sphere_vertices=turned)
    np.testing.assert_array_equal(sphere_vertices(own), turned)
    inside_out = replace(own, sphere_vertices=-sphere)
    np.testing.assert_array_equal(sphere_vertices(inside_out), sphere)


def test_a_released_folder_brings_its_own_map(tmp_path):
    folder = rig_files.write_cachedir(tmp_path)
    (tmp_path / "tube.skeleton.yaml").write_text(rig_files.SKELETON)
    skeleton = load_skeleton(tmp_path / "tube.skeleton.yaml")
    mean_shape = loadmat(folder / "mean_shape.mat")
    content = {name: mean_shape[name] for name in ("verts", "faces")}
    plain = read_template(folder, skeleton).template
    assert plain.sphere_vertices is None
    computed = sphere_vertices(plain)
    savemat(folder / "mean_shape.mat", {**content, "sphere_verts": 3 * computed})
    own = read_template(folder, skeleton).template
    np.testing.assert_allclose(own.sphere_vertices, computed, atol=1e-9)
    own.save(tmp_path / "own.npz")
    np.testing.assert_array_equal(load_template(tmp_path / "own.npz").sphere_vertices, own.sphere_vertices)
    savemat(folder / "mean_shape.mat", {**content, "sphere_verts": -computed})
    folded = read_template(folder, skeleton)
    assert folded.template.sphere_vertices is None and "sphere_verts turn" in " ".join(folded.notes)
    savemat(folder / "mean_shape.mat", {**content, "sphere_verts": computed[1:]})
    with pytest.raises(UserError, match="expected sphere_verts"):
        read_template(folder, skeleton)


def test_surfaces_without_a_map_are_refused_in_one_line(mapped):
    vertices, faces, _ = mapped
    two = bare(np.concatenate([vertices, vertices + 9]), np.concatenate([faces, faces + len(vertices)]))
    u, v = np.meshgrid(np.arange(8), np.arange(6), indexing="ij")
    turn, tube = u.ravel() * np.pi / 4, v.ravel() * np.pi / 3
    ring = 1 + 0.4 * np.cos(tube)
    torus = np.stack([ring * np.cos(turn), ring * np.sin(turn), 0.4 * np.sin(tube)], 1)
    at = lambda a, b: (a % 8) * 6 + b % 6  # noqa: E731
    cells = [(at(a, b), at(a + 1, b), at(a + 1, b + 1), at(a, b + 1)) for a in range(8) for b in range(6)]
    skin = np.array([face for a, b, c, d in cells for face in ((a, b, c), (a, c, d))])
    for template, expected in (
        (bare(vertices, faces[1:]), "a closed surface; found 3 edges"),
        (acsm_toy.template(), "a closed surface; found 13 edges"),
        (two, "one connected surface; found 2 pieces"),
        (bare(torus, skin), "a surface without handles; found 1"),
    ):
        assert expected in sphere_fault(template)
        with pytest.raises(UserError, match="a map to the sphere needs .*wildshape template check") as told:
            sphere_vertices(template)
        assert "\n" not in str(told.value)


def test_the_lookup_agrees_with_trying_every_face(mapped):
    vertices, faces, sphere = mapped
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor(sphere)[torch.tensor(faces)]
    share = torch.rand(len(faces), 3, 1, generator=generator, dtype=torch.float64)
    # Points in every face, however small, points anywhere, vertices and the middles of edges.
    points = torch.cat([
        (corners * share).sum(1), torch.randn(400, 3, generator=generator, dtype=torch.float64),
        torch.tensor(sphere), corners[:, 0] + corners[:, 1],
    ])  # fmt: skip
    points = torch.nn.functional.normalize(points, dim=1)
    lookup = SphereLookup(sphere, faces, cells=12)
    found, shares = lookup(points)
    expected, expected_shares = lookup_reference(torch.tensor(sphere), torch.tensor(faces), points)
    place = (torch.tensor(vertices)[found] * shares[..., None]).sum(1)
    truth = (torch.tensor(vertices)[expected] * expected_shares[..., None]).sum(1)
    torch.testing.assert_close(place, truth, rtol=0, atol=1e-9)
    inner = slice(0, len(faces))
    torch.testing.assert_close(found[inner], torch.tensor(faces))  # a point of a face is found in it
    assert shares.min() > -1e-9
    torch.testing.assert_close(shares.sum(1), torch.ones(len(points), dtype=torch.float64))
    # The place on the sphere is the point itself.
    back = torch.nn.functional.normalize((torch.tensor(sphere)[found] * shares[..., None]).sum(1), dim=1)
    torch.testing.assert_close(back, points, rtol=0, atol=1e-9)
    single = lookup(points.float())[1]
    assert single.dtype == torch.float32 and (single.sum(1) - 1).abs().max() < 1e-5


def test_gradients_of_the_lookup(mapped):
    vertices, faces, sphere = mapped
    lookup = SphereLookup(sphere, faces, cells=12)
    points = torch.nn.functional.normalize(
        torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dim=1
    )
    surface = torch.tensor(vertices)

    def place(x):
        found, shares = lookup(x)
        return (surface[found] * shares[..., None]).sum(1)

    def slow(x):
        found, shares = lookup_reference(torch.tensor(sphere), torch.tensor(faces), x)
        return (surface[found] * shares[..., None]).sum(1)

    assert torch.autograd.gradcheck(place, points.clone().requires_grad_(), eps=1e-7, atol=1e-5)
    weight = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pulls = []
    for way in (place, slow):
        x = points.clone().requires_grad_()
        (way(x) * weight).sum().backward()
        pulls.append(x.grad)
    torch.testing.assert_close(*pulls, rtol=1e-8, atol=1e-9)


def test_cells_cover_the_sphere_once():
    points = torch.nn.functional.normalize(
        torch.randn(500, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=1
    )
    cells = cell_of(points, 3)
    assert cells.min() >= 0 and set(cells.tolist()) == set(range(54))
    assert cell_of(torch.tensor([[0.0, 0, -2.0]]), 3).item() == 5 * 9 + 4  # the middle of the -z side
