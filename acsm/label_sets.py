"""Which labelled animals a 3D model is measured on: a split, the truth, or any table of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wildshape.crops import image_paths
from wildshape.errors import UserError
from wildshape.records import AnimalRecords, label_records
from wildshape.schemas import SPLITS
from wildshape.tables import Table, read_table

if TYPE_CHECKING:
    from wildshape.workspace import Workspace

NEEDED_BY = "acsm-evaluate"
_IMAGES = ("labelled_images", "truth_images", "corrected_images", "images")


@dataclass(frozen=True)
class LabelSet:
    """Animals to measure on.

    Attributes:
        name: what they are called in file names.
        records: the animals whose image there is.
        masks: mask (run lengths) of each animal that has one, by instance id.
    """

    name: str
    records: AnimalRecords
    masks: dict[str, str]


def find_labels(workspace: Workspace, labels: str, images: Path | None = None) -> LabelSet:
    """Read the labels that ``--labels`` means.

    Args:
        workspace: of the run.
        labels: "train", "val", "test", "all", "truth", or the file of a labels table.
        images: a table of images that a file's labels are on; by default the workspace's tables of images
            and those beside the file.

    Raises:
        UserError: tables are missing or of another kind, or hold other keypoints.
    """
    skeleton = workspace.category.skeleton
    if labels in (*SPLITS, "all", "truth"):
        truth = labels == "truth"
        table = workspace.load("truth" if truth else "labels", NEEDED_BY)
        tables = [workspace.load("truth_images" if truth else "labelled_images", NEEDED_BY)]
        paths = image_paths(tables, workspace)
        records = label_records(table, paths, skeleton, labels if labels in SPLITS else None, "either")
        return LabelSet(labels, records, masks_of(table))
    file = Path(labels).expanduser()
    if not file.is_file():
        raise UserError(
            f"--labels: expected {', '.join(SPLITS)}, all, truth or a labels table (.parquet); "
            f"found {labels}"
        )
    table = read_table(file, "labels")
    paths = _image_files(workspace, file, images, set(table["image_id"]))
    # A file called test.parquet must not pass for the test split.
    name = f"file_{file.stem}" if file.stem in (*SPLITS, "all", "truth") else file.stem
    return LabelSet(name, label_records(table, paths, skeleton, None, "either"), masks_of(table))


def masks_of(table: Table) -> dict[str, str]:
    """Run lengths by instance id, of the animals of a table that have a mask."""
    return {name: rle for name, rle in zip(table["instance_id"], table["mask_rle"]) if rle is not None}


def _image_files(
    workspace: Workspace, labels: Path, images: Path | None, wanted: set[str]
) -> dict[str, Path]:
    """File of each image that is wanted, from tables of the workspace, beside the labels, or named."""
    found: dict[str, Path] = {}
    folders = [workspace.data_dir, labels.resolve().parent]
    tables = [folder / f"{name}.parquet" for folder in folders for name in _IMAGES]
    if images is not None:
        if not images.is_file():
            raise UserError(f"--images: expected a table of images (.parquet); found nothing at {images}")
        tables.append(images.resolve())
    for table in tables:
        if table.is_file():
            found |= _files_of(table, wanted, [*table.parents, workspace.root])
    return found


def _files_of(table: Path, wanted: set[str], roots: Sequence[Path]) -> dict[str, Path]:
    """File of each wanted image of a table; relative paths from the first root that has the file."""
    images = read_table(table, "images")
    found = {}
    for image_id, path in zip(images["image_id"], images["path"]):
        if image_id in wanted and path is not None:
            places = [root / path for root in roots]
            found[image_id] = next((place for place in places if place.is_file()), places[-1])
    return found
