"""Shaded pictures of meshes, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acsm.renderer.attributes import face_normals, interpolate, vertex_normals
from acsm.renderer.fragments import Fragments, rasterize

DEFAULT_COLOUR = (0.72, 0.66, 0.58)


@dataclass(frozen=True)
class Light:
    """One soft lamp under an open sky. Strengths add up; about 1 in all is well exposed.

    Attributes:
        direction: towards the lamp, in the frame of the picture (x right, y down, z away).
        diffuse: strength of the lamp.
        wrap: how far the lamp's light reaches round into the shade, 0 (not) to 1.
        sky: strength of the light from above.
        ground: strength of the light from below.
        specular: strength of the highlight.
        shininess: sharpness of the highlight.
        crevices: how much hollows and contacts are darkened, 0 to 1.
    """

    direction: tuple[float, float, float] = (-0.5, -0.75, -0.65)
    diffuse: float = 0.74
    wrap: float = 0.25
    sky: float = 0.46
    ground: float = 0.24
    specular: float = 0.06
    shininess: float = 18.0
    crevices: float = 0.35


def render_shaded(
    vertices_ndc: np.ndarray,
    faces: np.ndarray,
    size: int,
    colours: np.ndarray | None = None,
    *,
    light: Light | None = None,
    background: np.ndarray | tuple[float, float, float] | None = None,
    supersample: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one mesh with smooth shading.

    Args:
        vertices_ndc: [V, 3] float, NDC; z in the same unit as x and y (normals come from it).
        faces: [F, 3] int.
        size: S, pixels on a side.
        colours: RGB, [V, 3] by vertex or [F, 3] by face (by vertex if V == F), uint8 or float in
            0..1; None: one warm grey.
        light: the lamp; None: ``Light()``.
        background: one RGB colour, or a picture [S, S, 3], uint8 or float in 0..1; None: white.
        supersample: samples on a pixel's side.

    Returns:
        uint8 RGB [S, S, 3], and the mesh's coverage of each pixel, float32 [S, S] in 0..1.

    Raises:
        ValueError: for shapes other than these.
    """
    vertices = np.asarray(vertices_ndc, np.float64)
    faces = np.asarray(faces)
    if vertices.ndim != 2:
        raise ValueError(f"expected vertices [V, 3] of one mesh; found {list(vertices.shape)}")
    light = light or Light()
    fine = size * supersample
    fragments = rasterize(vertices[None], faces, fine)
    seen = fragments.mask[0]

    albedo = _albedo(colours, len(vertices), faces, fragments)
    normals = _facing_normals(vertices, faces, fragments)
    shaded = np.zeros((fine, fine, 3), np.float32)
    shaded[seen] = _shade(albedo[seen], normals[seen], light)
    if light.crevices > 0 and seen.any():
        shaded *= _open_sky(fragments.depth[0], seen, light.crevices)[..., None]

    def pixels(values: np.ndarray) -> np.ndarray:
        samples = [
            values[i::supersample, j::supersample] for i in range(supersample) for j in range(supersample)
        ]
        return sum(samples[1:], samples[0]) / np.float32(supersample**2)

    coverage = pixels(seen[..., None].astype(np.float32))
    behind = np.ones(3, np.float32) if background is None else _unit_colours(background)
    picture = pixels(np.clip(shaded, 0, 1)) + (1 - coverage) * behind
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), coverage[..., 0]


def _unit_colours(colours: np.ndarray | tuple[float, float, float]) -> np.ndarray:
    colours = np.asarray(colours)
    if np.issubdtype(colours.dtype, np.integer) and colours.dtype == np.uint8:
        return colours.astype(np.float32) / 255
    return colours.astype(np.float32)


def _albedo(
    colours: np.ndarray | None, num_vertices: int, faces: np.ndarray, fragments: Fragments
) -> np.ndarray:
    if colours is None:
        colours = np.tile(np.float32(DEFAULT_COLOUR), (num_vertices, 1))
    colours = _unit_colours(colours)
    if colours.shape == (num_vertices, 3):
        return interpolate(colours, faces, fragments)[0]
    if colours.shape == (len(faces), 3):
        return colours[np.maximum(fragments.face_ids[0], 0)]
    raise ValueError(
        f"expected colours [{num_vertices}, 3] by vertex or [{len(faces)}, 3] by face; "
        f"found {list(colours.shape)}"
    )


def _facing_normals(vertices: np.ndarray, faces: np.ndarray, fragments: Fragments) -> np.ndarray:
    """Unit normals [S, S, 3], turned to the viewer where a face shows its back."""
    normals = interpolate(vertex_normals(vertices, faces), faces, fragments)[0]
    if not len(faces):
        return normals
    back = face_normals(vertices, faces)[:, 2] > 0
    normals[back[np.maximum(fragments.face_ids[0], 0)]] *= -1
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return normals / np.maximum(length, 1e-12)


def _shade(albedo: np.ndarray, normals: np.ndarray, light: Light) -> np.ndarray:
    to_light = np.asarray(light.direction, np.float32)
    to_light = to_light / np.linalg.norm(to_light)
    lamp = np.clip((normals @ to_light + light.wrap) / (1 + light.wrap), 0, 1)
    upness = 0.5 - 0.5 * normals[:, 1]
    strength = light.diffuse * lamp + light.ground + (light.sky - light.ground) * upness
    middle = to_light + np.float32([0, 0, -1])
    middle = middle / np.linalg.norm(middle)
    gloss = light.specular * np.clip(normals @ middle, 0, 1) ** light.shininess
    return albedo * strength[:, None] + gloss[:, None]


def _open_sky(depth: np.ndarray, seen: np.ndarray, strength: float) -> np.ndarray:
    """Darkening [S, S] in 0..1 where the surface lies behind what surrounds it."""
    import cv2

    sigma = max(depth.shape[0] / 48, 1.0)
    # The wider the blur, the fewer pixels it needs: at full size its cost grows with the cube of the side.
    side, shrink = depth.shape[0], max(1, int(sigma / 8))

    def blurred(picture: np.ndarray) -> np.ndarray:
        if shrink == 1:
            return cv2.GaussianBlur(picture, (0, 0), sigma)
        small = cv2.resize(picture, (-(-side // shrink),) * 2, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma * len(small) / side)
        return cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR)

    weight = blurred(seen.astype(np.float32))
    near = np.where(seen, depth, 0).astype(np.float32)
    around = blurred(near) / np.maximum(weight, 1e-6)
    hollow = np.clip((near - around) / 0.12, 0, 1)
    return np.where(seen, 1 - strength * hollow, 1).astype(np.float32)
