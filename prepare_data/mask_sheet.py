"""A sheet of masks over their photos, to look at."""

from __future__ import annotations

import numpy as np
from PIL import Image

from wildshape.crops import ImageError, image_paths, read_image
from wildshape.files import atomic_path
from wildshape.formats.masks import decode_mask
from wildshape.geometry import warp_crop
from wildshape.report.drawing import contact_sheet, draw_box, draw_mask, instance_tile
from wildshape.tables import Table
from wildshape.workspace import Workspace

COLUMNS, TILES = 8, 48


def draw_sheet(stage: str, table: Table, images: Table, workspace: Workspace) -> str | None:
    """Draw masks, evenly spaced from the worst quality to the best, into the run's pictures.

    Args:
        stage: Name of the picture.
        table: Table of kind instances or labels, with masks; masks without a quality come last.
        images: Their images.
        workspace: Where the files are.

    Returns:
        The sheet's path, relative to the root; None if there is no mask.
    """
    rows = np.flatnonzero([mask is not None for mask in table["mask_rle"]])
    if not len(rows):
        return None
    rows = rows[np.argsort(table["mask_quality"][rows], kind="stable")]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(TILES, len(rows))).round().astype(int))]
    paths, tiles, captions = image_paths(images, workspace), [], []
    for row in rows:
        box, quality = table["box_xyxy"][row], table["mask_quality"][row]
        captions.append("came with the labels" if np.isnan(quality) else f"quality {quality:.3f}")
        try:
            image = read_image(paths[table["image_id"][row]])
        except (ImageError, KeyError):
            image = None  # the tile stays grey, with its mask
        tile, affine = instance_tile(image, box)
        mask = warp_crop(decode_mask(table["mask_rle"][row]) * 255, affine, tile.shape[0])
        framed = draw_box(draw_mask(tile, mask > 127), affine.apply(box.reshape(2, 2)).reshape(4))
        tiles.append(framed)
    out = workspace.pictures_dir / f"{stage}.png"
    with atomic_path(out) as temporary:
        title = f"{workspace.category.name}: masks from the worst quality to the best"
        Image.fromarray(contact_sheet(tiles, COLUMNS, captions, title=title)).save(temporary)
    return workspace.relative(out)
