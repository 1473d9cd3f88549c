"""Triangle meshes to pixels: exact silhouettes, a z-buffer with gradients, and shaded pictures.

Frame: normalised device coordinates (NDC) of a square picture, x right, y down, edges at -1 and 1;
the centre of pixel ``i`` of ``S`` lies at ``(2 i + 1) / S - 1``. z points away from the viewer, and
the smaller z is the nearer. Projection is orthographic: a weak-perspective camera is applied to the
vertices first (:func:`acsm.geometry.project_with_depth`).

NumPy arrays go in and come out, or PyTorch tensors, and then gradients go back. Importing this imports
neither torch nor numba; they are imported when they are first needed.
"""

from acsm.renderer.attributes import face_normals, interpolate, sample_texture, vertex_normals
from acsm.renderer.coverage import silhouette
from acsm.renderer.fragments import Fragments, rasterize
from acsm.renderer.reference import rasterize_reference
from acsm.renderer.shading import Light, render_shaded

__all__ = [
    "Fragments",
    "Light",
    "face_normals",
    "interpolate",
    "rasterize",
    "rasterize_reference",
    "render_shaded",
    "sample_texture",
    "silhouette",
    "vertex_normals",
]
