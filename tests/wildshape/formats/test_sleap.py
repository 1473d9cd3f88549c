"""SLEAP projects: an image sequence, embedded frames, a video, and what is not taken."""

import builtins

import numpy as np
import pytest
from PIL import Image
from small_labels import bring_in, save_picture

from wildshape.errors import UserError
from wildshape.formats import sleap

sio = pytest.importorskip("sleap_io", reason="sleap-io is not installed (the extra sleap)")
NODES = ["nose", "left_eye", "Fin", "L_F_paw", "tailbase"]
POINTS = np.array([[30.25, 20], [40, 25], [50, 50], [np.nan, np.nan], [90, 70.5]])


def project(root, video, frames=3, predicted=()):
    """A project with an animal a frame, shifted by the frame's number; its left eye is hidden."""
    skeleton = sio.Skeleton(NODES)
    labelled = []
    for number in range(frames):
        if number in predicted:
            instance = sio.PredictedInstance.from_numpy(POINTS + number, skeleton=skeleton, score=0.5)
        else:
            instance = sio.Instance.from_numpy(POINTS + number, skeleton=skeleton)
            instance.points["visible"][1] = False
        labelled.append(sio.LabeledFrame(video, number, [instance]))
    return sio.Labels(labelled, videos=[video], skeletons=[skeleton])


def check(workspace, count):
    labels, skeleton = workspace.load("labels"), workspace.category.skeleton
    assert len(labels) == count
    for row, source_id in enumerate(labels["source_id"]):
        number = int(source_id.split("/")[1])
        for place, name in ((0, "Nose"), (1, "L_eye"), (4, "Tail")):
            expected = POINTS[place] + number
            np.testing.assert_allclose(labels["xy"][row, skeleton.find(name)], expected)
        assert labels["visible"][row, skeleton.find("L_eye")] == 1
        assert labels["visible"][row, skeleton.find("Nose")] == 2
        assert labels["visible"][row, skeleton.find("L_F_paw")] == 0
        # x from 30.25 to 90, y from 20 to 70.5: 5.975 wider all round.
        expected = np.array([24.275, 14.025, 95.975, 76.475]) + number
        np.testing.assert_allclose(labels["box_xyxy"][row], expected)


@pytest.fixture
def pictures(tmp_path):
    files = [tmp_path / "film" / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        save_picture(file, number)
    return files


def test_an_image_sequence(workspace, tmp_path, pictures, capsys):
    video = sio.Video.from_filename([str(file) for file in pictures])
    project(tmp_path, video).save(str(tmp_path / "cows.slp"), verbose=False)
    facts = bring_in(workspace, "sleap", tmp_path, split="train")
    assert "cows.slp: no place in quadruped16 for Fin" in capsys.readouterr().out
    assert facts["labels"] == 3
    check(workspace, 3)
    paths = workspace.load("labelled_images")["path"]
    assert {workspace.image_file(path) for path in paths} == set(pictures)


def test_pictures_that_moved_with_the_project_are_found(workspace, tmp_path, pictures):
    video = sio.Video.from_filename([str(file) for file in pictures])
    project(tmp_path, video).save(str(tmp_path / "cows.slp"), verbose=False)
    (tmp_path / "moved").mkdir()
    (tmp_path / "film").rename(tmp_path / "moved" / "film")
    (tmp_path / "cows.slp").rename(tmp_path / "moved" / "cows.slp")
    bring_in(workspace, "sleap", tmp_path / "moved")
    check(workspace, 3)


def test_embedded_frames(workspace, tmp_path, pictures, capsys):
    video = sio.Video.from_filename([str(file) for file in pictures])
    project(tmp_path, video).save(str(tmp_path / "cows.pkg.slp"), embed="user", verbose=False)
    originals = [np.asarray(Image.open(file).convert("RGB")) for file in pictures]
    for file in pictures:
        file.unlink()
    bring_in(workspace, "sleap", tmp_path / "cows.pkg.slp")
    check(workspace, 3)
    assert "3 frames of videos written to" in capsys.readouterr().out
    images = workspace.load("labelled_images")
    for path in images["path"]:
        assert path.startswith("data/cow/labelled_images/")
        number = int(path.rpartition("_")[2].removesuffix(".png"))
        found = np.asarray(Image.open(workspace.image_file(path)).convert("RGB"))
        np.testing.assert_array_equal(found, originals[number])


def test_frames_of_a_video(workspace, tmp_path):
    import cv2

    file = tmp_path / "cows.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 5, (120, 100))
    assert writer.isOpened()
    for number in range(3):
        save_picture(tmp_path / "frame.png", number)
        writer.write(cv2.imread(str(tmp_path / "frame.png")))
    writer.release()
    project(tmp_path, sio.Video.from_filename(str(file))).save(str(tmp_path / "cows.slp"), verbose=False)
    bring_in(workspace, "sleap", tmp_path)
    check(workspace, 3)
    images = workspace.load("labelled_images")
    assert images["width"].tolist() == [120] * 3 and len(set(images["image_id"])) == 3
    file.unlink()
    for path in images["path"]:
        workspace.image_file(path).unlink()
    with pytest.raises(UserError, match="3 frame of a video that is not there"):
        bring_in(workspace, "sleap", tmp_path, overwrite=True)


def test_predictions_are_no_labels(workspace, tmp_path, pictures):
    video = sio.Video.from_filename([str(file) for file in pictures])
    project(tmp_path, video, predicted=(1,)).save(str(tmp_path / "cows.slp"), verbose=False)
    bring_in(workspace, "sleap", tmp_path / "cows.slp")
    check(workspace, 2)
    project(tmp_path, video, predicted=(0, 1, 2)).save(str(tmp_path / "cows.slp"), verbose=False)
    with pytest.raises(UserError, match="that people labelled; found 3 predicted ones"):
        bring_in(workspace, "sleap", tmp_path, overwrite=True)


def test_what_is_no_project(workspace, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"expected one SLEAP project \*.slp"):
        bring_in(workspace, "sleap", tmp_path)
    file = tmp_path / "bad.slp"
    file.write_bytes(b"not HDF5")
    with pytest.raises(UserError, match="bad.slp: expected a SLEAP project; found"):
        bring_in(workspace, "sleap", file)
    real_import = builtins.__import__

    def without(name, *arguments, **named):
        if name == "sleap_io":
            raise ImportError(name)
        return real_import(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'needs sleap-io; run: pip install "wildshape\[sleap\]"'):
        sleap.read_records(file, workspace)
