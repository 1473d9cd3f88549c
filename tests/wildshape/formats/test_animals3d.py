import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_labels import save_picture

from prepare_data import data_selection
from wildshape.errors import UserError
from wildshape.formats import export_command, import_command
from wildshape.formats.animals3d import published_image_names
from wildshape.formats.animals3d_labels import matrix_from_quaternion, quaternion_from_matrix
from wildshape.formats.masks import decode_mask
from wildshape.tables import TRANSFORMS, Table, read_table

# Inputs and outputs of the published animals3d code, on seeded random inputs.
GOLDEN = Path(__file__).parents[2] / "data" / "criteria"
EXPECTED = json.loads((GOLDEN / "expected_order.json").read_text())
SUFFIXES = ("_pl_2d.json", "_pl_2d_aux.json", "_pl_3d.json")


@pytest.fixture
def published(tmp_path):
    """The golden files in the published layout, as it is distributed."""
    root = tmp_path / "published"
    (root / "labels").mkdir(parents=True)
    for suffix in SUFFIXES:
        shutil.copy(GOLDEN / f"horse{suffix}", root / "labels")
    shutil.copytree(GOLDEN / "labels_0", root / "labels_0")
    return root


@pytest.fixture
def horse(make_workspace):
    return make_workspace("horse")


def bring_in(root, workspace, **changes):
    config = import_command.Config(
        format="animals3d", root=root, category=workspace.category.name, **changes
    )
    return import_command.run(config, workspace)


def write_out(out, workspace):
    return export_command.run(
        export_command.Config(format="animals3d", out=out, category=workspace.category.name), workspace
    )


def edit(path, change):
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_published_files_to_published_filelists(published, horse, tmp_path):
    """The whole way through the command line, without any picture."""
    flags = ["--category", "horse", "--data-root", str(horse.root)]
    assert import_command.main(["animals3d", "--root", str(published), *flags]) == 0
    for name in ("kpconf", "cf_mt", "cf_cm", "cf_cm_sq", "cf_cm2"):
        assert data_selection.main(["--filter", name, "--selection_num", "25", *flags]) == 0
    out = tmp_path / "out"
    assert export_command.main(["animals3d", "--out", str(out), *flags]) == 0
    for name, order in EXPECTED.items():
        assert (out / f"filelists/horse_{name}_25.txt").read_text() == "\n".join(order[:25])
    expected = "\n".join(EXPECTED["cf_cm_sq"][:25])
    assert (out / "filelists/horse_cf_cm2_25.txt").read_text() == expected
    assert (out / "filelists/horse.txt").read_text().split() == sorted(EXPECTED["kpconf"])


def test_tables_hold_what_the_files_say(published, horse, capsys):
    facts = bring_in(published, horse)
    assert facts["instances"] == 60 and facts["pose_mt"] == 7 * 60 and facts["images_with_files"] == 0
    instances, images = horse.load("instances"), horse.load("images")
    assert instances["source_id"][1] == "0001"
    np.testing.assert_array_equal(instances["box_xyxy"][1], [227, 236, 227 + 441, 236 + 128])
    assert images["source_id"][1] == "0001.jpg" and images["path"][1] is None
    assert instances["image_id"][1] == images["image_id"][1]
    mt = horse.load_keypoints("pose_mt")
    assert mt.meta["skeleton"] == "quadruped16"
    row = int(np.flatnonzero(mt["transform"] == TRANSFORMS[6])[0])
    np.testing.assert_allclose(mt["xy"][row, 0], [196.5670981968129, 606.4999699360395])
    np.testing.assert_array_equal(horse.load_keypoints("acsm")["confidence"], np.ones((60, 16)))
    assert "60 instances in 60 images (0 with a file)" in capsys.readouterr().out


def test_export_and_import_again_round_trips(published, horse, make_workspace, tmp_path):
    bring_in(published, horse)
    write_out(tmp_path / "out", horse)
    original = json.loads((published / "labels/horse_pl_2d.json").read_text())
    exported = json.loads((tmp_path / "out/labels/horse_pl_2d.json").read_text())
    largest = max(joint[2] for record in original for joint in record["joints"])
    for before, after in zip(original, exported, strict=True):
        assert {k: v for k, v in before.items() if k != "joints"} == {
            k: v for k, v in after.items() if k != "joints"
        }
        joints = np.array(before["joints"]) / [1, 1, largest]
        np.testing.assert_allclose(np.array(after["joints"]), joints, rtol=1e-15)
    exact = ("labels/horse_pl_3d.json", "labels_0/horse_bbox.json")
    for name in exact:
        before, after = (json.loads((root / name).read_text()) for root in (published, tmp_path / "out"))
        for a, b in zip(before, after, strict=True):  # the box score of 3D records is that of the box
            assert {**a, "box_score": 0} == {**b, "box_score": 0}
    again = make_workspace("horse", "again")
    again.root = tmp_path / "elsewhere"
    bring_in(tmp_path / "out", again, source_category="horse")
    write_out(tmp_path / "out2", again)
    for path in sorted((tmp_path / "out").rglob("*.*")):
        name = path.relative_to(tmp_path / "out").as_posix().replace("labels/horse", "labels/again")
        name = name.replace("labels_0/horse/", "labels_0/again/")
        twice = (tmp_path / "out2" / name).read_text()
        assert twice == path.read_text(), name


def test_files_directly_in_the_folder_and_other_run_names(published, horse, make_workspace, tmp_path):
    flat = tmp_path / "flat"
    shutil.copytree(published / "labels_0", flat)
    for suffix in SUFFIXES:
        shutil.copy(GOLDEN / f"horse{suffix}", flat)
    assert bring_in(flat, horse)["pose_aux"] == 60
    other = make_workspace("horse", "second")
    other.root = tmp_path / "other"
    (published / "labels/horse_pl_2d.json").rename(published / "labels/second_pl_2d.json")
    (published / "labels_0/horse").rename(published / "labels_0/second")
    facts = bring_in(published, other)
    assert facts["pose"] == 60 and facts["pose_mt"] == 420 and other.keypoints_path("pose").exists()


def test_pictures_are_found_where_there_are_any(published, horse):
    from PIL import Image

    folder = published / "images" / "horse"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((900, 900, 3), np.uint8)).save(folder / "0001.jpg")
    Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(folder / "0000.jpg")
    facts = bring_in(published, horse)
    assert facts["images_with_files"] == 2
    # The box of 0000 lies outside the picture that is there now.
    assert facts["dropped"]["box outside its image"] == 1
    assert facts["instances"] == 59
    images = horse.load("images")
    found = images["status"] == "ok"
    assert images["width"][found].tolist() == [90, 900]


def test_another_import_is_refused_and_a_repeated_one_is_not(published, horse):
    bring_in(published, horse)
    before = horse.table_path("instances").stat().st_mtime_ns
    bring_in(published, horse)
    assert horse.table_path("instances").stat().st_mtime_ns == before
    edit(published / "labels_0/horse_bbox.json", lambda rows: rows.pop())
    with pytest.raises(UserError, match=r"horse_bbox.json has changed since.*--overwrite"):
        bring_in(published, horse)
    bring_in(published, horse, overwrite=True)


def set_nan(rows):
    rows[3]["joints"][2][0] = float("nan")


def cut_keypoint(rows):
    rows[3]["joints"].pop()


def drop_id(rows):
    del rows[2]["img_id"]


def bad_box(rows):
    rows[3]["img_bbox"] = [1, 2, 3]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("labels/horse_pl_2d.json", set_nan, "horse_pl_2d.json: expected finite keypoints; .* record 0003"),
        ("labels/horse_pl_3d.json", cut_keypoint, "expected 16 keypoints of 2 numbers; .*15.* record 0003"),
        ("labels/horse_pl_2d_aux.json", drop_id, "expected img_id in record 2"),
        ("labels_0/horse_bbox.json", bad_box, r"img_bbox \[x, y, w, h\] in record 0003"),
    ],
)
def test_bad_records_are_named(published, horse, file, change, message):
    edit(published / file, change)
    with pytest.raises(UserError, match=message):
        bring_in(published, horse)
    assert not horse.table_path("instances").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0000 0 1.0 nan 0.5", "finite keypoints; found NaN in line 961"),
        ("0000 16 1.0 2.0 0.5", "keypoints 0 to 15; found 16 in line 961"),
        ("0000 1.0", "`img_id keypoint x y confidence`"),
        ("new 0 1.0 2.0 0.5", "expected 16 keypoints; found 1 of new"),
    ],
)
def test_bad_transform_lines_are_named(published, horse, line, message):
    path = published / "labels_0/horse/augm_3.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=message):
        bring_in(published, horse)


def test_malformed_and_missing_files(published, horse, tmp_path, capsys):
    (published / "labels_0/horse/augm_5.txt").unlink()
    with pytest.raises(UserError, match="augm_0.txt to augm_6.txt .* found no augm_5.txt"):
        bring_in(published, horse)
    (published / "labels/horse_pl_2d.json").write_text('[{"img_id": ')
    flags = ["animals3d", "--root", str(published), "--category", "horse", "--data-root", str(horse.root)]
    assert import_command.main(flags) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: expected JSON in") and "\n" not in error
    (published / "labels/horse_pl_2d.json").write_text("{}")
    with pytest.raises(UserError, match="expected a list of records; found dict"):
        bring_in(published, horse)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"labels/horse_pl_2d.json, .*; found none of them"):
        bring_in(empty, horse)
    with pytest.raises(UserError, match="found nothing there"):
        bring_in(tmp_path / "nowhere", horse)


def test_bad_boxes_and_repeated_ids_are_counted(published, horse):
    def spoil(rows):
        rows[0]["img_bbox"][2] = 0
        rows.append({**rows[5], "img_path": "again.jpg"})

    edit(published / "labels_0/horse_bbox.json", spoil)
    facts = bring_in(published, horse)
    assert facts["instances"] == 59 and facts["pose"] == 59
    assert facts["dropped"]["box of no area"] == 1
    assert facts["dropped"]["repeated img_id in horse_bbox.json"] == 1


# ------------------------------------------------------------------------------- labelled sets


def labelled_record(name, rng, **changes):
    joints = np.concatenate([rng.uniform(5, 90, (16, 2)), np.ones((16, 1))], axis=1)
    joints[3] = 0
    angle = 0.4
    rotation = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    mask = np.zeros((100, 120), int)
    mask[10:60, 20:80] = 1
    return {
        "img_id": name,
        "img_path": f"{name}.jpg",
        "img_bbox": [10, 12, 80.5, 70],
        "joints": joints.tolist(),
        "seg": mask.tolist(),
        "cam_scale": 31.5,
        "cam_trans": [50.25, 40.0],
        "cam_rot": rotation,
        "valid_cam": 1,
        **changes,
    }


def test_pictures_of_one_name_in_several_folders_keep_their_folders():
    """As frames of DeepLabCut's videos have them."""
    videos = [(f"/v/{name}", name) for name in ("v1/img001.jpg", "v2/img001.jpg", "v2/img002.jpg")]
    pictures = [*videos, ("/a/same.jpg", "same.jpg"), ("/b/same.jpg", "same.jpg")]
    common = {"source": "deeplabcut", "status": "ok", "width": 9, "height": 9}
    rows = [
        {"record_id": f"r{n}", "image_id": f"i{n}", "path": path, "source_id": name, **common}
        for n, (path, name) in enumerate(pictures)
    ]
    rows.append({**rows[0], "record_id": "again", "path": "/v/repeated.jpg"})
    names = published_image_names(Table.from_rows("images", rows))
    assert list(names.values()) == ["v1/img001.jpg", "v2/img001.jpg", "img002.jpg", "i3.jpg", "i4.jpg"]


def test_labelled_sets_round_trip(horse, make_workspace, tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "labelled"
    (root / "annotations").mkdir(parents=True)
    (root / "filelists").mkdir()
    rows = [labelled_record(f"p{number}", rng) for number in range(6)]
    rows[1]["valid_cam"] = 0
    rows[2]["cam_rot"] = (-np.eye(3)).tolist()
    rows[3]["joints"][0][2] = 0.2
    (root / "annotations/horse.json").write_text(json.dumps(rows))
    (root / "filelists/horse_train.txt").write_text("p0\np1\np2\n")
    (root / "filelists/horse_val.txt").write_text("p3\np4\n")
    facts = bring_in(root, horse)
    assert facts["splits"] == {"train": 3, "val": 2}
    assert facts["dropped"] == {"in no filelist": 1, "(label kept) camera that is no rotation": 1}
    labels = horse.load("labels")
    np.testing.assert_array_equal(labels["box_xyxy"][0], [10, 12, 90.5, 82])
    assert labels["visible"][0].tolist() == [2, 2, 2, 0] + [2] * 12
    assert labels["visible"][3, 0] == 0 and np.isnan(labels["xy"][0, 3]).all()
    np.testing.assert_allclose(
        labels["camera"][0], [31.5, 50.25, 40, np.cos(0.2), 0, 0, np.sin(0.2)], atol=1e-12
    )
    assert np.isnan(labels["camera"][1:3]).all()
    assert decode_mask(labels["mask_rle"][0]).sum() == 50 * 60
    write_out(tmp_path / "out", horse)
    exported = json.loads((tmp_path / "out/annotations/horse.json").read_text())
    for key in ("img_id", "img_path", "seg", "img_bbox"):
        assert exported[0][key] == rows[0][key]
    np.testing.assert_allclose(exported[0]["joints"], rows[0]["joints"])
    np.testing.assert_allclose(exported[0]["cam_rot"], rows[0]["cam_rot"], atol=1e-12)
    assert [row["valid_cam"] for row in exported] == [1, 0, 0, 1, 1]
    assert (tmp_path / "out/filelists/horse_train.txt").read_text() == "p0\np1\np2"
    again = make_workspace("horse")
    again.root = tmp_path / "elsewhere"
    bring_in(tmp_path / "out", again)
    for name in ("xy", "visible", "camera", "box_xyxy", "split", "mask_rle", "instance_id"):
        one, two = labels[name], read_table(again.table_path("labels"), "labels")[name]
        if one.dtype == object:
            assert one.tolist() == two.tolist()
        else:
            np.testing.assert_allclose(one, two, atol=1e-12)


def test_bad_labelled_records_are_named(horse, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "horse.json"
    row = labelled_record("p0", rng)
    row["joints"][4][0] = float("inf")
    path.write_text(json.dumps([row]))
    with pytest.raises(UserError, match="finite keypoints; found NaN in record p0"):
        bring_in(tmp_path / "set", horse)
    path.write_text(json.dumps([labelled_record("p0", rng, joints=[[1, 2, 1]] * 20)]))
    with pytest.raises(UserError, match=r"expected 16 keypoints .*\[20, 3\] in record p0"):
        bring_in(tmp_path / "set", horse)


def test_quaternions_and_matrices_agree():
    rng = np.random.default_rng(2)
    for _ in range(10):
        quaternion = rng.normal(size=4)
        quaternion *= np.sign(quaternion[0]) / np.linalg.norm(quaternion)
        matrix = matrix_from_quaternion(quaternion)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(quaternion_from_matrix(matrix), quaternion, atol=1e-12)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        matrix_from_quaternion([half, half, 0, 0]) @ [0, 1, 0], [0, 0, 1], atol=1e-12
    )


def test_exporting_nothing_says_what_is_needed(horse, tmp_path):
    with pytest.raises(UserError, match="export animals3d needs"):
        write_out(tmp_path / "out", horse)
    with pytest.raises(UserError, match="expected a format among"):
        export_command.run(export_command.Config(format="voc", out=tmp_path, category="horse"), horse)


def published_set(folder, category, names, seed, split_of, annotations="{}.json"):
    rng = np.random.default_rng(seed)
    rows = [labelled_record(name, rng, img_path=f"{name}.jpg") for name in names]
    for row in rows:
        row.pop("seg")
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "filelists").mkdir(exist_ok=True)
    (folder / "annotations" / annotations.format(category)).write_text(json.dumps(rows))
    for split in set(split_of.values()):
        chosen = [name for name in split_of if split_of[name] == split]
        (folder / "filelists" / f"{category}_{split}.txt").write_text("\n".join(chosen))
    return rows


@pytest.mark.parametrize("start", ["", "acsm/acsm", "acsm/acsm/cachedir", "acsm/acsm/cachedir/data"])
def test_the_published_cachedir(horse, tmp_path, start):
    """Pascal's animals in two files, COCO's in one; pictures in data/<source>/images."""
    root = tmp_path / "animals3d"
    data = root / "acsm/acsm/cachedir/data"
    splits = {"p0": "train", "p1": "train", "p2": "val"}
    published_set(data / "pascal", "horse", ["p0", "p1", "p2"], 0, splits, "{}_all.json")
    published_set(data / "pascal", "horse", ["p2"], 1, {})
    rows = published_set(data / "coco", "horse", ["c0", "p1", "c2"], 2, {"c0": "train", "p1": "val"})
    for place in ("pascal/images/p0", "pascal/images/p2", "coco/images/c0", "coco/images/p1"):
        save_picture(root / "data" / f"{place}.jpg", len(place))
    facts = bring_in(root / start, horse)
    assert facts["splits"] == {"train": 3, "val": 2} and facts["dropped"] == {"in no filelist": 1}
    labels = horse.load("labels")
    assert sorted(labels["source_id"]) == ["c0", "coco:p1", "p0", "p1", "p2"]
    row = labels.lookup("source_id")["coco:p1"]
    np.testing.assert_allclose(labels["xy"][row, 5], rows[1]["joints"][5][:2])
    assert labels["split"][row] == "val" and np.isfinite(labels["camera"][row]).all()
    images = horse.load("labelled_images")
    names = dict(zip(images["source_id"], images["status"]))
    assert names == {
        "pascal/images/p0.jpg": "ok", "pascal/images/p1.jpg": "not_found", "pascal/images/p2.jpg": "ok",
        "coco/images/c0.jpg": "ok", "coco/images/p1.jpg": "ok",
    }  # fmt: skip
    # A folder that the user names wins.
    save_picture(tmp_path / "mine/pascal/p1.jpg", 5)
    (tmp_path / "mine/coco").mkdir()
    bring_in(root / start, horse, images=tmp_path / "mine", overwrite=True)
    images = horse.load("labelled_images")
    assert dict(zip(images["source_id"], images["status"]))["pascal/p1.jpg"] == "ok"
