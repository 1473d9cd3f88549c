"""The silhouette's entry point, for arrays and tensors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from acsm.renderer.fragments import is_tensor

Method = Literal["auto", "numba", "torch"]


def silhouette(vertices_ndc: Any, faces: Any, size: int, method: Method = "auto") -> Any:
    """The share of each pixel that a mesh covers, exactly, with its gradient.

    Only edges between a front and a back face matter, so that the work grows with the length of the
    contour in pixels. Where layers share a pixel, their union is covered. A mesh that is not closed, or
    whose faces do not agree which way is out, covers what any of its faces does; so does a mesh with
    vertices that are not finite, whose faces are left out. Faces seen edge-on cover nothing. Parts
    outside the picture are cut off. The gradient lies in the pixels that the contour crosses, and z has
    none.

    Args:
        vertices_ndc: [B, V, 3], NDC: a tensor of float32 or float64, or an array.
        faces: [F, 3] int, shared by the batch: a tensor or an array.
        size: S, pixels on a side.
        method: ``numba`` (compiled, CPU), ``torch`` (any device), or ``auto``: what fits the device.

    Returns:
        [B, S, S], 0 to 1, in the vertices' precision; an array where the vertices were one.

    Raises:
        ValueError: for other shapes, types or indices.
    """
    from acsm.renderer import silhouettes

    if is_tensor(vertices_ndc):
        return silhouettes.silhouette(vertices_ndc, faces, size, method)
    import torch

    vertices = np.asarray(vertices_ndc)
    precision = np.float32 if vertices.dtype == np.float32 else np.float64
    vertices = np.array(vertices, precision)  # a copy: torch warns of arrays that are read-only
    with torch.no_grad():
        return silhouettes.silhouette(torch.from_numpy(vertices), faces, size, method).numpy()
