"""What is known at vertices, carried to pixels; and normals."""

from __future__ import annotations

from typing import Any

import numpy as np

from acsm.renderer.fragments import Fragments, is_tensor


def interpolate(attributes: Any, faces: Any, fragments: Fragments) -> Any:
    """Values at vertices, blended by barycentrics over the pixels.

    Args:
        attributes: [B, V, C], or [V, C] for all pictures alike; arrays, or tensors.
        faces: [F, 3] int, the faces that were drawn.
        fragments: of B pictures; of tensors where the attributes are a tensor.

    Returns:
        float32 [B, S, S, C]; 0 where no face is seen. A tensor has the precision of the barycentrics
        and gradients to attributes and vertices.

    Raises:
        ValueError: if the batch sizes differ.
    """
    if is_tensor(fragments.barycentrics):
        import torch

        from acsm.renderer.differentiable import interpolate_tensors

        return interpolate_tensors(torch.as_tensor(attributes), faces, fragments)
    from acsm.renderer.zbuffer import blend_corners

    batch, size = fragments.face_ids.shape[:2]
    values = np.asarray(attributes, np.float32)
    if values.ndim not in (2, 3) or (values.ndim == 3 and len(values) != batch):
        raise ValueError(f"expected attributes [{batch}, V, C] or [V, C]; found {list(values.shape)}")
    faces = np.ascontiguousarray(faces, np.int64)
    out = np.zeros((batch, size, size, values.shape[-1]), np.float32)
    for b in range(batch):
        one = np.ascontiguousarray(values if values.ndim == 2 else values[b])
        blend_corners(one, faces, fragments.face_ids[b], fragments.barycentrics[b], out[b])
    return out


def sample_texture(texture: Any, uv: Any, faces: Any, fragments: Fragments) -> Any:
    """Colours of a textured mesh's pixels, bilinear; :mod:`acsm.renderer.differentiable` says more.

    Args:
        texture: [H, W, C] or [B, H, W, C].
        uv: [V, 2] by vertex or [F, 3, 2] by corner, 0 to 1, v downwards.
        faces: [F, 3] int.
        fragments: of B pictures.

    Returns:
        [B, S, S, C]; an array, or, where the fragments are tensors, a tensor with gradients.
    """
    import torch

    from acsm.renderer import differentiable

    if is_tensor(fragments.barycentrics):
        return differentiable.sample_texture(
            torch.as_tensor(texture), torch.as_tensor(uv), faces, fragments
        )
    tensors = Fragments(*(torch.tensor(part) for part in fragments))
    with torch.no_grad():
        sampled = differentiable.sample_texture(torch.tensor(texture), torch.tensor(uv), faces, tensors)
    return sampled.numpy()


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals of triangles, of length twice their area: [..., V, 3], [F, 3] to [..., F, 3]."""
    corners = np.asarray(vertices)[..., faces, :]
    return np.cross(corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :])


def vertex_normals(vertices: Any, faces: Any) -> Any:
    """Unit normals at vertices: the faces' normals, weighted by area.

    They point outwards for a mesh whose faces run anticlockwise seen from outside (in a
    right-handed frame, which x right, y down, z away is).

    Args:
        vertices: [V, 3] or [B, V, 3].
        faces: [F, 3] int.

    Returns:
        The same shape and precision as ``vertices``; 0 at vertices without a face of any area. For a
        tensor a tensor, with gradients.
    """
    if is_tensor(vertices):
        from acsm.renderer.differentiable import vertex_normals_tensors

        return vertex_normals_tensors(vertices, faces)
    vertices = np.asarray(vertices)
    faces = np.asarray(faces)
    normals = face_normals(vertices, faces)
    count = vertices.shape[-2]
    flat = normals.reshape(-1, len(faces), 3)
    total = np.zeros((len(flat), count, 3))
    for one, sums in zip(flat, total):
        for axis in range(3):
            weights = np.repeat(one[:, axis], 3)
            sums[:, axis] = np.bincount(faces.reshape(-1), weights, minlength=count)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    unit = np.divide(total, length, out=np.zeros_like(total), where=length > 0)
    return unit.reshape(vertices.shape).astype(vertices.dtype, copy=False)
