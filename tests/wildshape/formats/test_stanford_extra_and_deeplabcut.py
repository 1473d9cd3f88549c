"""Dogs of StanfordExtra and frames of DeepLabCut, made up and (StanfordExtra) real."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_labels import bring_in, save_picture

from wildshape.errors import UserError
from wildshape.formats import deeplabcut, export_command
from wildshape.formats.masks import decode_mask, encode_mask
from wildshape.workspace import Workspace

REAL = Path(os.environ.get("WILDSHAPE_REAL_DATA", "no such folder")) / "stanfordextra"


@pytest.fixture
def dogs(tmp_path):
    root = tmp_path / "extra"
    entries = []
    for number in range(4):
        name = f"n01-breed/dog_{number}.jpg"
        save_picture(root / "sample_imgs" / name, number)
        mask = np.zeros((100, 120), np.uint8)
        mask[20:60, 10:90] = 1
        joints = [[5.0 + place, 7.0 + number, 1.0] for place in range(24)]
        joints[20] = [0.0, 0.0, 0.0]
        entries.append(
            {
                "img_path": name, "img_width": 120, "img_height": 100, "joints": joints,
                "img_bbox": [10, 20, 80, 40], "is_multiple_dogs": number == 3,
                "seg": json.loads(encode_mask(mask))["counts"],
            }
        )  # fmt: skip
    (root / "StanfordExtra_v12.json").write_text(json.dumps(entries))
    return root


@pytest.fixture
def dog_workspace(tmp_path):
    workspace = Workspace(tmp_path / "root", "dog")
    workspace.mark()
    return workspace


def test_stanford_extra(dogs, dog_workspace):
    found = bring_in(dog_workspace, "stanford_extra", dogs)
    assert found["labels"] == 4 and "keypoints_never_labelled" in found
    labels = dog_workspace.load("labels")
    skeleton = dog_workspace.category.skeleton
    row = int(np.flatnonzero([name.startswith("dog_2") for name in labels["source_id"]])[0])
    for name, place in (("L_F_paw", 0), ("Nose", 16), ("Withers", 22), ("Tail", 12), ("R_ear", 15)):
        assert labels["xy"][row, skeleton.find(name)].tolist() == [5.0 + place, 9.0], name
    assert labels["visible"][row, skeleton.find("L_eye")] == 0
    assert labels["box_xyxy"][row].tolist() == [10, 20, 90, 60]
    assert decode_mask(labels["mask_rle"][row]).sum() == 40 * 80
    assert sorted(labels["flags"]) == ["", "", "", "crowd"]


def test_stanford_extra_that_does_not_fit(dogs, dog_workspace, tmp_path):
    cow = Workspace(tmp_path / "cows", "cow")
    cow.mark()
    with pytest.raises(UserError, match="expected category cow; found dog"):
        bring_in(cow, "stanford_extra", dogs)
    file = dogs / "StanfordExtra_v12.json"
    entries = json.loads(file.read_text())
    entries[1]["joints"] = entries[1]["joints"][:20]
    file.write_text(json.dumps(entries))
    with pytest.raises(UserError, match=r"expected 24 joints .* found shape \[20, 3\] or NaN in entry 1"):
        bring_in(dog_workspace, "stanford_extra", dogs)
    del entries[1]["img_bbox"]
    file.write_text(json.dumps(entries))
    with pytest.raises(UserError, match="expected img_bbox in entry 1"):
        bring_in(dog_workspace, "stanford_extra", dogs)
    file.unlink()
    with pytest.raises(UserError, match="expected one StanfordExtra"):
        bring_in(dog_workspace, "stanford_extra", dogs)


@pytest.mark.real_data
def test_real_dogs_have_their_paws_inside_their_masks(dog_workspace):
    bring_in(dog_workspace, "stanford_extra", REAL)
    labels = dog_workspace.load("labels")
    assert len(labels) > 15
    inside = total = 0
    for row in labels.rows():
        mask = decode_mask(row["mask_rle"])
        for (x, y), seen in zip(row["xy"], row["visible"]):
            if seen:
                total += 1
                inside += mask[min(int(y + 0.5), len(mask) - 1), min(int(x + 0.5), mask.shape[1] - 1)]
    assert inside / total > 0.8


PARTS = ("Nose", "L_F_paw", "R_F_paw", "Tail")


def frames(individuals=None, three=False, root=None):
    """Six frames; in the last one only the nose is labelled."""
    columns = [
        ("me", *([who] if who else []), part, axis)
        for who in (individuals or [None])
        for part in PARTS
        for axis in ("x", "y")
    ]
    names = [("labeled-data", "film", f"img{number}.png") for number in range(6)]
    values = np.arange(6 * len(columns), dtype=float).reshape(6, -1) % 70 + 10
    values[5, 2:] = np.nan
    for name in names:
        save_picture(root / "/".join(name), int(name[2][3]))
    index = pd.MultiIndex.from_tuples(names) if three else ["/".join(name) for name in names]
    levels = ["scorer", *(["individuals"] if individuals else []), "bodyparts", "coords"]
    return pd.DataFrame(values, index, pd.MultiIndex.from_tuples(columns, names=levels))


@pytest.mark.parametrize("suffix", [".csv", ".h5"])
@pytest.mark.parametrize("three", [False, True])
def test_deeplabcut_csv(workspace, tmp_path, three, suffix):
    table = frames(three=three, root=tmp_path)
    file = tmp_path / "labeled-data" / "film" / f"CollectedData_me{suffix}"
    if suffix == ".h5":
        pytest.importorskip("tables", reason="PyTables is not installed (the extra deeplabcut)")
        table.to_hdf(file, key="df_with_missing", mode="w")
    else:
        table.to_csv(file)
    found = bring_in(workspace, "deeplabcut", tmp_path)
    assert found["labels"] == 5 and found["dropped"]["fewer than two labelled keypoints"] == 1
    labels = workspace.load("labels")
    skeleton = workspace.category.skeleton
    row = int(np.flatnonzero(labels["source_id"] == "labeled-data/film/img1.png:animal")[0])
    for place, name in enumerate(PARTS):
        assert (
            labels["xy"][row, skeleton.find(name)].tolist()
            == table.iloc[1, 2 * place : 2 * place + 2].tolist()
        )
    # x from 18 to 24, y from 19 to 25: widened by .6.
    np.testing.assert_allclose(labels["box_xyxy"][row], [17.4, 18.4, 24.6, 25.6])
    assert (labels["visible"][row] == 2).sum() == 4


def test_deeplabcut_with_several_animals(workspace, tmp_path):
    frames(["one", "two"], root=tmp_path).to_csv(tmp_path / "labeled-data" / "CollectedData_me.csv")
    records, dropped = deeplabcut.read_records(deeplabcut.find_file(tmp_path), workspace)
    assert len(records) == 10 and dropped["fewer than two labelled keypoints"] == 2
    assert {record.source_id.rpartition(":")[2] for record in records} == {"one", "two"}
    # The scene's own points are an individual without a skeleton.
    table = frames(["one"], root=tmp_path)
    for part in ("corner1", "corner2"):
        for axis in ("x", "y"):
            table["me", "single", part, axis] = 5.0
    table.to_csv(tmp_path / "labeled-data" / "CollectedData_me.csv")
    records, dropped = deeplabcut.read_records(deeplabcut.find_file(tmp_path), workspace)
    assert len(records) == 5 and dropped["labels of single, without the skeleton's keypoints"] == len(table)


def test_deeplabcut_projects_have_a_file_a_film(workspace, tmp_path):
    table = frames(root=tmp_path)
    table.to_csv(tmp_path / "labeled-data" / "film" / "CollectedData_me.csv")
    (tmp_path / "labeled-data" / "film" / "CollectedData_me.h5").write_bytes(b"the same, not read")
    other = table.copy()
    other.index = [name.replace("film", "second") for name in table.index]
    for number, name in enumerate(other.index):
        save_picture(tmp_path / name, 10 + number)
    other.to_csv(tmp_path / "labeled-data" / "second" / "CollectedData_me.csv")
    found = bring_in(workspace, "deeplabcut", tmp_path)
    assert found["labels"] == 10
    assert {name.split("/")[1] for name in workspace.load("labels")["source_id"]} == {"film", "second"}
    (tmp_path / "labeled-data" / "second" / "CollectedData_you.csv").write_text("")
    with pytest.raises(UserError, match="expected one CollectedData in .*second; found"):
        bring_in(workspace, "deeplabcut", tmp_path, overwrite=True)


@pytest.mark.parametrize("individuals", [None, ["one", "two"]])
def test_deeplabcut_round_trip(workspace, tmp_path, individuals):
    frames(individuals, root=tmp_path).to_csv(tmp_path / "labeled-data" / "CollectedData_me.csv")
    bring_in(workspace, "deeplabcut", tmp_path)
    out = tmp_path / "out"
    written = export_command.run(
        export_command.Config(format="deeplabcut", out=out, category="cow"), workspace
    )
    count = 10 if individuals else 5
    assert written == {"labeled-data/cow/CollectedData_wildshape.csv": count}
    other = Workspace(tmp_path / "other", "cow")
    other.mark()
    bring_in(other, "deeplabcut", out)
    old, new = workspace.load("labels"), other.load("labels")
    assert len(new) == count
    key = [tuple(np.nan_to_num(xy).ravel()) for xy in old["xy"]]
    found = [tuple(np.nan_to_num(xy).ravel()) for xy in new["xy"]]
    assert sorted(key) == sorted(found)
    assert set(other.load("labelled_images")["image_id"]) == set(
        workspace.load("labelled_images")["image_id"]
    )


def test_deeplabcut_h5_without_pytables(workspace, tmp_path, monkeypatch):
    def without(*arguments, **named):
        raise ImportError("Missing optional dependency 'pytables'")

    monkeypatch.setattr(pd, "read_hdf", without)
    (tmp_path / "CollectedData_me.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r'needs PyTables; run: pip install "wildshape\[deeplabcut\]"'):
        bring_in(workspace, "deeplabcut", tmp_path)


def test_deeplabcut_that_does_not_fit(workspace, tmp_path):
    with pytest.raises(UserError, match="expected CollectedData_.*found none"):
        bring_in(workspace, "deeplabcut", tmp_path)
    file = tmp_path / "CollectedData_me.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected DeepLabCut's"):
        bring_in(workspace, "deeplabcut", file)
    table = frames(root=tmp_path).rename(columns=dict.fromkeys(PARTS, "Fin"))
    table.to_csv(file)
    with pytest.raises(UserError, match="expected keypoints of skeleton quadruped16"):
        bring_in(workspace, "deeplabcut", file)
