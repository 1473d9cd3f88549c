"""Horse-10: thoroughbreds filmed from the side, 22 keypoints, in DeepLabCut's form or MMPose's (COCO).

"Near" is the horse's left and "off" its right, as horsemen say. Eye, elbow, stifle, hip and shoulder
carry no side and are left out rather than guessed; so are those that the skeletons here do not have.
The data set's division is kept where it is there. In `TrainTestInfo_shuffle1.csv`: training frames are
train, test frames of the same horses val, those of other horses test. In
`horse10-{train,test}-split1.json`: train and test.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wildshape.errors import UserError
from wildshape.formats import coco, deeplabcut
from wildshape.formats.labelled import LabelRecord
from wildshape.workspace import Workspace

SOURCE = "horse10"
RENAMES = {"Wither": "withers"} | {
    f"{theirs_side}{theirs}": f"{side}_{ours}"
    for theirs_side, side in (("Near", "left"), ("Off", "right"))
    for theirs, ours in (
        ("knee", "front_knee"),
        ("frontfoot", "front_paw"),
        ("hindhock", "back_knee"),
        ("hindfoot", "back_paw"),
    )
}
_COCO_NAME = re.compile(r"horse10-(train|test)-split(\d+)\.json")
_SPLIT_OF = {
    "trainIndices": "train",
    "testIndices_withinDomain": "val",
    "testIndices_acrossDomain": "test",
}


def find_file(root: Path) -> Path:
    """The annotation file, or the folder that holds one a film.

    Raises:
        UserError: there is none.
    """
    return deeplabcut.find_file(root)


def input_files(path: Path) -> Sequence[Path]:
    """The annotation files, and that of the division if it is there."""
    if path.suffix == ".json":
        match = _COCO_NAME.fullmatch(path.name)
        siblings = (
            [path.with_name(f"horse10-{s}-split{match[2]}.json") for s in ("train", "test")]
            if match
            else []
        )
        return [file for file in siblings if file.is_file()] or [path]
    division = _division(path)
    return [*deeplabcut.input_files(path), *([division] if division else [])]


def image_folder(path: Path) -> Path:
    """Where the pictures lie: the folder that holds labeled-data, else the annotations' own."""
    return deeplabcut.image_folder(path)


def _division(path: Path) -> Path | None:
    folder = path if path.is_dir() else path.parent
    for place in (folder, *folder.parents[:2]):
        file = place / "TrainTestInfo_shuffle1.csv"
        if file.is_file():
            return file
    return None


def read_records(
    path: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """All labels (they are horses), with the data set's splits if they are there, and what was left out.

    Raises:
        UserError: another category than horses is asked for, or the files are not of this format.
    """
    asked = (source_category or workspace.category.name).lower()
    if asked != "horse":
        raise UserError(
            f"{path}: expected category {asked}; found horse; run: with --source_category horse"
        )
    if path.suffix == ".json":
        return _read_coco(path, workspace)
    records, dropped = deeplabcut.read_records(path, workspace, None, RENAMES)
    division = _division(path)
    if division is None:
        return records, dropped
    split_of = _read_division(division)
    kept = []
    for record in records:
        split = split_of.get(_key(record.image_name))
        if split is None:
            dropped[f"in no split of {division.name}"] += 1
        else:
            kept.append(replace(record, split=split))
    return kept, dropped


def _read_coco(path: Path, workspace: Workspace) -> tuple[list[LabelRecord], Counter[str]]:
    records: list[LabelRecord] = []
    dropped: Counter[str] = Counter()
    known: dict[tuple[str, ...], np.ndarray] = {}
    for file in input_files(path):
        match = _COCO_NAME.fullmatch(file.name)
        part, left_out = coco.read_records(file, workspace, "horse", RENAMES, known)
        records += [replace(record, split=match[1] if match else None) for record in part]
        dropped += left_out
    return records, dropped


def _key(name: str) -> str:
    return "/".join(name.replace("\\", "/").split("/")[-2:])


def _read_division(path: Path) -> dict[str, str]:
    import pandas as pd

    frame = pd.read_csv(path, dtype=str)
    if missing := [name for name in _SPLIT_OF if name not in frame.columns]:
        raise UserError(
            f"{path}: expected columns {', '.join(missing)}; found {', '.join(map(str, frame.columns))}"
        )
    return {
        _key(str(name)): split for column, split in _SPLIT_OF.items() for name in frame[column].dropna()
    }
