"""The z-buffer: hand-computed pictures, the readable twin, awkward input."""

import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from acsm.renderer import (
    interpolate,
    rasterize,
    rasterize_reference,
    render_shaded,
    vertex_normals,
)


def pixel_centre(i, size):
    return (2 * i + 1) / size - 1


def at_pixels(points, size, z=0.0):
    """Corners given in pixel centres (column, row) to NDC."""
    points = np.asarray(points, float)
    depth = np.broadcast_to(np.asarray(z, float), len(points))
    return np.column_stack([pixel_centre(points, size), depth])


def test_one_triangle_covers_the_pixels_counted_by_hand():
    # Right angle at pixel (1, 1), legs of 3 pixels: rows of 4, 3, 2, 1 centres, edges included.
    vertices = at_pixels([(1, 1), (4, 1), (1, 4)], 8)
    found = rasterize(vertices[None], [[0, 1, 2]], 8)
    expected = np.zeros((8, 8), bool)
    for row, count in ((1, 4), (2, 3), (3, 2), (4, 1)):
        expected[row, 1 : 1 + count] = True
    np.testing.assert_array_equal(found.mask[0], expected)
    assert found.face_ids.dtype == np.int32
    np.testing.assert_allclose(found.barycentrics[0, 1, 4], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found.barycentrics[0, 2, 2], [1 / 3, 1 / 3, 1 / 3], atol=1e-6)
    np.testing.assert_allclose(found.barycentrics[0, 3, 1], [1 / 3, 0, 2 / 3], atol=1e-6)


def test_depth_is_linear_over_a_face_and_infinite_elsewhere():
    vertices = at_pixels([(0, 0), (6, 0), (0, 6)], 8, z=[1.0, 4.0, -2.0])
    depth = rasterize(vertices[None], [[0, 1, 2]], 8).depth[0]
    assert depth[0, 2] == pytest.approx(2.0)
    assert depth[2, 0] == pytest.approx(0.0)
    assert depth[2, 2] == pytest.approx(1.0)
    assert np.isinf(depth[7, 7])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nearer_face_wins_whatever_the_order(order):
    square = [(0, 0), (7, 0), (0, 7), (7, 7)]
    vertices = np.concatenate([at_pixels(square, 8, z=2.0), at_pixels(square, 8, z=-1.0)])
    far, near = [[0, 1, 2], [1, 3, 2]], [[4, 5, 6], [5, 7, 6]]
    faces = np.concatenate([(far, near)[k] for k in order])
    found = rasterize(vertices[None], faces, 8)
    assert (found.depth == -1).all()
    assert np.isin(found.face_ids, np.nonzero(faces[:, 0] >= 4)[0]).all()


def test_crossing_faces_meet_where_their_depths_do():
    corners = [(-1, -1), (9, -1), (-1, 9), (9, 9)]
    rising = at_pixels(corners, 9, z=[0, 10, 0, 10])
    falling = at_pixels(corners, 9, z=[10, 0, 10, 0])
    faces = [[0, 1, 2], [1, 3, 2], [4, 5, 6], [5, 7, 6]]
    ids = rasterize(np.concatenate([rising, falling])[None], faces, 9).face_ids[0]
    assert (ids[:, :4] < 2).all() and (ids[:, 5:] >= 2).all()


def test_both_orientations_are_drawn_alike():
    vertices = at_pixels([(1, 1), (6, 2), (2, 6)], 8, z=[0, 1, 2])
    one = rasterize(vertices[None], [[0, 1, 2]], 8)
    other = rasterize(vertices[None], [[0, 2, 1]], 8)
    np.testing.assert_array_equal(one.face_ids, other.face_ids)
    np.testing.assert_allclose(one.depth[one.mask], other.depth[one.mask], rtol=1e-6)
    np.testing.assert_allclose(one.barycentrics, other.barycentrics[..., [0, 2, 1]], atol=1e-6)


def test_equals_the_readable_twin_on_random_soups():
    rng = np.random.default_rng(3)
    for size in (1, 7, 33, 70):
        vertices = rng.normal(0, 0.8, (3, 24, 3))
        faces = rng.integers(0, 24, (40, 3))  # some have no area
        fast, slow = rasterize(vertices, faces, size), rasterize_reference(vertices, faces, size)
        np.testing.assert_array_equal(fast.face_ids, slow.face_ids)
        np.testing.assert_array_equal(fast.depth, slow.depth)
        np.testing.assert_allclose(fast.barycentrics, slow.barycentrics, atol=1e-6)


def test_faces_that_share_an_edge_leave_no_gap():
    rng = np.random.default_rng(5)
    n = 9
    grid = np.stack(np.meshgrid(np.linspace(-1.2, 1.2, n), np.linspace(-1.2, 1.2, n)), -1)
    grid[1:-1, 1:-1] += rng.uniform(-0.06, 0.06, (n - 2, n - 2, 2))
    vertices = np.concatenate([grid.reshape(-1, 2), np.zeros((n * n, 1))], 1).astype(np.float32)
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).reshape(-1, 1)
    faces = np.concatenate([corner + [0, 1, n], corner + [1, n + 1, n]])
    assert rasterize(vertices[None], faces, 128).mask.all()


def test_awkward_input_is_finite_and_quiet():
    nan, huge = np.nan, 1e8
    vertices = np.array(
        [[-1, -1, 0], [1, 1, 0], [3, 3, 0], [nan, 0, 0]] + [[huge, -huge, 1], [-huge, huge, 1], [9, 9, 0]]
    )
    faces = [[0, 1, 2], [0, 1, 3], [0, 4, 5], [2, 2, 6], [4, 5, 1]]
    found = rasterize(vertices[None], faces, 16)
    assert np.isfinite(found.barycentrics).all()
    assert not np.isnan(found.depth).any()
    sums = found.barycentrics.sum(-1)
    np.testing.assert_allclose(sums[found.mask], 1, atol=1e-5)
    assert not np.isin(found.face_ids, [0, 1, 3]).any()  # edge-on, not finite, no area


def test_a_mesh_outside_the_frame_draws_nothing():
    vertices = np.array([[2.0, 2, 0], [3, 2, 0], [2, 3, 0]])
    assert not rasterize(vertices[None], [[0, 1, 2]], 8).mask.any()


def test_empty_batch_and_no_faces():
    assert rasterize(np.zeros((0, 3, 3)), [[0, 1, 2]], 8).depth.shape == (0, 8, 8)
    assert not rasterize(np.zeros((2, 3, 3)), np.zeros((0, 3), int), 8).mask.any()


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"expected vertices \[B, V, 3\]; found \[3, 3\]"):
        rasterize(np.zeros((3, 3)), [[0, 1, 2]], 8)
    with pytest.raises(ValueError, match="to index 3 vertices; found indices 0 to 5"):
        rasterize(np.zeros((1, 3, 3)), [[0, 1, 5]], 8)


def test_interpolate_reproduces_a_linear_function():
    size = 32
    rng = np.random.default_rng(0)
    vertices = rng.uniform(-1, 1, (2, 12, 3))
    faces = rng.integers(0, 12, (10, 3))
    found = rasterize(vertices, faces, size)
    xy = interpolate(vertices[..., :2], faces, found)
    centre = pixel_centre(np.arange(size), size)
    expected = np.stack(np.meshgrid(centre, centre), -1)
    for b in range(2):
        mask = found.mask[b]
        np.testing.assert_allclose(xy[b][mask], expected[mask], atol=1e-4)
        assert (xy[b][~mask] == 0).all()


def test_vertex_normals_of_an_octahedron_point_outwards():
    points = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    faces = [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    np.testing.assert_allclose(vertex_normals(points, faces), points, atol=1e-12)
    batch = vertex_normals(np.stack([points, 2 * points]), faces)
    np.testing.assert_allclose(batch[1], points, atol=1e-12)


def test_shaded_picture_shows_mesh_over_background():
    vertices = at_pixels([(4, 4), (28, 4), (4, 28)], 32)
    picture, coverage = render_shaded(
        vertices, [[0, 2, 1]], 32, colours=np.array([[1.0, 0, 0]]), background=(0, 0, 1.0)
    )
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert tuple(picture[30, 30]) == (0, 0, 255) and coverage[30, 30] == 0
    assert picture[8, 8, 0] > 100 and coverage[8, 8] == 1
    assert 0 < coverage[16, 16] <= 1
    assert coverage.sum() == pytest.approx(0.5 * 24 * 24, rel=0.05)


def test_shading_is_brighter_towards_the_lamp():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(400, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    faces = ConvexHull(points).simplices
    outward = np.einsum(
        "fc,fc->f",
        np.cross(points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]]),
        points[faces[:, 0]],
    )
    faces[outward < 0] = faces[outward < 0][:, ::-1]
    picture, _ = render_shaded(points * 0.9, faces, 64)
    assert picture[20, 20].mean() > picture[44, 44].mean() + 40
    inside_out, _ = render_shaded(points * 0.9, faces[:, ::-1], 64)
    np.testing.assert_allclose(picture.astype(int), inside_out, atol=2)


def test_importing_the_renderer_imports_neither_torch_nor_numba():
    code = "import sys, acsm.renderer; print([m for m in ('torch', 'numba') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_forked_worker_can_draw():
    vertices = at_pixels([(1, 1), (6, 2), (2, 6)], 64)
    here = rasterize(np.stack([vertices] * 4), [[0, 1, 2]], 64).face_ids.sum()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply(_draw_sum, (vertices,))
    assert here == there


def _draw_sum(vertices):
    return rasterize(np.stack([vertices] * 4), [[0, 1, 2]], 64).face_ids.sum()
