"""Take a folder of the user's own photos in place of a download."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prepare_data.download_images import by_status, finish_pool
from prepare_data.imagefile import BadImage, inspect_image
from wildshape.cli import CommonConfig, is_utf8, say, script_main
from wildshape.errors import UserError
from wildshape.files import atomic_write, file_hash
from wildshape.near_duplicates import MAX_DISTANCE
from wildshape.stage import MapOptions, MapStage, Provenance, run_map
from wildshape.tables import Table, make_record_id
from wildshape.workspace import Workspace

SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Take a folder of photos as the category's images."""

    folder: Path
    """The folder; photos in folders below it are taken too."""
    copy: bool = False
    """Copy the photos under the data root; by default the tables name them where they lie."""
    min_side: int = 64
    """Least length in pixels of an image's shorter side."""
    max_distance: int = MAX_DISTANCE
    """Bits of the perceptual hash, out of 64, by which near-duplicates may differ."""
    workers: int = 0
    """Loader processes."""


def find_photos(folder: Path) -> tuple[list[Path], int]:
    """Files that look like photos by their suffix, sorted, and the number of other files."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    photos = [path for path in files if path.suffix.lower() in SUFFIXES]
    named = [path for path in photos if is_utf8(str(path))]
    unnamed = [ascii(str(path.relative_to(folder))) for path in photos if not is_utf8(str(path))]
    if unnamed:
        say(f"add_folder: left out {len(unnamed)} photos with names that are not UTF-8, first {unnamed[0]}")
    return named, len(files) - len(photos)


def listing(names: Sequence[str], photos: Sequence[Path]) -> str:
    """A hash of photos' names and contents: a folder that was copied anew is the same folder."""

    def content(path: Path) -> str:
        try:
            return file_hash(path)
        except OSError:  # the stage says so of the photo
            return "unreadable"

    with ThreadPoolExecutor() as pool:
        lines = [f"{name}\0{found}\n" for name, found in zip(names, pool.map(content, photos))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:24]


class FolderStage(MapStage):
    """Images rows with a file in, the same rows verified out.

    Args:
        root: The data root.
        min_side: Least length of the shorter side.
        copy_to: Folder to copy good photos to; None leaves them where they lie.
    """

    def __init__(self, root: Path, min_side: int, copy_to: Path | None = None) -> None:
        self._root, self._min_side, self._copy_to = root, min_side, copy_to

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decode one photo."""
        try:
            data = (self._root / row["path"]).read_bytes()
            facts = inspect_image(data, self._min_side)
        except BadImage as error:
            return {**row, "status": error.status, "error": str(error)}
        except OSError as error:
            return {**row, "status": "not_image", "error": f"cannot be read: {error.strerror}"}
        path = row["path"]
        if self._copy_to is not None:
            name = f"{facts.image_id}{facts.suffix}"
            target = self._copy_to / facts.image_id[1:3] / name
            with atomic_write(target) as handle:
                handle.write(data)
            path = target.relative_to(self._root).as_posix()
        return {
            **row,
            "image_id": facts.image_id,
            "path": path,
            "width": facts.width,
            "height": facts.height,
            "phash": facts.phash,
            "status": "ok",
        }

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The rows as they are."""
        return batch


def images_from_folder(config: Config, workspace: Workspace) -> tuple[Table, int]:
    """Write the downloads and images tables from a folder of photos.

    A photo that cannot be used stays in the tables as a row that says why; the one file may stand
    in several rows only if the folder holds it several times (they become duplicates).

    Returns:
        The images table, and the number of files that are no photos by their suffix.

    Raises:
        UserError: if the folder is missing or holds no photo.
    """
    folder = config.folder.expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"expected a folder of photos at {config.folder}; found none")
    photos, others = find_photos(folder)
    if not photos:
        raise UserError(f"expected photos ({', '.join(SUFFIXES)}) in {folder}; found {others} other files")
    names = [path.relative_to(folder).as_posix() for path in photos]
    rows = Table.from_rows(
        "images",
        [
            {
                "record_id": make_record_id("folder", name),
                "path": workspace.relative(path),
                "source": "folder",
                "source_id": name,
                "width": -1,
                "height": -1,
                "status": "pending",
            }
            for name, path in zip(names, photos)
        ],
    )
    settings = {"folder": str(folder), "copy": config.copy, "min_side": config.min_side}
    provenance = Provenance("add_folder", settings, {str(folder): listing(names, photos)})
    copy_to = workspace.images_dir if config.copy else None
    downloads = run_map(
        lambda: FolderStage(workspace.root, config.min_side, copy_to),
        rows,
        workspace.table_path("downloads"),
        "images",
        provenance,
        options=MapOptions(workers=config.workers, overwrite=config.overwrite, title="add_folder"),
    )
    images = finish_pool(downloads, workspace, config.max_distance, overwrite=config.overwrite)
    return images, others


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Take the folder and return the counts by status."""
    images, others = images_from_folder(config, workspace)
    metrics = {"files": len(images), "other_files": others, "by_status": by_status(images)}
    metrics["near_duplicates"] = images.meta["near_duplicates"]
    workspace.write_metrics("add_folder", metrics)
    counts = ", ".join(f"{count} {status}" for status, count in metrics["by_status"].items())
    tail = f"; {others} files are no photos" if others else ""
    say(f"add_folder: {len(images)} photos: {counts}{tail}")
    if "ok" not in metrics["by_status"]:
        raise UserError(f"expected usable photos in {config.folder}; found {counts}")
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    return script_main(Config, run, argv, prog="wildshape add-folder")


if __name__ == "__main__":
    sys.exit(main())
