"""The z-buffer for tensors: as the arrays', on any device's path, with gradients of finite differences."""

import numpy as np
import pytest
import torch

from acsm.renderer import interpolate, rasterize, sample_texture, vertex_normals
from acsm.renderer.differentiable import blend_torch
from acsm.renderer.zbuffer_torch import rasterize_torch


def mesh(seed=0, batch=2, vertices=14, faces=18, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    points = torch.tensor(rng.normal(0, 0.6, (batch, vertices, 3)), dtype=dtype)
    return points, np.stack([rng.permutation(vertices)[:3] for _ in range(faces)])


def away_from_borders(points, faces, size, move):
    """Pixels [B, S, S] that see the same face with the vertices where they are and moved by ``move``."""
    ids = rasterize(points, faces, size).face_ids
    same = ids >= 0
    for sign in (-1, 1):
        same &= rasterize(points + sign * move, faces, size).face_ids == ids
    return same


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_give_what_arrays_give(dtype):
    points, faces = mesh(1, dtype=dtype)
    arrays, tensors = rasterize(points.numpy(), faces, 33), rasterize(points, faces, 33)
    np.testing.assert_array_equal(arrays.face_ids, tensors.face_ids)
    assert tensors.barycentrics.dtype == tensors.depth.dtype == dtype
    np.testing.assert_allclose(arrays.barycentrics, tensors.barycentrics, atol=1e-6)
    np.testing.assert_allclose(arrays.depth, tensors.depth, rtol=1e-6)
    np.testing.assert_array_equal(arrays.mask, tensors.mask)


@pytest.mark.parametrize("size", [1, 8, 45])
def test_pytorch_equals_numba(size, monkeypatch):
    monkeypatch.setattr("acsm.renderer.zbuffer_torch.MOST_PAIRS", 500)  # several rounds
    points, faces = mesh(2, batch=3)
    points[0, 0] = torch.nan
    points[1, :4] *= 1e6
    points[2, :, 2] = 1.0  # all equally far: the lower index wins
    fast, plain = rasterize(points, faces, size), rasterize_torch(points, torch.tensor(faces), size)
    np.testing.assert_array_equal(fast.face_ids, plain.face_ids)
    torch.testing.assert_close(fast.barycentrics, plain.barycentrics, atol=1e-9, rtol=0)
    torch.testing.assert_close(fast.depth, plain.depth, atol=1e-9, rtol=1e-9)


def test_gradients_are_autograds_through_the_plain_expressions():
    points, faces = mesh(3)
    rng = torch.Generator().manual_seed(0)
    grads = []
    for function in (rasterize, lambda v, f, s: rasterize_torch(v, torch.tensor(f), s)):
        x = points.clone().requires_grad_()
        found = function(x, faces, 24)
        rng.manual_seed(0)
        along = torch.randn(found.barycentrics.shape, generator=rng, dtype=x.dtype)
        deep = torch.randn(found.depth.shape, generator=rng, dtype=x.dtype)
        ((found.barycentrics * along).sum() + (found.depth * deep)[found.mask].sum()).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-8)


def test_gradients_of_depth_barycentrics_and_attributes_are_those_of_finite_differences():
    points, faces = mesh(4)
    step = 1e-6
    rng = torch.Generator().manual_seed(1)
    move = torch.randn(points.shape, generator=rng, dtype=points.dtype)
    colours = torch.randn(2, 14, 4, generator=rng, dtype=points.dtype).requires_grad_()
    recolour = torch.randn(colours.shape, generator=rng, dtype=points.dtype)
    keep = away_from_borders(points, faces, 40, step * move)
    assert keep.sum() > 500
    weights = torch.randn(2, 40, 40, 8, generator=rng, dtype=points.dtype) * keep[..., None]

    def loss(x, values):
        found = rasterize(x, faces, 40)
        parts = [
            found.barycentrics,
            found.depth.where(keep, 0)[..., None],
            interpolate(values, faces, found),
        ]
        return (torch.cat(parts, -1) * weights).sum()

    x = points.clone().requires_grad_()
    loss(x, colours).backward()
    with torch.no_grad():
        for dx, dc in ((move, 0 * recolour), (0 * move, recolour)):
            numeric = (
                loss(x + step * dx, colours + step * dc) - loss(x - step * dx, colours - step * dc)
            ) / (2 * step)
            analytic = (x.grad * dx).sum() + (colours.grad * dc).sum()
            assert analytic.item() == pytest.approx(numeric.item(), rel=1e-5)


def test_blending_equals_its_plain_twin_with_gradients():
    points, faces = mesh(5)
    found = rasterize(points, faces, 16)
    values = torch.randn(2, 14, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for plain in (False, True):
        v, b = values.clone().requires_grad_(), found.barycentrics.clone().requires_grad_()
        pixels = blend_torch(v, b, faces, found.face_ids) if plain else None
        if pixels is None:
            pixels = interpolate(v, faces, found._replace(barycentrics=b))
        (pixels**2).sum().backward()
        results.append((pixels.detach(), v.grad, b.grad))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_attributes_of_all_pictures_alike_collect_their_gradient():
    points, faces = mesh(6, dtype=torch.float32)
    colours = torch.rand(14, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = rasterize(points, faces, 16)
    interpolate(colours, faces, found).sum().backward()
    # Barycentrics sum to 1, so each pixel that is seen gives 1 in all to each channel.
    np.testing.assert_allclose(colours.grad.sum(0), [found.mask.sum()] * 3, rtol=1e-5)
    with pytest.raises(ValueError, match=r"expected attributes \[2, V, C\] or \[V, C\]"):
        interpolate(torch.rand(3, 14, 3), faces, found)


def square(size):
    """Two faces over the whole picture, with uv from its upper left (0, 0) to its lower right (1, 1)."""
    corners = torch.tensor([[-1.0, -1, 0], [1, -1, 0], [-1, 1, 0], [1, 1, 0]], dtype=torch.float64)
    faces = np.array([[0, 1, 2], [1, 3, 2]])
    return corners[None], faces, (corners[:, :2] + 1) / 2, rasterize(corners[None], faces, size)


def test_a_texture_as_large_as_the_picture_is_shown_as_it_is():
    _, faces, uv, found = square(5)
    texture = torch.rand(5, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(sample_texture(texture, uv, faces, found)[0], texture, atol=1e-12)
    by_corner = sample_texture(texture, uv[torch.tensor(faces)], faces, found)[0]
    np.testing.assert_allclose(by_corner, texture, atol=1e-12)
    arrays = sample_texture(
        texture.numpy(), uv.numpy(), faces, type(found)(*(part.numpy() for part in found))
    )
    assert isinstance(arrays, np.ndarray)
    np.testing.assert_allclose(arrays[0], texture, atol=1e-12)


def test_textures_pass_gradients_to_texels_uv_and_vertices():
    points, faces, uv, _ = square(6)
    points = points * torch.tensor([0.9, 0.8, 1])  # no pixel's centre on the line between the faces
    rng = torch.Generator().manual_seed(2)
    texture = torch.rand(4, 4, 2, generator=rng, dtype=torch.float64).requires_grad_()
    uv, points = uv.requires_grad_(), points.requires_grad_()

    def loss(t, w, x):
        return (sample_texture(t, w, faces, rasterize(x, faces, 6)) ** 2).sum()

    inputs = (texture, uv, points)
    loss(*inputs).backward()
    for k, value in enumerate(inputs):
        d = torch.randn(value.shape, generator=rng, dtype=torch.float64)
        with torch.no_grad():
            plus, minus = (
                [v + sign * 1e-6 * d if i == k else v for i, v in enumerate(inputs)] for sign in (1, -1)
            )
            numeric = (loss(*plus) - loss(*minus)).item() / 2e-6
        assert (value.grad * d).sum().item() == pytest.approx(numeric, rel=1e-5)


def test_texture_shapes_are_checked():
    _, faces, uv, found = square(4)
    with pytest.raises(ValueError, match=r"expected a texture \[H, W, C\]"):
        sample_texture(torch.rand(4, 4), uv, faces, found)
    with pytest.raises(ValueError, match=r"expected uv \[V, 2\] or \[2, 3, 2\]; found \[4, 3\]"):
        sample_texture(torch.rand(4, 4, 3), torch.rand(4, 3), faces, found)


def test_normals_of_tensors_are_those_of_arrays_and_have_gradients():
    points, faces = mesh(7)
    points = torch.cat([points, torch.zeros(2, 1, 3, dtype=torch.float64)], 1)  # a vertex without a face
    found = vertex_normals(points.requires_grad_(), faces)
    np.testing.assert_allclose(found.detach(), vertex_normals(points.detach().numpy(), faces), atol=1e-9)
    (found**2).sum().backward()
    # Their length is 1, whatever the vertices.
    assert points.grad.abs().max() < 1e-6


def test_nothing_to_draw_and_wrong_arguments():
    x = torch.zeros(0, 3, 3, requires_grad=True)
    found = rasterize(x, [[0, 1, 2]], 8)
    found.depth.sum().backward()
    assert found.barycentrics.shape == (0, 8, 8, 3) and x.grad.shape == (0, 3, 3)
    edge_on = torch.tensor([[[-1.0, -1, 0], [1, 1, 0], [0.5, 0.5, 1]]], requires_grad=True)
    found = rasterize(edge_on, [[0, 1, 2]], 8)
    found.barycentrics.sum().backward()
    assert not found.mask.any() and edge_on.grad.abs().max() == 0
    plain = rasterize_torch(edge_on, torch.tensor([[0, 1, 2]]), 8)
    assert not plain.mask.any()
    with pytest.raises(ValueError, match="float32 or float64"):
        rasterize(torch.zeros(1, 3, 3).half(), [[0, 1, 2]], 8)
    with pytest.raises(ValueError, match="found size 0"):
        rasterize(torch.zeros(1, 3, 3), [[0, 1, 2]], 0)
    with pytest.raises(ValueError, match="to index 3 vertices; found indices 0 to 5"):
        rasterize(torch.zeros(1, 3, 3), [[0, 1, 5]], 8)


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu():
    points, faces = mesh(8, dtype=torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        x = points.to(device).detach().requires_grad_()
        found = rasterize(x, faces, 32)
        (interpolate(x, faces, found) ** 2).sum().backward()
        results.append((found.face_ids.cpu(), x.grad.cpu()))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-3)
