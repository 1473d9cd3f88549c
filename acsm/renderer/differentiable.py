"""The z-buffer and what is interpolated from it, for tensors: gradients to vertices and attributes.

On the CPU forward and backward are compiled; on other devices they are plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from acsm.renderer import fragments as arrays
from acsm.renderer.fragments import Fragments, check_mesh, check_size, run_jobs


def _as_faces(faces: Tensor | np.ndarray, device: torch.device) -> Tensor:
    if isinstance(faces, np.ndarray):
        faces = torch.from_numpy(faces.astype(np.int64))  # a copy: torch warns of arrays that are read-only
    return torch.as_tensor(faces, device=device).long()


def check_tensor(vertices_ndc: Tensor) -> None:
    """Raise ValueError unless the vertices are [B, V, 3] of single or double precision."""
    if vertices_ndc.ndim != 3 or vertices_ndc.shape[2] != 3:
        raise ValueError(f"expected vertices [B, V, 3]; found {list(vertices_ndc.shape)}")
    if vertices_ndc.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected vertices of float32 or float64; found {vertices_ndc.dtype}")


def rasterize_tensors(vertices_ndc: Tensor, faces: Tensor | np.ndarray, size: int) -> Fragments:
    """:func:`acsm.renderer.rasterize` for a tensor of vertices.

    Args:
        vertices_ndc: [B, V, 3], float32 or float64.
        faces: [F, 3] int, a tensor or an array.
        size: S, pixels on a side.

    Returns:
        Fragments of tensors in the vertices' precision; barycentrics and depth carry gradients.

    Raises:
        ValueError: for other shapes, types or indices.
    """
    check_tensor(vertices_ndc)
    check_size(size)
    device = vertices_ndc.device
    if device.type == "mps":  # has no double precision
        found = rasterize_tensors(vertices_ndc.cpu(), torch.as_tensor(faces).cpu(), size)
        return Fragments(*(part.to(device) for part in found))
    if device.type != "cpu":
        from acsm.renderer.zbuffer_torch import rasterize_torch

        faces = _as_faces(faces, device)
        if faces.numel() and not 0 <= int(faces.min()) <= int(faces.max()) < vertices_ndc.shape[1]:
            raise ValueError(f"expected faces to index {vertices_ndc.shape[1]} vertices")
        return rasterize_torch(vertices_ndc, faces, size)
    return Fragments(*_Rasterize.apply(vertices_ndc, np.asarray(faces), size))


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vertices: Tensor, faces: np.ndarray, size: int) -> tuple[Tensor, Tensor, Tensor]:
        points, faces = check_mesh(vertices.detach().numpy(), faces)
        precision = np.float32 if vertices.dtype == torch.float32 else np.float64
        out = arrays.draw(points, faces, size, precision)
        ctx.faces = faces
        found = [torch.from_numpy(part) for part in out]
        ctx.save_for_backward(vertices, *found[:2])
        ctx.mark_non_differentiable(found[0])
        ctx.set_materialize_grads(False)  # else the ids get zeros, too
        return found[0], found[1], found[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        from acsm.renderer.zbuffer import pull_back_fragments

        vertices, ids, barycentrics = (part.detach().numpy() for part in ctx.saved_tensors)
        shapes = barycentrics.shape, barycentrics.shape[:3]
        along, deep = (
            np.zeros(shape, barycentrics.dtype) if grad is None else grad.contiguous().numpy()
            for grad, shape in zip(grads[1:], shapes)
        )
        out = np.empty(vertices.shape, vertices.dtype)

        def pull(b: int) -> None:
            points, sums = vertices[b].astype(np.float64), np.zeros(vertices[b].shape)
            pull_back_fragments(points, ctx.faces, ids[b], barycentrics[b], along[b], deep[b], sums)
            out[b] = sums

        run_jobs(pull, list(range(len(out))))
        return torch.from_numpy(out), None, None


def interpolate_tensors(attributes: Tensor, faces: Tensor | np.ndarray, fragments: Fragments) -> Tensor:
    """:func:`acsm.renderer.interpolate` for tensors.

    Args:
        attributes: [B, V, C], or [V, C] for all pictures alike.
        faces: [F, 3] int.
        fragments: of B pictures.

    Returns:
        [B, S, S, C], with gradients to attributes and, through barycentrics, to vertices; 0 where no face
        is seen.

    Raises:
        ValueError: if the batch sizes differ.
    """
    batch = len(fragments.face_ids)
    if attributes.ndim not in (2, 3) or (attributes.ndim == 3 and len(attributes) != batch):
        raise ValueError(f"expected attributes [{batch}, V, C] or [V, C]; found {list(attributes.shape)}")
    attributes = attributes.to(fragments.barycentrics.dtype)
    if attributes.ndim == 2:
        attributes = attributes.expand(batch, *attributes.shape)
    if attributes.device.type == "cpu":
        faces = np.ascontiguousarray(faces, np.int64)
        return _Blend.apply(attributes, fragments.barycentrics, faces, fragments.face_ids)
    return blend_torch(attributes, fragments.barycentrics, faces, fragments.face_ids)


def blend_torch(
    attributes: Tensor, barycentrics: Tensor, faces: Tensor | np.ndarray, face_ids: Tensor
) -> Tensor:
    """The readable twin of what :func:`interpolate_tensors` does on a CPU; attributes are [B, V, C]."""
    image, row, column = at = (face_ids >= 0).nonzero(as_tuple=True)
    corners = _as_faces(faces, attributes.device)[face_ids[at].long()]
    values = (attributes[image[:, None], corners] * barycentrics[at][..., None]).sum(1)
    out = attributes.new_zeros(*face_ids.shape, attributes.shape[-1])
    return out.index_put((image, row, column), values)


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, attributes: Tensor, barycentrics: Tensor, faces: np.ndarray, face_ids: Tensor
    ) -> Tensor:
        from acsm.renderer.zbuffer import blend_corners

        ctx.save_for_backward(attributes, barycentrics, face_ids)
        ctx.faces = faces
        values, shares, ids = (
            part.detach().contiguous().numpy() for part in (attributes, barycentrics, face_ids)
        )
        out = np.zeros((*ids.shape, values.shape[-1]), values.dtype)
        run_jobs(
            lambda b: blend_corners(values[b], faces, ids[b], shares[b], out[b]), list(range(len(out)))
        )
        return torch.from_numpy(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from acsm.renderer.zbuffer import pull_back_corners

        values, shares, ids = (part.detach().contiguous().numpy() for part in ctx.saved_tensors)
        grad = grads[0].contiguous().numpy()
        to_values, to_shares = np.zeros(values.shape), np.zeros_like(shares)

        def pull(b: int) -> None:
            pull_back_corners(values[b], ctx.faces, ids[b], shares[b], grad[b], to_values[b], to_shares[b])

        run_jobs(pull, list(range(len(grad))))
        return torch.from_numpy(to_values).to(grads[0].dtype), torch.from_numpy(to_shares), None, None


def vertex_normals_tensors(vertices: Tensor, faces: Tensor | np.ndarray) -> Tensor:
    """:func:`acsm.renderer.vertex_normals` for a tensor [V, 3] or [B, V, 3], with gradients."""
    faces = _as_faces(faces, vertices.device)
    corners = vertices[..., faces, :]
    normals = torch.linalg.cross(
        corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    )
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(-2, faces[:, corner], normals)
    length = torch.linalg.vector_norm(total, dim=-1, keepdim=True)
    return torch.where(length > 0, total / torch.where(length > 0, length, 1), 0)


def sample_texture(texture: Tensor, uv: Tensor, faces: Tensor | np.ndarray, fragments: Fragments) -> Tensor:
    """Colours of a textured mesh's pixels, bilinear.

    Args:
        texture: [H, W, C], or [B, H, W, C].
        uv: [V, 2] by vertex, or [F, 3, 2] by corner of a face where the texture has seams; u from the
            texture's left edge (0) to its right (1), v from its upper edge to its lower. Files whose v
            points up (OBJ) need 1 - v. Beyond the edges the outermost texels go on.
        faces: [F, 3] int.
        fragments: of B pictures.

    Returns:
        [B, S, S, C], with gradients to texture, uv and vertices; 0 where no face is seen.

    Raises:
        ValueError: for other shapes.
    """
    batch = len(fragments.face_ids)
    if texture.ndim == 3:
        texture = texture.expand(batch, *texture.shape)
    if texture.ndim != 4 or len(texture) != batch:
        raise ValueError(f"expected a texture [H, W, C] or [{batch}, H, W, C]; found {list(texture.shape)}")
    if uv.ndim == 3 and uv.shape[1:] == (3, 2) and len(uv) == len(faces):
        uv, faces = uv.reshape(-1, 2), np.arange(3 * len(faces)).reshape(-1, 3)
    if uv.ndim != 2 or uv.shape[1] != 2:
        raise ValueError(f"expected uv [V, 2] or [{len(faces)}, 3, 2]; found {list(uv.shape)}")
    where = interpolate_tensors(uv, faces, fragments)
    sampled = torch.nn.functional.grid_sample(
        texture.to(where.dtype).permute(0, 3, 1, 2),
        2 * where - 1,
        padding_mode="border",
        align_corners=False,
    )
    return sampled.permute(0, 2, 3, 1) * (fragments.face_ids >= 0)[..., None]
