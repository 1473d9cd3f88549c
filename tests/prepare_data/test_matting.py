"""Matting: pixels worked out by hand, what is written again and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from mask_world import PLUG_IN, write_world
from PIL import Image

from prepare_data.matting import MattingConfig, matte, save_mattes
from prepare_data.save_masks import Config, run
from wildshape.errors import UserError

HARD = MattingConfig(background="#0000c8", size=8, margin=1.0, feather=0)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def grey(height=8, width=8, value=100):
    return np.full((height, width, 3), value, np.uint8)


def test_a_pixel_of_the_mask_is_the_photo_and_another_the_background():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:7] = True
    picture = matte(
        grey(), mask, np.array([-0.5, -0.5, 7.5, 7.5]), HARD
    )  # the whole picture, pixel by pixel
    expected = np.where(mask[..., None], 100, [0, 0, 200])
    np.testing.assert_array_equal(picture, expected)


def test_a_pixel_that_the_edge_crosses_is_mixed():
    # Half the size: a pixel averages 2 x 2. The mask has one, two or four of them.
    image, mask = grey(16, 16), np.zeros((16, 16), np.uint8)
    mask[4:8, 4:8] = 1
    mask[8, 4:6] = 1  # two of four
    mask[12, 12] = 1  # one of four
    picture = matte(image, mask, np.array([-0.5, -0.5, 15.5, 15.5]), HARD)
    assert picture[2, 2].tolist() == picture[3, 3].tolist() == [100, 100, 100]
    assert picture[0, 0].tolist() == [0, 0, 200]
    np.testing.assert_allclose(picture[4, 2], [50, 50, 150], atol=1)
    np.testing.assert_allclose(picture[6, 6], [25, 25, 175], atol=1)


def test_beyond_the_photo_is_background_and_the_crop_is_square_about_the_box():
    image, mask = grey(4, 8), np.ones((4, 8), bool)
    picture = matte(image, mask, np.array([-0.5, -0.5, 7.5, 3.5]), HARD)
    assert (picture[2:6] == 100).all()  # the photo in the middle
    assert (picture[[0, 1, 6, 7]] == [0, 0, 200]).all()
    wide = MattingConfig(background="white", size=8, margin=2.0, feather=0)
    picture = matte(image, mask, np.array([-0.5, -0.5, 3.5, 3.5]), wide)
    assert (picture[2:6, 2:] == 100).all() and (picture[:, :2] == 255).all()


def test_a_feathered_edge_is_soft_and_symmetric():
    image, mask = grey(32, 32, 0), np.zeros((32, 32), bool)
    mask[:, 16:] = True
    config = MattingConfig(background="white", size=32, margin=1.0, feather=2.0)
    line = matte(image, mask, np.array([-0.5, -0.5, 31.5, 31.5]), config)[16, :, 0].astype(int)
    assert line[0] == 255 and line[31] == 0 and (np.diff(line) <= 0).all()
    np.testing.assert_allclose(line + line[::-1], 255, atol=1)
    # A step blurred by a Gaussian: half a pixel from the edge, Phi(.5 / 2) = .5987 (sampled kernel: .5994).
    assert line[16] == pytest.approx(255 * (1 - 0.599), abs=1)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected a mask \[8, 8\], found \[8, 9\]"):
        matte(grey(), np.ones((8, 9)), np.array([0, 0, 4, 4]), HARD)


@pytest.fixture
def world(workspace):
    write_world(workspace)
    run(Config(category="cow", segmenter=f"{PLUG_IN}:Red"), workspace)
    return workspace


def matting(**changes) -> Config:
    return Config(**{"category": "cow", "segmenter": f"{PLUG_IN}:Red", "matting": True, **changes})


def test_pictures_are_named_by_instance(world, capsys):
    metrics = run(matting(matting_size=64, background="lime"), world)
    folder = world.matted_dir
    assert sorted(path.name for path in folder.iterdir()) == ["a0.png", "a1.png", "a2.png", "a3.png"]
    assert metrics["matting"] == {
        "written": 4, "up_to_date": 0, "without_mask": 1, "unreadable": 0, "left_over": 0, "problems": [],
        "folder": "data/cow/matted",
    }  # fmt: skip
    picture = read(folder / "a0.png")
    assert picture.shape == (64, 64, 3)
    assert picture[32, 32].tolist() == [255, 0, 0] and picture[1, 1].tolist() == [0, 255, 0]
    assert "matting: 4 pictures written to data/cow/matted" in capsys.readouterr().out


def test_a_second_run_writes_what_is_missing_or_torn(world):
    run(matting(), world)
    folder = world.matted_dir
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "a1.png").unlink()
    (folder / "gone.png").write_bytes(b"of an animal that is no more")
    counts = run(matting(), world)["matting"]
    assert counts["left_over"] == 1
    assert (counts["written"], counts["up_to_date"]) == (1, 3)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in times if after[name] != times[name]} == {"a1.png"}


def test_pictures_of_other_settings_or_masks_are_not_overwritten(world, tmp_path):
    run(matting(), world)
    before = read(world.matted_dir / "a0.png")
    with pytest.raises(
        UserError, match="4 of 4 pictures in .*matted were made with other settings or masks"
    ):
        run(matting(background="black"), world)
    np.testing.assert_array_equal(read(world.matted_dir / "a0.png"), before)
    assert (
        run(matting(background="black", matting_dir=tmp_path / "black"), world)["matting"]["written"] == 4
    )
    assert read(tmp_path / "black" / "a0.png")[0, 0].tolist() == [0, 0, 0]
    counts = run(matting(overwrite=True, opts=("shrink", "2")), world)["matting"]
    assert counts["written"] == 4
    # A picture of the user's own by such a name.
    own = tmp_path / "own"
    own.mkdir()
    Image.fromarray(before).save(own / "a2.png")
    (own / "a1.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"2 of 4 pictures in .*first: a1.png"):
        run(matting(opts=("shrink", "2"), matting_dir=own), world)


def test_what_cannot_be_cut_out_is_counted(world):
    table, images = world.load("instances"), world.load("images")
    (world.images_dir / "0.png").unlink()
    Image.fromarray(grey(20, 20)).save(world.images_dir / "2.png")  # another picture than was segmented
    counts = save_mattes(table, images, world, world.matted_dir, MattingConfig())
    assert (counts["written"], counts["unreadable"], counts["without_mask"]) == (2, 2, 1)
    assert "expected an image at" in counts["problems"][0]
    assert "expected a mask [20, 20], found [50, 60]" in counts["problems"][1]


def test_labelled_animals_have_their_own_folder(world):
    counts = run(matting(labelled=True), world)["matting"]
    assert counts["folder"] == "data/cow/labelled_matted"
    picture = read(world.labelled_matted_dir / "a0.png")
    # The true mask, the left half of the square, cuts it out.
    assert picture[160, 100].tolist() == [255, 0, 0] and picture[160, 220].tolist() == [255, 255, 255]
