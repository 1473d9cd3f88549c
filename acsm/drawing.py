"""Pictures of predicted shapes: over the photo, and turned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from acsm.template import ArticulatedTemplate

# One colour a part, cycled; neighbours in a template's part list differ in hue and lightness.
_PALETTE = (
    (201, 164, 120), (226, 120, 84), (240, 188, 88), (120, 176, 108), (92, 148, 204),
    (148, 196, 232), (168, 120, 188), (212, 168, 220), (84, 176, 168), (160, 216, 204),
    (200, 96, 128), (236, 168, 184), (140, 140, 88), (196, 196, 140),
)  # fmt: skip


LARGEST = 1024
"""Side in pixels up to which a mesh is drawn over a photo as it is; a larger picture of it is enlarged."""


def part_colours(template: ArticulatedTemplate) -> np.ndarray:
    """A colour for each vertex [V, 3] in 0..1, blended from its parts'."""
    palette = np.resize(np.array(_PALETTE, np.float64) / 255, (template.membership.shape[1], 3))
    return template.membership @ palette


def _square(vertices_image: np.ndarray, corner: np.ndarray, side: float) -> np.ndarray:
    """Vertices [V, 3] of image pixels in the NDC of a square of the image."""
    ndc = np.array(vertices_image, np.float64)
    ndc[:, :2] = (ndc[:, :2] - corner) * (2 / side) - 1
    ndc[:, 2] *= 2 / side
    return ndc


def overlay(
    image: np.ndarray, vertices_image: np.ndarray, template: ArticulatedTemplate, opacity: float = 0.75
) -> np.ndarray:
    """A mesh drawn over a photo.

    Args:
        image: RGB uint8 [H, W, 3].
        vertices_image: [V, 3], x and y in pixels, z in pixels away from the viewer.
        template: for faces and colours.
        opacity: of the mesh.

    Returns:
        uint8 [H, W, 3].
    """
    from acsm.renderer import render_shaded

    height, width = image.shape[:2]
    low = np.floor(vertices_image[:, :2].min(0)).astype(int).clip(0, (width, height))
    high = (np.ceil(vertices_image[:, :2].max(0)).astype(int) + 2).clip(0, (width, height))
    side = int((high - low).max())
    if (high <= low).any():
        return image.copy()
    # No larger than it pays to draw: a photo of 12 megapixels would take gigabytes.
    size = min(side, LARGEST)
    (left, top), (right, bottom) = low, high
    canvas = np.zeros((side, side, 3), np.uint8)
    canvas[: bottom - top, : right - left] = image[top:bottom, left:right]
    behind = canvas if size == side else cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    ndc = _square(vertices_image, low - 0.5, side)
    drawn, coverage = render_shaded(ndc, template.faces, size, part_colours(template), background=behind)
    blend = np.where(coverage > 0, opacity, 0.0).astype(np.float32)
    if size != side:
        drawn, blend = (cv2.resize(part, (side, side)) for part in (drawn, blend))
    shown = np.array(image)
    here = blend[: bottom - top, : right - left, None]
    mixed = here * drawn[: bottom - top, : right - left] + (1 - here) * shown[top:bottom, left:right]
    shown[top:bottom, left:right] = np.rint(mixed).astype(np.uint8)
    return shown


def turned(vertices: np.ndarray, azimuth_deg: float) -> np.ndarray:
    """Points [V, 3] of the template frame as a camera sees them that looks down by 15 degrees.

    Azimuth 0 is from the front, 90 from the animal's left; x right, y down, z away, about the middle of
    the bounding box.
    """
    azimuth, tilt = np.deg2rad([azimuth_deg, 15.0])
    centred = vertices - (vertices.max(0) + vertices.min(0)) / 2
    turn = np.array(
        [
            [np.cos(azimuth), np.sin(azimuth), 0],
            [0, 0, -1],
            [-np.sin(azimuth), np.cos(azimuth), 0],
        ]
    )
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]])
    return centred @ (lean @ turn).T


def novel_view(
    vertices: np.ndarray, template: ArticulatedTemplate, azimuth_deg: float, size: int
) -> np.ndarray:
    """The articulated mesh upright on white, seen from an azimuth (`turned`), uint8 [size, size, 3]."""
    from acsm.renderer import render_shaded

    reach = np.abs(vertices - (vertices.max(0) + vertices.min(0)) / 2).max() * 1.25
    seen = turned(vertices, azimuth_deg) / reach
    return render_shaded(seen, template.faces, size, part_colours(template))[0]


def contact_sheet(rows: list[list[np.ndarray]], size: int, gap: int = 6) -> np.ndarray:
    """Pictures in rows on white, each fitted into a square of ``size`` pixels."""
    columns = max((len(row) for row in rows), default=1)
    pitch = size + gap
    sheet = np.full((len(rows) * pitch + gap, columns * pitch + gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            height, width = picture.shape[:2]
            scale = size / max(height, width)
            shape = (max(round(width * scale), 1), max(round(height * scale), 1))
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            small = cv2.resize(picture, shape, interpolation=method)
            y = gap + r * pitch + (size - shape[1]) // 2
            x = gap + c * pitch + (size - shape[0]) // 2
            sheet[y : y + shape[1], x : x + shape[0]] = small
    return sheet
