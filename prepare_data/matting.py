"""The animal on a plain background: its mask cuts it out of the photo, with a soft edge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageColor, PngImagePlugin

from wildshape.crops import ImageError, image_paths, read_image
from wildshape.errors import UserError
from wildshape.files import atomic_path, sha256_bytes
from wildshape.formats.masks import decode_mask
from wildshape.geometry import crop_affine, warp_crop
from wildshape.stage import progress
from wildshape.tables import Table
from wildshape.workspace import Workspace

_TAG = "wildshape"


@dataclass(frozen=True)
class MattingConfig:
    """How animals are cut out.

    Attributes:
        background: A colour by name or as #rrggbb.
        size: Side of the square pictures in pixels.
        margin: Side of the square relative to the longer side of the box.
        feather: Standard deviation in the picture's pixels by which the mask's edge is blurred.
    """

    background: str = "white"
    size: int = 320
    margin: float = 1.25
    feather: float = 1.0

    def __post_init__(self) -> None:
        """Check the numbers and the colour."""
        if self.size < 1:
            raise UserError(f"--matting_size: expected at least 1; found {self.size}")
        if not 0 < self.margin <= 10:
            raise UserError(f"--matting_margin: expected over 0, at most 10; found {self.margin}")
        if not 0 <= self.feather <= 100:
            raise UserError(f"--feather: expected 0 to 100; found {self.feather}")
        _ = self.colour

    @property
    def colour(self) -> tuple[int, int, int]:
        """The background as RGB, 0 to 255."""
        try:
            return ImageColor.getrgb(self.background)[:3]
        except ValueError:
            raise UserError(
                f"--background: expected a colour by name or as #rrggbb; found {self.background}"
            ) from None


def matte(image: np.ndarray, mask: np.ndarray, box_xyxy: np.ndarray, config: MattingConfig) -> np.ndarray:
    """One animal on a plain background.

    The mask is resampled like the picture, so that a pixel which its edge crosses is partly the animal's,
    and then blurred a little; what lies outside the image is background.

    Args:
        image: RGB uint8 [H, W, 3].
        mask: [H, W]; not 0 is the animal.
        box_xyxy: The animal's box [4] in the image frame; the square about its centre is shown.
        config: Size, margin, colour, softness.

    Returns:
        RGB uint8 [size, size, 3].

    Raises:
        ValueError: the mask is not of the image's size.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"expected a mask {list(image.shape[:2])}, found {list(mask.shape)}")
    affine = crop_affine(box_xyxy, config.size, scale=config.margin)
    crop = warp_crop(image, affine, config.size).astype(np.float32)
    alpha = warp_crop((mask != 0).astype(np.uint8) * 255, affine, config.size).astype(np.float32) / 255
    if config.feather:
        alpha = cv2.GaussianBlur(alpha, (0, 0), config.feather)
    plain = np.array(config.colour, dtype=np.float32)
    return np.rint(plain + alpha[..., None] * (crop - plain)).astype(np.uint8)


def save_mattes(
    table: Table,
    images: Table,
    workspace: Workspace,
    folder: Path,
    config: MattingConfig,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write `<instance_id>.png` for every animal that has a mask.

    A picture says what it was made from (photo, mask, box, settings); one that is up to date is left as
    it is, so that a killed run continues.

    Args:
        table: Table of kind instances or labels, with masks.
        images: Their images.
        workspace: To find the images' files.
        folder: Where to.
        config: How.
        overwrite: Whether pictures made from something else may be replaced.

    Returns:
        Counts: `written`, `up_to_date`, `without_mask`, `unreadable`, `left_over` (pictures in the folder
        that are of none of these animals), `problems` (a few).

    Raises:
        UserError: if the folder has other pictures of these names, and they may not be overwritten.
    """
    paths = image_paths(images, workspace)
    rows = [row for row in table.rows() if row["mask_rle"] is not None]
    marks = {row["instance_id"]: _mark(row, config) for row in rows}
    todo, others = [], []
    for row in rows:
        found = _read_mark(folder / f"{row['instance_id']}.png")
        if found != marks[row["instance_id"]]:
            todo.append(row)
            others += [row["instance_id"]] if found is not None else []
    if others and not overwrite:
        raise UserError(
            f"{len(others)} of {len(rows)} pictures in {folder} were made with other settings or masks "
            f"(first: {others[0]}.png); add --overwrite to replace them, or name another --matting_dir"
        )
    problems = []
    bar = progress(todo, "matting", total=len(rows), unit="picture", initial=len(rows) - len(todo))
    for row in bar:
        try:
            path = paths.get(row["image_id"])
            if path is None:
                raise ImageError(f"no file of image {row['image_id']}")
            picture = matte(read_image(path), decode_mask(row["mask_rle"]), row["box_xyxy"], config)
        except (ImageError, ValueError) as error:
            problems.append(f"{row['instance_id']}: {error}")
            continue
        note = PngImagePlugin.PngInfo()
        note.add_text(_TAG, marks[row["instance_id"]])
        with atomic_path(folder / f"{row['instance_id']}.png") as temporary:
            Image.fromarray(picture).save(temporary, pnginfo=note)
    return {
        "written": len(todo) - len(problems),
        "up_to_date": len(rows) - len(todo),
        "without_mask": len(table) - len(rows),
        "unreadable": len(problems),
        "left_over": sum(path.stem not in marks for path in folder.glob("*.png")),
        "problems": problems[:5],
    }


def _mark(row: dict[str, Any], config: MattingConfig) -> str:
    made_from = (row["image_id"], row["mask_rle"], [float(v) for v in row["box_xyxy"]], config.colour)
    return sha256_bytes(repr((made_from, config.size, config.margin, config.feather)).encode())[:24]


def _read_mark(path: Path) -> str | None:
    """What a picture there was made from: "" if it does not say, None if there is none."""
    if not path.exists():
        return None
    try:
        with Image.open(path) as picture:
            return str(picture.info.get(_TAG, ""))
    except (OSError, SyntaxError):
        return ""
