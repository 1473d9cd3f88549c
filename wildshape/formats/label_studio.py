"""Label Studio, in and out: tasks as JSON with rectangles and keypoints, in percent of the picture.

Out goes a folder: `images/`, `tasks.json` and `config.xml`, the project's labelling interface. An
animal is a rectangle whose region id is the animal's id; its keypoints are the rectangle's children.
Labels are written as annotations, pseudo-labels as predictions, which count as labels only once a
person has accepted them.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse
from xml.sax.saxutils import quoteattr

import numpy as np

from wildshape.errors import UserError
from wildshape.files import read_json, write_json
from wildshape.formats.annotation_folder import SHIFT, PictureOut, write_pictures, write_text
from wildshape.formats.labelled import LabelRecord, map_keypoints, map_names, one_file
from wildshape.tables import Table
from wildshape.workspace import Workspace

SOURCE = "label_studio"
_OURS = re.compile(r"a[0-9a-f]{16}")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
_HOW_TO = """\
1. Start Label Studio so that it serves this folder:
   export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
   export LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="{out}"
   label-studio start
2. Create a project; Settings, Labeling Interface, Code: paste config.xml.
3. Settings, Cloud Storage: add Local files with the path {out}/images (it need not be synchronised).
4. Import tasks.json. Correct. Mark a hidden keypoint "occluded".
5. Export as JSON and bring it back:
   wildshape import label_studio --as labels --root FILE.json --category {category}
"""


def find_file(root: Path) -> Path:
    """The exported JSON of a folder, or the file itself.

    Raises:
        UserError: there is not exactly one.
    """
    return one_file(root, "JSON export of Label Studio", "project-*.json", "*.json")


def read_records(
    path: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """The animals of one category that people have labelled, and how many were left out by reason.

    Raises:
        UserError: no such category, keypoints that do not fit, or not this format.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise UserError(f"{path}: expected Label Studio's list of tasks; found {type(tasks).__name__}")
    dropped: Counter[str] = Counter()
    try:
        found = [(task, results) for task in tasks if (results := _results(task, dropped)) is not None]
        return _read_tasks(found, path, workspace, source_category, dropped), dropped
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: expected Label Studio's tasks with annotations; found a problem at {error!r}"
        ) from None


def _results(task: dict[str, Any], dropped: Counter[str]) -> list[dict[str, Any]] | None:
    """The regions of a task's last annotation."""
    done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
    if not done:
        dropped["task that nobody has labelled"] += 1
        return None
    return max(done, key=lambda a: str(a.get("updated_at") or ""))["result"]


def _read_tasks(
    tasks: list[tuple[dict[str, Any], list[dict[str, Any]]]],
    path: Path,
    workspace: Workspace,
    source_category: str | None,
    dropped: Counter[str],
) -> list[LabelRecord]:
    label = (source_category or workspace.category.name).lower()
    kinds = {
        str(name)
        for _, results in tasks
        for r in results
        if r["type"] == "rectanglelabels"
        for name in r["value"]["rectanglelabels"]
    }
    if tasks and label not in {kind.lower() for kind in kinds}:
        others = ", ".join(sorted(kinds)) or "none"
        raise UserError(f"{path}: expected rectangles labelled {label}; found {others}")
    names = list(
        dict.fromkeys(_keypoint_name(r) for _, results in tasks for r in results if _is_keypoint(r))
    )
    if not tasks or not names:
        return []
    mapping = map_names(workspace.category.skeleton, names, str(path))
    records = []
    for task, results in tasks:
        records += _read_task(task, results, label, (names, mapping), dropped)
    return records


def _is_keypoint(region: dict[str, Any]) -> bool:
    return region["type"] == "keypointlabels"


def _keypoint_name(region: dict[str, Any]) -> str:
    return str(region["value"]["keypointlabels"][0])


def _region_id(value: str | None) -> str:
    # The interface appends #<annotation> to ids while it is open.
    return str(value or "").partition("#")[0]


def _picture_name(address: str) -> str:
    parts = urlparse(address)
    inside = parse_qs(parts.query).get("d")
    name = Path(unquote(inside[0] if inside else parts.path)).name
    # Only uploads get a prefix; a photo may be called by its date.
    return _UPLOADED.sub("", name) if "/upload/" in parts.path else name


def _read_task(
    task: dict[str, Any],
    results: list[dict[str, Any]],
    label: str,
    naming: tuple[list[str], np.ndarray],
    dropped: Counter[str],
) -> list[LabelRecord]:
    names, mapping = naming
    boxes: dict[str, np.ndarray] = {}
    size = (0, 0)
    for region in results:
        if region["type"] != "rectanglelabels":
            continue
        size = (int(region["original_width"]), int(region["original_height"]))
        value = region["value"]
        if str(value["rectanglelabels"][0]).lower() != label:
            continue
        if value.get("rotation"):
            dropped["rotated box"] += 1
            continue
        corner = _pixels(value["x"], value["y"], size)
        far = _pixels(value["x"] + value["width"], value["y"] + value["height"], size)
        boxes[_region_id(region["id"])] = np.concatenate([corner, far])
    related: dict[str, set[str]] = {}
    for relation in (r for r in results if r["type"] == "relation"):
        ends = _region_id(relation["from_id"]), _region_id(relation["to_id"])
        for one, other in (ends, ends[::-1]):
            related.setdefault(one, set()).add(other)
    hidden = {
        _region_id(region["id"])
        for region in results
        if region["type"] == "choices" and "occluded" in region["value"].get("choices", [])
    }
    xy = {key: np.full((len(names), 2), np.nan) for key in boxes}
    visible = {key: np.zeros(len(names), dtype=np.int64) for key in boxes}
    for region in sorted(filter(_is_keypoint, results), key=lambda r: not r.get("parentID")):
        place, point = (
            names.index(_keypoint_name(region)),
            _pixels(region["value"]["x"], region["value"]["y"], size),
        )
        free = {key: box for key, box in boxes.items() if visible[key][place] == 0}
        owner = _owner(region, point, boxes, free, related)
        if owner is None:
            dropped["keypoint in no box of its own"] += 1
            continue
        xy[owner][place] = point
        visible[owner][place] = 1 if _region_id(region["id"]) in hidden else 2
    name = _picture_name(str(task["data"]["image"]))
    records = []
    for key, box in boxes.items():
        mapped, seen = map_keypoints(xy[key], visible[key], mapping)
        ours = key if _OURS.fullmatch(key) else None
        records.append(LabelRecord(name, key, box, mapped, seen, size=size, instance_id=ours))
    return records


def _pixels(x: float, y: float, size: tuple[int, int]) -> np.ndarray:
    return np.array([x, y], dtype=np.float64) / 100 * size - SHIFT


def _owner(
    region: dict[str, Any],
    point: np.ndarray,
    boxes: dict[str, np.ndarray],
    free: dict[str, np.ndarray],
    related: dict[str, set[str]],
) -> str | None:
    """The rectangle of a keypoint: its parent or relation, else the smallest free one around it."""
    parents = {_region_id(region.get("parentID"))} | related.get(_region_id(region["id"]), set())
    if own := sorted(parents & boxes.keys()):
        return own[0]
    around = [
        ((box[2] - box[0]) * (box[3] - box[1]), key)
        for key, box in free.items()
        if (point >= box[:2]).all() and (point <= box[2:]).all()
    ]
    return min(around)[1] if around else None


# ---------------------------------------------------------------------------------------- export


def export_labels(
    labels: Table, images: Table, workspace: Workspace, out: Path, confidence: np.ndarray | None = None
) -> dict[str, int]:
    """Write a folder that Label Studio opens.

    Args:
        labels: A labels table.
        images: The images that it refers to.
        workspace: Where their files lie.
        out: The folder.
        confidence: [N, K] of pseudo-labels, which are written as predictions; None: labels, as annotations.

    Returns:
        Animals written, by file.

    Raises:
        UserError: a picture is missing, or there is no label.
    """
    category, names = workspace.category.name, workspace.category.skeleton.keypoints
    pictures = write_pictures(labels, images, workspace, out, "export label_studio")
    tasks = []
    for picture in pictures:
        data = {"image": f"/data/local-files/?d=images/{picture.name}"}
        content: dict[str, Any] = {
            "result": [r for row in picture.rows for r in _regions(labels, row, picture, category, names)]
        }
        if confidence is not None:
            content |= {"model_version": "wildshape", "score": float(confidence[picture.rows].mean())}
        tasks.append({"data": data, "annotations" if confidence is None else "predictions": [content]})
    write_json(out / "tasks.json", tasks)
    write_text(out / "config.xml", interface(category, names))
    write_text(out / "how_to_open.txt", _HOW_TO.format(category=category, out=out.resolve()))
    return {"tasks.json": len(labels)}


def interface(category: str, keypoints: tuple[str, ...]) -> str:
    """The labelling interface of a project."""
    points = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in keypoints)
    return f"""<View>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="box" toName="image">
    <Label value={quoteattr(category)}/>
  </RectangleLabels>
  <KeyPointLabels name="keypoints" toName="image">
{points}
  </KeyPointLabels>
  <Choices name="visibility" toName="image" perRegion="true" whenTagName="keypoints">
    <Choice value="occluded"/>
  </Choices>
</View>
"""


def _regions(
    labels: Table, row: int, picture: PictureOut, category: str, names: tuple[str, ...]
) -> list[dict[str, Any]]:
    size = np.array([picture.width, picture.height], dtype=np.float64)
    instance_id = str(labels["instance_id"][row])
    common = {
        "to_name": "image", "image_rotation": 0,
        "original_width": picture.width, "original_height": picture.height,
    }  # fmt: skip
    box = ((labels["box_xyxy"][row] + SHIFT).reshape(2, 2) / size * 100).tolist()
    (x0, y0), (x1, y1) = box
    value = {"x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0, "rotation": 0}
    rectangle = {"id": instance_id, "type": "rectanglelabels", "from_name": "box", **common}
    regions = [{**rectangle, "value": {**value, "rectanglelabels": [category]}}]
    for name, xy, seen in zip(names, labels["xy"][row], labels["visible"][row]):
        if not seen:
            continue
        x, y = ((xy + SHIFT) / size * 100).tolist()
        place = {"x": x, "y": y, "width": 0.5}
        point = {"id": f"{instance_id}_{name}", "parentID": instance_id, **common}
        kind = {"type": "keypointlabels", "from_name": "keypoints"}
        regions.append({**point, **kind, "value": {**place, "keypointlabels": [name]}})
        if seen == 1:
            kind = {"type": "choices", "from_name": "visibility"}
            regions.append({**point, **kind, "value": {**place, "choices": ["occluded"]}})
    return regions
