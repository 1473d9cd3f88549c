"""Silhouettes: coverage worked out by hand, against supersampling, gradients, awkward meshes."""

import multiprocessing

import numpy as np
import pytest
import torch
from drawn_shapes import CUBE_FACES, ball, box, directional, flat, posed, supersampled
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from acsm.renderer import silhouette
from acsm.renderer.edges import build_edge_table, edge_table

METHODS = ("numba", "torch")
both = pytest.mark.parametrize("method", METHODS)


@both
def test_half_a_pixel_and_a_triangle(method):
    # A box over columns 1 to 3.5 and rows 2 to 2.25 of a 6 x 6 picture.
    points = torch.tensor(box((1, 2), (3.5, 2.25), 6))[None]
    expected = np.zeros((6, 6))
    expected[2, 1:4] = 0.25, 0.25, 0.125
    np.testing.assert_allclose(silhouette(points, CUBE_FACES, 6, method)[0], expected, atol=1e-8)
    # A right triangle with legs of 2 pixels at (1, 1): one whole pixel, two halves.
    triangle = flat([(1, 1), (3, 1), (1, 3)], 4)
    expected = np.zeros((4, 4))
    expected[1, 1], expected[1, 2], expected[2, 1] = 1, 0.5, 0.5
    for faces in ([[0, 1, 2]], [[0, 2, 1]], [[0, 1, 2], [0, 2, 1]]):
        found = silhouette(triangle, np.array(faces), 4, method)
        np.testing.assert_allclose(found[0], expected, atol=1e-8)


@both
def test_layers_that_share_a_pixel_cover_their_union(method):
    # Two boxes with corners in pixel (2, 2): .5 x .5 of it each, overlapping in .25 x .5; and a far one.
    boxes = [box((2.0, 2.25), (2.5, 2.75), 8), box((2.25, 2.25), (2.75, 2.75), 8), box((5, 5), (6, 6), 8)]
    points = torch.tensor(np.concatenate(boxes))[None]
    faces = np.concatenate([CUBE_FACES + 8 * k for k in range(3)])
    found = silhouette(points, faces, 8, method)[0]
    assert found[2, 2].item() == pytest.approx(0.375, abs=1e-6)
    assert found.sum().item() == pytest.approx(1.375, abs=1e-6)
    # One inside the other: the outer one's area.
    nested = torch.tensor(np.concatenate([box((2.1, 2.1), (2.9, 2.8), 8), box((2.3, 2.2), (2.6, 2.7), 8)]))
    found = silhouette(nested[None], faces[:24], 8, method)[0]
    assert found[2, 2].item() == pytest.approx(0.56, abs=1e-6)


@both
def test_crossing_bars_share_a_pixel(method):
    # Diagonal bars, |x - y| < .2 and |x + y - 1| < .2, both through the middle of one pixel.
    one = [(0.1, -0.1), (1.1, 0.9), (0.9, 1.1), (-0.1, 0.1)]
    other = [(-0.1, 0.9), (0.9, -0.1), (1.1, 0.1), (0.1, 1.1)]
    points = flat(one + other, 1)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    bar = 1 - 0.8**2  # of the unit square; the middle, a square of side .2 * sqrt(2), is in both
    found = silhouette(points, faces, 1, method)
    assert found.item() == pytest.approx(2 * bar - 0.08, abs=1e-9)


@both
def test_a_convex_shape_sums_to_its_area_and_is_as_supersampled(method):
    points, faces = ball(60)
    points = torch.tensor(0.7 * points + [0.11, -0.07, 0])[None]
    found = silhouette(points, faces, 48, method)
    assert found.sum().item() / 24**2 == pytest.approx(ConvexHull(points[0, :, :2]).volume, rel=1e-10)
    fine = supersampled(points, faces, 48)
    assert np.abs(found.numpy() - fine).max() < 0.04
    border = (fine > 0) & (fine < 1)
    assert np.abs(found.numpy() - fine)[border].mean() < 0.006  # what 256 samples leave


@pytest.mark.parametrize("category", ["horse", "giraffe", "bear"])
def test_legs_that_overlap_in_random_poses(category):
    vertices, faces = posed(category, 3)
    found = silhouette(vertices, faces, 96).numpy()
    fine = supersampled(vertices, faces, 96)
    border = (fine > 0) & (fine < 1)
    assert border.sum() > 700
    assert np.abs(found - fine)[border].mean() < 0.005
    assert np.abs(found - fine)[~border].max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numba_equals_pytorch(dtype):
    rng = np.random.default_rng(2)
    horse, horse_faces = posed("horse", 2)
    points, faces = ball(40)
    cases = {
        "template": (horse, horse_faces, 64),
        "template, smaller than its faces": (horse, horse_faces, 7),
        "reaches out of the frame": (horse * 2.5, horse_faces, 33),
        "with holes": (horse, horse_faces[100:], 40),
        "soup": (torch.tensor(rng.normal(0, 0.8, (3, 20, 3))), rng.integers(0, 20, (15, 3)), 24),
        "crumpled": (torch.tensor(points + rng.normal(0, 0.4, (2, *points.shape))) * 0.5, faces, 20),
    }
    for name, (vertices, mesh, size) in cases.items():
        results = []
        for method in METHODS:
            x = vertices.to(dtype).detach().clone().requires_grad_()
            mask = silhouette(x, mesh, size, method)
            mask.backward(torch.linspace(-1, 1, mask.numel(), dtype=dtype).view_as(mask))
            assert mask.dtype == x.grad.dtype == dtype
            results.append((mask.detach(), x.grad))
        limit = 2e-6 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(results[0][0], results[1][0], atol=limit, rtol=0, msg=name)
        scale = results[1][1].abs().max().item()
        torch.testing.assert_close(results[0][1], results[1][1], atol=10 * limit * scale, rtol=0, msg=name)


@both
@pytest.mark.parametrize("shape", ["template", "crumpled", "open", "cut"])
def test_gradient_is_that_of_finite_differences(shape, method):
    rng = np.random.default_rng(4)
    points, faces = ball(30)
    vertices = torch.tensor(0.6 * points[None] + rng.normal(0, 0.02, (2, *points.shape)))
    if shape == "template":
        vertices, faces = posed("sheep", 2)
    elif shape == "crumpled":
        vertices = vertices + torch.tensor(rng.normal(0, 0.25, vertices.shape))
    elif shape == "open":
        faces = faces[: len(faces) // 2]
    else:
        vertices = 2 * vertices + 0.4
    weights = torch.tensor(rng.uniform(-1, 1, (2, 32, 32)))
    numeric, analytic = directional(
        lambda x: (silhouette(x, faces, 32, method) * weights).sum(), vertices, count=3
    )
    np.testing.assert_allclose(analytic, numeric, rtol=2e-5, atol=1e-5)


@both
def test_gradient_of_area_by_hand(method):
    # Moving the right side of a box 2 high by d NDC widens it by 4 d pixels of 8: area grows by 2 * 4 d.
    points = torch.tensor(box((2.3, 1.2), (4.6, 3.2), 8))[None].requires_grad_()
    silhouette(points, CUBE_FACES, 8, method).sum().backward()
    right = points.grad[0, 1::2, 0].sum().item()
    left = points.grad[0, 0::2, 0].sum().item()
    assert right == pytest.approx(8) and left == pytest.approx(-8)
    assert points.grad[..., 2].abs().max() == 0


@given(dx=st.integers(-5, 5), dy=st.integers(-5, 5), seed=st.integers(0, 20))
def test_moving_the_mesh_by_pixels_moves_the_picture(dx, dy, seed):
    points, faces = ball(20, seed)
    vertices = torch.tensor(0.4 * points)[None]
    moved = vertices + torch.tensor([dx * 2 / 24, dy * 2 / 24, 0.0], dtype=torch.float64)
    still, other = silhouette(vertices, faces, 24)[0], silhouette(moved, faces, 24)[0]
    np.testing.assert_allclose(np.roll(still, (dy, dx), (0, 1)), other, atol=1e-9)


@given(seed=st.integers(0, 50))
def test_disjoint_shapes_add_and_images_do_not_mix(seed):
    points, faces = ball(16, seed)
    one = torch.tensor(0.3 * points + [-0.5, 0.1, 0])
    two = torch.tensor(0.35 * points + [0.5, -0.2, 0])
    together = silhouette(torch.cat([one, two])[None], np.concatenate([faces, faces + len(one)]), 20)
    apart = silhouette(torch.stack([one, two]), faces, 20)
    np.testing.assert_allclose(together[0], apart.sum(0), atol=1e-12)


@both
def test_mirrored_and_turned_inside_out_covers_the_same(method):
    points, faces = ball(30)
    vertices = torch.tensor(0.6 * points)[None]
    mask = silhouette(vertices, faces, 24, method)
    inside_out = silhouette(vertices, faces[:, ::-1].copy(), 24, method)
    mirrored = silhouette(vertices * torch.tensor([-1.0, 1, 1]), faces, 24, method)
    np.testing.assert_allclose(mask, inside_out, atol=1e-12)
    np.testing.assert_allclose(mask.flip(2), mirrored, atol=1e-12)


@both
def test_a_mesh_with_a_boundary_or_unlike_faces_covers_what_its_faces_do(method):
    points, faces = ball(40)
    vertices = torch.tensor(0.7 * points)[None]
    bowl = faces[points[faces].mean(1)[:, 0] < 0.3]  # shows both sides from most views
    turned = faces.copy()
    turned[::3] = turned[::3, ::-1]
    thrice = np.concatenate([faces, faces[:5], faces[:5]])  # edges with four and more faces
    for mesh in (bowl, turned, thrice):
        found, fine = silhouette(vertices, mesh, 32, method).numpy(), supersampled(vertices, mesh, 32)
        assert not edge_table(mesh).closed
        assert np.abs(found - fine).max() < 0.05


@both
def test_vertices_that_are_not_finite_take_their_faces_with_them(method):
    points, faces = ball(40)
    vertices = torch.tensor(0.7 * points)[None].repeat(2, 1, 1)
    vertices[0, 3] = torch.nan
    found = silhouette(vertices.requires_grad_(), faces, 32, method)
    rest = faces[(faces != 3).all(1)]
    np.testing.assert_allclose(
        found.detach()[0], silhouette(vertices.detach()[1:], rest, 32, method)[0], atol=1e-12
    )
    found.sum().backward()
    assert torch.isfinite(vertices.grad).all()


@both
def test_faces_on_edge_cover_nothing_and_hide_nothing(method):
    edge_on = flat([(1, 1), (5, 5), (7, 7)], 8)
    assert silhouette(edge_on, np.array([[0, 1, 2], [0, 2, 1]]), 8, method).abs().max() == 0
    # A box seen straight on: four of its sides are on edge, and its contour lies on lines between pixels.
    points = torch.tensor(box((2, 1), (5, 6), 8))[None]
    expected = np.zeros((8, 8))
    expected[1:6, 2:5] = 1
    np.testing.assert_allclose(silhouette(points, CUBE_FACES, 8, method)[0], expected, atol=1e-8)
    degenerate = np.concatenate([CUBE_FACES, [[0, 0, 1], [3, 3, 3]]])
    np.testing.assert_allclose(silhouette(points, degenerate, 8, method)[0], expected, atol=1e-8)


@both
def test_off_frame(method):
    points, faces = ball(30)
    whole = silhouette(torch.tensor(0.5 * points)[None], faces, 32, method)[0]
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1)):
        moved = torch.tensor(0.5 * points + [dx, dy, 0])[None]
        expected = torch.zeros(32, 32, dtype=torch.float64)
        rows, columns = (
            slice(max(0, 16 * dy), 32 + min(0, 16 * dy)),
            slice(max(0, 16 * dx), 32 + min(0, 16 * dx)),
        )
        back = (
            slice(max(0, -16 * dy), 32 + min(0, -16 * dy)),
            slice(max(0, -16 * dx), 32 + min(0, -16 * dx)),
        )
        expected[rows, columns] = whole[back]
        np.testing.assert_allclose(silhouette(moved, faces, 32, method)[0], expected, atol=1e-9)
    assert silhouette(torch.tensor(points + [0, 9, 0])[None], faces, 16, method).abs().max() == 0
    assert (silhouette(torch.tensor(1e4 * points)[None], faces, 16, method) == 1).all()
    huge = torch.tensor(np.where(points > 0.9, 1e300, 0.4 * points))[None]
    assert torch.isfinite(silhouette(huge, faces, 16, method)).all()


@both
def test_nothing_to_draw(method):
    x = torch.zeros(0, 4, 3, requires_grad=True)
    mask = silhouette(x, [[0, 1, 2]], 8, method)
    mask.sum().backward()
    assert mask.shape == (0, 8, 8) and x.grad.shape == (0, 4, 3)
    assert silhouette(torch.zeros(2, 4, 3), np.zeros((0, 3), int), 8, method).abs().max() == 0


def test_more_segments_in_a_pixel_than_room_is_kept_for():
    vertices, faces = posed("cow", 2)
    found = {method: silhouette(vertices, faces, 2, method) for method in METHODS}
    torch.testing.assert_close(found["numba"], found["torch"], atol=1e-9, rtol=0)
    fine = supersampled(vertices, faces, 2, by=128)
    np.testing.assert_allclose(found["numba"], fine, atol=2e-3)


def test_arrays_in_arrays_out_and_threads_do_not_matter(monkeypatch):
    vertices, faces = posed("dog", 3)
    expected = silhouette(vertices, faces, 32)
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("WILDSHAPE_RENDER_THREADS", threads)
        found = silhouette(vertices.numpy(), torch.tensor(faces), 32)
        assert isinstance(found, np.ndarray) and found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)


@both
def test_vertices_changed_before_the_backward_pass_are_noticed(method):
    points, faces = ball(20)
    x = torch.tensor(0.5 * points)[None].requires_grad_()
    moved = x * 1
    mask = silhouette(moved, faces, 16, method)
    with torch.no_grad():
        moved += 1
    if method == "numba":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            mask.sum().backward()
    else:  # keeps what it needs
        mask.sum().backward()
    frozen = 0.5 * points[None]
    frozen.flags.writeable = False
    assert silhouette(frozen, faces, 16).sum() == pytest.approx(mask.sum().item())


def test_a_forked_worker_can_draw():
    points, faces = ball(30)
    vertices = np.stack([0.5 * points] * 4)
    here = silhouette(vertices, faces, 16).sum()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_draw_sum, (vertices, faces)) == here


def _draw_sum(vertices, faces):
    torch.set_num_threads(1)
    return silhouette(vertices, faces, 16).sum()


def test_work_grows_with_the_contour_and_not_with_faces_or_pixels():
    def segments(points, faces, size):
        x = torch.tensor(0.7 * points)[None].requires_grad_()
        return sum(len(share[2]) for share in silhouette(x, faces, size).grad_fn.segments)

    few, many = ball(150), ball(2400)
    assert segments(*few, 256) < 2.1 * segments(*few, 128)  # 4 times the pixels
    assert segments(*many, 256) < 1.5 * segments(*few, 256)  # 16 times the faces


def test_fitting_a_ball_to_a_silhouette():
    target = silhouette(posed("horse", 2, seed=3)[0], posed("horse", 1)[1], 48)
    points, faces = ball(300)
    x = torch.tensor(0.3 * points)[None].repeat(2, 1, 1).requires_grad_()
    optimiser = torch.optim.Adam([x], 0.01)
    losses = []
    for _ in range(60):
        loss = ((silhouette(x, faces, 48) - target) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.15 * losses[0]


def test_edge_table_pairs_faces_that_run_opposite_ways():
    table = build_edge_table(CUBE_FACES)
    assert table.closed and len(table.vertices) == 18 and table.highest == 7
    for (a, b), sides, signs in zip(table.vertices, table.sides, table.signs):
        assert list(signs) == [1, -1]
        for side, (start, end) in zip(sides, ((a, b), (b, a))):
            corners = list(CUBE_FACES[side])
            assert corners[(corners.index(start) + 1) % 3] == end
    open_table = build_edge_table(CUBE_FACES[:1])
    assert (
        not open_table.closed
        and (open_table.sides[:, 1] == 1).all()
        and (open_table.signs[:, 1] == 0).all()
    )
    assert edge_table(CUBE_FACES) is edge_table(CUBE_FACES.copy())


def test_wrong_arguments_are_named():
    good = torch.zeros(1, 3, 3)
    with pytest.raises(ValueError, match=r"expected vertices \[B, V, 3\]; found \[3, 3\]"):
        silhouette(good[0], [[0, 1, 2]], 8)
    with pytest.raises(ValueError, match="expected faces to index 3 vertices; found index 5"):
        silhouette(good, [[0, 1, 5]], 8)
    with pytest.raises(ValueError, match="found index -1"):
        silhouette(good, [[0, 1, -1]], 8)
    with pytest.raises(ValueError, match="float32 or float64; found torch.int64"):
        silhouette(good.long(), [[0, 1, 2]], 8)
    with pytest.raises(ValueError, match="found size 0"):
        silhouette(good, [[0, 1, 2]], 0)
    with pytest.raises(ValueError, match="auto, numba or torch; found 'gl'"):
        silhouette(good, [[0, 1, 2]], 8, "gl")


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu():
    vertices, faces = posed("horse", 3)
    results = []
    for device in ("cpu", "cuda"):
        x = vertices.float().to(device).detach().requires_grad_()
        mask = silhouette(x, faces, 64)
        (mask**2).sum().backward()
        results.append((mask.detach().cpu(), x.grad.cpu()))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-3, rtol=1e-3)
