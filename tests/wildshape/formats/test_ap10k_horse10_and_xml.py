"""AP-10K, Horse-10, and one XML file an animal, made up and (AP-10K, Horse-10) real."""

import json

import numpy as np
import pandas as pd
import pytest
from small_labels import bring_in, save_picture

from wildshape import run
from wildshape.errors import UserError
from wildshape.formats import ap10k, horse10
from wildshape.skeleton import load_skeleton
from wildshape.status import examine, steps

AP10K = (
    "left_eye", "right_eye", "nose", "neck", "root_of_tail", "left_shoulder", "left_elbow",
    "left_front_paw", "right_shoulder", "right_elbow", "right_front_paw", "left_hip", "left_knee",
    "left_back_paw", "right_hip", "right_knee", "right_back_paw",
)  # fmt: skip
HORSE10 = (
    "Nose", "Eye", "Nearknee", "Nearfrontfetlock", "Nearfrontfoot", "Offknee", "Offfrontfetlock",
    "Offfrontfoot", "Shoulder", "Midshoulder", "Elbow", "Girth", "Wither", "Nearhindhock",
    "Nearhindfetlock", "Nearhindfoot", "Hip", "Stifle", "Offhindhock", "Offhindfetlock", "Offhindfoot",
    "Ischium",
)  # fmt: skip


@pytest.fixture
def ap10k_set(tmp_path):
    """Two pictures a split; in each a cow, in the second of each a brown bear besides."""
    root = tmp_path / "ap-10k"
    names = {1: "cow", 2: "brown bear", 3: "panda"}
    categories = [{"id": i, "name": name, "keypoints": list(AP10K)} for i, name in names.items()]
    (root / "annotations").mkdir(parents=True)
    for split, start in (("train", 0), ("val", 2), ("test", 4)):
        images, annotations = [], []
        for number in (start, start + 1):
            file = f"{number:012d}.jpg"
            save_picture(root / "data" / file, number)
            images.append({"id": number, "file_name": file, "width": 120, "height": 100})
            for category in (1, 2)[: 1 + number % 2]:
                points = [v for k in range(17) for v in (10 + 5 * k, 20 + k + number, 2)]
                annotations.append(
                    {
                        "id": 10 * number + category, "image_id": number, "category_id": category,
                        "bbox": [5, 10, 90, 60], "keypoints": points, "num_keypoints": 17, "iscrowd": 0,
                    }
                )  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"ap10k-{split}-split1.json").write_text(json.dumps(content))
    return root


def test_ap10k_keeps_its_splits_and_maps_limbs_by_name(ap10k_set, workspace, capsys):
    facts = bring_in(workspace, "ap10k", ap10k_set)
    assert facts["splits"] == {"train": 2, "val": 2, "test": 2}
    out = capsys.readouterr().out
    assert (
        out.count("no place in quadruped16 for neck, left_elbow, right_elbow, left_knee, right_knee") == 1
    )
    assert facts["keypoints_never_labelled"] == ["L_ear", "R_ear", "Throat", "Withers"]
    labels, skeleton = workspace.load("labels"), workspace.category.skeleton
    row = labels.lookup("source_id")["1"]
    for ours, theirs in (
        ("L_F_elbow", "left_shoulder"),
        ("R_B_elbow", "right_hip"),
        ("Tail", "root_of_tail"),
    ):
        k = AP10K.index(theirs)
        assert labels["xy"][row, skeleton.find(ours)].tolist() == [9.5 + 5 * k, 19.5 + k], ours
    assert {labels["split"][labels.lookup("source_id")[name]] for name in ("41", "51")} == {"test"}
    assert examine(workspace, steps(workspace)[0]).state == "done"
    with pytest.raises(UserError, match=r"other settings \(.*ap10k-val-split1.json has changed"):
        (ap10k_set / "annotations/ap10k-val-split1.json").write_text("{}")
        bring_in(workspace, "ap10k", ap10k_set)
    assert examine(workspace, steps(workspace)[0]).state == "stale"


def test_a_run_reads_it_too(ap10k_set, workspace):
    config = run.Config(category="cow", labels=f"ap10k:{ap10k_set}", size="miniature")
    run.Pipeline(config, workspace).labels()
    assert len(workspace.load("labels")) == 6
    wrong = run.Config(category="cow", labels=f"ap11k:{ap10k_set}", size="miniature")
    with pytest.raises(UserError, match="expected animals3d:PATH, coco:PATH, .* or diorama; found ap11k:"):
        run.Pipeline(wrong, workspace).labels()


def test_ap10k_gives_knees_to_the_skeleton_that_has_them():
    mapping = load_skeleton("quadruped20").map_from([ap10k.RENAMES.get(name, name) for name in AP10K])
    named = {
        ours: AP10K[place] if place >= 0 else None
        for ours, place in zip(load_skeleton("quadruped20").keypoints, mapping)
    }
    assert named["left_front_knee"] == "left_elbow" and named["right_back_knee"] == "right_knee"
    assert named["left_back_elbow"] == "left_hip" and named["throat"] is None
    assert sum(value is not None for value in named.values()) == 16


def test_ap10k_species(ap10k_set, make_workspace, tmp_path):
    bear = make_workspace("bear")
    assert bring_in(bear, "ap10k", ap10k_set)["labels"] == 3  # "brown bear" is one of the bear's synonyms
    with pytest.raises(UserError, match="expected category dog; found brown bear, cow, panda; run: with"):
        bring_in(make_workspace("dog"), "ap10k", ap10k_set)
    facts = bring_in(bear, "ap10k", ap10k_set, source_category="brown bear,panda", overwrite=True)
    assert facts["labels"] == 3
    with pytest.raises(UserError, match="expected category grizzly; found"):
        bring_in(bear, "ap10k", ap10k_set, source_category="brown bear, grizzly", overwrite=True)
    one = ap10k_set / "annotations" / "ap10k-train-split2.json"
    one.write_text((ap10k_set / "annotations/ap10k-train-split1.json").read_text())
    facts = bring_in(bear, "ap10k", one, source_category="brown bear", overwrite=True)
    assert facts["splits"] == {"train": 1}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected annotations/ap10k-train-split1.json"):
        bring_in(bear, "ap10k", tmp_path / "empty")


def horse_frames(root, film, count):
    columns = pd.MultiIndex.from_tuples(
        [("Byron", name, axis) for name in HORSE10 for axis in ("x", "y")],
        names=["scorer", "bodyparts", "coords"],
    )
    names = [f"labeled-data/{film}/{number:04d}.png" for number in range(count)]
    for number, name in enumerate(names):
        save_picture(root / name, len(film) * 10 + number)
    values = np.arange(count * 44, dtype=float).reshape(count, 44) % 60 + 10
    pd.DataFrame(values, names, columns).to_csv(root / "labeled-data" / film / "CollectedData_Byron.csv")
    return names


def test_horse10_sides_and_division(make_workspace, tmp_path, capsys):
    root = tmp_path / "horse10"
    first, second = horse_frames(root, "Bay", 4), horse_frames(root, "Chestnut", 3)
    division = {
        "trainIndices": first[:2],
        "testIndices_withinDomain": first[2:3],
        "testIndices_acrossDomain": second,
    }
    pd.DataFrame({k: pd.Series(v) for k, v in division.items()}).to_csv(root / "TrainTestInfo_shuffle1.csv")
    horse = make_workspace("horse")
    facts = bring_in(horse, "horse10", root)
    assert facts["splits"] == {"train": 2, "val": 1, "test": 3}
    assert facts["dropped"]["in no split of TrainTestInfo_shuffle1.csv"] == 1
    out = capsys.readouterr().out
    assert "no place in quadruped16 for Eye, Nearknee" in out and out.count("no place") == 1
    labels, skeleton = horse.load("labels"), horse.category.skeleton
    row = labels.lookup("source_id")["labeled-data/Bay/0001.png:animal"]
    for ours, theirs in (("L_F_paw", "Nearfrontfoot"), ("R_B_paw", "Offhindfoot"), ("Withers", "Wither")):
        start = 44 + 2 * HORSE10.index(theirs)
        expected = [start % 60 + 10, (start + 1) % 60 + 10]
        assert labels["xy"][row, skeleton.find(ours)].tolist() == expected
    assert labels["visible"][row, skeleton.find("L_F_elbow")] == 0  # Horse-10's elbow has no side
    (root / "TrainTestInfo_shuffle1.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected columns trainIndices.*found a, b"):
        bring_in(horse, "horse10", root, overwrite=True)
    with pytest.raises(UserError, match="expected category cow; found horse"):
        bring_in(make_workspace("cow"), "horse10", root)


def test_horse10_without_a_division_is_divided_like_any_set(make_workspace, tmp_path):
    horse_frames(tmp_path / "horse10", "Bay", 6)
    facts = bring_in(make_workspace("horse"), "horse10", tmp_path / "horse10", split="test")
    assert facts["splits"] == {"test": 6}
    mapping = load_skeleton("quadruped20").map_from([horse10.RENAMES.get(name, name) for name in HORSE10])
    assert (mapping >= 0).sum() == 10


NAMES = ("L_Eye", "R_Eye", "Nose", "L_F_Elbow", "R_B_Paw", "TailBase", "Chin")


def animal_xml(image, category, bounds, points):
    lines = [
        f'<keypoint name="{n}" visible="{v}" x="{x}" y="{y}" z="0.0"/>' for n, (x, y, v) in points.items()
    ]
    edges = " ".join(f'{name}="{value}"' for name, value in bounds.items())
    return (
        f'<?xml version="1.0"?><annotation><image>{image}</image><voc_id>1</voc_id>'
        f"<category>{category}</category><subcategory></subcategory><visible_bounds {edges}/>"
        f"<keypoints>{''.join(lines)}</keypoints></annotation>"
    )


def xml_points(shift):
    points = {name: (20.0 + 6 * k + shift, 30.0 + 5 * k, 1) for k, name in enumerate(NAMES)}
    return points | {"R_Eye": (0.0, 0.0, 0)}


@pytest.mark.parametrize("form", ["pascal_voc", "animal_pose"])
def test_xml_files(form, workspace, tmp_path, capsys):
    """Two cows in a photo named without suffix, one with ymin under xmax, a sheep, VOC's boxes."""
    root = tmp_path / "xml"
    (root / "cow").mkdir(parents=True)
    bounds = {"xmin": 15.0, "ymin": 25.0, "width": 60.0, "height": 50.0}
    typo = {"xmin": 16.0, "xmax": 26.0, "width": 60.0, "height": 50.0}
    for number in (1, 2):
        text = animal_xml("2008_000001", "cow", bounds, xml_points(number))
        (root / "cow" / f"2008_000001_{number}.xml").write_text(text)
    (root / "cow" / "co1.xml").write_text(animal_xml("co1.jpeg", "cow", typo, xml_points(3)))
    (root / "sh1.xml").write_text(animal_xml("sh1.jpeg", "sheep", bounds, xml_points(4)))
    (root / "2008_000001.xml").write_text("<annotation><object><name>cow</name></object></annotation>")
    folder = tmp_path / "VOC2012" / "JPEGImages"
    for number, name in enumerate(("2008_000001.jpg", "2008_000002.jpg", "cow/co1.jpeg")):
        save_picture(folder / name, number)
    facts = bring_in(workspace, form, root, images=folder)
    assert facts["labels"] == 3 and facts["dropped"] == {"XML file without keypoints": 1}
    assert "xml: no place in quadruped16 for Chin" in capsys.readouterr().out
    labels, skeleton = workspace.load("labels"), workspace.category.skeleton
    assert sorted(labels["source_id"]) == ["cow/2008_000001_1", "cow/2008_000001_2", "cow/co1"]
    row = labels.lookup("source_id")["cow/co1"]
    assert labels["box_xyxy"][row].tolist() == [16, 26, 76, 76]
    assert labels["xy"][row, skeleton.find("L_F_elbow")].tolist() == [41, 45]
    assert labels["visible"][row, skeleton.find("R_eye")] == 0
    files = set(workspace.load("labelled_images")["source_id"])
    assert files == {"2008_000001.jpg", "cow/co1.jpeg"}
    for text, message in (
        ("<annotation>", "expected XML; found"),
        (
            animal_xml("co1.jpeg", "cow", {"xmin": 1}, {}),
            "expected image, category, visible_bounds .*'xmax'",
        ),
        (
            animal_xml("co1.jpeg", "cow", {**typo, "xmax": 76.0}, xml_points(0)),
            "expected `xmax` to hold ymin .*found 6 of 6 keypoints outside",
        ),
    ):
        bad = tmp_path / "bad.xml"
        bad.write_text(text)
        with pytest.raises(UserError, match=message):
            bring_in(workspace, "pascal_voc", bad, images=folder, overwrite=True)
    with pytest.raises(UserError, match="expected category horse; found cow, sheep"):
        bring_in(workspace, form, root, images=folder, source_category="horse", overwrite=True)


def test_without_xml(workspace, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected keypoints.json of Animal-Pose, or its older XML files"):
        bring_in(workspace, "animal_pose", tmp_path / "empty")
    with pytest.raises(UserError, match="expected XML files of Pascal VOC's keypoints"):
        bring_in(workspace, "pascal_voc", tmp_path / "empty")


@pytest.mark.real_data
def test_real_ap10k(real_data, workspace):
    file = real_data / "loaders/ap10k/test_ap10k.json"
    facts = bring_in(workspace, "ap10k", file, source_category="antelope,jaguar", split="test")
    assert facts["labels"] == 2 and facts["keypoints_never_labelled"] == [
        "R_eye",
        "L_ear",
        "R_ear",
        "Throat",
        "Withers",
    ]
    labels, skeleton = workspace.load("labels"), workspace.category.skeleton
    row = labels.lookup("source_id")["6"]
    side = {
        name: labels["xy"][row, skeleton.find(name)]
        for name in ("L_F_elbow", "L_F_paw", "L_B_elbow", "Tail")
    }
    assert side["L_F_elbow"].tolist() == [642.5, 368.5] and side["Tail"].tolist() == [786.5, 254.5]
    assert side["L_F_elbow"][1] < side["L_F_paw"][1]


@pytest.mark.real_data
def test_real_mmpose_files(real_data, make_workspace):
    """MMPose's COCO files of Animal-Pose and Horse-10 name their keypoints as the data sets do."""
    horse = make_workspace("horse")
    facts = bring_in(
        horse,
        "coco",
        real_data / "loaders/animalpose/test_animalpose.json",
        source_category="cat",
        split="test",
    )
    assert facts["labels"] == 2 and facts["keypoints_never_labelled"] == ["R_B_elbow", "R_B_paw"]
    file = real_data / "loaders/horse10/test_horse10.json"
    facts = bring_in(horse, "horse10", file, split="test", overwrite=True)
    assert facts["labels"] == 1 and facts["dropped"] == {"image file not found": 2}
    labels, skeleton = horse.load("labels"), horse.category.skeleton
    left, right = (labels["xy"][0, skeleton.find(name)] for name in ("L_B_paw", "R_B_paw"))
    # Seen in the picture: it faces right, and the hind leg nearer to the camera, its right one, is back.
    assert right[0] < left[0]


def test_many_files_have_one_hash(workspace, tmp_path):
    root = tmp_path / "xml"
    root.mkdir()
    save_picture(root / "co1.jpeg", 1)
    bounds = {"xmin": 15.0, "ymin": 25.0, "width": 60.0, "height": 50.0}
    for number in range(21):
        (root / f"{number}.xml").write_text(animal_xml("co1.jpeg", "cow", bounds, xml_points(number / 7)))
    assert bring_in(workspace, "pascal_voc", root)["labels"] == 21
    assert examine(workspace, steps(workspace)[0]).state == "done"
    (root / "3.xml").write_text(animal_xml("co1.jpeg", "cow", bounds, xml_points(4)))
    with pytest.raises(UserError, match="other settings .files=21, .* then, 21, .* now"):
        bring_in(workspace, "pascal_voc", root)
