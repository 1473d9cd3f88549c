"""COCO in and out: labels, selections, instances and masks."""

import json

import numpy as np
import pytest
from PIL import Image
from small_labels import bring_in, edit, save_picture
from small_run import make_run

from wildshape.errors import UserError
from wildshape.formats import export_command
from wildshape.formats.masks import decode_mask, encode_mask, encode_segmentation, mask_area
from wildshape.skeleton import load_skeleton
from wildshape.tables import read_table

NAMES20 = list(load_skeleton("quadruped20").keypoints)


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "coco"
    names = ["nose", "left_eye", "right_eye", "withers", "tailbase"]
    rle = {"size": [100, 120], "counts": [100 * 20, 100 * 10, 100 * 90]}
    keypoints = [10.5, 20.5, 2, 30, 40, 1, 0, 0, 0, 50.25, 60, 2, 7, 8, 2]
    common = {"category_id": 3, "keypoints": keypoints, "num_keypoints": 4, "iscrowd": 0}
    annotations = [
        {"id": 11, "image_id": 1, "bbox": [10, 20, 30, 40], "area": 5, **common,
         "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]]},
        {"id": 12, "image_id": 2, "bbox": [0, 0, 120, 100], "area": 5, **common, "segmentation": rle},
        {"id": 13, "image_id": 2, "bbox": [0, 0, 120, 100], "area": 5, **common, "iscrowd": 1},
        {"id": 14, "image_id": 9, "bbox": [0, 0, 120, 100], "area": 5, **common},
        {"id": 15, "image_id": 1, "bbox": [0, 0, 120, 100], "area": 5, **common, "category_id": 1},
    ]  # fmt: skip
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": 120, "height": 100} for number in (1, 2)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "Cow", "keypoints": names}],
    }
    root.mkdir()
    (root / "instances.json").write_text(json.dumps(content))
    for number in (1, 2):
        save_picture(root / "images" / f"{number}.jpg", number)
    return root / "instances.json"


def test_coco_import_shifts_maps_and_counts(coco, workspace):
    facts = bring_in(workspace, "coco", coco, split="train")
    assert facts["dropped"] == {"crowd annotation": 1, "annotation without an image entry": 1}
    labels = workspace.load("labels")
    assert labels["source_id"].tolist() == ["11", "12"]
    np.testing.assert_array_equal(labels["box_xyxy"][0], [9.5, 19.5, 39.5, 59.5])
    skeleton = workspace.category.skeleton
    nose, eye = skeleton.find("nose"), skeleton.find("left_eye")
    np.testing.assert_array_equal(labels["xy"][0, nose], [10, 20])
    np.testing.assert_array_equal(labels["xy"][0, eye], [29.5, 39.5])
    assert labels["visible"][0, nose] == 2 and labels["visible"][0, eye] == 1
    assert (labels["visible"][0] > 0).sum() == 4
    assert mask_area(labels["mask_rle"][0]) == 30 * 40
    mask = decode_mask(labels["mask_rle"][1])
    assert mask[:, 20:30].all() and mask.sum() == 1000
    assert "L_ear" in facts["keypoints_never_labelled"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_coco_round_trips(coco, workspace, make_workspace, tmp_path):
    bring_in(workspace, "coco", coco, split="train")
    out = tmp_path / "out"
    written = export_command.run(export_command.Config(format="coco", out=out, category="cow"), workspace)
    assert written == {"cow_train.json": 2}
    exported = json.loads((out / "cow_train.json").read_text())
    first = exported["annotations"][0]
    assert first["id"] == 11 and first["bbox"] == [10, 20, 30, 40] and first["area"] == 1200
    assert first["num_keypoints"] == 4
    nose = exported["categories"][0]["keypoints"].index("Nose")
    assert first["keypoints"][3 * nose : 3 * nose + 3] == [10.5, 20.5, 2]
    assert first["keypoints"].count(0) >= 3 * 12
    assert exported["images"][1] == {"id": 2, "file_name": "2.jpg", "width": 120, "height": 100}

    from pycocotools.coco import COCO

    reader = COCO(str(out / "cow_train.json"))
    assert reader.annToMask(reader.anns[12]).sum() == 1000
    labels = workspace.load("labels")
    again = make_workspace("cow", "again")
    again.root = tmp_path / "elsewhere"
    bring_in(again, "coco", out / "cow_train.json", images=coco.parent / "images", split="train")
    twice = again.load("labels")
    for name in ("xy", "visible", "box_xyxy"):
        np.testing.assert_allclose(labels[name], twice[name])
    for name in ("instance_id", "mask_rle", "split", "source_id"):
        assert labels[name].tolist() == twice[name].tolist()


def test_selections_are_written_with_their_confidence(workspace, tmp_path):
    run = make_run(workspace).workspace
    run.table_path("labels").unlink()  # its pictures were not made
    kept = {path.stem for path in (run.run_dir / "selections").glob("*.parquet")}
    out = tmp_path / "out"
    written = export_command.run(export_command.Config(format="coco", out=out, category="cow"), run)
    assert kept and {f"cow_{name}.json" for name in kept} <= set(written)
    keypoints = run.load_keypoints("pose")
    place = keypoints.lookup("instance_id")
    for name in kept:
        selection = read_table(run.run_dir / "selections" / f"{name}.parquet", "selections")
        rows = [place[i] for i in selection["instance_id"][np.argsort(selection["rank"])]]
        annotations = json.loads((out / f"cow_{name}.json").read_text())["annotations"]
        scores = np.array([entry["keypoint_scores"] for entry in annotations])
        np.testing.assert_allclose(scores, keypoints["confidence"][rows])
        triples = np.array([entry["keypoints"] for entry in annotations]).reshape(len(rows), -1, 3)
        np.testing.assert_allclose(triples[..., :2], keypoints["xy"][rows] + 0.5)
        assert (triples[..., 2] == 2).all()


def wrong_count(content):
    content["annotations"][0]["keypoints"].pop()


def coco_nan(content):
    content["annotations"][1]["keypoints"][0] = float("nan")


def wrong_visibility(content):
    content["annotations"][0]["keypoints"][2] = 3


def wrong_mask(content):
    content["annotations"][1]["segmentation"]["size"] = [10, 10]


def no_cow(content):
    content["categories"][1]["name"] = "moose"


def no_boxes(content):
    del content["annotations"][0]["bbox"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_count, "expected 5 keypoints .* 14 numbers in annotation 11"),
        (coco_nan, "found NaN in annotation 12"),
        (wrong_visibility, "visibility 0, 1 or 2; found other in annotation 11"),
        (wrong_mask, "expected a segmentation; found a mask for size .* in annotation 12"),
        (no_cow, "expected category cow; found moose, person.*--source_category"),
        (no_boxes, "found a problem at KeyError"),
    ],
)
def test_coco_that_does_not_fit_is_named(coco, workspace, change, message):
    edit(coco, change)
    with pytest.raises(UserError, match=message):
        bring_in(workspace, "coco", coco)


def test_coco_source_category_and_folders(coco, make_workspace, tmp_path):
    edit(coco, no_cow)
    workspace = make_workspace()
    assert bring_in(workspace, "coco", coco.parent, source_category="moose")["labels"] == 2
    (coco.parent / "second.json").write_text("{}")
    with pytest.raises(UserError, match=r"in .*; found 2: instances.json, second.json; give the file"):
        bring_in(workspace, "coco", coco.parent, source_category="moose", overwrite=True)
    with pytest.raises(UserError, match="expected a folder of pictures at --images"):
        bring_in(workspace, "coco", coco, images=tmp_path / "nowhere")


@pytest.mark.parametrize("place", ["", "annotations"])
def test_coco_names_may_begin_with_the_folder_of_pictures(coco, workspace, place):
    """Beside the folder `images`, or below what holds it."""
    (coco.parent / place).mkdir(exist_ok=True)
    moved = coco.replace(coco.parent / place / "all.json")
    edit(moved, lambda content: [i.update(file_name=f"images/{i['file_name']}") for i in content["images"]])
    assert bring_in(workspace, "coco", moved)["labels"] == 2
    images = workspace.load("labelled_images")
    assert {workspace.image_file(path).parent for path in images["path"]} == {coco.parent / "images"}


def test_masks():
    mask = np.zeros((7, 9), dtype=np.uint8)
    mask[2:5, 3:8] = 1
    encoded = encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(encoded), mask)
    assert mask_area(encoded) == 15
    assert encode_segmentation(json.loads(encoded), 7, 9) == encoded
    assert encode_segmentation([], 7, 9) is None
    for bad in ([[1, 2, 3]], "abc", [5]):
        with pytest.raises(ValueError, match="neither polygons"):
            encode_segmentation(bad, 7, 9)


def test_coco_instances(coco, workspace, capsys):
    """Boxes and masks alone become the images and the animals that a detector would have found."""

    def without_keypoints(content):
        for entry in content["annotations"]:
            del entry["keypoints"]
        content["annotations"][0]["score"] = 0.75
        content["annotations"].append(content["annotations"][0] | {"id": 20})
        content["annotations"].append(content["annotations"][0] | {"id": 21, "bbox": [200, 5, 10, 10]})
        del content["categories"][1]["keypoints"]

    edit(coco, without_keypoints)
    with pytest.raises(
        UserError, match="in category Cow; found boxes and masks only; run: with --as instances"
    ):
        bring_in(workspace, "coco", coco)
    facts = bring_in(workspace, "coco", coco, as_="instances")
    assert facts["instances"] == facts["masks"] == facts["images"] == 2
    assert facts["dropped"] == {
        "crowd annotation": 1,
        "annotation without an image entry": 1,
        "the same animal twice": 1,
        "box outside its image": 1,
    }
    assert "2 instances, 2 with a mask, in 2 images" in capsys.readouterr().out
    instances, images = workspace.load("instances"), workspace.load("images")
    np.testing.assert_array_equal(instances["box_xyxy"][0], [9.5, 19.5, 39.5, 59.5])
    assert instances["score"][0] == 0.75 and np.isnan(instances["score"][1])
    assert mask_area(instances["mask_rle"][0]) == 1200
    assert set(instances["image_id"]) == set(images["image_id"]) and set(images["status"]) == {"ok"}
    assert bring_in(workspace, "coco", coco, as_="instances")["dropped"] == facts["dropped"]
    with pytest.raises(UserError, match="exists with other settings"):
        bring_in(workspace, "coco", coco, as_="instances", source_category="person")


def test_coco_instances_join_the_pool_that_is_there(coco, workspace, tmp_path):
    from prepare_data import add_folder

    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "other-name.jpg").write_bytes((coco.parent / "images/2.jpg").read_bytes())
    add_folder.run(add_folder.Config(category="cow", folder=tmp_path / "pool"), workspace)
    facts = bring_in(workspace, "coco", coco, as_="instances")
    assert facts["instances"] == 1 and facts["dropped"]["picture that is not in the images table"] == 1
    assert workspace.load("images")["source"].tolist() == ["folder"]


def test_coco_instances_that_repeat_are_marked(coco, workspace):
    bring_in(workspace, "coco", coco, split="train")
    (coco.parent / "images/2.jpg").unlink()
    Image.open(coco.parent / "images/1.jpg").resize((90, 75)).save(coco.parent / "images/2.jpg", quality=60)

    def resized_without_masks(content):
        content["images"][1] |= {"width": 90, "height": 75}
        for entry in content["annotations"][:2]:
            del entry["segmentation"]

    edit(coco, resized_without_masks)
    facts = bring_in(workspace, "coco", coco, as_="instances")
    assert facts["instances"] == 2 and facts["masks"] == 0
    assert workspace.load("images")["status"].tolist() == ["in_labels", "in_labels"]


@pytest.mark.parametrize("how", ["resized", "turned"])
@pytest.mark.parametrize("as_", ["labelled set", "instances"])
def test_coco_pictures_of_another_size_than_stated_are_left_out(coco, workspace, how, as_):
    """Their labels would lie elsewhere: pictures that were resized, or that a tool did not turn."""
    file = coco.parent / "images/1.jpg"
    picture = Image.open(file)
    exif = picture.getexif()
    exif[0x0112] = 6
    more = {"exif": exif} if how == "turned" else {}
    (picture.resize((60, 50)) if how == "resized" else picture).save(file, **more)
    facts = bring_in(workspace, "coco", coco, **({"as_": "instances"} if as_ == "instances" else {}))
    reason = "picture that has another size here (resized, or turned by its EXIF?)"
    assert facts["dropped"][reason] == 1
    left = workspace.load("instances" if as_ == "instances" else "labels")
    assert left["source_id"].tolist() == ["12"]


def no_instances(content):
    content["annotations"] = []


def bad_segmentation(content):
    content["annotations"][0]["segmentation"] = [[1, 2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_instances, "expected animals with boxes; found none that can be used .it is empty"),
        (bad_segmentation, "expected a segmentation; found .* in annotation 11"),
        (no_boxes, "found a problem at KeyError"),
        (no_cow, "expected category cow; found moose, person"),
    ],
)
def test_coco_instances_that_do_not_fit(coco, workspace, change, message):
    edit(coco, change)
    with pytest.raises(UserError, match=message):
        bring_in(workspace, "coco", coco, as_="instances")
    assert not workspace.table_path("instances").exists()


def no_names(content):
    del content["categories"][1]["keypoints"]


def test_coco_keypoints_without_names_are_not_guessed(coco, workspace):
    edit(coco, no_names)
    with pytest.raises(UserError, match="found keypoints without names; their order is not guessed"):
        bring_in(workspace, "coco", coco)


@pytest.mark.real_data
def test_real_coco_instances(real_data, workspace):
    file = real_data / "loaders/coco/test_coco.json"
    facts = bring_in(workspace, "coco", file, as_="instances", source_category="person")
    assert facts["instances"] == facts["masks"] > 4 and facts["images"] == 4
