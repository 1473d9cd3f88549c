"""Pseudo-labels go out, a person corrects them, and they come back as labels."""

import json

import numpy as np
import pytest
from small_labels import bring_in, save_picture
from small_run import make_run

from prepare_data import data_selection
from wildshape import run as pipeline
from wildshape import training_data
from wildshape.errors import UserError
from wildshape.formats import export_command, import_command
from wildshape.formats.masks import encode_mask
from wildshape.tables import read_table, write_table

SELECTION = "cf_cm_20"


@pytest.fixture
def run(workspace):
    """A run with 60 web animals and selections of 20, and a labelled set whose pictures have files."""
    world = make_run(workspace).workspace
    for name in ("labels",):
        world.table_path(name).unlink()
    root = world.root / "cows"
    images, annotations = [], []
    names = list(world.category.skeleton.keypoints)
    for number in range(10):
        save_picture(root / "images" / f"{number}.jpg", 100 + number)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 120, "height": 100})
        points = [v for k in range(16) for v in (10 + 6 * k, 20 + 4 * k, 2)]
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [5, 10, 110, 80],
                "keypoints": points,
            }
        )
    categories = [{"id": 1, "name": "cow", "keypoints": names}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "cows.json").write_text(json.dumps(content))
    bring_in(world, "coco", root / "cows.json")
    return world


def write_out(workspace, out, form="coco", **changes):
    config = export_command.Config(format=form, out=out, category="cow", **changes)
    return export_command.run(config, workspace)


def correct(workspace, path, form="coco", **changes):
    return bring_in(workspace, form, path, as_="labels", **changes)


def exported(run, tmp_path):
    """The selection as a COCO file, as read from it."""
    write_out(run, tmp_path / "out", selection=SELECTION)
    path = tmp_path / "out" / f"cow_{SELECTION}.json"
    return path, json.loads(path.read_text())


def test_a_corrected_selection_becomes_labels(run, tmp_path, capsys):
    """Export, move a keypoint, hide one, delete one, import: training learns from what a person said."""
    selection = read_table(run.selection_path("cf_cm", 20), "selections")
    path, content = exported(run, tmp_path)
    chosen = content["annotations"][:5]
    content["annotations"] = chosen
    chosen[0]["keypoints"][0:3] = [33.5, 44.5, 2]
    chosen[0]["keypoints"][3:6] = [50.5, 60.5, 1]
    chosen[0]["keypoints"][6:9] = [0, 0, 0]
    path.write_text(json.dumps(content))
    before = run.load("labels")
    facts = correct(run, path)
    assert facts["labels"] == 5 and facts["web_pictures"] == 5 and facts["replaced"] == 0
    assert facts["splits"] == {"train": 5} and not facts["dropped"]
    assert "5 pictures leave the pseudo-labels, 0 are new" in capsys.readouterr().out
    labels = run.load("labels")
    assert len(labels) == len(before) + 5
    ids = list(selection["instance_id"][:5])
    row = labels.lookup()[ids[0]]
    np.testing.assert_allclose(labels["xy"][row, 0], [33, 44])
    assert labels["visible"][row, :4].tolist() == [2, 1, 0, 2]
    instances = run.load("instances")
    np.testing.assert_allclose(
        labels["box_xyxy"][row], instances["box_xyxy"][instances.lookup()[ids[0]]], atol=1e-9
    )
    skeleton = run.category.skeleton
    records, _ = training_data.labelled(run, "train", skeleton)
    assert set(ids) <= set(records.instance_ids) and not records.skipped
    place = records.instance_ids.index(ids[0])
    np.testing.assert_allclose(records.xy[place, 0], [33, 44])
    assert records.weight[place, :4].tolist() == [1, 0, 0, 1]
    for split in ("val", "test"):
        assert training_data.labelled(run, split, skeleton)[0].instance_ids == tuple(
            before["instance_id"][before["split"] == split]
        )
    # The pictures point to the web pool's files.
    images = run.load("labelled_images")
    assert {run.image_file(p).parent for p in images["path"]} == {run.images_dir, run.root / "cows/images"}
    # They are neither pseudo-labels of this run any more, nor candidates of another selection.
    web, _ = training_data.web(run, "pose", "cf_cm", 20)
    assert set(web.instance_ids) == set(selection["instance_id"]) - set(ids)
    everything, _ = training_data.web(run, "pose", None, None)
    assert not set(ids) & set(everything.instance_ids)
    config = pipeline.Config(category="cow", size="miniature", selection_num=58, overwrite=True)
    assert pipeline.Pipeline(config, run).select() == 55
    with pytest.raises(UserError, match="exists with other settings .*labelled=None then, 5 animals"):
        data_selection.run(data_selection.Config(category="cow", filter="cf_cm", selection_num=20), run)
    facts = data_selection.run(
        data_selection.Config(category="cow", filter="kpconf", selection_num=30), run
    )
    assert facts["dropped"] == {"in images that are labelled now": 5} and facts["candidates"] == 55


@pytest.mark.parametrize("mask", ["left out", "as it was", "redrawn"])
def test_what_a_tool_does_not_know_stays(run, tmp_path, mask):
    """Camera, flags, and how good a segmenter's mask is: no tool's file holds them."""
    old = encode_mask(np.arange(100)[:, None] < np.full(120, 50))
    path, labels = run.table_path("labels"), run.load("labels")
    cameras = np.tile([1.5, 3.0, 4.0, 1.0, 0.0, 0.0, 0.0], (len(labels), 1))
    masks = np.array([old] * len(labels), dtype=object)
    more = {"mask_rle": masks, "mask_quality": np.full(len(labels), 0.3), "camera": cameras}
    flags = np.array(["truncated"] * len(labels), dtype=object)
    write_table(labels.with_columns(flags=flags, **more), path)
    write_out(run, tmp_path / "out")
    file = next((tmp_path / "out").glob("*.json"))
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:2]
    for entry in content["annotations"]:
        entry["keypoints"][0:3] = [33.5, 44.5, 2]
        if mask == "left out":
            del entry["segmentation"]
        elif mask == "redrawn":
            entry["segmentation"] = [[10, 10, 60, 10, 60, 60]]
    file.write_text(json.dumps(content))
    assert correct(run, file)["replaced"] == 2
    after = run.load("labels")
    rows = after.take(
        np.isin(
            after["instance_id"].astype(str),
            [e["attributes"]["instance_id"] for e in content["annotations"]],
        )
    )
    np.testing.assert_allclose(rows["xy"][:, 0], [[33, 44]] * 2)
    np.testing.assert_array_equal(rows["camera"], cameras[:2])
    assert list(rows["flags"]) == ["truncated"] * 2
    kept = mask != "redrawn"
    assert [rle == old for rle in rows["mask_rle"]] == [kept] * 2
    np.testing.assert_array_equal(rows["mask_quality"], [0.3 if kept else np.nan] * 2)


def test_corrections_come_back_again_and_survive_the_set(run, tmp_path):
    path, content = exported(run, tmp_path)
    content["annotations"] = content["annotations"][:3]
    path.write_text(json.dumps(content))
    correct(run, path)
    ids = [entry["attributes"]["instance_id"] for entry in content["annotations"]]
    count = len(run.load("labels"))
    content["annotations"][1]["keypoints"][0:3] = [70.5, 71.5, 2]
    content["annotations"] = content["annotations"][1:2]
    path.write_text(json.dumps(content))
    facts = correct(run, path)
    assert facts["labels"] == facts["replaced"] == 1 and facts["web_pictures"] == 0
    labels = run.load("labels")
    assert len(labels) == count and len(run.load("corrections")) == 3
    np.testing.assert_allclose(labels["xy"][labels.lookup()[ids[1]], 0], [70, 71])
    # The same import of the set is still up to date; another one keeps the corrections.
    root = run.root / "cows/cows.json"
    assert bring_in(run, "coco", root)["labels"] == count
    assert bring_in(run, "coco", root, split_seed=3, overwrite=True)["labels"] == count
    again = run.load("labels")
    assert again["split"][again.lookup()[ids[1]]] == "train"
    np.testing.assert_allclose(again["xy"][again.lookup()[ids[1]], 0], [70, 71])


def test_corrected_labels_keep_id_and_split(run, tmp_path, capsys):
    write_out(run, tmp_path / "out")
    before = run.load("labels")
    path = tmp_path / "out" / "cow_test.json"
    content = json.loads(path.read_text())
    entry = content["annotations"][0]
    entry["keypoints"][0:3] = [55.5, 56.5, 2]
    path.write_text(json.dumps(content))
    facts = correct(run, path, split="train")
    tests = int((before["split"] == "test").sum())
    assert facts["replaced"] == facts["labels"] == facts["other_split"] == tests
    assert "stay in the split of their picture" in capsys.readouterr().out
    after = run.load("labels")
    assert sorted(after["instance_id"]) == sorted(before["instance_id"])
    row = after.lookup()[entry["attributes"]["instance_id"]]
    assert after["split"][row] == "test"
    np.testing.assert_allclose(after["xy"][row, 0], [55, 56])
    assert len(run.load("labelled_images")) == 10
    # Another division of the set takes its corrections along, so that no picture stands in two splits.
    bring_in(run, "coco", run.root / "cows/cows.json", split="val", overwrite=True)
    assert set(run.load("labels")["split"]) == {"val"}


def test_without_ids_animals_are_found_by_picture_and_box(run, tmp_path):
    """Some tools keep no ids, and boxes that span the keypoints; and a person may add an animal."""
    path, content = exported(run, tmp_path)
    # Labelled photos are called 0.jpg to 9.jpg; only ids tell web photos of these names from them.
    names = {image["id"]: image["file_name"] for image in content["images"]}
    shared = {f"{number}.jpg" for number in range(10)}
    entries = [entry for entry in content["annotations"] if names[entry["image_id"]] not in shared]
    known = [entry["attributes"]["instance_id"] for entry in entries]
    for entry in entries:
        del entry["attributes"]
    content["annotations"] = entries[:4]
    box = list(content["annotations"][2]["bbox"])
    new = json.loads(json.dumps(content["annotations"][3]))
    new |= {"id": 999, "bbox": [0, 0, 20, 20]}
    points = np.array(content["annotations"][2]["keypoints"]).reshape(-1, 3)
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    content["annotations"][2]["bbox"] = [*low, *(high - low)]
    content["annotations"].append(new)
    path.write_text(json.dumps(content))
    facts = correct(run, path)
    assert facts["labels"] == 5 and facts["new_animals"] == 1
    labels = run.load("labels")
    assert set(known[:4]) < set(labels["instance_id"])
    found = labels["box_xyxy"][labels.lookup()[known[2]]]
    np.testing.assert_allclose(
        found, [box[0] - 0.5, box[1] - 0.5, box[0] + box[2] - 0.5, box[1] + box[3] - 0.5]
    )
    assert correct(run, path)["replaced"] == 5


def test_a_copied_annotation_is_another_animal(run, tmp_path):
    path, content = exported(run, tmp_path)
    first = content["annotations"][0]
    content["annotations"] = [first, first | {"id": 77, "bbox": [0, 0, 15, 15]}]
    path.write_text(json.dumps(content))
    facts = correct(run, path)
    assert facts["labels"] == 2 and facts["new_animals"] == 1


def test_what_cannot_come_back_is_counted(run, tmp_path):
    path, content = exported(run, tmp_path)
    entries, pictures = content["annotations"][:4], {image["id"]: image for image in content["images"]}
    images = run.load("images")
    repeats = images.take(images["status"] == "in_labels")["path"][0]
    for entry in entries[1:]:
        del entry["attributes"]
    entries[0]["keypoints"] = [0] * 48
    pictures[entries[1]["image_id"]]["file_name"] = "elsewhere.jpg"
    pictures[entries[2]["image_id"]]["file_name"] = repeats.rpartition("/")[2]
    pictures[entries[3]["image_id"]] |= {"width": 640, "height": 480}
    content["annotations"] = entries
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match="expected labels in this coco set; found none that can be used"
    ) as error:
        correct(run, path)
    for reason in (
        "1 no labelled keypoint",
        "1 picture that is neither known nor found",
        "1 picture that repeats one of the labelled set",
        "1 picture that has another size here",
    ):
        assert reason in str(error.value)
    assert not run.table_path("corrections").exists()


def test_new_pictures_are_taken_but_not_copies_of_held_out_ones(run, tmp_path):
    labels, images = run.load("labels"), run.load("labelled_images")
    held_out = labels["image_id"][labels["split"] == "test"][0]
    file = run.image_file(images["path"][images["image_id"].tolist().index(held_out)])
    root = tmp_path / "more"
    save_picture(root / "images" / "new.jpg", 777)
    (root / "images" / "copy.jpg").write_bytes(file.read_bytes() + b"\0")
    names = list(run.category.skeleton.keypoints)
    content = {
        "images": [
            {"id": number, "file_name": name, "width": 120, "height": 100}
            for number, name in enumerate(("new.jpg", "copy.jpg"))
        ],
        "annotations": [
            {
                "id": n,
                "image_id": n,
                "category_id": 1,
                "bbox": [5, 5, 90, 80],
                "keypoints": [20, 30, 2] * 16,
            }
            for n in (0, 1)
        ],
        "categories": [{"id": 1, "name": "cow", "keypoints": names}],
    }
    (root / "more.json").write_text(json.dumps(content))
    facts = correct(run, root / "more.json", split="val")
    assert facts["splits"] == {"val": 1} and (facts["web_pictures"], facts["new_pictures"]) == (0, 1)
    assert facts["dropped"] == {"picture that repeats one of the labelled set": 1}
    # In the split of the photo that it repeats, the copy does no harm.
    facts = correct(run, root / "more.json", split="test")
    assert facts["splits"] == {"val": 1, "test": 1} and facts["other_split"] == 1


@pytest.mark.parametrize("same_photo", [False, True])
def test_a_photo_of_a_known_name_is_told_by_what_it_shows(run, tmp_path, same_photo):
    before, old = run.load("labels"), run.load("labelled_images")
    number = old["source_id"].tolist().index("3.jpg")
    root = tmp_path / "more"
    save_picture(root / "images" / "3.jpg", 103 if same_photo else 777)
    if same_photo:  # saved again
        file = root / "images" / "3.jpg"
        file.write_bytes(file.read_bytes() + b"\0")
    keypoints = {"keypoints": [20, 30, 2] * 16, "bbox": [5, 10, 110, 80]}
    content = {
        "images": [{"id": 1, "file_name": "3.jpg", "width": 120, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **keypoints}],
        "categories": [{"id": 1, "name": "cow", "keypoints": list(run.category.skeleton.keypoints)}],
    }
    (root / "more.json").write_text(json.dumps(content))
    facts = correct(run, root / "more.json", split="train")
    assert facts["replaced"] == same_photo and len(run.load("labels")) == len(before) + (not same_photo)
    after = run.load("labels")
    of_old = after["image_id"].tolist().index(old["image_id"][number])
    changed = not np.array_equal(after["xy"][of_old], before["xy"][of_old])
    assert changed is same_photo
    images = run.load("labelled_images")
    assert set(after["image_id"]) <= set(images["image_id"]) and len(images) == len(old) + (not same_photo)
    assert len(set(images["record_id"])) == len(images)


def test_corrections_alone_and_then_a_set(run, tmp_path):
    path, _ = exported(run, tmp_path)
    run.table_path("labels").unlink()
    run.table_path("labelled_images").unlink()
    assert correct(run, path)["splits"] == {"train": 20}
    assert len(run.load("labels")) == 20
    facts = bring_in(run, "coco", run.root / "cows/cows.json")
    assert facts["labels"] == 30


def test_a_selection_goes_out_to_deeplabcut(run, tmp_path):
    written = write_out(run, tmp_path, "deeplabcut", selection=SELECTION)
    assert written == {"labeled-data/cow/CollectedData_wildshape.csv": 20}
    with pytest.raises(UserError, match="expected a selection among cf_cm2_20, .*, all; found best"):
        write_out(run, tmp_path, "deeplabcut", selection="best")
    assert write_out(run, tmp_path, "cvat", selection="all", source="acsm") == {"annotations.xml": 60}
    with pytest.raises(UserError, match="--selection: expected with another format than animals3d"):
        write_out(run, tmp_path, "animals3d", selection=SELECTION)


def test_only_some_formats(run, tmp_path):
    with pytest.raises(UserError, match="--as labels: expected a format among coco"):
        correct(run, tmp_path, "animals3d")
    with pytest.raises(UserError, match="--as instances: expected the format coco; found animal_pose"):
        bring_in(run, "animal_pose", tmp_path, as_="instances")
    flags = ["coco", "--as", "labels", "--root", str(tmp_path / "none"), "--category", "cow"]
    assert import_command.main([*flags, "--data-root", str(run.root)]) == 2


@pytest.mark.parametrize("form", ["cvat", "label_studio"])
def test_annotation_tools_round_trip(run, tmp_path, form):
    """Out for the tool, as it would come back untouched but for one keypoint: nothing else has changed."""
    write_out(run, tmp_path / "out", form, selection=SELECTION)
    file = tmp_path / "out" / ("annotations.xml" if form == "cvat" else "tasks.json")
    if form == "cvat":
        text = file.read_text()
        point = text[text.index('<points label="L_eye"') : text.index('<points label="R_eye"')]
        start = point.index('points="') + len('points="')
        changed = point[:start] + "33.500,44.500" + point[point.index('"', start) :]
        file.write_text(text.replace(point, changed, 1))
    else:
        tasks = json.loads(file.read_text())
        for task in tasks:  # a person accepts the predictions
            task["annotations"] = [{"id": 1, "result": task.pop("predictions")[0]["result"]}]
        value = next(r for r in tasks[0]["annotations"][0]["result"] if r["type"] == "keypointlabels")[
            "value"
        ]
        width, height = 200, 160
        value |= {"x": 100 * 33.5 / width, "y": 100 * 44.5 / height}
        file.write_text(json.dumps(tasks))
    facts = correct(run, file, form)
    assert facts["labels"] == 20 and facts["web_pictures"] == 20 and not facts["dropped"]
    labels, keypoints, instances = run.load("labels"), run.load_keypoints("pose"), run.load("instances")
    selection = read_table(run.selection_path("cf_cm", 20), "selections")["instance_id"]
    for number, name in enumerate(selection):
        row = labels.lookup()[name]
        expected = keypoints["xy"][keypoints.lookup("instance_id")[name]].copy()
        if number == 0:
            expected[0] = [33, 44]
        np.testing.assert_allclose(labels["xy"][row], expected, atol=1e-3)
        np.testing.assert_allclose(
            labels["box_xyxy"][row], instances["box_xyxy"][instances.lookup()[name]], atol=1e-3
        )
        assert (labels["visible"][row] == 2).all()
