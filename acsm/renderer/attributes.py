"""What is known at vertices, carried to pixels; and normals."""

from __future__ import annotations

import numpy as np

from acsm.renderer.fragments import Fragments


def interpolate(attributes: np.ndarray, faces: np.ndarray, fragments: Fragments) -> np.ndarray:
    """Values at vertices, blended by barycentrics over the pixels.

    Args:
        attributes: [B, V, C], or [V, C] for all pictures alike.
        faces: [F, 3] int, the faces that were drawn.
        fragments: of B pictures.

    Returns:
        float32 [B, S, S, C]; 0 where no face is seen.

    Raises:
        ValueError: if the batch sizes differ.
    """
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


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals of triangles, of length twice their area: [..., V, 3], [F, 3] to [..., F, 3]."""
    corners = np.asarray(vertices)[..., faces, :]
    return np.cross(corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :])


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals at vertices: the faces' normals, weighted by area.

    They point outwards for a mesh whose faces run anticlockwise seen from outside (in a
    right-handed frame, which x right, y down, z away is).

    Args:
        vertices: [V, 3] or [B, V, 3].
        faces: [F, 3] int.

    Returns:
        The same shape and precision as ``vertices``; 0 at vertices without a face of any area.
    """
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
