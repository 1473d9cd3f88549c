"""One XML file an animal: the keypoint annotations of Pascal VOC's photos, and Animal-Pose's older form.

    <annotation>
      <image>2008_001208</image>  <voc_id>0</voc_id>  <category>horse</category>
      <visible_bounds xmin="32.0" ymin="48.0" width="250.0" height="210.0"/>
      <keypoints><keypoint name="L_Eye" visible="1" x="52.0" y="71.0" z="0.0"/> ... </keypoints>
    </annotation>

Positions are taken as pixel centres. In the second part of Animal-Pose (`animalpose_anno2`) the bounds
have no `ymin`: what they call `xmax` is ymin. Evidence: width and height are given besides, so that
ymin alone is missing; boxes read so hold their keypoints, which every import checks; MMPose's converter
reads them alike.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wildshape.errors import UserError
from wildshape.formats.labelled import LabelRecord, map_keypoints, map_names
from wildshape.geometry import xywh_to_xyxy
from wildshape.stage import progress
from wildshape.workspace import Workspace

_TOLERANCE = 0.05
_LEAST_INSIDE = 0.8


@dataclass(frozen=True)
class XmlAnimal:
    """One file: names of picture and category, box [4] in pixels, and [x, y, visible] by keypoint."""

    path: Path
    image: str
    category: str
    box_xyxy: np.ndarray
    keypoints: dict[str, tuple[float, float, bool]]
    ymin_from_xmax: bool


def find_xml(root: Path) -> list[Path]:
    """The annotation files below a folder (or the file itself), in order."""
    return [root] if root.is_file() else sorted(root.rglob("*.xml"))


def read_animal(path: Path) -> XmlAnimal | None:
    """Read one file; None if it is XML of another kind (such as Pascal VOC's own boxes).

    Raises:
        UserError: it is not XML, or lacks a part.
    """
    try:
        node = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected XML; found {error}") from None
    bounds, parts = node.find("visible_bounds"), node.find("keypoints")
    if bounds is None or parts is None:
        return None
    try:
        from_xmax = "ymin" not in bounds.attrib
        top = bounds.attrib["xmax" if from_xmax else "ymin"]
        numbers = [bounds.attrib["xmin"], top, bounds.attrib["width"], bounds.attrib["height"]]
        keypoints = {
            part.attrib["name"]: (
                float(part.attrib["x"]),
                float(part.attrib["y"]),
                float(part.attrib["visible"]) > 0,
            )
            for part in parts.findall("keypoint")
        }
        image = (node.findtext("image") or "").strip()
        category = (node.findtext("category") or "").strip()
        if not image or not category:
            raise KeyError("image or category")
        box = xywh_to_xyxy(np.array([float(number) for number in numbers]))
        return XmlAnimal(path, image, category, box, keypoints, from_xmax)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: expected image, category, visible_bounds with xmin, ymin, width and height, and "
            f"keypoints with name, x, y and visible; found a problem at {error}"
        ) from None


def read_records(
    root: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """The labels of one category among the XML files below a folder, and what was left out.

    Raises:
        UserError: no such category, keypoints that do not fit, or not this format.
    """
    dropped: Counter[str] = Counter()
    animals = []
    for path in progress(find_xml(root), "reading XML", unit="file"):
        animal = read_animal(path)
        if animal is None:
            dropped["XML file without keypoints"] += 1
        else:
            animals.append(animal)
    wanted = (source_category or workspace.category.name).lower()
    chosen = [animal for animal in animals if animal.category.lower() == wanted]
    if not chosen:
        found = ", ".join(sorted({animal.category for animal in animals})) or "no file with keypoints"
        raise UserError(
            f"{root}: expected category {wanted}; found {found}; run: with --source_category NAME"
        )
    _check_boxes([animal for animal in chosen if animal.ymin_from_xmax], root)
    names = list(dict.fromkeys(name for animal in chosen for name in animal.keypoints))
    mapping = map_names(workspace.category.skeleton, names, str(root))
    records = [_record(animal, names, mapping, root) for animal in chosen]
    return records, dropped


def _check_boxes(animals: Sequence[XmlAnimal], root: Path) -> None:
    inside = total = 0
    for animal in animals:
        box = animal.box_xyxy
        margin = _TOLERANCE * np.array([box[2] - box[0], box[3] - box[1]])
        for x, y, visible in animal.keypoints.values():
            if visible:
                total += 1
                xy = np.array([x, y])
                inside += bool((xy >= box[:2] - margin).all() and (xy <= box[2:] + margin).all())
    if total and inside < _LEAST_INSIDE * total:
        raise UserError(
            f"{root}: expected `xmax` to hold ymin where visible_bounds has no ymin, as in Animal-Pose; "
            f"found {total - inside} of {total} keypoints outside boxes that are read so"
        )


def _record(animal: XmlAnimal, names: Sequence[str], mapping: np.ndarray, root: Path) -> LabelRecord:
    xy, visible = np.zeros((len(names), 2)), np.zeros(len(names), dtype=np.int64)
    for number, name in enumerate(names):
        x, y, seen = animal.keypoints.get(name, (0.0, 0.0, False))
        xy[number], visible[number] = (x, y), 2 * seen
    if not np.isfinite(xy[visible > 0]).all():
        raise UserError(f"{animal.path}: expected finite keypoints; found NaN")
    xy, visible = map_keypoints(xy, visible, mapping)
    folder = root if root.is_dir() else root.parent
    source_id = animal.path.relative_to(folder).with_suffix("").as_posix()
    return LabelRecord(animal.image, source_id, animal.box_xyxy, xy, visible)
