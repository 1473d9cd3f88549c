"""StanfordExtra (Biggs et al., ECCV 2020): import of its JSON list of dogs.

Each entry has `img_path`, `img_width`, `img_height`, 24 `joints` [x, y, visible] in pixels, `img_bbox`
[x, y, width, height], and `seg`, a mask as COCO's compressed run lengths. The joints have no names in the
file; their order is that of the data set's keypoint definitions. Positions are taken as pixel centres.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.formats.labelled import LabelRecord, map_keypoints, map_names, one_file
from wildshape.formats.masks import encode_segmentation
from wildshape.geometry import xywh_to_xyxy
from wildshape.workspace import Workspace

SOURCE = "stanford_extra"
KEYPOINTS = (
    "L_F_paw", "L_F_knee", "L_F_elbow", "L_B_paw", "L_B_knee", "L_B_elbow",
    "R_F_paw", "R_F_knee", "R_F_elbow", "R_B_paw", "R_B_knee", "R_B_elbow",
    "tailbase", "tail_tip", "L_earbase", "R_earbase", "nose", "chin", "L_eartip", "R_eartip",
    "L_eye", "R_eye", "withers", "throat",
)  # fmt: skip
_FIELDS = ("img_path", "img_width", "img_height", "joints", "img_bbox")


def find_file(root: Path) -> Path:
    """The annotation file of a folder, or the file itself.

    Raises:
        UserError: there is not exactly one.
    """
    return one_file(root, "StanfordExtra*.json", "StanfordExtra*.json")


def image_folder(path: Path) -> Path:
    """Where the pictures lie: `Images` or `sample_imgs` beside the file, else the file's own folder."""
    for name in ("Images", "images", "sample_imgs"):
        if (path.parent / name).is_dir():
            return path.parent / name
    return path.parent


def read_records(
    path: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """All labels (they are dogs), and how many were left out by reason.

    Raises:
        UserError: another category than dogs is asked for, or the file is not of this format.
    """
    spec = workspace.category
    asked = (source_category or spec.coco_label or spec.name).lower()
    if asked != "dog":
        raise UserError(f"{path}: expected category {asked}; found dog; run: with --source_category dog")
    entries = read_json(path)
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
        raise UserError(f"{path}: expected StanfordExtra's list of dogs; found {type(entries).__name__}")
    mapping = map_names(spec.skeleton, KEYPOINTS, str(path))
    return [_record(number, entry, mapping, path) for number, entry in enumerate(entries)], Counter()


def _record(number: int, entry: dict[str, Any], mapping: np.ndarray, path: Path) -> LabelRecord:
    if missing := [name for name in _FIELDS if name not in entry]:
        raise UserError(
            f"{path}: expected {', '.join(missing)} in entry {number}; found {', '.join(entry)}"
        )
    joints = np.asarray(entry["joints"], dtype=np.float64)
    if joints.shape != (len(KEYPOINTS), 3) or not np.isfinite(joints).all():
        raise UserError(
            f"{path}: expected {len(KEYPOINTS)} joints [x, y, visible]; found shape {list(joints.shape)} "
            f"or NaN in entry {number}"
        )
    width, height = int(entry["img_width"]), int(entry["img_height"])
    mask = None
    if entry.get("seg"):
        mask = encode_segmentation({"size": [height, width], "counts": entry["seg"]}, height, width)
    xy, visible = map_keypoints(joints[:, :2], np.where(joints[:, 2] > 0, 2, 0), mapping)
    name = str(entry["img_path"])
    return LabelRecord(
        image_name=name,
        source_id=f"{Path(name).stem}_{number}",
        box_xyxy=xywh_to_xyxy(np.asarray(entry["img_bbox"], dtype=np.float64).reshape(4)),
        xy=xy,
        visible=visible,
        mask_rle=mask,
        size=(width, height),
        flags="crowd" if entry.get("is_multiple_dogs") else "",
    )
