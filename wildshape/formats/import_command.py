"""`wildshape import FORMAT`: bring labels in.

wildshape import animal_pose --root animal_pose/ --category cow
wildshape import coco --root annotations/train.json --images train2017/ --category cow
wildshape import animals3d --root yfcc100m/ --category horse
wildshape import coco --as labels --root corrected.json --category cow
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from wildshape.cli import CommonConfig, script_main
from wildshape.errors import UserError
from wildshape.formats.corrections import Source, import_corrections
from wildshape.formats.import_animals3d import import_animals3d
from wildshape.formats.import_instances import import_instances
from wildshape.formats.import_parts import import_provenance, publish_labelled
from wildshape.formats.labelled import (
    LabelledOptions,
    LabelledSet,
    LabelRecord,
    build_labelled_set,
    place_pictures,
)
from wildshape.formats.readers import READERS
from wildshape.workspace import Workspace

FORMATS = ("animals3d", *READERS)


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Bring labels in from another format."""

    format: tyro.conf.Positional[str]
    """animals3d (published label files), or a format of labelled photos: coco (keypoints), animal_pose,
    ap10k, pascal_voc, horse10, stanford_extra, deeplabcut, sleap, acsm (its cachedir), cvat or
    label_studio."""
    root: Path
    """The data set's folder, or its annotation file."""
    as_: Annotated[Literal["set", "labels", "instances"], tyro.conf.arg(name="as")] = "set"
    """set: the labelled set, in place of one that is there with --overwrite. labels: add to the labelled
    set, such as pseudo-labels that a person has corrected; an animal that has a label gets the new one.
    instances: animals without keypoints, as a detector would find them (coco only)."""
    images: Path | None = None
    """Folder of the pictures; by default where the format has them beside the labels."""
    source_category: str | None = None
    """The category's name in the data set, if it is another than --category; for COCO files also several,
    with commas."""
    split: str | None = None
    """Put everything into this split: train, val or test."""
    split_seed: int = 0
    """Seed of the division into train, val and test, which keeps near-duplicates together."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test."""
    copy: bool = False
    """Copy the pictures under the data root; else tables point to where they lie."""


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Import one data set.

    Returns:
        Rows by table, and how many records were dropped by reason.

    Raises:
        UserError: an unknown format, nothing of it under --root, labels that do not fit.
    """
    name = config.format.lower().replace("-", "_")
    if name not in FORMATS:
        raise UserError(f"expected a format among {', '.join(FORMATS)}; found {config.format}")
    root = config.root.expanduser().resolve()
    if not root.exists():
        raise UserError(f"expected the data set at --root {config.root}; found nothing there")
    if config.images is not None and not config.images.is_dir():
        raise UserError(f"expected a folder of pictures at --images {config.images}; found none")
    options = LabelledOptions(
        config.split_seed, config.fractions, config.split, config.copy, require_images=name != "animals3d"
    )
    if config.as_ == "instances" and name != "coco":
        raise UserError(f"--as instances: expected the format coco; found {name}")
    if config.as_ == "labels" and name == "animals3d":
        raise UserError(f"--as labels: expected a format among {', '.join(READERS)}; found {name}")
    if name == "animals3d":
        return import_animals3d(config, workspace, root, options)
    if config.as_ == "instances":
        return import_instances(config, workspace, root, options)
    reader = READERS[name]
    path = reader.find_file(root)
    folder = config.images or reader.image_folder(path)

    def read() -> tuple[list[LabelRecord], Counter[str]]:
        records, dropped = reader.read_records(path, workspace, config.source_category)
        return place_pictures(records, folder) if reader.loose_names else records, dropped

    def make() -> LabelledSet:
        records, dropped = read()
        return build_labelled_set(records, folder, workspace, options, name, dropped)

    if config.as_ == "labels":
        records, dropped = read()
        return import_corrections(Source(records, dropped, folder, name), workspace, options)
    provenance = import_provenance(config, workspace, name, reader.input_files(path), folder)
    return publish_labelled(config, workspace, provenance, make, name)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `wildshape import`."""
    return script_main(Config, run, argv, prog="wildshape import")


if __name__ == "__main__":
    sys.exit(main())
