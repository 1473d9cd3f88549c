"""AP-10K: 54 species in COCO's form, with splits of its own.

The files are `annotations/ap10k-{train,val,test}-split1.json`. Of the 17 keypoints "shoulder" and "hip"
are the top of a limb, where it leaves the body, which the skeletons here call elbow; "elbow" and "knee"
lie half-way down, which they call knee. (Published unions of animal data sets match them alike.) "neck"
is another point than throat and withers, and is left out. Species are chosen by name:
`--source_category "brown bear,black bear"`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wildshape.errors import UserError
from wildshape.formats import coco
from wildshape.formats.labelled import LabelRecord
from wildshape.tables import SPLITS
from wildshape.workspace import Workspace

SOURCE = "ap10k"
RENAMES = {
    f"{side}_{theirs}": f"{side}_{ours}"
    for side in ("left", "right")
    for theirs, ours in (
        ("shoulder", "front_elbow"),
        ("elbow", "front_knee"),
        ("hip", "back_elbow"),
        ("knee", "back_knee"),
    )
}
_NAME = re.compile(r"ap10k-(train|val|test)-split(\d+)\.json")


def find_file(root: Path) -> Path:
    """One file of the split to read: the one given, or the first of split 1 in a folder.

    Raises:
        UserError: there is none.
    """
    if root.is_file():
        return root
    for folder in (root / "annotations", root):
        for split in SPLITS:
            path = folder / f"ap10k-{split}-split1.json"
            if path.is_file():
                return path
    raise UserError(
        f"expected annotations/ap10k-train-split1.json (-val-, -test-) of AP-10K under {root}; found none"
    )


def input_files(path: Path) -> Sequence[Path]:
    """The files of the same division as one of them (train, val, test), or a file of another name alone."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return [path]
    siblings = [path.with_name(f"ap10k-{split}-split{match[2]}.json") for split in SPLITS]
    return [sibling for sibling in siblings if sibling.is_file()]


def image_folder(path: Path) -> Path:
    """Where the pictures lie: `data` beside the annotations' folder, else the file's own folder."""
    folder = path.parent.parent / "data"
    return folder if folder.is_dir() else path.parent


def read_records(
    path: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """The labels of one or several species, with AP-10K's own splits, and what was left out by reason.

    Raises:
        UserError: no such species, or not this format.
    """
    records: list[LabelRecord] = []
    dropped: Counter[str] = Counter()
    known: dict[tuple[str, ...], np.ndarray] = {}
    for file in input_files(path):
        match = _NAME.fullmatch(file.name)
        part, left_out = coco.read_records(file, workspace, source_category, RENAMES, known)
        records += [replace(record, split=match[1] if match else None) for record in part]
        dropped += left_out
    return records, dropped
