"""Triangle meshes to pixels: a z-buffer with face ids, barycentrics and depth, and shaded pictures.

Frame: normalised device coordinates (NDC) of a square picture, x right, y down, edges at -1 and 1;
the centre of pixel ``i`` of ``S`` lies at ``(2 i + 1) / S - 1``. z points away from the viewer, and
the smaller z is the nearer. Nothing here imports torch, and numba is imported at the first call.
"""

from acsm.renderer.attributes import face_normals, interpolate, vertex_normals
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
    "vertex_normals",
]
