"""The formats of labelled photos that `wildshape import` and `wildshape run --labels` read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from wildshape.formats import (
    acsm_cachedir,
    animal_pose,
    annotation_folder,
    ap10k,
    coco,
    cvat,
    deeplabcut,
    horse10,
    label_studio,
    pascal_voc,
    sleap,
    stanford_extra,
)
from wildshape.formats.labelled import LabelRecord
from wildshape.workspace import Workspace


@dataclass(frozen=True)
class Reader:
    """How one format is read.

    Attributes:
        find_file: From `--root` to the annotation file, or the folder that holds several; raises UserError.
        image_folder: From that to the folder of the pictures, where `--images` names none.
        read_records: From that, a workspace and the category's name in the source (None: the usual ones)
            to the labels, and how many were left out by reason.
        input_files: The files that are read; by default the one that `find_file` found.
        loose_names: Whether the format names pictures without folder or suffix.
    """

    find_file: Callable[[Path], Path]
    image_folder: Callable[[Path], Path]
    read_records: Callable[[Path, Workspace, str | None], tuple[list[LabelRecord], Counter[str]]]
    input_files: Callable[[Path], Sequence[Path]] = lambda path: [path]
    loose_names: bool = False


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "coco": Reader(coco.find_file, coco.image_folder, coco.read_records),
        "animal_pose": Reader(
            animal_pose.find_file,
            animal_pose.image_folder,
            animal_pose.read_records,
            animal_pose.input_files,
            loose_names=True,
        ),
        "ap10k": Reader(ap10k.find_file, ap10k.image_folder, ap10k.read_records, ap10k.input_files),
        "pascal_voc": Reader(
            pascal_voc.find_file,
            pascal_voc.image_folder,
            pascal_voc.read_records,
            pascal_voc.input_files,
            loose_names=True,
        ),
        "horse10": Reader(
            horse10.find_file, horse10.image_folder, horse10.read_records, horse10.input_files
        ),
        "stanford_extra": Reader(
            stanford_extra.find_file, stanford_extra.image_folder, stanford_extra.read_records
        ),
        "deeplabcut": Reader(
            deeplabcut.find_file, deeplabcut.image_folder, deeplabcut.read_records, deeplabcut.input_files
        ),
        "sleap": Reader(sleap.find_file, sleap.image_folder, sleap.read_records),
        "acsm": Reader(
            acsm_cachedir.find_file,
            acsm_cachedir.image_folder,
            acsm_cachedir.read_records,
            acsm_cachedir.input_files,
            loose_names=True,
        ),
        "cvat": Reader(cvat.find_file, annotation_folder.image_folder, cvat.read_records),
        "label_studio": Reader(
            label_studio.find_file, annotation_folder.image_folder, label_studio.read_records
        ),
    }
)
