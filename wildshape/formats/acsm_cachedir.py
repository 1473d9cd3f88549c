"""The `cachedir` of ACSM (CVPR 2020): labelled sets as MATLAB files.

    pascal/data/<c>_kps.mat                 kp_names: the keypoints, by name
    pascal/data/<c>_{train,val,test}.mat    images: rel_path, bbox (x1 ... y2), parts [3, K], mask [H, W]
    pascal/sfm/<c>_{train,val,test}.mat     sfm_anno: rot [3, 3], scale, trans [2], where there are cameras

A keypoint that is NaN is not labelled. Boxes and keypoints count from 1, and are shifted by -1, as the
released code does; it leaves cameras as they are. Files without keypoints (its ImageNet sets) are not
read. `--images` is the folder that rel_path starts from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError
from wildshape.formats import pascal_voc
from wildshape.formats.animals3d_labels import read_camera
from wildshape.formats.labelled import LabelRecord, map_keypoints, map_names
from wildshape.formats.masks import encode_mask
from wildshape.tables import SPLITS
from wildshape.workspace import Workspace

SOURCE = "acsm"
_END = "_kps.mat"


def find_file(root: Path) -> Path:
    """The folder.

    Raises:
        UserError: there is no `<category>_kps.mat` below it.
    """
    folder = root if root.is_dir() else root.parent
    if not any(folder.rglob(f"*{_END}")):
        raise UserError(f"expected <category>{_END} of ACSM's cachedir under {root}; found none")
    return folder


def input_files(path: Path) -> Sequence[Path]:
    """The MATLAB files beside keypoint names, and those of their cameras."""
    folders = sorted({file.parent for file in path.rglob(f"*{_END}")})
    return [
        file
        for folder in folders
        for place in (folder, folder.parent / "sfm")
        for file in sorted(place.glob("*.mat"))
    ]


def image_folder(path: Path) -> Path:
    """Where the pictures lie: `JPEGImages` in the folder or above, else the folder itself."""
    return pascal_voc.image_folder(path)


def read_records(
    path: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """The labels of one category with the splits of their files, and how many were left out by reason.

    Raises:
        UserError: no such category, keypoints that do not fit, or not this format.
    """
    category = source_category or workspace.category.name
    named = sorted(path.rglob(f"{category}{_END}"))
    if not named:
        found = ", ".join(sorted(file.name.removesuffix(_END) for file in path.rglob(f"*{_END}")))
        raise UserError(
            f"{path}: expected category {category}; found {found}; run: with --source_category NAME"
        )
    records: list[LabelRecord] = []
    dropped: Counter[str] = Counter()
    for names_file in named:
        names = [str(name).strip() for name in np.atleast_1d(_load(names_file, "kp_names"))]
        mapping = map_names(workspace.category.skeleton, names, str(names_file))
        for split in SPLITS:
            file = names_file.with_name(f"{category}_{split}.mat")
            if file.is_file():
                records += _read_split(file, split, mapping, len(names), dropped)
    if not records:
        raise UserError(f"{path}: expected {category}_train.mat, _val.mat or _test.mat; found none")
    return records, dropped


def _load(path: Path, field: str) -> Any:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, struct_as_record=False, squeeze_me=True)
    except (OSError, ValueError, NotImplementedError, MatReadError) as error:
        raise UserError(f"{path}: expected a MATLAB file before version 7.3; found {error}") from None
    if field not in content:
        found = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        raise UserError(f"{path}: expected {field}; found {found}")
    return content[field]


def _read_split(
    path: Path, split: str, mapping: np.ndarray, count: int, dropped: Counter[str]
) -> list[LabelRecord]:
    images = np.atleast_1d(_load(path, "images"))
    cameras_file = path.parent.parent / "sfm" / path.name
    cameras = np.atleast_1d(_load(cameras_file, "sfm_anno")) if cameras_file.is_file() else None
    if cameras is not None and len(cameras) != len(images):
        raise UserError(f"{cameras_file}: expected {len(images)} cameras, as images; found {len(cameras)}")
    records = []
    for number, image in enumerate(images):
        try:
            record, problem = _record(image, None if cameras is None else cameras[number], mapping, count)
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: expected rel_path, bbox and parts [3, {count}] in image {number}; found a "
                f"problem at {error}"
            ) from None
        if problem is not None:
            dropped[problem] += 1
        source_id = f"{path.parent.parent.name}/{path.stem}/{number}"
        records.append(LabelRecord(source_id=source_id, split=split, **record))
    return records


def _record(image: Any, camera: Any, mapping: np.ndarray, count: int) -> tuple[dict[str, Any], str | None]:
    parts = np.asarray(image.parts, dtype=np.float64)
    if parts.shape != (3, count):
        raise ValueError(f"parts of shape {list(parts.shape)}")
    visible = np.where(np.isfinite(parts).all(0) & (parts[2] > 0), 2, 0)
    xy, seen = map_keypoints(parts[:2].T - 1, visible, mapping)
    bbox = image.bbox
    box = np.array([bbox.x1, bbox.y1, bbox.x2, bbox.y2], dtype=np.float64) - 1
    mask = getattr(image, "mask", None)
    found, problem = None, None
    if camera is not None:
        found, problem = read_camera(camera.rot, camera.trans, camera.scale)
    record = {
        "image_name": str(image.rel_path),
        "box_xyxy": box,
        "xy": xy,
        "visible": seen,
        "camera": found,
        "mask_rle": encode_mask(mask) if isinstance(mask, np.ndarray) and mask.ndim == 2 else None,
    }
    return record, problem
