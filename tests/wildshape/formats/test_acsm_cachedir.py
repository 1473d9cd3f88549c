"""ACSM's cachedir: MATLAB files in its layout, written here."""

import numpy as np
import pytest
from scipy.io import savemat
from small_labels import bring_in, save_picture

from wildshape.errors import UserError
from wildshape.formats.animals3d_labels import matrix_from_quaternion
from wildshape.formats.masks import decode_mask

NAMES = ["L_Eye", "R_Eye", "Nose", "L_EarBase", "R_EarBase", "Throat", "Withers", "TailBase"]
TURN = np.array([0.9, 0.1, 0.3, -0.2]) / np.linalg.norm([0.9, 0.1, 0.3, -0.2])


def structs(rows):
    """A MATLAB struct array [1, N]."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for number, row in enumerate(rows):
        array[0, number] = tuple(row.values())
    return array


def image(number, **changes):
    parts = np.stack([np.arange(8) * 5.0 + number + 11, np.arange(8) * 4.0 + 21, np.ones(8)])
    parts[:, 1] = [0, 0, 0]
    parts[:, 3] = [np.nan, np.nan, 1]
    box = {
        name: np.array([[value]], float) for name, value in zip(("x1", "y1", "x2", "y2"), (6, 16, 80, 70))
    }
    mask = np.zeros((100, 120), np.uint8)
    mask[20:40, 10:50] = 1
    row = {"rel_path": f"2008_{number:06d}.jpg", "bbox": structs([box]), "parts": parts, "mask": mask}
    return {**row, **changes}


def camera(**changes):
    row = {
        "rot": matrix_from_quaternion(TURN),
        "scale": np.array([[12.5]]),
        "trans": np.array([[30.0], [40.0]]),
    }
    return {**row, **changes}


@pytest.fixture
def cachedir(tmp_path):
    root = tmp_path / "cachedir"
    for folder in ("data", "sfm"):
        (root / "pascal" / folder).mkdir(parents=True)
    data, sfm = root / "pascal/data", root / "pascal/sfm"
    names = np.empty((1, 8), dtype=object)
    names[0] = NAMES
    savemat(data / "horse_kps.mat", {"kp_names": names, "kp_perm_inds": np.arange(8) + 1})
    savemat(data / "horse_train.mat", {"images": structs([image(1), image(2)])})
    savemat(data / "horse_val.mat", {"images": structs([image(3)])})
    savemat(sfm / "horse_train.mat", {"sfm_anno": structs([camera(), camera(rot=-np.eye(3))])})
    for number in (1, 2, 3):
        save_picture(tmp_path / "VOC2012" / "JPEGImages" / f"2008_{number:06d}.jpg", number)
    return root


def test_cachedir(cachedir, make_workspace, tmp_path):
    horse = make_workspace("horse")
    facts = bring_in(horse, "acsm", cachedir, images=tmp_path / "VOC2012/JPEGImages")
    assert facts["splits"] == {"train": 2, "val": 1}
    assert facts["dropped"] == {"(label kept) camera that is no rotation": 1}
    labels, skeleton = horse.load("labels"), horse.category.skeleton
    row = labels.lookup("source_id")["pascal/horse_train/0"]
    assert labels["box_xyxy"][row].tolist() == [5, 15, 79, 69]
    assert labels["xy"][row, skeleton.find("Nose")].tolist() == [21, 28]
    for name in ("R_eye", "L_ear"):
        assert labels["visible"][row, skeleton.find(name)] == 0
    assert decode_mask(labels["mask_rle"][row]).sum() == 20 * 40
    np.testing.assert_allclose(labels["camera"][row], [12.5, 30, 40, *TURN])
    assert np.isnan(labels["camera"][labels.lookup("source_id")["pascal/horse_val/0"]]).all()
    assert set(horse.load("labelled_images")["status"]) == {"ok"}


def without_parts(data, sfm):
    savemat(data / "horse_val.mat", {"images": structs([{"rel_path": "a.jpg"}])})


def few_parts(data, sfm):
    savemat(data / "horse_val.mat", {"images": structs([image(1, parts=np.ones((3, 7)))])})


def few_cameras(data, sfm):
    savemat(sfm / "horse_train.mat", {"sfm_anno": structs([camera()])})


def other_field(data, sfm):
    savemat(data / "horse_train.mat", {"pictures": np.ones(3)})


def no_matlab(data, sfm):
    (data / "horse_train.mat").write_bytes(b"no MATLAB file, but long enough to be taken for one" * 20)


def no_split(data, sfm):
    (data / "horse_train.mat").unlink()
    (data / "horse_val.mat").unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_parts, r"expected rel_path, bbox and parts \[3, 8\] in image 0"),
        (few_parts, r"found a problem at parts of shape \[3, 7\]"),
        (few_cameras, "expected 2 cameras, as images; found 1"),
        (other_field, "expected images; found pictures"),
        (no_matlab, "expected a MATLAB file before version 7.3"),
        (no_split, "expected horse_train.mat, _val.mat or _test.mat; found none"),
    ],
)
def test_what_does_not_fit(cachedir, make_workspace, change, message):
    change(cachedir / "pascal/data", cachedir / "pascal/sfm")
    with pytest.raises(UserError, match=message):
        bring_in(make_workspace("horse"), "acsm", cachedir)


def test_categories_and_folders(cachedir, make_workspace, tmp_path):
    with pytest.raises(UserError, match="expected category cow; found horse; run: with --source_category"):
        bring_in(make_workspace("cow"), "acsm", cachedir)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected <category>_kps.mat of ACSM's cachedir"):
        bring_in(make_workspace("horse"), "acsm", tmp_path / "empty")
