"""A sheet of templates for people to look at: ``python -m acsm.template --out PICTURE.png``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from acsm.renderer import rasterize, render_shaded
from acsm.template import ArticulatedTemplate, template_for
from wildshape.category import list_categories, load_category
from wildshape.files import atomic_path
from wildshape.geometry import xy_ndc_to_crop
from wildshape.workspace import find_root

COATS = {
    "horse": (0.55, 0.36, 0.22), "cow": (0.62, 0.47, 0.36), "sheep": (0.90, 0.87, 0.80),
    "giraffe": (0.85, 0.68, 0.40), "bear": (0.40, 0.29, 0.21), "dog": (0.85, 0.70, 0.45),
}  # fmt: skip
PALETTE = np.array(
    [(0.78, 0.78, 0.76), (0.95, 0.75, 0.30), (0.90, 0.45, 0.35), (0.55, 0.40, 0.75)]
    + [(0.30, 0.60, 0.85), (0.20, 0.40, 0.70), (0.45, 0.80, 0.50), (0.20, 0.60, 0.35)]
    + [(0.30, 0.75, 0.80), (0.15, 0.50, 0.60), (0.85, 0.80, 0.35), (0.70, 0.60, 0.20)]
)
WALK = {
    "neck": (0.25, 0, 0.25), "head": (0.2, 0, 0.35), "tail": (0, 0, 0.5),
    "L_F_upper_leg": (-0.5, 0, 0), "L_F_lower_leg": (0.35, 0, 0),
    "R_F_upper_leg": (0.4, 0, 0), "R_F_lower_leg": (0.9, 0, 0),
    "L_B_upper_leg": (0.45, 0, 0), "L_B_lower_leg": (0.15, 0, 0),
    "R_B_upper_leg": (-0.45, 0, 0), "R_B_lower_leg": (0.6, 0, 0),
}  # fmt: skip
"""Rotation vectors of a stride with the head turned; about x, positive takes a foot backwards."""


def look_at(vertices: np.ndarray, yaw: float, pitch: float, scale: float = 1.0) -> np.ndarray:
    """Template vertices [V, 3] to NDC (x right, y down, z away) of a level parallel camera.

    Args:
        vertices: in the template frame.
        yaw: degrees by which the animal is turned; 0: it faces the viewer, -90: it faces left.
        pitch: degrees by which the camera looks down.
        scale: NDC per template unit.
    """
    a, b = np.radians([yaw, pitch])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    x, y, z = (vertices @ turn.T).T
    y, z = y * np.cos(b) - z * np.sin(b), y * np.sin(b) + z * np.cos(b)
    return scale * np.stack([x, -z, y], axis=-1)


def fitted(ndc: np.ndarray, margin: float = 0.06) -> np.ndarray:
    """NDC [V, 3] moved to the middle of the picture and scaled to fill it."""
    low, high = ndc[:, :2].min(axis=0), ndc[:, :2].max(axis=0)
    ndc = ndc - [*(low + high) / 2, 0]
    return ndc * (2 * (1 - margin) / (high - low).max())


def draw_beside(template: ArticulatedTemplate, beside: np.ndarray, yaw: float, cell: int) -> Image.Image:
    """A level side view with a line from each keypoint to a point beside it.

    Args:
        template: at rest.
        beside: [K, 3] in the template frame; NaN where there is none.
        yaw: degrees, as of :func:`look_at`; -90 or 90.
        cell: pixels on a side.
    """
    points = template.vertices[template.keypoint_vertices]
    known = np.isfinite(beside).all(1)
    both = np.concatenate([template.vertices, points, np.where(known[:, None], beside, points)])
    ndc = fitted(look_at(both, yaw, 0))
    count = template.num_vertices
    picture, _ = render_shaded(ndc[:count], template.faces, cell, part_colours(template))
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    own, other = np.split(xy_ndc_to_crop(ndc[count:, :2], cell), 2)
    for (ax, ay), (bx, by) in zip(own[known], other[known]):
        draw.line([ax, ay, bx, by], fill=(20, 20, 20), width=2)
        draw.ellipse([ax - 3, ay - 3, ax + 3, ay + 3], fill=(200, 30, 30), outline=(255, 255, 255))
        draw.ellipse([bx - 3, by - 3, bx + 3, by + 3], fill=(255, 255, 255), outline=(20, 20, 20))
    return image


def part_colours(template: ArticulatedTemplate) -> np.ndarray:
    """One colour a part, blended by membership: RGB [V, 3] in 0..1."""
    return template.membership @ PALETTE[np.arange(template.num_parts) % len(PALETTE)]


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _with_keypoints(picture: np.ndarray, ndc: np.ndarray, template: ArticulatedTemplate) -> Image:
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    size = image.width
    depth = rasterize(ndc[None], template.faces, size).depth[0]
    points = ndc[template.keypoint_vertices]
    places = xy_ndc_to_crop(points[:, :2], size)
    column, row = np.clip(np.round(places).astype(int), 0, size - 1).T
    visible = ~(points[:, 2] > depth[row, column] + 0.07)
    for number in np.argsort(visible, kind="stable"):  # what is seen goes over what is behind
        (px, py), seen = places[number], visible[number]
        fill = (200, 30, 30) if seen else (150, 150, 150)
        draw.ellipse([px - 3, py - 3, px + 3, py + 3], fill=fill, outline=(255, 255, 255))
        if seen:
            draw.text((px + 3, py - 13), str(number), fill=(20, 20, 20), font=_font(12))
    return image


def draw_view(
    template: ArticulatedTemplate,
    vertices: np.ndarray,
    view: tuple[float, float],
    cell: int,
    *,
    marked: bool,
) -> Image.Image:
    """One drawing by parts.

    Args:
        template: whose mesh and parts are drawn.
        vertices: [V, 3], at rest or articulated.
        view: degrees, yaw and pitch of :func:`look_at`.
        cell: pixels on a side.
        marked: whether to mark the keypoints with their numbers.
    """
    ndc = fitted(look_at(vertices, *view))
    picture, _ = render_shaded(ndc, template.faces, cell, part_colours(template))
    return _with_keypoints(picture, ndc, template) if marked else Image.fromarray(picture)


def _row(name: str, template: ArticulatedTemplate, cell: int) -> list[Image.Image]:
    coat = np.tile(COATS.get(name, (0.72, 0.66, 0.58)), (template.num_vertices, 1))
    parts = part_colours(template)
    walking = template.articulated({p: turn for p, turn in WALK.items() if p in template.part_names})

    def draw(vertices: np.ndarray, yaw: float, pitch: float, colours: np.ndarray) -> Image.Image:
        ndc = fitted(look_at(vertices, yaw, pitch))
        picture, _ = render_shaded(ndc, template.faces, cell, colours)
        if colours is parts and vertices is template.vertices:
            return _with_keypoints(picture, ndc, template)
        return Image.fromarray(picture)

    rest = template.vertices
    cells = [draw(rest, -90, 0, coat), draw(rest, -90, 0, parts), draw(rest, 0, 0, parts)]
    cells += [draw(rest, -40, 12, coat), draw(walking, -65, 8, coat), draw(walking, -65, 8, parts)]
    title = f"{name}: {template.num_vertices} vertices, {template.num_parts} parts"
    ImageDraw.Draw(cells[0]).text((8, 6), title, fill=(20, 20, 20), font=_font(15))
    return cells


def draw_sheet(names: Sequence[str], cell: int = 320) -> Image.Image:
    """A row a category: side, side by parts with keypoints, front, three-quarter, a stride twice."""
    root = find_root()  # one's own categories, too
    rows = [_row(name, template_for(load_category(name, root)), cell) for name in names]
    sheet = Image.new("RGB", (cell * len(rows[0]), cell * len(rows)), (255, 255, 255))
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            sheet.paste(image, (j * cell, i * cell))
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the templates of the named categories (all that are shipped, if none is named)."""
    parser = argparse.ArgumentParser(prog="python -m acsm.template", description=main.__doc__)
    parser.add_argument("categories", nargs="*", help="names of categories")
    parser.add_argument("--out", type=Path, required=True, help="the picture, a PNG file")
    parser.add_argument("--cell", type=int, default=320, help="pixels on a side of one drawing")
    options = parser.parse_args(argv)
    sheet = draw_sheet(options.categories or list_categories(), options.cell)
    with atomic_path(options.out) as path:
        sheet.save(path, optimize=True)
    print(f"{options.out}: {sheet.width} x {sheet.height}")
