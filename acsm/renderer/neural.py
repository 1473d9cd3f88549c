"""The published code's masks and depth, by the package it used: neural_renderer, where that is built.

Its frame has y up, so that y goes in negated; its eye stands 2.732 in front of our z of 0. It draws at
twice the size and averages 2 x 2 samples: masks take the values 0, .25, .5, .75 and 1, and depth is
averaged with the background's 100 at borders.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from wildshape.errors import UserError

EYE_DISTANCE = 2.732
"""What the published depth has more than ours: depth = scale * z + 7.732, ours scale * z + 5."""
BACKGROUND_DEPTH = 100.0


class NeuralRenderer:
    """Masks and depth as the published code had them.

    Args:
        size: S, pixels on a side.

    Raises:
        UserError: if neural_renderer is not there.
    """

    nearer = EYE_DISTANCE

    def __init__(self, size: int) -> None:
        try:
            import neural_renderer
        except ImportError as error:
            raise UserError(
                "--renderer neural_renderer needs that package, built for your GPU; found none; "
                "run: pip install neural-renderer-pytorch, or leave --renderer away"
            ) from error
        self.size = size
        self._renderer: Any = neural_renderer.Renderer(
            image_size=size, anti_aliasing=True, fill_back=True, camera_mode="look_at", perspective=False,
            near=0.1, far=BACKGROUND_DEPTH,
        )  # fmt: skip
        self._renderer.eye = [0.0, 0.0, -EYE_DISTANCE]

    def silhouette(self, vertices_ndc: Tensor, faces: Tensor | np.ndarray) -> Tensor:
        """Masks [B, S, S] of vertices [B, V, 3] in NDC, z with its offset of 5, and faces [F, 3]."""
        return self._renderer.render_silhouettes(*self._mesh(vertices_ndc, faces))

    def depth(self, vertices_ndc: Tensor, faces: Tensor | np.ndarray) -> Tensor:
        """Depth [B, S, S], smaller is nearer: our z + 2.732; 100 where there is nothing."""
        return self._renderer.render_depth(*self._mesh(vertices_ndc, faces))

    def _mesh(self, vertices_ndc: Tensor, faces: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        vertices = vertices_ndc.float() * vertices_ndc.new_tensor([1.0, -1.0, 1.0]).float()
        indices = torch.as_tensor(faces, device=vertices.device).int()
        return vertices, indices.expand(len(vertices), *indices.shape).contiguous()
