"""The adapter to neural_renderer, against a stand-in that has its interface and its conventions."""

import sys
import types

import numpy as np
import pytest
import torch

from acsm.renderer import rasterize
from acsm.renderer.choice import make_renderer
from wildshape.errors import UserError


class PublishedRenderer:
    """What the published package's Renderer does with an orthographic camera, as its users describe it.

    y up; depth counted from the eye; samples at twice the size, at (2 i + 1) / (2 S) - 1, flipped,
    averaged by 2 x 2; nothing is at ``far``.
    """

    def __init__(
        self, image_size=256, anti_aliasing=True, fill_back=True, camera_mode="projection", **settings
    ):
        assert anti_aliasing and fill_back and camera_mode == "look_at"
        assert settings == {"perspective": False, "near": 0.1, "far": 100.0}
        self.size, self.far, self.eye = image_size, settings["far"], None

    def _samples(self, vertices, faces):
        assert vertices.dtype == torch.float32 and faces.dtype == torch.int32
        assert faces.shape[0] == vertices.shape[0] and faces.shape[2] == 3
        seen = vertices.detach().numpy() - np.float32(self.eye)
        drawn = rasterize(seen, faces[0].numpy(), 2 * self.size)  # its rows run upwards: row 0 is y = -1
        depth = np.where(drawn.mask, drawn.depth, self.far)[:, ::-1]
        return depth.reshape(len(seen), self.size, 2, self.size, 2)

    def render_depth(self, vertices, faces):
        return torch.tensor(self._samples(vertices, faces).mean((2, 4)))

    def render_silhouettes(self, vertices, faces):
        return torch.tensor((self._samples(vertices, faces) < self.far).mean((2, 4)))


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("neural_renderer")
    module.Renderer = PublishedRenderer
    monkeypatch.setitem(sys.modules, "neural_renderer", module)


def corner(size):
    """A triangle in the upper left, its right angle there, sloping away to the right from z = 5."""
    return torch.tensor([[[-1.0, -1, 5], [0, -1, 6], [-1, 0, 5]]]).double(), [[0, 1, 2]], size


@pytest.mark.usefixtures("package")
def test_published_masks_take_five_values_and_lie_where_ours_do():
    vertices, faces, size = corner(8)
    mask = make_renderer("neural_renderer", size).silhouette(vertices, faces)
    assert set(mask.unique().tolist()) <= {0, 0.25, 0.5, 0.75, 1}
    exact = make_renderer("exact", size).silhouette(vertices, faces)
    assert mask[0, 0, 0] == 1 and mask[0, -1].max() == 0  # upper left, not lower left
    assert (mask - exact).abs().max() < 0.26
    fine = rasterize(vertices.numpy(), faces, 2 * size).mask.reshape(1, size, 2, size, 2).mean((2, 4))
    np.testing.assert_allclose(mask, fine)


@pytest.mark.usefixtures("package")
def test_published_depth_is_ours_and_the_eyes_distance():
    vertices, faces, size = corner(8)
    published = make_renderer("neural_renderer", size).depth(vertices, faces)
    ours = make_renderer("exact", size).depth(vertices, faces)
    inside = make_renderer("neural_renderer", size).silhouette(vertices, faces) == 1
    torch.testing.assert_close(published[inside].double(), ours[inside] + 2.732, atol=1e-5, rtol=0)
    assert published[0, 7, 7] == 100
    border = (~inside) & torch.isfinite(ours)
    assert ((published > 8.8) & (published < 100))[border].any()  # mixed with the background


def test_without_the_package_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_renderer", None)
    with pytest.raises(UserError, match="pip install neural-renderer-pytorch, or leave --renderer away"):
        make_renderer("neural_renderer", 8)
    with pytest.raises(UserError, match="expected a renderer of exact, neural_renderer; found gl"):
        make_renderer("gl", 8)
