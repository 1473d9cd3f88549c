"""Implicit solids and the simplifier behind the procedural templates."""

import numpy as np
import pytest

from acsm.implicit import Chain, Station, chain_field, smooth_min, solid_field
from acsm.procedural import weld_mirror_image
from acsm.remesh import flip_edges, neighbour_average, simplify


def half_sphere(rings=24, segments=32):
    """Points and outward faces of the half x >= 0 of a unit sphere, border at x = 0."""
    points, faces = [(1.0, 0.0, 0.0)], []
    for r in range(1, rings + 1):
        tilt = r / rings * np.pi / 2
        for s in range(segments):
            turn = 2 * np.pi * s / segments
            x = 0.0 if r == rings else np.cos(tilt)
            points.append((x, np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn)))
    for s in range(segments):
        t = (s + 1) % segments
        faces.append((0, 1 + s, 1 + t))
        for r in range(rings - 1):
            a, b = 1 + r * segments, 1 + (r + 1) * segments
            faces += [(a + s, b + s, b + t), (a + s, b + t, a + t)]
    return np.array(points), np.array(faces)


def directed_edges_pair_up(faces):
    edges = np.concatenate([faces[:, [k, (k + 1) % 3]] for k in range(3)])
    codes = {tuple(e) for e in edges.tolist()}
    return len(codes) == len(edges) and all((b, a) in codes for a, b in codes)


@pytest.mark.parametrize("count", [400, 120, 40])
def test_simplified_half_welds_into_a_closed_surface(count):
    points, faces = half_sphere()
    small, fewer = simplify(points, faces, np.ones(len(points)), count)
    assert len(small) == count
    assert (small[:, 0] >= 0).all()
    vertices, whole, other = weld_mirror_image(small, fewer)
    assert directed_edges_pair_up(whole)
    assert len(vertices) - 3 * len(whole) // 2 + len(whole) == 2
    np.testing.assert_array_equal(vertices[other], small * [-1, 1, 1])
    a, b, c = (vertices[whole[:, k]] for k in range(3))
    volume = (a * np.cross(b, c)).sum() / 6
    assert 0.6 * 4.19 < volume < 4.19


def test_wanted_lengths_steer_where_vertices_stay():
    points, faces = half_sphere()
    wanted = np.where(points[:, 2] > 0, 1.0, 3.0)
    small, _ = simplify(points, faces, wanted, 200)
    assert (small[:, 2] > 0.1).sum() > 3 * (small[:, 2] < -0.1).sum()


def test_flip_turns_the_long_diagonal():
    points = np.array([[1, 0, 0], [2, -0.2, 0], [3, 0, 0], [2, 0.2, 0.0]])
    flipped = flip_edges(points, np.array([[0, 1, 2], [0, 2, 3]]))
    edges = {frozenset(e) for f in flipped for e in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))}
    assert frozenset((1, 3)) in edges and frozenset((0, 2)) not in edges
    np.testing.assert_array_equal(flip_edges(points, flipped), flipped)


def test_border_listens_to_the_border_only():
    faces = np.array([[0, 1, 2], [1, 3, 2]])
    values = np.array([[0.0], [10.0], [100.0], [20.0]])
    border = np.array([True, True, False, True])
    averaged = neighbour_average(faces, border, values)
    np.testing.assert_allclose(averaged[:, 0], [10, 10, 10, 10])


def test_a_ball_has_its_distance_as_a_field():
    ball = Chain("body", (Station((0, 0, 1), 0.5, 0.5),), blend=0.1)
    points = np.array([[0, 0, 3.0], [0, 0.5, 1], [0.75, 0, 1], [0.25, 0, 1]])
    np.testing.assert_allclose(chain_field(points, ball)[0], [1.5, 0, 0.25, -0.25], atol=1e-9)


def test_a_flat_tapered_capsule_ends_where_its_section_says():
    stations = (Station((0, 0, 0), 0.4, 0.1), Station((0, 2, 0), 0.2, 0.1))
    chain = Chain("ear", stations, blend=0.0)
    surface = np.array([[0.1, 1, 0], [0, 1, 0.3], [0, 1, -0.3], [0, 2.2, 0], [0, -0.4, 0]])
    np.testing.assert_allclose(chain_field(surface, chain)[0], 0, atol=1e-9)
    mirrored = chain.mirrored("other")
    np.testing.assert_allclose(chain_field(surface * [-1, 1, 1], mirrored)[0], 0, atol=1e-9)


def test_smooth_min_is_a_min_beyond_the_blend_and_below_it_within():
    a, b = np.array([0.0, 1.0, 0.5]), np.array([2.0, 0.0, 0.5])
    np.testing.assert_allclose(smooth_min(a, b, 0.4), [0, 0, 0.4])


def test_floor_cuts_the_solid_flat():
    ball = Chain("foot", (Station((0, 0, 0), 0.5, 0.5),), blend=0.1)
    points = np.array([[0, 0, -0.1], [0, 0, 0.0], [0, 0, 0.1]])
    assert np.sign(solid_field(points, [ball], floor=0.0)).tolist() == [1, 0, -1]
