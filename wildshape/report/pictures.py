"""Pictures inside the page: small JPEGs as data addresses, within a budget of bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from wildshape.crops import ImageError, image_paths, read_image
from wildshape.geometry import crop_affine, warp_crop
from wildshape.report.blocks import Link, Picture
from wildshape.report.drawing import draw_keypoints, instance_tile
from wildshape.report.inputs import RunInputs
from wildshape.tables import Table

MARGIN = 1.25  # side of a tile relative to the box's longer side
OUTSIDE = 214  # grey beyond the image's edge: black would draw the eye


@dataclass
class Budget:
    """Bytes that pictures may still take in the page, and how many found no room."""

    left: int
    refused: int = 0

    def embed(
        self, image: np.ndarray, caption: str, *, quality: int = 82, links: Sequence[Link] = ()
    ) -> Picture | None:
        """A picture (RGB uint8 [H, W, 3]) for the page, or None if there is no room left."""
        buffer = BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality, optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        if len(data) > self.left:
            self.refused += 1
            return None
        self.left -= len(data)
        return Picture(f"data:image/jpeg;base64,{data}", caption, image.shape[1], image.shape[0], links)


def shrunk(image: np.ndarray, width: int) -> np.ndarray:
    """The picture at most `width` pixels wide."""
    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def embed_file(path: Path, caption: str, budget: Budget, width: int = 1600) -> Picture | None:
    """A picture file for the page; None if it cannot be read or there is no room left."""
    try:
        return budget.embed(shrunk(read_image(path), width), caption)
    except ImageError:
        return None


class Tiles:
    """Draws detected animals with their pseudo-labels."""

    def __init__(self, inputs: RunInputs, size: int = 176) -> None:
        self.size = size
        self._instances: Table = inputs.tables["instances"]
        self._keypoints: Table = inputs.keypoints["pose"]
        self._row = self._instances.lookup()
        plain = np.flatnonzero(self._keypoints["transform"] == "none")
        self._keypoint_row = {self._keypoints["instance_id"][row]: row for row in plain}
        images = inputs.tables.get("images")
        self._paths = image_paths(images, inputs.workspace) if images is not None else {}
        skeleton = inputs.workspace.category.skeleton
        fits = self._keypoints["xy"].shape[1] == skeleton.num_keypoints
        self._skeleton = skeleton if fits else None

    def draw(self, instance_id: str) -> np.ndarray | None:
        """RGB uint8 [size, size, 3]; a grey tile where the image is gone; None for an unknown id."""
        row, keypoint_row = self._row.get(instance_id), self._keypoint_row.get(instance_id)
        if row is None or keypoint_row is None:
            return None
        image = None
        path = self._paths.get(self._instances["image_id"][row])
        if path is not None:
            try:
                image = read_image(path)
            except ImageError:
                image = None  # the tile stays grey
        box = self._instances["box_xyxy"][row]
        if image is None:
            tile, affine = instance_tile(None, box, self.size)
        else:
            affine = crop_affine(box, self.size, scale=MARGIN)
            tile = warp_crop(image, affine, self.size, fill=OUTSIDE)
        xy = affine.apply(self._keypoints["xy"][keypoint_row])
        return draw_keypoints(tile, xy, self._keypoints["confidence"][keypoint_row], self._skeleton)
