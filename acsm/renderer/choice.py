"""Renderers by name, for a ``--renderer`` flag."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from acsm.renderer.coverage import silhouette
from acsm.renderer.fragments import rasterize
from wildshape.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

RENDERERS = ("exact", "neural_renderer")
"""``exact``: coverage of pixels and depth at their centres; ``neural_renderer``: as published."""


class Renderer(Protocol):
    """Masks and depth of projected meshes, with gradients to the vertices."""

    size: int
    nearer: float
    """What its depth has more than z."""

    def silhouette(self, vertices_ndc: Tensor, faces: Any) -> Tensor:
        """Masks [B, S, S], 0 to 1, of vertices [B, V, 3] and faces [F, 3]."""

    def depth(self, vertices_ndc: Tensor, faces: Any) -> Tensor:
        """Depth [B, S, S], smaller is nearer."""


class ExactRenderer:
    """This package's own renderer, for pictures of one size."""

    nearer = 0.0

    def __init__(self, size: int) -> None:
        self.size = size

    def silhouette(self, vertices_ndc: Tensor, faces: Any) -> Tensor:
        """As :func:`acsm.renderer.silhouette`."""
        return silhouette(vertices_ndc, faces, self.size)

    def depth(self, vertices_ndc: Tensor, faces: Any) -> Tensor:
        """z at the pixels' centres, inf where there is nothing."""
        return rasterize(vertices_ndc, faces, self.size).depth


def make_renderer(name: str, size: int) -> Renderer:
    """A renderer by its name.

    Args:
        name: one of :data:`RENDERERS`.
        size: S, pixels on a side.

    Returns:
        The renderer.

    Raises:
        UserError: for another name, or where a package is not there.
    """
    if name == "exact":
        return ExactRenderer(size)
    if name == "neural_renderer":
        from acsm.renderer.neural import NeuralRenderer

        return NeuralRenderer(size)
    raise UserError(f"expected a renderer of {', '.join(RENDERERS)}; found {name}")
