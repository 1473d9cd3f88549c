"""Predicted shapes as GLB (binary glTF 2.0), textured from their photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from acsm.renderer import vertex_normals
from acsm.texture import Atlas
from wildshape.errors import UserError
from wildshape.files import atomic_write

_LINEAR, _CLAMP = 9729, 33071  # glTF's names of filters are numbers of OpenGL


def to_gltf(points: np.ndarray) -> np.ndarray:
    """Template frame (x left, z up, head towards -y) to glTF's (y up, facing +z): [..., 3]."""
    x, y, z = np.moveaxis(np.asarray(points), -1, 0)
    return np.stack([x, z, -y], axis=-1)


def write_glb(
    path: Path, vertices: np.ndarray, faces: np.ndarray, atlas: Atlas, texture: np.ndarray
) -> None:
    """Write a textured mesh with smooth normals, whole or not at all.

    Args:
        path: the file.
        vertices: [V, 3] in the template frame.
        faces: [F, 3].
        atlas: where the texture has the faces.
        texture: RGB uint8 of the atlas's size.

    Raises:
        UserError: trimesh is not installed.
    """
    try:
        import trimesh
    except ImportError:
        raise UserError("--glb: expected trimesh; run: pip install 'wildshape[glb]'") from None
    from PIL import Image

    corners = np.asarray(faces).reshape(-1)
    # trimesh counts v from the last row, as OBJ does, and turns it round for glTF.
    uv = atlas.uv.reshape(-1, 2) * [1, -1] + [0, 1]
    material = trimesh.visual.material.PBRMaterial(
        name="photo", baseColorTexture=Image.fromarray(texture), metallicFactor=0.0, roughnessFactor=0.9
    )
    mesh = trimesh.Trimesh(
        vertices=to_gltf(vertices)[corners],
        faces=np.arange(len(corners)).reshape(-1, 3),
        vertex_normals=to_gltf(vertex_normals(np.asarray(vertices, np.float64), faces))[corners],
        visual=trimesh.visual.TextureVisuals(uv=uv, material=material),
        process=False,
    )
    data = trimesh.exchange.gltf.export_glb(
        trimesh.Scene({"animal": mesh}), include_normals=True, tree_postprocessor=_no_mipmaps
    )
    with atomic_write(path) as handle:
        handle.write(data)


def _no_mipmaps(tree: dict[str, Any]) -> None:
    """Read the texture as it is: smaller versions of it would mix faces that are neighbours in it only."""
    tree["samplers"] = [{"magFilter": _LINEAR, "minFilter": _LINEAR, "wrapS": _CLAMP, "wrapT": _CLAMP}]
    for texture in tree.get("textures", []):
        texture["sampler"] = 0
