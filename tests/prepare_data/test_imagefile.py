"""Every kind of image file: what the tables say of it, and what is read from it later."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features
from test_download_images import FAST, candidates

from prepare_data.download_images import Config, run
from prepare_data.imagefile import BadImage, inspect_image
from wildshape.crops import ImageError, read_image
from wildshape.near_duplicates import phash
from wildshape.same_photo import read_features
from wildshape.tables import make_image_id

WIDTH, HEIGHT = 120, 80


def scene(seed: int = 0) -> Image.Image:
    """Red at the left, blue at the right, a white strip on top, and some texture of the seed's own."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2, 0] = 230
    pixels[:, WIDTH // 2 :, 2] = 230
    pixels[:20] = 255
    coarse = np.random.default_rng(seed).integers(0, 25, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(np.maximum(pixels, coarse.repeat(10, 0).repeat(10, 1)))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def broken_avif() -> bytes:
    """Its header is whole, its picture is not; Pillow raises RuntimeError."""
    data = encoded(scene(), "AVIF")
    start = data.index(b"mdat") + 4
    return data[:start] + bytes(len(data) - start)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_broken_avif_is_no_image(workspace, server, quick):
    server.pages = {"/avif": broken_avif(), "/good": encoded(scene(), "JPEG")}
    candidates(workspace, [server.url + path for path in server.pages])
    assert run(Config(**FAST), workspace)["by_status"] == {"ok": 1, "not_image": 1}
    (workspace.root / "broken.avif").write_bytes(broken_avif())
    with pytest.raises(ImageError, match="expected an image in .*broken.avif"):
        read_image(workspace.root / "broken.avif")


def test_xmp_turns_a_picture_once(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(scene(), "JPEG", xmp=xmp)
    (tmp_path / "turned.jpg").write_bytes(data)
    facts = inspect_image(data)
    assert (facts.height, facts.width) == (WIDTH, HEIGHT)
    assert read_image(tmp_path / "turned.jpg").shape == (WIDTH, HEIGHT, 3)


def animation(kind: str, **options: object) -> bytes:
    others = [Image.new("RGB", (WIDTH, HEIGHT), "green"), Image.new("RGB", (WIDTH, HEIGHT), "black")]
    return encoded(scene(), kind, save_all=True, append_images=others, **options)


def oriented(orientation: int, kind: str = "JPEG", **options: object) -> bytes:
    """The scene stored turned, with the EXIF entry that turns it back."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270,
            2: Image.Transpose.FLIP_LEFT_RIGHT}  # fmt: skip
    image = scene().transpose(back[orientation])
    exif = image.getexif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif, **options)


def behind_a_comment(data: bytes) -> bytes:
    return data[:2] + b"\xff\xfe\x00\x64" + b"x" * 98 + data[2:]


KINDS = {
    "jpeg": (encoded(scene(), "JPEG"), ".jpg"),
    "turned by 180": (oriented(3), ".jpg"),
    "turned to the right": (oriented(6), ".jpg"),
    "turned to the left": (oriented(8), ".jpg"),
    "mirrored": (oriented(2), ".jpg"),
    "EXIF far behind": (behind_a_comment(oriented(6)), ".jpg"),
    "turned PNG": (oriented(6, "PNG"), ".png"),
    "turned WebP": (oriented(8, "WEBP", lossless=True), ".webp"),
    "CMYK": (encoded(scene().convert("CMYK"), "JPEG"), ".jpg"),
    "CMYK, progressive": (encoded(scene().convert("CMYK"), "JPEG", progressive=True), ".jpg"),
    "CMYK TIFF": (encoded(scene().convert("CMYK"), "TIFF"), ".tif"),
    "animated GIF": (animation("GIF"), ".gif"),
    "animated WebP": (animation("WEBP", lossless=True), ".webp"),
    "animated PNG": (animation("PNG"), ".png"),
    "several pages": (animation("TIFF"), ".tif"),
    "several pictures": (animation("MPO"), ".jpg"),
    "palette": (encoded(scene().convert("P"), "PNG"), ".png"),
    "opaque": (encoded(scene().convert("RGBA"), "PNG"), ".png"),
}


def assert_is_the_scene(pixels: np.ndarray) -> None:
    assert pixels.shape == (HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8
    for row, column, colour in (
        (60, 20, (230, 10, 10)),
        (60, 100, (10, 10, 230)),
        (6, 60, (255, 255, 255)),
    ):
        found = pixels[row - 3 : row + 3, column - 3 : column + 3].reshape(-1, 3).mean(axis=0)
        assert np.abs(found - colour).max() < 40, (row, column, found)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_a_file_is_what_is_read_from_it(kind, tmp_path):
    data, suffix = KINDS[kind]
    facts = inspect_image(data, min_side=HEIGHT)
    assert (facts.width, facts.height, facts.suffix) == (WIDTH, HEIGHT, suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    pixels = read_image(path)
    assert_is_the_scene(pixels)
    assert bin(int(phash(pixels), 16) ^ int(facts.phash, 16)).count("1") <= 2  # two JPEG decoders
    grey = read_features(path).grey
    assert grey.shape == (HEIGHT, WIDTH) and grey[6, 60] > 200 and grey[60, 20] < 110


def test_files_are_kept_as_they_came_and_are_one_photo(workspace, server, quick):
    server.pages = {f"/{number}": data for number, (data, _) in enumerate(KINDS.values())}
    candidates(workspace, [server.url + path for path in server.pages])
    metrics = run(Config(**{**FAST, "max_megabytes": 1}), workspace)
    assert metrics["by_status"] == {"ok": 1, "duplicate": len(KINDS) - 1}
    for row, (kind, (data, suffix)) in zip(workspace.load("images").rows(), KINDS.items(), strict=True):
        file = workspace.image_file(row["path"])
        assert file.read_bytes() == data and file.suffix == suffix, kind
        assert row["image_id"] == make_image_id(data)
        assert (row["width"], row["height"]) == (WIDTH, HEIGHT), kind


def test_the_shown_size_counts_for_the_least_side():
    tall = oriented(6)  # stored 80 x 120, shown 120 x 80
    assert inspect_image(tall, min_side=80).height == 80
    with pytest.raises(BadImage, match="120 x 80 pixels; expected at least 81"):
        inspect_image(tall, min_side=81)


def test_transparent_is_white_and_16_bits_keep_their_range(tmp_path):
    cut_out = scene().convert("RGBA")
    mask = Image.new("L", cut_out.size, 255)
    mask.paste(0, (60, 20, 120, 80))
    cut_out.putalpha(mask)
    (tmp_path / "a.png").write_bytes(encoded(cut_out, "PNG"))
    pixels = read_image(tmp_path / "a.png")
    assert pixels[60, 100].tolist() == [255, 255, 255] and pixels[60, 20, 0] == 230
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    (tmp_path / "b.png").write_bytes(encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"))
    pixels = read_image(tmp_path / "b.png")
    assert np.abs(pixels - ramp[..., None] / 257).max() <= 1
    assert inspect_image((tmp_path / "b.png").read_bytes()).phash == phash(pixels)


@pytest.mark.parametrize(
    "kind", ["jpeg", "turned to the right", "CMYK", "CMYK TIFF", "turned PNG", "palette", "turned WebP"]
)
def test_files_cut_short(kind):
    data = KINDS[kind][0]
    for share in (0.95, 0.5):
        with pytest.raises(BadImage) as raised:
            inspect_image(data[: int(len(data) * share)])
        assert raised.value.status == "truncated", (kind, share, str(raised.value))


def test_an_animation_needs_its_first_picture():
    data = animation("GIF")
    assert inspect_image(data[:-20]).width == WIDTH
    with pytest.raises(BadImage):
        inspect_image(data[:400])
