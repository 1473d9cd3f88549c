"""Animal-Pose (ICCV 2019): its official `keypoints.json`, and its older form, one XML file an animal.

The file holds `images` (file name by id), `annotations` and `categories` with keypoint names. Boxes
are [x1, y1, x2, y2]; keypoints are whole pixels [x, y, visible] with visible 0 or 1, taken as pixel
centres. Names are mapped onto the category's skeleton (`quadruped16` has no knees). The XML files
(`PASCAL2011_animal_annotation`, `animalpose_anno2`) are read by `wildshape.formats.keypoint_xml`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.formats import keypoint_xml
from wildshape.formats.labelled import LabelRecord, map_keypoints, map_names
from wildshape.workspace import Workspace

SOURCE = "animal_pose"


def find_file(root: Path) -> Path:
    """The annotation file, or the folder itself if it holds XML files.

    Raises:
        UserError: there is neither.
    """
    path = root / "keypoints.json" if root.is_dir() else root
    if path.is_file():
        return path
    if not keypoint_xml.find_xml(root):
        raise UserError(
            f"expected keypoints.json of Animal-Pose, or its older XML files, in {root}; found none"
        )
    return root


def input_files(path: Path) -> Sequence[Path]:
    """The files that are read."""
    return [path] if path.suffix == ".json" else keypoint_xml.find_xml(path)


def read_records(
    path: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """The labels of one category, and how many were left out by reason (none here).

    Raises:
        UserError: no such category in the file, or it is not of this format.
    """
    if path.suffix != ".json":
        return keypoint_xml.read_records(path, workspace, source_category)
    data = read_json(path)
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        raise UserError(
            f"{path}: expected Animal-Pose's own form; found COCO's; run: wildshape import coco"
        )
    try:
        names_of = {int(node["id"]): node for node in data["categories"]}
        images = {int(key): str(name) for key, name in data["images"].items()}
        annotations = data["annotations"]
        wanted = source_category or workspace.category.name
        ids = [i for i, node in names_of.items() if str(node["name"]).lower() == wanted.lower()]
        if not ids:
            found = ", ".join(sorted(str(node["name"]) for node in names_of.values()))
            raise UserError(f"{path}: expected category {wanted}; found {found}")
        names = [str(name) for name in names_of[ids[0]]["keypoints"]]
        mapping = map_names(workspace.category.skeleton, names, str(path))
        chosen = [(n, a) for n, a in enumerate(annotations) if int(a["category_id"]) in ids]
        records = [_record(n, a, images, len(names), mapping, path) for n, a in chosen]
        return records, Counter()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: expected Animal-Pose's images, annotations and categories; found a problem at "
            f"{error!r}"
        ) from None


def _record(
    number: int,
    annotation: dict[str, Any],
    images: dict[int, str],
    count: int,
    mapping: np.ndarray,
    path: Path,
) -> LabelRecord:
    keypoints = np.asarray(annotation["keypoints"], dtype=np.float64)
    if keypoints.shape != (count, 3):
        raise UserError(
            f"{path}: expected {count} keypoints [x, y, visible] as its category names; found shape "
            f"{list(keypoints.shape)} in annotation {number}"
        )
    visible = np.where(keypoints[:, 2] > 0, 2, 0)
    if not np.isfinite(keypoints[visible > 0]).all() or np.isnan(keypoints[:, 2]).any():
        raise UserError(f"{path}: expected finite keypoints; found NaN in annotation {number}")
    xy, visible = map_keypoints(keypoints[:, :2], visible, mapping)
    return LabelRecord(
        image_name=images[int(annotation["image_id"])],
        source_id=f"{int(annotation['image_id'])}_{number}",
        box_xyxy=np.asarray(annotation["bbox"], dtype=np.float64).reshape(4),
        xy=xy,
        visible=visible,
    )


def image_folder(path: Path) -> Path:
    """Where the pictures lie: `images` beside the file or in the folder, else beside the annotations."""
    own = path if path.is_dir() else path.parent
    folder = own / "images"
    return folder if folder.is_dir() else own
