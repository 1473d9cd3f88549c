"""The published animals3d files: pseudo-labels of web images, in and out.

Import reads, under one folder (each file may also lie directly in it):

- `labels_0/<category>.txt` image names, `labels_0/<category>_bbox.json` detected boxes,
- `labels_0/<name>/augm_{0..6}.txt` keypoints under transforms,
- `labels/<name>_pl_2d.json`, `labels/<name>_pl_2d_aux.json`, `labels/<name>_pl_3d.json` keypoints,
- the labelled sets of `wildshape.formats.animals3d_labels`.

Boxes [x, y, w, h] and keypoints are in pixels with the centre of the first pixel at (0, 0), as ours.
Pictures are optional. The published ids live on as `source_id`; export gives them back, the
confidences divided by the largest of the run, and the selections as filelists, best first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError
from wildshape.files import atomic_write, read_json
from wildshape.formats.labelled import LabelledOptions, box_problem, read_picture
from wildshape.geometry import xywh_to_xyxy, xyxy_to_xywh
from wildshape.tables import TRANSFORMS, Table, make_instance_id, read_table
from wildshape.workspace import Workspace

SOURCE = "animals3d"
_SUFFIXES = {"pose": "_pl_2d", "pose_aux": "_pl_2d_aux", "acsm": "_pl_3d"}


@dataclass(frozen=True)
class PublishedTables:
    """What came in: tables of kind images, instances, and keypoints by source."""

    images: Table
    instances: Table
    keypoints: dict[str, Table]
    dropped: Counter[str]


def find_files(root: Path, category: str, name: str) -> dict[str, Path]:
    """The published pseudo-label files that there are, by what they hold.

    Keys: "names", "boxes", "pose", "pose_aux", "acsm" (files) and "pose_mt" (a folder).
    """
    wanted = {"names": [("labels_0", f"{category}.txt")], "boxes": [("labels_0", f"{category}_bbox.json")]}
    for source, suffix in _SUFFIXES.items():
        wanted[source] = [("labels", f"{stem}{suffix}.json") for stem in (name, category)]
    wanted["pose_mt"] = [("labels_0", stem) for stem in (name, category)]
    found = {}
    for what, places in wanted.items():
        for folder, file_name in places:
            for path in (root / folder / file_name, root / file_name):
                fits = (path / "augm_0.txt").is_file() if what == "pose_mt" else path.is_file()
                if fits and what not in found:
                    found[what] = path
    return found


def read_published(
    files: dict[str, Path], workspace: Workspace, image_folder: Path | None
) -> PublishedTables:
    """Read pseudo-label files into tables.

    Args:
        files: From `find_files`.
        workspace: Gives category and skeleton.
        image_folder: Where the pictures lie, if they are there.

    Raises:
        UserError: a file is not of this format, its keypoints do not fit the skeleton or are NaN.
    """
    count = workspace.category.skeleton.num_keypoints
    records: dict[str, dict[str, Any]] = {}
    listed = {what: _read_records(files[what]) for what in ("boxes", *_SUFFIXES) if what in files}
    dropped: Counter[str] = Counter()
    for what, rows in listed.items():
        repeated = len(rows) - len({row["img_id"] for row in rows})
        if repeated:
            dropped[f"repeated img_id in {files[what].name}"] += repeated
        for row in rows:
            records.setdefault(row["img_id"], row)
    if not records:
        raise UserError(
            f"expected records in {', '.join(str(path) for path in files.values())}; found none"
        )
    images, instances = _instances(records, files, workspace, image_folder, dropped)
    known = dict(zip(instances["source_id"], instances["instance_id"]))
    facts = {"skeleton": workspace.category.skeleton.name}
    keypoints = {}
    for source in _SUFFIXES:
        if source in listed:
            rows = list({row["img_id"]: row for row in listed[source] if row["img_id"] in known}.values())
            joints = _joints(rows, count, 2 if source == "acsm" else 3, files[source])
            keypoints[source] = _keypoint_table(
                [known[row["img_id"]] for row in rows], ["none"] * len(rows), joints, facts
            )
    if "pose_mt" in files:
        keypoints["pose_mt"] = _read_transforms(files["pose_mt"], known, count, facts, dropped)
    return PublishedTables(images, instances, keypoints, dropped)


def _read_records(path: Path) -> list[dict[str, Any]]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of records; found {type(rows).__name__}")
    for number, row in enumerate(rows):
        missing = {"img_id", "img_path", "img_bbox"} - set(row if isinstance(row, dict) else ())
        if missing:
            raise UserError(f"{path}: expected {', '.join(sorted(missing))} in record {number}; found none")
        row["img_id"] = str(row["img_id"])
    return rows


def _joints(rows: Sequence[dict[str, Any]], count: int, width: int, path: Path) -> np.ndarray:
    joints = np.empty((len(rows), count, width))
    for number, row in enumerate(rows):
        try:
            values = np.asarray(row["joints"], dtype=np.float64)
        except (KeyError, TypeError, ValueError):
            values = np.empty((0, 0))
        if values.ndim != 2 or values.shape[0] != count or values.shape[1] < width:
            raise UserError(
                f"{path}: expected {count} keypoints of {width} numbers; found shape "
                f"{list(values.shape)} in record {row['img_id']}"
            )
        if not np.isfinite(values[:, :width]).all():
            raise UserError(f"{path}: expected finite keypoints; found NaN in record {row['img_id']}")
        joints[number] = values[:, :width]
    return joints


def _keypoint_table(
    ids: Sequence[str], transforms: Sequence[str], joints: np.ndarray, facts: dict[str, Any]
) -> Table:
    confidence = joints[..., 2] if joints.shape[-1] > 2 else np.ones(joints.shape[:2])
    columns: dict[str, Any] = {
        "instance_id": ids,
        "transform": transforms,
        "xy": joints[..., :2],
        "confidence": confidence,
    }
    return Table("keypoints", columns, facts)


def _read_transforms(
    folder: Path, known: dict[str, str], count: int, facts: dict[str, Any], dropped: Counter[str]
) -> Table:
    ids: list[str] = []
    transforms: list[str] = []
    parts: list[np.ndarray] = []
    for number, transform in enumerate(TRANSFORMS):
        path = folder / f"augm_{number}.txt"
        if not path.is_file():
            raise UserError(
                f"expected augm_0.txt to augm_{len(TRANSFORMS) - 1}.txt in {folder}; found no {path.name}"
            )
        names, joints = _read_augmented(path, count)
        keep = np.array([name in known for name in names], dtype=bool)
        if not keep.all():
            dropped[f"unknown img_id in {path.name}"] += int((~keep).sum())
        ids += [known[name] for name in names if name in known]
        transforms += [transform] * int(keep.sum())
        parts.append(joints[keep])
    return _keypoint_table(ids, transforms, np.concatenate(parts), facts)


def _read_augmented(path: Path, count: int) -> tuple[list[str], np.ndarray]:
    rows: dict[str, np.ndarray] = {}
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                # An id may hold spaces; the four numbers after it do not.
                name, keypoint, x, y, confidence = line.rstrip().rsplit(maxsplit=4)
                index, values = int(keypoint), (float(x), float(y), float(confidence))
            except ValueError:
                raise UserError(
                    f"{path}: expected `img_id keypoint x y confidence`; found {line.strip()[:60]!r} in "
                    f"line {number}"
                ) from None
            if not 0 <= index < count:
                raise UserError(
                    f"{path}: expected keypoints 0 to {count - 1}; found {index} in line {number}"
                )
            if not all(map(math.isfinite, values)):
                raise UserError(f"{path}: expected finite keypoints; found NaN in line {number}")
            rows.setdefault(name.strip(), np.full((count, 3), np.nan))[index] = values
    for name, joints in rows.items():
        if np.isnan(joints).any():
            found = int(np.isfinite(joints[:, 0]).sum())
            raise UserError(f"{path}: expected {count} keypoints; found {found} of {name}")
    joints = np.stack(list(rows.values())) if rows else np.zeros((0, count, 3))
    return list(rows), joints


def _instances(
    records: dict[str, dict[str, Any]],
    files: dict[str, Path],
    workspace: Workspace,
    image_folder: Path | None,
    dropped: Counter[str],
) -> tuple[Table, Table]:
    names = _image_names(files)
    names += [str(record["img_path"]) for record in records.values()]
    options = LabelledOptions(require_images=False)
    pictures = {
        name: read_picture(name, None, image_folder, workspace, options, SOURCE)
        for name in dict.fromkeys(names)
    }
    rows = []
    for source_id, record in records.items():
        box, score = _box(record, source_id)
        picture = pictures[str(record["img_path"])]
        problem = box_problem(box, picture.size)
        if problem is not None:
            dropped[problem] += 1
            continue
        rows.append(
            {
                "instance_id": make_instance_id(picture.key, f"{SOURCE}:{source_id}", box),
                "image_id": picture.key,
                "category": workspace.category.name,
                "source_id": source_id,
                "box_xyxy": box,
                "score": score,
                "detector": SOURCE,
                "mask_rle": None,
                "flags": "",
            }
        )
    if not rows:
        raise UserError(f"expected records with usable boxes; found none ({dict(dropped)})")
    images = Table.from_rows("images", [picture.row for picture in pictures.values()])
    return images, Table.from_rows("instances", rows)


def _image_names(files: dict[str, Path]) -> list[str]:
    if "names" not in files:
        return []
    lines = files["names"].read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _box(record: dict[str, Any], source_id: str) -> tuple[np.ndarray, float]:
    try:
        box = xywh_to_xyxy(np.asarray(record["img_bbox"], dtype=np.float64).reshape(4))
        score = record.get("box_score")
        return box, math.nan if score is None else float(score)
    except (TypeError, ValueError):
        raise UserError(
            f"expected img_bbox [x, y, w, h] in record {source_id}; found {record['img_bbox']}"
        ) from None


# ---------------------------------------------------------------------------------------- export


def export_published(workspace: Workspace, out: Path) -> dict[str, int]:
    """Write pseudo-labels and selections as the published files.

    Returns:
        Records written, by file relative to `out`.

    Raises:
        UserError: there are no instances.
    """
    name, category = workspace.name, workspace.category.name
    instances = workspace.load("instances", needed_by="export animals3d")
    images_path = workspace.table_path("images")
    images = read_table(images_path, "images") if images_path.exists() else Table.empty("images")
    ids = published_ids(instances)
    image_names = published_image_names(images)
    records = {
        instance_id: {
            "img_id": ids[instance_id],
            "img_path": image_names.get(row["image_id"], row["image_id"]),
            "img_bbox": [_number(value) for value in xyxy_to_xywh(row["box_xyxy"])],
            "box_score": None if math.isnan(row["score"]) else float(row["score"]),
        }
        for instance_id, row in zip(instances["instance_id"], instances.rows())
    }
    written: dict[str, int] = {}
    listed = [image_names[key] for key in dict.fromkeys(images["image_id"]) if key in image_names]
    _write_lines(out, f"labels_0/{category}.txt", listed, written)
    _write_json(out, f"labels_0/{category}_bbox.json", list(records.values()), written)
    labelled = list(records)
    for source, suffix in _SUFFIXES.items():
        path = workspace.keypoints_path(source)
        if path.exists():
            table = read_table(path, "keypoints")
            table = table.take(table["transform"] == "none")
            rows = _with_joints(table, records, source != "acsm")
            _write_json(out, f"labels/{name}{suffix}.json", rows, written)
            if source == "pose":
                covered = set(table["instance_id"])
                labelled = [instance_id for instance_id in records if instance_id in covered]
    if workspace.keypoints_path("pose_mt").exists():
        _export_transforms(
            read_table(workspace.keypoints_path("pose_mt"), "keypoints"), ids, name, out, written
        )
    _write_lines(out, f"filelists/{category}.txt", [ids[value] for value in labelled], written)
    for path in sorted((workspace.run_dir / "selections").glob("*.parquet")):
        selection = read_table(path, "selections")
        order = np.argsort(selection["rank"], kind="stable")
        chosen = [ids[value] for value in selection["instance_id"][order] if value in ids]
        _write_lines(out, f"filelists/{category}_{path.stem}.txt", chosen, written)
    return written


def published_ids(table: Table) -> dict[str, str]:
    """The id to publish for each instance: its source's where those are distinct, else ours."""
    source_ids = table["source_id"]
    counts = Counter(source_ids)
    return {
        instance_id: instance_id if source_id is None or counts[source_id] > 1 else source_id
        for instance_id, source_id in zip(table["instance_id"], source_ids)
    }


def published_image_names(images: Table) -> dict[str, str]:
    """The file name to publish for each image id.

    Where several would have one name they have that in the source, and where that does not help their id.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in images.rows():
        if row["image_id"] is not None:
            rows.setdefault(row["image_id"], row)  # a repeated image has the name of the first
    names: dict[str, str] = {}
    for image_id, row in rows.items():
        published = row["source_id"] if row["source"] == SOURCE else None
        from_path = Path(row["path"]).name if row["path"] else None
        names[image_id] = published or from_path or row["record_id"]
    for own in (_name_in_source, _name_by_id):
        counts = Counter(names.values())
        names = {key: name if counts[name] == 1 else own(rows[key]) for key, name in names.items()}
    return names


def _name_in_source(row: dict[str, Any]) -> str:
    return row["source_id"] or row["record_id"]


def _name_by_id(row: dict[str, Any]) -> str:
    return row["image_id"] + Path(row["path"] or "").suffix


def _with_joints(
    table: Table, records: dict[str, dict[str, Any]], with_confidence: bool
) -> list[dict[str, Any]]:
    largest = table["confidence"].max(initial=0.0) or 1.0
    rows = []
    for instance_id, xy, confidence in zip(table["instance_id"], table["xy"], table["confidence"]):
        if instance_id in records:
            columns = [xy, confidence[:, None] / largest] if with_confidence else [xy]
            rows.append({**records[instance_id], "joints": np.concatenate(columns, axis=1).tolist()})
    return rows


def _export_transforms(
    table: Table, ids: dict[str, str], name: str, out: Path, written: dict[str, int]
) -> None:
    largest = table["confidence"].max(initial=0.0) or 1.0
    for number, transform in enumerate(TRANSFORMS):
        part = table.take(table["transform"] == transform)
        lines = [
            f"{ids[instance_id]} {keypoint} {x!r} {y!r} {confidence!r}"
            for instance_id, xy, values in zip(part["instance_id"], part["xy"], part["confidence"])
            if instance_id in ids
            for keypoint, ((x, y), confidence) in enumerate(zip(xy.tolist(), (values / largest).tolist()))
        ]
        _write_lines(out, f"labels_0/{name}/augm_{number}.txt", lines, written, last_newline=True)


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _write_lines(
    out: Path, name: str, lines: Sequence[str], written: dict[str, int], *, last_newline: bool = False
) -> None:
    with atomic_write(out / name, "w") as handle:
        handle.write("\n".join(lines) + ("\n" if last_newline and lines else ""))
    written[name] = len(lines)


def _write_json(out: Path, name: str, rows: Sequence[Any], written: dict[str, int]) -> None:
    import json

    with atomic_write(out / name, "w") as handle:
        json.dump(rows, handle)
    written[name] = len(rows)
