"""COCO keypoints, in and out.

COCO counts from the pixel's edge: keypoints and boxes shift by -.5 on import and back on export.
Keypoints are mapped by name onto the category's skeleton. Crowd annotations are left out, since they
are no single animal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError
from wildshape.files import read_json, write_json
from wildshape.formats.labelled import LabelRecord, map_keypoints, map_names, one_file
from wildshape.formats.masks import encode_segmentation, mask_area
from wildshape.formats.selected import selected_labels
from wildshape.geometry import xywh_to_xyxy, xyxy_to_xywh
from wildshape.skeleton import Skeleton
from wildshape.tables import Table
from wildshape.workspace import Workspace

SOURCE = "coco"
SHIFT = 0.5
_LOOKED_FOR = 100


def find_file(root: Path) -> Path:
    """The annotation file of a folder, or the file itself.

    Raises:
        UserError: there is not exactly one.
    """
    return one_file(root, "JSON file", "*.json", "annotations/*.json")


def read_records(
    path: Path,
    workspace: Workspace,
    source_category: str | None = None,
    renames: Mapping[str, str] | None = None,
    known: dict[tuple[str, ...], np.ndarray] | None = None,
) -> tuple[list[LabelRecord], Counter[str]]:
    """The labels of one category, and how many were left out by reason.

    Args:
        path: The annotation file.
        workspace: Gives category and skeleton.
        source_category: The category's name in the file, or several, separated by commas.
        renames: What the file's own keypoint names mean; see `wildshape.formats.labelled.map_names`.
        known: Mappings by keypoint names, for the next file of a set.

    Raises:
        UserError: no such category, keypoints that do not fit, or not this format.
    """
    data = read_json(path)
    dropped: Counter[str] = Counter()
    records: list[LabelRecord] = []
    try:
        known = {} if known is None else known
        mappings = {}
        for category in find_categories(data["categories"], workspace, source_category, path):
            names = tuple(str(name) for name in category.get("keypoints") or ())
            if names not in known:
                if not names:
                    raise UserError(_without_names(data, category, path))
                known[names] = map_names(workspace.category.skeleton, names, str(path), renames)
            mappings[category["id"]] = known[names], len(names)
        for annotation, image in annotations_of(data, set(mappings), dropped):
            mapping, count = mappings[annotation["category_id"]]
            records.append(_record(annotation, image, count, mapping, path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: expected COCO's images, annotations and categories; found a problem at {error!r}"
        ) from None
    return records, dropped


def _without_names(data: dict[str, Any], category: dict[str, Any], path: Path) -> str:
    expected = f"{path}: expected the names of keypoints in category {category['name']}; found "
    if any(annotation.get("keypoints") for annotation in data["annotations"]):
        return expected + "keypoints without names; their order is not guessed"
    return expected + "boxes and masks only; run: with --as instances"


def find_categories(
    categories: Sequence[dict[str, Any]], workspace: Workspace, source_category: str | None, path: Path
) -> list[dict[str, Any]]:
    """The entries of a file's categories that are the workspace's.

    Args:
        categories: The file's.
        workspace: Gives the category.
        source_category: Names in the file, separated by commas; None: the category's own names.
        path: The file, for messages.

    Raises:
        UserError: one that is asked for is not there.
    """
    spec = workspace.category
    by_name = {str(node["name"]).lower(): node for node in categories}
    if source_category:
        wanted = [name.strip() for name in source_category.split(",") if name.strip()]
    else:
        usual = [[spec.name], [spec.coco_label or spec.name], list(spec.synonyms)]
        there = [[name for name in names if name.lower() in by_name] for names in usual]
        wanted = next((names for names in there if names), [spec.name])
    missing = [name for name in wanted if name.lower() not in by_name]
    if missing or not wanted:
        found = ", ".join(sorted(by_name)) or "none"
        raise UserError(
            f"{path}: expected category {', '.join(missing) or spec.name}; found {found}; run: with "
            "--source_category NAME"
        )
    return [by_name[name.lower()] for name in wanted]


def annotations_of(
    data: dict[str, Any], category_ids: set[Any], dropped: Counter[str]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The annotations of some categories with their images' entries; crowds are counted and left out."""
    images = {image["id"]: image for image in data["images"]}
    for annotation in data["annotations"]:
        if annotation["category_id"] not in category_ids:
            continue
        if annotation.get("iscrowd"):
            dropped["crowd annotation"] += 1
        elif annotation["image_id"] not in images:
            dropped["annotation without an image entry"] += 1
        else:
            yield annotation, images[annotation["image_id"]]


def _record(
    annotation: dict[str, Any],
    image: dict[str, Any],
    count: int,
    mapping: np.ndarray,
    path: Path,
) -> LabelRecord:
    name = annotation.get("id", annotation["image_id"])
    keypoints = np.asarray(annotation.get("keypoints") or np.zeros(3 * count), dtype=np.float64)
    if keypoints.shape != (3 * count,):
        raise UserError(
            f"{path}: expected {count} keypoints (x, y, v) as its category names; found {keypoints.size} "
            f"numbers in annotation {name}"
        )
    keypoints = keypoints.reshape(count, 3)
    if not np.isfinite(keypoints).all():
        raise UserError(f"{path}: expected finite keypoints; found NaN in annotation {name}")
    visible = keypoints[:, 2].astype(np.int64)
    if not np.isin(visible, (0, 1, 2)).all():
        raise UserError(f"{path}: expected visibility 0, 1 or 2; found other in annotation {name}")
    xy, visible = map_keypoints(keypoints[:, :2] - SHIFT, visible, mapping)
    size = stated_size(image)
    mask = None
    if annotation.get("segmentation") and size is not None:
        try:
            mask = encode_segmentation(annotation["segmentation"], size[1], size[0])
        except ValueError as error:
            raise UserError(
                f"{path}: expected a segmentation; found {error} in annotation {name}"
            ) from None
    return LabelRecord(
        image_name=str(image["file_name"]),
        source_id=str(name),
        box_xyxy=xywh_to_xyxy(np.asarray(annotation["bbox"], dtype=np.float64).reshape(4)) - SHIFT,
        xy=xy,
        visible=visible,
        mask_rle=mask,
        size=size,
        instance_id=annotation_id_here(annotation),
    )


def stated_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of an entry of `images`, if it has them."""
    return (int(image["width"]), int(image["height"])) if "width" in image else None


def annotation_id_here(annotation: dict[str, Any]) -> str | None:
    """The instance id that `export_labels` wrote among an annotation's attributes, if it is there."""
    found = annotation.get("instance_id") or (annotation.get("attributes") or {}).get("instance_id")
    return str(found) if found else None


def image_folder(path: Path) -> Path:
    """Where the pictures lie: `images` beside the file or one folder up, or these folders themselves.

    The first of them that holds any of the file's pictures; without any, the first that is there.
    """
    near, above = path.parent, path.parent.parent
    folders = [folder for folder in (near / "images", above / "images", near, above) if folder.is_dir()]
    try:
        names = [str(image["file_name"]) for image in read_json(path)["images"][:_LOOKED_FOR]]
    except (UserError, KeyError, TypeError):
        names = []  # what is wrong with the file its reader tells
    holds = (folder for folder in folders if any((folder / name).is_file() for name in names))
    return next(holds, folders[0])


def export_labels(
    labels: Table, images: Table, skeleton: Skeleton, out: Path, confidence: np.ndarray | None = None
) -> dict[str, int]:
    """Write labels as a COCO keypoint file for each split, `<category>_<split>.json`.

    Ids that are numbers in the source are kept where they are distinct; the mask's area is that of
    the annotation, or the box's where there is no mask. The `attributes` of an annotation, which tools
    such as CVAT keep, hold the instance id, by which a corrected label is recognised.

    Args:
        labels: a labels table.
        images: the images that it refers to.
        skeleton: of its keypoints.
        out: folder to write to.
        confidence: [N, K], written as `keypoint_scores`, which COCO itself does not know.

    Returns:
        Annotations written, by file name.
    """
    by_image = {row["image_id"]: row for row in images.rows()}
    category = {
        "id": 1,
        "name": str(labels["category"][0]) if len(labels) else "animal",
        "supercategory": "animal",
        "keypoints": list(skeleton.keypoints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.edges],
    }
    annotation_ids = _numbers(labels["source_id"])
    image_ids = {image: n for n, image in enumerate(dict.fromkeys(labels["image_id"]), start=1)}
    written = {}
    for split in dict.fromkeys(labels["split"]):
        rows = np.flatnonzero(labels["split"] == split)
        names = dict.fromkeys(labels["image_id"][rows])
        content: dict[str, Any] = {
            "info": {"description": f"wildshape labels, {category['name']}, {split}"},
            "licenses": [],
            "categories": [category],
            "images": [_image_entry(image_ids[name], by_image.get(name, {}), name) for name in names],
            "annotations": [
                _annotation(labels, row, annotation_ids[row], image_ids[labels["image_id"][row]])
                for row in rows.tolist()
            ],
        }
        if confidence is not None:
            for entry, row in zip(content["annotations"], rows.tolist()):
                entry["keypoint_scores"] = confidence[row]
        file_name = f"{category['name']}_{split}.json"
        write_json(out / file_name, content)
        written[file_name] = len(rows)
    return written


def export_selected(workspace: Workspace, out: Path, name: str, source: str) -> dict[str, int]:
    """Write the pseudo-labels of a selection, best first, as `<category>_<selection>.json`.

    Every keypoint is written as visible, with its confidence among the `keypoint_scores`.

    Args:
        workspace: Of the run.
        out: Folder to write to.
        name: See `wildshape.formats.selected.selected_labels`.
        source: Whose keypoints.

    Returns:
        Annotations written, by file name.

    Raises:
        UserError: a table is missing.
    """
    labels, images, confidence = selected_labels(workspace, name, source)
    return export_labels(labels, images, workspace.category.skeleton, out, confidence)


def _image_entry(number: int, row: dict[str, Any], image_id: str) -> dict[str, Any]:
    path = row.get("path")
    # A web image's source knows it by a number; its file is what an annotation tool can open.
    name = row.get("source_id")
    if path and Path(name or "").name != Path(path).name and Path(name or "").suffix == "":
        name = Path(path).name
    name = name or image_id
    entry = {"id": number, "file_name": name}
    if row.get("width", -1) > 0:
        entry.update(width=row["width"], height=row["height"])
    return entry


def _annotation(labels: Table, row: int, number: int, image_number: int) -> dict[str, Any]:
    import json

    visible = labels["visible"][row]
    xy = np.where((visible > 0)[:, None], labels["xy"][row] + SHIFT, 0.0)
    box = xyxy_to_xywh(labels["box_xyxy"][row])
    box[:2] += SHIFT
    mask = labels["mask_rle"][row]
    entry = {
        "id": number,
        "image_id": image_number,
        "category_id": 1,
        "bbox": box,
        "area": float(box[2] * box[3]) if mask is None else mask_area(mask),
        "iscrowd": 0,
        "keypoints": np.concatenate([xy, visible[:, None]], axis=1).reshape(-1),
        "num_keypoints": int((visible > 0).sum()),
        "attributes": {"instance_id": labels["instance_id"][row]},
    }
    if mask is not None:
        entry["segmentation"] = json.loads(mask)
    return entry


def _numbers(source_ids: np.ndarray) -> list[int]:
    if all(value is not None and value.isdecimal() for value in source_ids):
        numbers = [int(value) for value in source_ids]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(source_ids) + 1))
