"""Drawing for people: keypoints and bones over a picture, and contact sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wildshape.geometry import Affine2D, crop_affine, warp_crop
from wildshape.skeleton import Skeleton

# Left, right and middle differ in hue and in lightness, so that they part for colour-blind eyes too.
SIDE_COLOURS = {"left": (0, 114, 178), "right": (230, 120, 0), "middle": (0, 190, 120)}
_SUBPIXEL_BITS = 4


def draw_keypoints(
    image: np.ndarray,
    xy: np.ndarray,
    confidence: np.ndarray | None = None,
    skeleton: Skeleton | None = None,
    *,
    threshold: float = 0.0,
    thickness: float = 1.0,
) -> np.ndarray:
    """Keypoints as dots and bones as lines over a copy of a picture.

    Args:
        image: RGB uint8 [H, W, 3].
        xy: Keypoints [K, 2] in the picture's pixels; NaN are not drawn.
        confidence: [K]; less confident keypoints are paler (relative to the largest). None draws
            all alike.
        skeleton: Gives bones and sides; None draws dots of one colour.
        threshold: Keypoints of confidence at or below this are not drawn if it is positive.
        thickness: Relative to the default, which suits the picture's size.

    Returns:
        RGB uint8 [H, W, 3].
    """
    canvas = np.ascontiguousarray(image).copy()
    xy = np.asarray(xy, dtype=np.float64)
    limit = 4.0 * max(canvas.shape[:2]) + 1000.0
    shown = np.isfinite(xy).all(axis=1) & (np.abs(np.nan_to_num(xy)) < limit).all(axis=1)
    strength = np.ones(len(xy))
    if confidence is not None:
        confidence = np.nan_to_num(np.asarray(confidence, dtype=np.float64))
        if threshold > 0:
            shown &= confidence > threshold
        largest = confidence[shown].max(initial=0.0)
        if largest > 0:
            strength = np.clip(confidence / largest, 0.25, 1.0)
    unit = max(canvas.shape[:2]) / 256.0 * thickness
    radius, width = max(3, round(2.6 * unit)), max(1, round(1.3 * unit))
    sides = skeleton.sides if skeleton is not None else ("middle",) * len(xy)
    for a, b in skeleton.edges if skeleton is not None else ():
        if shown[a] and shown[b]:
            side = next((s for s in (sides[a], sides[b]) if s != "middle"), "middle")
            alpha = min(strength[a], strength[b])
            _line(canvas, xy[a], xy[b], SIDE_COLOURS[side], width, alpha)
    for index in np.flatnonzero(shown):
        _dot(canvas, xy[index], SIDE_COLOURS[sides[index]], radius, strength[index])
    return canvas


def draw_box(
    image: np.ndarray, box_xyxy: np.ndarray, colour: tuple[int, int, int] = (255, 220, 0)
) -> np.ndarray:
    """A box [4] as a frame over a copy of an RGB picture."""
    canvas = np.ascontiguousarray(image).copy()
    first, second = _fixed(np.asarray(box_xyxy)[:2]), _fixed(np.asarray(box_xyxy)[2:])
    width = max(1, round(max(canvas.shape[:2]) / 256))
    cv2.rectangle(canvas, first, second, colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


def draw_mask(
    image: np.ndarray,
    mask: np.ndarray,
    colour: tuple[int, int, int] = (255, 0, 200),
    strength: float = 0.35,
) -> np.ndarray:
    """A mask [H, W] (not 0 is inside) as a tint with an outline over a copy of an RGB picture."""
    canvas, inside = np.ascontiguousarray(image).copy(), np.asarray(mask) != 0
    canvas[inside] = np.rint((1 - strength) * canvas[inside] + strength * np.array(colour))
    outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, colour, max(1, round(max(canvas.shape[:2]) / 256)))
    return canvas


def instance_tile(
    image: np.ndarray | None, box_xyxy: np.ndarray, size: int = 192, margin: float = 1.25
) -> tuple[np.ndarray, Affine2D]:
    """A square crop about one animal, and the map from image to crop pixels.

    Args:
        image: RGB uint8 [H, W, 3]; None gives a plain grey tile, for labels without pictures.
        box_xyxy: [4] in image pixels.
        size: Side of the tile in pixels.
        margin: Side of the square relative to the box's longer side.
    """
    affine = crop_affine(box_xyxy, size, scale=margin)
    if image is None:
        return np.full((size, size, 3), 200, dtype=np.uint8), affine
    return warp_crop(image, affine, size), affine


def contact_sheet(
    tiles: Sequence[np.ndarray],
    columns: int,
    captions: Sequence[str] | None = None,
    *,
    tile_size: int = 192,
    title: str = "",
) -> np.ndarray:
    """Pictures in rows and columns, each with a caption below.

    Args:
        tiles: RGB uint8 pictures of any size, fitted into squares without distortion.
        columns: Pictures a row.
        captions: One a picture; a line that is too long is cut.
        tile_size: Side of a square in pixels.
        title: Heading over the sheet.

    Returns:
        RGB uint8 [H, W, 3].

    Raises:
        ValueError: if there are captions, but not one for every picture.
    """
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"expected {len(tiles)} captions; found {len(captions)}")
    gap, text_height = 4, 18 if captions is not None else 0
    heading = 26 if title else 0
    columns = max(1, min(columns, len(tiles) or 1))
    rows = math.ceil(len(tiles) / columns)
    cell_height = tile_size + text_height + gap
    sheet = Image.new(
        "RGB", (columns * (tile_size + gap) + gap, max(rows * cell_height + gap + heading, 1)), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    if title:
        draw.text((gap, 4), title, fill="black", font=ImageFont.load_default(16))
    for number, tile in enumerate(tiles):
        x = gap + number % columns * (tile_size + gap)
        y = heading + gap + number // columns * cell_height
        picture = Image.fromarray(np.ascontiguousarray(tile))
        if picture.size != (tile_size, tile_size):
            factor = tile_size / max(picture.size)
            width, height = (max(1, round(side * factor)) for side in picture.size)
            picture = picture.resize((width, height))
        offset_x, offset_y = ((tile_size - side) // 2 for side in picture.size)
        sheet.paste(picture, (x + offset_x, y + offset_y))
        if captions is not None:
            draw.text((x + 2, y + tile_size + 1), _fit(captions[number], font, tile_size), "black", font)
    return np.asarray(sheet)


def _fit(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _fixed(point: np.ndarray) -> tuple[int, int]:
    scaled = np.round(np.asarray(point, dtype=np.float64) * (1 << _SUBPIXEL_BITS)).astype(int)
    return int(scaled[0]), int(scaled[1])


def _blend(canvas: np.ndarray, drawn: np.ndarray, alpha: float) -> None:
    if alpha >= 1:
        canvas[:] = drawn
    else:
        cv2.addWeighted(drawn, float(alpha), canvas, float(1 - alpha), 0, dst=canvas)


def _line(
    canvas: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    colour: tuple[int, int, int],
    width: int,
    alpha: float,
) -> None:
    drawn = canvas.copy()
    cv2.line(drawn, _fixed(a), _fixed(b), colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)
    _blend(canvas, drawn, alpha)


def _dot(
    canvas: np.ndarray, centre: np.ndarray, colour: tuple[int, int, int], radius: int, alpha: float
) -> None:
    drawn, point, fixed = canvas.copy(), _fixed(centre), 1 << _SUBPIXEL_BITS
    cv2.circle(drawn, point, (radius + 1) * fixed, (255, 255, 255), -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    cv2.circle(drawn, point, radius * fixed, colour, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    _blend(canvas, drawn, alpha)
