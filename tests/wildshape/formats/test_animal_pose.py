"""Animal-Pose in: names mapped, splits by near-duplicates, what cannot be used said."""

import json

import numpy as np
import pytest
from PIL import Image
from small_labels import bring_in, edit, save_picture

from wildshape.errors import UserError
from wildshape.formats import import_command
from wildshape.skeleton import load_skeleton

NAMES20 = list(load_skeleton("quadruped20").keypoints)


@pytest.fixture
def animal_pose(tmp_path):
    """Eight cows and a dog in Animal-Pose's form; cows 0 and 1 are one photo, saved twice."""
    root = tmp_path / "animal_pose"
    images, annotations = {}, []
    rng = np.random.default_rng(1)
    for number in range(9):
        images[str(100 + number)] = f"co{number}.jpeg"
        keypoints = np.concatenate([rng.integers(5, 95, (20, 2)), np.ones((20, 1), int)], axis=1)
        keypoints[5] = 0
        annotations.append(
            {
                "image_id": 100 + number,
                "bbox": [10, 20, 90, 80],
                "keypoints": keypoints.tolist(),
                "num_keypoints": 20,
                "category_id": 1 if number == 8 else 5,
            }
        )
        save_picture(root / "images" / f"co{number}.jpeg", max(number, 1))
    Image.open(root / "images/co1.jpeg").resize((90, 75)).save(root / "images/co0.jpeg", quality=60)
    categories = [{"id": i, "name": n, "keypoints": NAMES20} for i, n in ((1, "dog"), (5, "cow"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "keypoints.json").write_text(json.dumps(content))
    return root


def test_animal_pose_maps_by_name(animal_pose, workspace):
    facts = bring_in(workspace, "animal_pose", animal_pose)
    assert facts["labels"] == 8 and facts["dropped"] == {}
    labels = workspace.load("labels")
    raw = json.loads((animal_pose / "keypoints.json").read_text())["annotations"][0]
    skeleton = workspace.category.skeleton
    paw = skeleton.keypoints.index("R_B_paw")
    expected = raw["keypoints"][NAMES20.index("right_back_paw")][:2]
    np.testing.assert_array_equal(labels["xy"][0, paw], expected)
    np.testing.assert_array_equal(labels["box_xyxy"][0], [10, 20, 90, 80])
    elbow = skeleton.keypoints.index("L_F_elbow")
    assert labels["visible"][0, elbow] == 0 and np.isnan(labels["xy"][0, elbow]).all()
    assert labels["visible"][0].sum() == 2 * 15
    images = workspace.load("labelled_images")
    assert workspace.image_file(images["path"][0]) == animal_pose / "images/co0.jpeg"
    assert images["width"][2] == 120 and len(images["phash"][0]) == 16


def test_splits_keep_near_duplicates_together_and_follow_the_seed(animal_pose, workspace):
    found = set()
    for seed in range(4):
        bring_in(workspace, "animal_pose", animal_pose, split_seed=seed, overwrite=True)
        splits = workspace.load("labels")["split"]
        assert splits[0] == splits[1]
        found.add(tuple(splits))
    assert len(found) > 1
    bring_in(workspace, "animal_pose", animal_pose, split="test", overwrite=True)
    assert set(workspace.load("labels")["split"]) == {"test"}
    with pytest.raises(UserError, match="--split among train, val, test; found all"):
        bring_in(workspace, "animal_pose", animal_pose, split="all", overwrite=True)


def test_copies_when_asked(animal_pose, workspace):
    bring_in(workspace, "animal_pose", animal_pose, copy=True)
    paths = workspace.load("labelled_images")["path"]
    assert all(path.startswith("data/cow/labelled_images/") for path in paths)
    assert all(workspace.image_file(path).is_file() for path in paths)


def test_what_cannot_be_used_is_counted(animal_pose, workspace, capsys):
    (animal_pose / "images/co2.jpeg").unlink()
    (animal_pose / "images/co3.jpeg").write_bytes(b"")
    data = (animal_pose / "images/co7.jpeg").read_bytes()
    (animal_pose / "images/co7.jpeg").write_bytes(data[: len(data) // 2])

    def spoil(content):
        content["annotations"][4]["bbox"] = [200, 20, 300, 80]
        content["annotations"][5]["bbox"] = [50, 20, 50, 80]
        content["annotations"][6]["keypoints"] = [[0, 0, 0]] * 20

    edit(animal_pose / "keypoints.json", spoil)
    facts = bring_in(workspace, "animal_pose", animal_pose)
    assert facts["labels"] == 2
    assert facts["dropped"] == {
        "image file not found": 1,
        "image file cannot be read": 2,
        "box outside its image": 1,
        "box of no area": 1,
        "no labelled keypoint": 1,
    }
    line = capsys.readouterr().out
    assert "2 labels" in line and "1 box outside its image" in line
    # A second call reads the tables and says the same.
    assert bring_in(workspace, "animal_pose", animal_pose)["dropped"] == facts["dropped"]


def rename_keypoints(content):
    for category in content["categories"]:
        category["keypoints"] = [f"point {number}" for number in range(20)]


def cut_keypoints(content):
    content["annotations"][2]["keypoints"].pop()


def nan_keypoint(content):
    content["annotations"][2]["keypoints"][0] = [float("nan"), 3, 1]


def drop_images(content):
    del content["images"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_keypoints, r"expected keypoints of skeleton quadruped16 .* found point 0, point 1"),
        (cut_keypoints, r"expected 20 keypoints .*\[19, 3\] in annotation 2"),
        (nan_keypoint, "found NaN in annotation 2"),
        (drop_images, "expected Animal-Pose's images"),
    ],
)
def test_labels_that_do_not_fit_are_named(animal_pose, workspace, change, message):
    edit(animal_pose / "keypoints.json", change)
    with pytest.raises(UserError, match=message):
        bring_in(workspace, "animal_pose", animal_pose)
    assert not workspace.table_path("labels").exists()


def test_missing_pieces_are_named(animal_pose, make_workspace, tmp_path, capsys):
    with pytest.raises(UserError, match="expected category horse; found cow, dog"):
        bring_in(make_workspace("horse"), "animal_pose", animal_pose)
    (animal_pose / "keypoints.json").write_text("{not json")
    flags = ["--root", str(animal_pose), "--category", "cow", "--data-root", str(tmp_path / "root")]
    assert import_command.main(["animal_pose", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: expected JSON in") and "\n" not in error
    (animal_pose / "keypoints.json").unlink()
    with pytest.raises(UserError, match="expected keypoints.json of Animal-Pose"):
        bring_in(make_workspace(), "animal_pose", animal_pose)
    formats = "expected a format among animals3d, coco, animal_pose, .*; found voc"
    with pytest.raises(UserError, match=formats):
        bring_in(make_workspace(), "voc", animal_pose)


@pytest.mark.real_data
def test_real_animal_pose(real_data, workspace):
    if not (real_data / "animal_pose/keypoints.json").is_file():
        pytest.skip("no animal_pose/keypoints.json there")
    facts = bring_in(workspace, "animal_pose", real_data / "animal_pose")
    assert facts["labels"] == 150 and not facts["dropped"]
    assert facts["splits"] == {"train": 105, "val": 15, "test": 30}
