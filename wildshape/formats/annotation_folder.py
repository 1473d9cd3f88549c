"""What the folders for annotation tools share: the pictures, named by image id, and text beside them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from wildshape.errors import UserError
from wildshape.files import atomic_path
from wildshape.stage import progress
from wildshape.tables import Table
from wildshape.workspace import Workspace

# Tools count from the edge of the first pixel.
SHIFT = 0.5


@dataclass(frozen=True)
class PictureOut:
    """A picture in the folder: its file's name under `images`, its size, and the rows of its animals."""

    name: str
    width: int
    height: int
    rows: list[int]


def image_folder(path: Path) -> Path:
    """Where the pictures lie: `images` beside the file, else the file's own folder."""
    folder = path.parent / "images"
    return folder if folder.is_dir() else path.parent


def write_pictures(
    labels: Table, images: Table, workspace: Workspace, out: Path, title: str
) -> list[PictureOut]:
    """Copy the pictures of labels to `<out>/images/<image_id><suffix>`.

    Args:
        labels: A labels table.
        images: The images that it refers to.
        workspace: Where their files lie.
        out: The folder.
        title: Shown by the progress bar.

    Raises:
        UserError: a picture is missing, or there is no label.
    """
    if not len(labels):
        raise UserError(f"{title}: expected labels of {workspace.category.name}; found none")
    by_id = {row["image_id"]: row for row in images.rows() if row["image_id"] and row["path"]}
    rows_of: dict[str, list[int]] = {}
    for row, image_id in enumerate(labels["image_id"]):
        rows_of.setdefault(image_id, []).append(row)
    pictures = []
    for image_id, rows in progress(rows_of.items(), title, unit="image"):
        entry = by_id.get(image_id)
        source = None if entry is None else workspace.image_file(entry["path"])
        if entry is None or source is None or not source.is_file():
            raise UserError(f"{title}: expected the picture of {image_id} at {source}; found none")
        name = f"{image_id}{source.suffix.lower()}"
        with atomic_path(out / "images" / name) as temporary:
            shutil.copyfile(source, temporary)
        pictures.append(PictureOut(name, int(entry["width"]), int(entry["height"]), rows))
    return pictures


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
