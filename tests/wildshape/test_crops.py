from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from wildshape.crops import ImageError, ImageReader, decode_image, image_paths, read_image
from wildshape.tables import Table

# Left half red, right half blue, so that turns and swapped channels show.
PICTURE = np.zeros((20, 40, 3), np.uint8)
PICTURE[:, :20, 0] = 255
PICTURE[:, 20:, 2] = 255


def encoded(picture=PICTURE, kind="JPEG", mode="RGB", **options):
    buffer = BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "CMYK")]
)
def test_every_kind_of_file_becomes_writable_rgb(kind, mode):
    image = decode_image(encoded(kind=kind, mode=mode))
    assert image.shape == (20, 40, 3) and image.dtype == np.uint8
    assert np.abs(image[10, 5].astype(int) - [255, 0, 0]).max() < 12
    assert np.abs(image[10, 35].astype(int) - [0, 0, 255]).max() < 12
    image[0, 0] = 0


def test_grey_has_three_equal_channels():
    image = decode_image(encoded(mode="L"))
    assert image.shape == (20, 40, 3) and np.ptp(image, axis=-1).max() == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_turns_the_picture_once(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture lies to the right: turn it clockwise
    image = decode_image(encoded(kind=kind, exif=exif))
    assert image.shape == (40, 20, 3)
    assert image[5, 10, 0] > 240 and image[35, 10, 2] > 240


def test_exif_behind_another_segment_turns_the_picture_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(exif=exif)
    comment = b"\xff\xfe" + (202).to_bytes(2, "big") + b"c" * 200
    image = decode_image(data[:2] + comment + data[2:])
    assert image.shape == (40, 20, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"<html>gone</html>", r"found b'<html>go' ... in place of one"),
        (encoded()[:-100], "expected an image in .*; found"),
        (encoded(kind="PNG")[:60], "expected an image in .*; found"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, message):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        read_image(tmp_path / "x.jpg")
    assert "x.jpg" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"expected an image at .*none\.jpg; No such file"):
        read_image(tmp_path / "none.jpg")


def test_a_jpeg_with_bytes_behind_its_end_is_read():
    assert decode_image(encoded() + b"trailing").shape == (20, 40, 3)


def test_opencv_and_pillow_agree():
    data = encoded(
        cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), (9, 9), 3)
    )
    fast, slow = decode_image(data), decode_image(data + b"x")
    assert np.abs(fast.astype(int) - slow).max() <= 4


def test_image_paths_join_tables_and_leave_out_what_has_no_file(workspace):
    def images(rows):
        return Table.from_rows("images", [{"source": "s", "status": "ok", **row} for row in rows])

    web = images([{"record_id": "1", "image_id": "a", "path": "data/a.jpg"}, {"record_id": "2"}])
    own = images([{"record_id": "3", "image_id": "b", "path": "/photos/b.jpg"}])
    paths = image_paths([web, own], workspace)
    assert {k: v.as_posix() for k, v in paths.items()} == {
        "a": f"{workspace.root.as_posix()}/data/a.jpg",
        "b": "/photos/b.jpg",
    }
    assert image_paths(own, workspace).keys() == {"b"}


def test_an_image_is_remembered_until_others_come(tmp_path):
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path in paths:
        path.write_bytes(encoded())
    read = ImageReader(kept=2)
    first = read(paths[0])
    assert read(paths[0]) is first
    read(paths[1])
    assert read(paths[0]) is first
    read(paths[2])  # the oldest goes
    assert read(paths[0]) is not first
