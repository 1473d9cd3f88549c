"""CVAT, in and out: skeletons and boxes in the form "CVAT for images 1.1".

Out goes a folder: `images/`, `annotations.xml`, and `labels.json`, which defines the skeleton when it
is pasted into the Raw tab of a new task. A skeleton carries the animal's id as an attribute, and a
rectangle `<category>_box` of the same group its box, since a skeleton in CVAT has none. CVAT counts
from the pixel's edge. Masks are not written.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.errors import UserError
from wildshape.formats.annotation_folder import SHIFT, PictureOut, write_pictures, write_text
from wildshape.formats.labelled import LabelRecord, keypoints_box, map_keypoints, map_names, one_file
from wildshape.skeleton import Skeleton
from wildshape.tables import Table
from wildshape.workspace import Workspace

SOURCE = "cvat"
_ID = "instance_id"
_HOW_TO = """\
1. In CVAT create a task (or a project): open the Raw tab of the labels and paste labels.json there.
2. Take the files in images/ as the task's data.
3. In the task's menu: Upload annotations, format CVAT 1.1, annotations.xml.
4. Correct. Leave the attribute instance_id as it is; the box may be moved too.
5. Export the task as "CVAT for images 1.1" and bring it back:
   wildshape import cvat --as labels --root THE.zip --category {category}
"""


def find_file(root: Path) -> Path:
    """The annotation file of a folder, or the file itself, which may be the ZIP file that CVAT exports.

    Raises:
        UserError: there is not exactly one.
    """
    return one_file(root, "annotations.xml of CVAT", "annotations.xml", "*.xml")


def read_records(
    path: Path, workspace: Workspace, source_category: str | None = None
) -> tuple[list[LabelRecord], Counter[str]]:
    """The skeletons of one category, with their boxes, and how many were left out by reason.

    Raises:
        UserError: no such label, keypoints that do not fit, or not this format.
    """
    root = _root(path)
    if root.tag != "annotations" or root.find("image") is None:
        found = "tracks: export as CVAT for images" if root.find("track") is not None else f"<{root.tag}>"
        raise UserError(f"{path}: expected CVAT for images 1.1, <annotations> with <image>; found {found}")
    label = source_category or workspace.category.name
    skeletons = [(image, node) for image in root.iter("image") for node in image.findall("skeleton")]
    chosen = [(image, node) for image, node in skeletons if node.get("label", "").lower() == label.lower()]
    if not chosen:
        others = ", ".join(sorted({node.get("label", "") for _, node in skeletons})) or "no skeletons"
        raise UserError(
            f"{path}: expected skeletons {label}; found {others}; run: with --source_category NAME"
        )
    names = list(dict.fromkeys(p.get("label", "") for _, node in chosen for p in node.findall("points")))
    mapping = map_names(workspace.category.skeleton, names, str(path))
    records, dropped = [], Counter[str]()
    try:
        for number, (image, node) in enumerate(chosen):
            record = _record(image, node, names, mapping, number)
            if record is None:
                dropped["skeleton without a box and two keypoints"] += 1
            else:
                records.append(record)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: expected CVAT for images 1.1; found a problem at {error!r}") from None
    return records, dropped


def _root(path: Path) -> ElementTree.Element:
    try:
        if path.suffix.lower() != ".zip":
            return ElementTree.parse(path).getroot()
        with zipfile.ZipFile(path) as archive, archive.open("annotations.xml") as file:
            return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, UnicodeDecodeError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path}: expected CVAT's XML, or its ZIP file; found {error}") from None


def _attribute(node: ElementTree.Element) -> str | None:
    return next((a.text for a in node.findall("attribute") if a.get("name") == _ID and a.text), None)


def _record(
    image: ElementTree.Element,
    node: ElementTree.Element,
    names: list[str],
    mapping: np.ndarray,
    number: int,
) -> LabelRecord | None:
    xy, visible = np.zeros((len(names), 2)), np.zeros(len(names), dtype=np.int64)
    for points in node.findall("points"):
        place = names.index(points.attrib["label"])
        if points.get("outside", "0") == "0":
            xy[place] = [float(value) - SHIFT for value in points.attrib["points"].split(",")]
            visible[place] = 1 if points.get("occluded", "0") == "1" else 2
    if not np.isfinite(xy).all():
        raise ValueError("a keypoint that is NaN")
    instance_id = _attribute(node)
    box = _box(image, node, instance_id)
    if box is None and (visible > 0).sum() < 2:
        return None
    mapped, seen = map_keypoints(xy, visible, mapping)
    return LabelRecord(
        image_name=image.attrib["name"],
        source_id=instance_id or f"{image.attrib['name']}:{number}",
        box_xyxy=keypoints_box(xy[visible > 0]) if box is None else box,
        xy=mapped,
        visible=seen,
        size=(int(image.attrib["width"]), int(image.attrib["height"])),
        instance_id=instance_id,
        box_from_keypoints=box is None,
    )


def _box(
    image: ElementTree.Element, skeleton: ElementTree.Element, instance_id: str | None
) -> np.ndarray | None:
    group = skeleton.get("group_id")
    boxes = image.findall("box")
    by_id = [box for box in boxes if instance_id is not None and _attribute(box) == instance_id]
    by_group = [box for box in boxes if group is not None and box.get("group_id") == group]
    # What was copied in the tool carries the id of what it was copied from, but is in a group of its own.
    loose = [box for box in by_id if group is None or box.get("group_id") is None]
    same = [box for box in by_group if box in by_id] or by_group or loose
    if not same:
        return None
    return np.array([float(same[0].attrib[edge]) for edge in ("xtl", "ytl", "xbr", "ybr")]) - SHIFT


# ---------------------------------------------------------------------------------------- export


def export_labels(labels: Table, images: Table, workspace: Workspace, out: Path) -> dict[str, int]:
    """Write a folder that CVAT opens.

    Args:
        labels: A labels table.
        images: The images that it refers to.
        workspace: Where their files lie.
        out: The folder.

    Returns:
        Animals written, by file.

    Raises:
        UserError: a picture is missing, or there is no label.
    """
    category, skeleton = workspace.category.name, workspace.category.skeleton
    pictures = write_pictures(labels, images, workspace, out, "export cvat")
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    for key, value in (
        ("name", f"wildshape {category}"),
        ("size", str(len(pictures))),
        ("mode", "annotation"),
    ):
        ElementTree.SubElement(task, key).text = value
    definitions = label_definitions(category, skeleton)
    nodes = ElementTree.SubElement(task, "labels")
    for definition in definitions:
        _write_label(nodes, definition)
    for number, picture in enumerate(pictures):
        _write_image(root, number, picture, labels, workspace)
    ElementTree.indent(root, " ")
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
    write_text(out / "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')
    write_text(out / "labels.json", json.dumps(definitions, indent=1) + "\n")
    write_text(out / "how_to_open.txt", _HOW_TO.format(category=category))
    return {"annotations.xml": len(labels)}


def label_definitions(category: str, skeleton: Skeleton) -> list[dict[str, Any]]:
    """The labels of a CVAT task, as its Raw tab takes them: the skeleton, and the box beside it."""
    attribute = {
        "name": _ID, "mutable": False, "input_type": "text", "default_value": "", "values": [""],
    }  # fmt: skip
    return [
        {
            "name": category,
            "type": "skeleton",
            "attributes": [attribute],
            "svg": _drawing(skeleton),
            "sublabels": [
                {"name": name, "type": "points", "attributes": []} for name in skeleton.keypoints
            ],
        },
        {"name": f"{category}_box", "type": "rectangle", "attributes": [attribute]},
    ]


def _drawing(skeleton: Skeleton) -> str:
    """The skeleton on a field of 100 x 100: keypoints on an ellipse, in their order."""
    angle = 2 * np.pi * np.arange(skeleton.num_keypoints) / skeleton.num_keypoints
    place = np.stack([50 + 40 * np.sin(angle), 50 - 40 * np.cos(angle)], -1).round(3)
    lines = [
        f'<line x1="{place[a, 0]}" y1="{place[a, 1]}" x2="{place[b, 0]}" y2="{place[b, 1]}" stroke="black" '
        f'data-type="edge" data-node-from="{a + 1}" stroke-width="0.5" data-node-to="{b + 1}"></line>'
        for a, b in skeleton.edges
    ]
    circles = [
        f'<circle r="1.5" stroke="black" fill="#b3b3b3" cx="{x}" cy="{y}" stroke-width="0.1" '
        f'data-type="element node" data-element-id="{n}" data-node-id="{n}" '
        f'data-label-name="{name}"></circle>'
        for n, ((x, y), name) in enumerate(zip(place, skeleton.keypoints), start=1)
    ]
    return "".join(lines + circles)


def _write_label(nodes: ElementTree.Element, definition: dict[str, Any]) -> None:
    node = ElementTree.SubElement(nodes, "label")
    ElementTree.SubElement(node, "name").text = definition["name"]
    ElementTree.SubElement(node, "type").text = definition["type"]
    attributes = ElementTree.SubElement(node, "attributes")
    for attribute in definition["attributes"]:
        entry = ElementTree.SubElement(attributes, "attribute")
        for key in ("name", "mutable", "input_type", "default_value"):
            ElementTree.SubElement(entry, key).text = str(attribute[key])
        ElementTree.SubElement(entry, "values").text = ""
    if "svg" in definition:
        ElementTree.SubElement(node, "svg").text = definition["svg"]
    for part in definition.get("sublabels", ()):
        child = ElementTree.SubElement(nodes, "label")
        ElementTree.SubElement(child, "name").text = part["name"]
        ElementTree.SubElement(child, "type").text = part["type"]
        ElementTree.SubElement(child, "attributes")
        ElementTree.SubElement(child, "parent").text = definition["name"]


def _write_image(
    root: ElementTree.Element, number: int, picture: PictureOut, labels: Table, workspace: Workspace
) -> None:
    node = ElementTree.SubElement(
        root,
        "image",
        {
            "id": str(number), "name": picture.name,
            "width": str(picture.width), "height": str(picture.height),
        },
    )  # fmt: skip
    category, names = workspace.category.name, workspace.category.skeleton.keypoints
    for row in picture.rows:
        shared = {"source": "manual", "z_order": "0", "group_id": str(row + 1)}
        box = labels["box_xyxy"][row] + SHIFT
        skeleton = ElementTree.SubElement(node, "skeleton", {"label": category, **shared})
        for name, xy, seen in zip(names, labels["xy"][row], labels["visible"][row]):
            # CVAT wants a place for every keypoint, those outside too.
            x, y = xy + SHIFT if seen else (box[:2] + box[2:]) / 2
            facts = {"label": name, "source": "manual", "outside": str(int(seen == 0))}
            facts |= {"occluded": str(int(seen == 1)), "points": f"{x:.3f},{y:.3f}"}
            ElementTree.SubElement(skeleton, "points", facts)
        edges = {edge: f"{value:.3f}" for edge, value in zip(("xtl", "ytl", "xbr", "ybr"), box)}
        rectangle = {"label": f"{category}_box", "occluded": "0", **shared, **edges}
        for parent in (skeleton, ElementTree.SubElement(node, "box", rectangle)):
            ElementTree.SubElement(parent, "attribute", {"name": _ID}).text = labels["instance_id"][row]
