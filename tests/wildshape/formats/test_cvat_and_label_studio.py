"""The folders for CVAT and Label Studio, and what comes back from them."""

import json
import xml.etree.ElementTree as ElementTree
import zipfile

import numpy as np
import pytest
from small_labels import bring_in, save_picture

from wildshape.errors import UserError
from wildshape.formats import cvat, export_command, label_studio


def test_a_photo_named_by_its_date_keeps_its_name():
    for address, name in (
        ("/data/local-files/?d=images/20230105-0000.jpg", "20230105-0000.jpg"),
        ("/data/upload/3/0a1b2c3d-a.jpg", "a.jpg"),
    ):
        assert label_studio._picture_name(address) == name


@pytest.fixture
def labelled(workspace, tmp_path):
    """Two cows in one picture, one in another; each keypoint state appears."""
    root = tmp_path / "cows"
    names = list(workspace.category.skeleton.keypoints)
    annotations = []
    for number, image in enumerate((1, 1, 2)):
        points = [v for k in range(16) for v in (12.25 + 4 * k + number, 20.75 + 3 * k, (2, 1, 0)[k % 3])]
        box = [10 + 5 * number, 15.5, 80, 60]
        annotations.append(
            {"id": number + 1, "image_id": image, "category_id": 1, "bbox": box, "keypoints": points}
        )
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 120, "height": 100} for n in (1, 2)]
    for n in (1, 2):
        save_picture(root / "images" / f"{n}.jpg", n)
    categories = [{"id": 1, "name": "cow", "keypoints": names}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "cows.json").write_text(json.dumps(content))
    bring_in(workspace, "coco", root / "cows.json", split="train")
    return workspace


def write_out(workspace, out, form):
    return export_command.run(export_command.Config(format=form, out=out, category="cow"), workspace)


@pytest.mark.parametrize(("form", "file"), [("cvat", "annotations.xml"), ("label_studio", "tasks.json")])
def test_round_trip_as_a_set(labelled, make_workspace, tmp_path, form, file):
    out = tmp_path / "out"
    assert write_out(labelled, out, form) == {file: 3}
    other = make_workspace("cow")
    other.root = tmp_path / "other"
    facts = bring_in(other, form, out / file, split="train")
    assert facts["labels"] == 3 and not facts["dropped"]
    old, new = labelled.load("labels"), other.load("labels")
    key = old.lookup()
    for row, name in enumerate(new["source_id"]):
        np.testing.assert_allclose(new["xy"][row], old["xy"][key[name]], atol=1e-3)
        np.testing.assert_allclose(new["box_xyxy"][row], old["box_xyxy"][key[name]], atol=1e-3)
        assert new["visible"][row].tolist() == old["visible"][key[name]].tolist()
        assert new["image_id"][row] == old["image_id"][key[name]]
    assert {path.name for path in (out / "images").iterdir()} == {f"{i}.jpg" for i in set(old["image_id"])}
    assert "wildshape import" in (out / "how_to_open.txt").read_text()


def test_cvat_files_are_as_cvat_documents_them(labelled, tmp_path):
    write_out(labelled, tmp_path, "cvat")
    definitions = json.loads((tmp_path / "labels.json").read_text())
    skeleton, box = definitions
    names = list(labelled.category.skeleton.keypoints)
    assert skeleton["type"] == "skeleton" and box == {**box, "name": "cow_box", "type": "rectangle"}
    assert [part["name"] for part in skeleton["sublabels"]] == names
    drawing = ElementTree.fromstring(f"<svg>{skeleton['svg']}</svg>")
    circles, lines = drawing.findall("circle"), drawing.findall("line")
    assert [circle.get("data-label-name") for circle in circles] == names
    assert len(lines) == len(labelled.category.skeleton.edges)
    nodes = {circle.get("data-node-id") for circle in circles}
    assert all({line.get("data-node-from"), line.get("data-node-to")} <= nodes for line in lines)
    root = ElementTree.parse(tmp_path / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1" and root.findtext("meta/task/size") == "2"
    labels = root.findall("meta/task/labels/label")
    assert [label.findtext("type") for label in labels[:1]] == ["skeleton"]
    assert [label.findtext("name") for label in labels if label.findtext("parent") == "cow"] == names
    image = root.find("image")
    assert image.attrib.keys() == {"id", "name", "width", "height"}
    first = image.find("skeleton")
    assert [point.get("label") for point in first.findall("points")] == names
    states = [(point.get("outside"), point.get("occluded")) for point in first.findall("points")]
    assert states[:3] == [("0", "0"), ("0", "1"), ("1", "0")]
    # CVAT counts from the pixel's edge, as COCO does.
    assert first.find("points").get("points") == "12.250,20.750"
    assert image.find("box").get("xtl") == "10.000" and image.find("box").get("ybr") == "75.500"


def test_label_studio_files_are_as_it_documents_them(labelled, tmp_path):
    write_out(labelled, tmp_path, "label_studio")
    config = ElementTree.fromstring((tmp_path / "config.xml").read_text())
    tags = {tag.get("name"): tag.tag for tag in config}
    assert tags == {
        "image": "Image", "box": "RectangleLabels", "keypoints": "KeyPointLabels", "visibility": "Choices",
    }  # fmt: skip
    listed = [label.get("value") for label in config.find("KeyPointLabels")]
    assert listed == list(labelled.category.skeleton.keypoints)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    task = next(task for task in tasks if len(task["annotations"][0]["result"]) > 20)
    address = task["data"]["image"]
    assert address.startswith("/data/local-files/?d=images/")
    assert (tmp_path / address.partition("?d=")[2]).is_file()
    regions = task["annotations"][0]["result"]
    rectangle, point, second, hidden = regions[:4]
    assert {region["from_name"] for region in regions} <= set(tags) and rectangle["to_name"] == "image"
    assert rectangle["value"]["x"] == pytest.approx(100 * 10 / 120)
    assert rectangle["value"]["height"] == pytest.approx(60)
    assert point["parentID"] == rectangle["id"] and point["value"]["x"] == pytest.approx(100 * 12.25 / 120)
    assert hidden["id"] == second["id"] != point["id"] and hidden["value"]["choices"] == ["occluded"]


def skeleton_xml(path, change=lambda text: text):
    points = '<points label="Nose" outside="0" occluded="0" points="30,40"/>'
    points += '<points label="L_eye" outside="0" occluded="1" points="50,60"/>'
    text = (
        '<annotations><version>1.1</version><image id="0" name="a.jpg" width="120" height="100">'
        f'<skeleton label="cow" group_id="4">{points}</skeleton>'
        '<box label="cow_box" xtl="20" ytl="30" xbr="60" ybr="70" group_id="4"/></image></annotations>'
    )
    path.write_text(change(text))
    save_picture(path.parent / "images/a.jpg", 3)
    return path


def test_cvat_skeletons_drawn_by_hand(workspace, tmp_path):
    """Without our ids: the box of the same group, or none."""
    path = skeleton_xml(tmp_path / "annotations.xml")
    (record,), _ = cvat.read_records(path, workspace)
    assert record.box_xyxy.tolist() == [19.5, 29.5, 59.5, 69.5] and record.instance_id is None
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.write(path, "annotations.xml")
    (zipped,), _ = cvat.read_records(tmp_path / "task.zip", workspace)
    np.testing.assert_array_equal(zipped.xy, record.xy)
    skeleton_xml(path, lambda text: text.replace('group_id="4"/>', 'group_id="5"/>'))
    (record,), _ = cvat.read_records(path, workspace)
    assert record.box_from_keypoints and record.box_xyxy.tolist() == [27.5, 37.5, 51.5, 61.5]
    skeleton = workspace.category.skeleton
    assert record.visible[skeleton.find("L_eye")] == 1 and record.xy[skeleton.find("Nose")].tolist() == [
        29.5,
        39.5,
    ]


def test_a_skeleton_copied_in_cvat_has_the_box_that_was_copied_with_it(workspace, tmp_path):
    """A copy carries the id of the original, and is in a group of its own."""
    own = '<attribute name="instance_id">one</attribute>'

    def copied(text):
        start, end = text.index("<skeleton"), text.index("</image>")
        pair = text[start:end].replace("</skeleton>", own + "</skeleton>")
        pair = pair.replace('group_id="4"/>', f'group_id="4">{own}</box>')
        other = pair.replace('group_id="4"', 'group_id="7"').replace('xbr="60"', 'xbr="100"')
        return text[:start] + pair + other + text[end:]

    path = skeleton_xml(tmp_path / "annotations.xml", copied)
    records, _ = cvat.read_records(path, workspace)
    assert [record.instance_id for record in records] == ["one", "one"]
    assert [record.box_xyxy[2] for record in records] == [59.5, 99.5]
    # The copy's box was not copied: the original's is not its.
    alone = path.read_text()
    alone = alone[: alone.rindex("<box")] + alone[alone.rindex("</image>") :]
    path.write_text(alone)
    records, _ = cvat.read_records(path, workspace)
    assert [record.box_from_keypoints for record in records] == [False, True]
    # The group was lost: the id says whose box it is.
    path.write_text(alone.replace('group_id="4">' + own + "</box>", f">{own}</box>"))
    assert cvat.read_records(path, workspace)[0][0].box_xyxy[2] == 59.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:50], "expected CVAT's XML, or its ZIP file; found"),
        (lambda text: "<annotations><track/></annotations>", "found tracks: export as CVAT for images"),
        (lambda text: text.replace('label="cow"', 'label="deer"'), "expected skeletons cow; found deer"),
        (lambda text: text.replace('"30,40"', '"30,x"'), "found a problem at ValueError"),
        (lambda text: text.replace('"30,40"', '"30,nan"'), "a keypoint that is NaN"),
        (lambda text: text.replace('width="120"', ""), "found a problem at KeyError"),
        (
            lambda text: text.replace("Nose", "Fin").replace("L_eye", "Gill"),
            "expected keypoints of skeleton",
        ),
    ],
)
def test_cvat_that_does_not_fit(workspace, tmp_path, change, message):
    path = skeleton_xml(tmp_path / "annotations.xml", change)
    with pytest.raises(UserError, match=message):
        bring_in(workspace, "cvat", path)


def region(kind, name, key, x, y, parent=None, **value):
    label = {"rectanglelabels": "box", "keypointlabels": "keypoints"}[kind]
    return {
        "id": key, "type": kind, "from_name": label, "to_name": "image", "original_width": 100,
        "original_height": 100, "parentID": parent, "value": {"x": x, "y": y, kind: [name], **value},
    }  # fmt: skip


def test_label_studio_by_hand(workspace, tmp_path):
    """Two nested animals; keypoints with and without a parent; an upload; a task that nobody labelled."""
    save_picture(tmp_path / "images/a.jpg", 5, (100, 100))
    results = [
        region("rectanglelabels", "Cow", "big#x1", 0, 0, width=90, height=90, rotation=0),
        region("rectanglelabels", "Cow", "small#x1", 20, 20, width=30, height=30, rotation=0),
        region("rectanglelabels", "Cow", "tilted", 20, 20, width=30, height=30, rotation=12),
        region("keypointlabels", "Nose", "k1", 25, 25),
        region("keypointlabels", "Nose", "k2", 30, 30),
        region("keypointlabels", "Tail", "k3#x1", 40, 40, parent="big#x1"),
        region("keypointlabels", "Tail", "k4", 45, 45),
        region("keypointlabels", "Tail", "k5", 95, 95),
        region("keypointlabels", "Throat", "k6", 22, 22),
        {"type": "relation", "from_id": "k6", "to_id": "big", "direction": "right"},
    ]
    tasks = [
        {
            "data": {"image": "/data/upload/3/0a1b2c3d-a.jpg"},
            "annotations": [
                {"result": [], "updated_at": "2026-01-01"},
                {"result": results, "updated_at": "2026-01-03"},
                {"result": [], "updated_at": "2026-01-05", "was_cancelled": True},
            ],
        },
        {"data": {"image": "b.jpg"}, "predictions": [{"result": results}]},
    ]
    path = tmp_path / "project-1.json"
    path.write_text(json.dumps(tasks))
    facts = bring_in(workspace, "label_studio", tmp_path, split="train")
    assert facts["labels"] == 2
    assert facts["dropped"] == {
        "task that nobody has labelled": 1, "rotated box": 1, "keypoint in no box of its own": 1,
    }  # fmt: skip
    labels, skeleton = workspace.load("labels"), workspace.category.skeleton
    big, small = (labels.lookup("source_id")[name] for name in ("big", "small"))
    nose, tail = skeleton.find("Nose"), skeleton.find("Tail")
    assert labels["xy"][small, nose].tolist() == [24.5, 24.5]
    assert labels["xy"][big, nose].tolist() == [29.5, 29.5]
    assert labels["xy"][big, tail].tolist() == [39.5, 39.5]
    assert labels["xy"][small, tail].tolist() == [44.5, 44.5]
    throat = skeleton.find("Throat")
    assert labels["visible"][[big, small], throat].tolist() == [2, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected Label Studio's list of tasks; found dict"),
        ([{"annotations": [{"result": []}]}], "expected rectangles labelled cow; found none"),
        ([{"annotations": [{"result": [{"type": "rectanglelabels"}]}]}], "found a problem at KeyError"),
        ([], "found none that can be used .it holds none"),
    ],
)
def test_label_studio_that_does_not_fit(workspace, tmp_path, content, message):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        label_studio.find_file(tmp_path)
        bring_in(workspace, "label_studio", path)


@pytest.mark.parametrize("form", ["cvat", "label_studio"])
def test_pictures_must_be_there(labelled, tmp_path, form):
    (tmp_path / "cows/images/1.jpg").unlink()
    with pytest.raises(UserError, match=f"export {form}: expected the picture of .* found none"):
        write_out(labelled, tmp_path / "out", form)
