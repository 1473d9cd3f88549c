"""The labelled sets of animals3d: `annotations/<category>.json`, `filelists/<category>_{train,val}.txt`.

They lie in the folder itself, or, as in the published cachedir, once for each source of photos:
`acsm/acsm/cachedir/data/{pascal,coco,animal_pose}/`, with the pictures in `data/<source>/images/`.

A record has img_id, img_path, img_bbox [x, y, w, h], joints [K][x, y, visible] and, in some sets, seg
(a mask as rows of 0 and 1) and a camera (cam_scale, cam_trans in image pixels, cam_rot 3 x 3,
valid_cam). A keypoint counts as visible from .3 on, as in the published training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError
from wildshape.files import atomic_write, read_json
from wildshape.formats.animals3d import published_ids, published_image_names
from wildshape.formats.labelled import LabelRecord
from wildshape.formats.masks import decode_mask, encode_mask
from wildshape.geometry import xywh_to_xyxy, xyxy_to_xywh
from wildshape.tables import Table
from wildshape.workspace import Workspace

_VISIBLE_FROM = 0.3
DATASETS = ("pascal", "coco", "animal_pose")
_BASES = ("", "acsm/acsm/cachedir/data", "acsm/cachedir/data", "cachedir/data", "data")


@dataclass(frozen=True)
class LabelledFiles:
    """The files of one labelled set.

    Attributes:
        dataset: Where its photos are from: a name in `DATASETS`, or "" where the folder does not say.
        files: From `find_files`.
        folder: Where its `annotations` lie.
    """

    dataset: str
    files: dict[str, list[Path]]
    folder: Path


def find_sets(root: Path, category: str) -> list[LabelledFiles]:
    """The labelled sets of a folder: its own, or those of the published cachedir in or below it."""
    own = find_files(root, category)
    if own["annotations"]:
        return [LabelledFiles("", own, root)]
    for base in _BASES:
        folders = [(name, root / base / name) for name in DATASETS]
        sets = [LabelledFiles(name, find_files(folder, category), folder) for name, folder in folders]
        found = [entry for entry in sets if entry.files["annotations"]]
        if found:
            return found
    return []


def find_pictures(entry: LabelledFiles, images: Path | None) -> tuple[Path | None, str]:
    """The folder of a set's pictures, and what precedes their names in it.

    Args:
        entry: The set.
        images: The folder that the user named, if any.
    """
    if not entry.dataset:
        own = entry.folder / "images"
        return images or (own if own.is_dir() else None), ""
    bases = [images] if images is not None else [a / "data" for a in entry.folder.parents]
    for base in bases:
        for name in (f"{entry.dataset}/images", entry.dataset):
            if (base / name).is_dir() and (images is not None or name.endswith("images")):
                return base, f"{name}/"
    return images, "" if images is not None else f"{entry.dataset}/images/"


def find_files(root: Path, category: str) -> dict[str, list[Path]]:
    """The files of a labelled set that there are: lists under "annotations", "train", "val", "test"."""
    wanted = {
        "annotations": [("annotations", f"{category}.json"), ("annotations", f"{category}_all.json")],
        **{split: [("filelists", f"{category}_{split}.txt")] for split in ("train", "val", "test")},
    }
    found: dict[str, list[Path]] = {}
    for what, places in wanted.items():
        for folder, name in places:
            paths = [path for path in (root / folder / name, root / name) if path.is_file()]
            found.setdefault(what, []).extend(paths[:1])
    return found


def read_sets(
    sets: Sequence[LabelledFiles], workspace: Workspace, images: Path | None
) -> tuple[list[LabelRecord], Counter[str], Path | None]:
    """Labels of several sets, how many were left out by reason, and the folder of their pictures.

    Raises:
        UserError: see `read_records`; or the sets' pictures lie in different places.
    """
    records: list[LabelRecord] = []
    dropped: Counter[str] = Counter()
    folders: dict[str, Path | None] = {}
    for entry in sets:
        folder, before = find_pictures(entry, images)
        folders[entry.dataset] = folder
        part, left_out = read_records(entry.files, workspace)
        known = {record.source_id for record in records}
        for record in part:
            source_id = (
                f"{entry.dataset}:{record.source_id}" if record.source_id in known else record.source_id
            )
            records.append(replace(record, source_id=source_id, image_name=before + record.image_name))
        dropped += left_out
    found = {folder for folder in folders.values() if folder is not None}
    if len(found) > 1:
        places = ", ".join(f"{name} in {folder}" for name, folder in folders.items())
        raise UserError(
            f"expected the pictures of all sets in one folder; found {places}; run: with --images"
        )
    return records, dropped, next(iter(found), None)


def read_records(
    files: dict[str, list[Path]], workspace: Workspace
) -> tuple[list[LabelRecord], Counter[str]]:
    """Labels, with their splits if there are filelists, and how many were left out by reason.

    Raises:
        UserError: not this format, keypoints that do not fit the skeleton or are NaN.
    """
    split_of = {
        line.strip(): split
        for split in ("train", "val", "test")
        for path in files[split]
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.strip()
    }
    dropped: Counter[str] = Counter()
    records: dict[str, LabelRecord] = {}
    for path in files["annotations"]:
        rows = read_json(path)
        if not isinstance(rows, list):
            raise UserError(f"{path}: expected a list of records; found {type(rows).__name__}")
        for number, row in enumerate(rows):
            try:
                record, problems = _record(row, workspace.category.skeleton.num_keypoints, split_of, path)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}: expected img_id, img_path, img_bbox and joints in record {number}; found a "
                    f"problem at {error!r}"
                ) from None
            if split_of and record.split is None:
                dropped["in no filelist"] += 1
            elif record.source_id not in records:
                records[record.source_id] = record
                dropped.update(problems)
    return list(records.values()), dropped


def _record(
    row: dict[str, Any], count: int, split_of: dict[str, str], path: Path
) -> tuple[LabelRecord, list[str]]:
    source_id = str(row["img_id"])
    joints = np.asarray(row["joints"], dtype=np.float64)
    if joints.shape != (count, 3):
        raise UserError(
            f"{path}: expected {count} keypoints [x, y, visible]; found shape {list(joints.shape)} in "
            f"record {source_id}"
        )
    visible = np.where(joints[:, 2] >= _VISIBLE_FROM, 2, 0)
    if np.isnan(joints[:, 2]).any() or not np.isfinite(joints[visible > 0]).all():
        raise UserError(f"{path}: expected finite keypoints; found NaN in record {source_id}")
    camera, problems = _camera(row)
    record = LabelRecord(
        image_name=str(row["img_path"]),
        source_id=source_id,
        box_xyxy=xywh_to_xyxy(np.asarray(row["img_bbox"], dtype=np.float64).reshape(4)),
        xy=np.where(visible[:, None] > 0, joints[:, :2], np.nan),
        visible=visible,
        mask_rle=encode_mask(np.asarray(row["seg"])) if row.get("seg") is not None else None,
        camera=camera,
        split=split_of.get(source_id),
    )
    return record, problems


def _camera(row: dict[str, Any]) -> tuple[np.ndarray | None, list[str]]:
    if row.get("cam_rot") is None or not row.get("valid_cam", True):
        return None, []
    camera, problem = read_camera(row["cam_rot"], row["cam_trans"], row["cam_scale"])
    return camera, [] if problem is None else [problem]


def read_camera(rotation: Any, translation: Any, scale: Any) -> tuple[np.ndarray | None, str | None]:
    """A camera [7] in image pixels from its published parts, or None and why there is none.

    Args:
        rotation: Matrix [3, 3].
        translation: [2] or more, in image pixels.
        scale: In image pixels.
    """
    matrix = np.asarray(rotation, dtype=np.float64).reshape(3, 3)
    start = np.asarray(translation, dtype=np.float64).reshape(-1)[:2]
    size = float(np.asarray(scale).reshape(-1)[0])
    numbers = np.concatenate([[size], start, matrix.reshape(-1)])
    if not np.isfinite(numbers).all() or np.linalg.det(matrix) <= 0 or size <= 0:
        return None, "(label kept) camera that is no rotation"
    return np.concatenate([[size], start, quaternion_from_matrix(matrix)]), None


def quaternion_from_matrix(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion wxyz [4], qw >= 0, of the rotation nearest to a matrix [3, 3]."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat()
    return np.array([w, x, y, z]) * (-1.0 if w < 0 else 1.0)


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] of a quaternion wxyz [4]."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(np.roll(np.asarray(quaternion, dtype=np.float64), -1)).as_matrix()


def export_labels(labels: Table, images: Table, category: str, out: Path) -> dict[str, int]:
    """Write labels as `annotations/<category>.json` and a filelist for each split.

    Occluded keypoints keep their position and count as not visible.

    Returns:
        Records written, by file relative to `out`.
    """
    import json

    ids, names = published_ids(labels), published_image_names(images)
    with atomic_write(out / "annotations" / f"{category}.json", "w") as handle:
        json.dump([_published(row, ids, names) for row in labels.rows()], handle)
    written = {f"annotations/{category}.json": len(labels)}
    for split in dict.fromkeys(labels["split"]):
        chosen = [ids[value] for value in labels["instance_id"][labels["split"] == split]]
        with atomic_write(out / "filelists" / f"{category}_{split}.txt", "w") as handle:
            handle.write("\n".join(chosen))
        written[f"filelists/{category}_{split}.txt"] = len(chosen)
    return written


def _published(row: dict[str, Any], ids: dict[str, str], names: dict[str, str]) -> dict[str, Any]:
    seen = row["visible"] == 2
    joints = np.concatenate([np.nan_to_num(row["xy"]), seen[:, None].astype(np.float64)], axis=1)
    record = {
        "img_id": ids[row["instance_id"]],
        "img_path": names.get(row["image_id"], row["image_id"]),
        "img_bbox": xyxy_to_xywh(row["box_xyxy"]).tolist(),
        "joints": joints.tolist(),
    }
    if row["mask_rle"] is not None:
        record["seg"] = decode_mask(row["mask_rle"]).tolist()
    valid = bool(np.isfinite(row["camera"]).all())
    record["valid_cam"] = int(valid)
    if valid:
        scale, *translation = row["camera"][:3].tolist()
        record.update(
            cam_scale=scale,
            cam_trans=translation,
            cam_rot=matrix_from_quaternion(row["camera"][3:]).tolist(),
        )
    return record
