import os
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from wildshape.crops import ImageError
from wildshape.near_duplicates import close_pairs, clusters, crop_hashes, hamming, mirrored_hash, phash
from wildshape.same_photo import (
    LONG_SIDE,
    SAME_SHOOT,
    believable,
    compare,
    find_features,
    match,
    mirrored,
    read_features,
)


def scene(ground: int, animal: int = 0, at: tuple[int, int] = (210, 150), size=(420, 300)) -> np.ndarray:
    """A meadow of random strokes, and on it a spotted body with a head and legs."""
    rng = np.random.default_rng(ground)
    image = np.full((size[1], size[0], 3), (120, 160, 90), np.uint8)
    for _ in range(500):
        x, y = (int(rng.integers(0, side)) for side in size)
        tip = (x + int(rng.integers(-14, 15)), y + int(rng.integers(-14, 15)))
        cv2.line(
            image, (x, y), tip, rng.integers(20, 230, 3).tolist(), int(rng.integers(1, 4)), cv2.LINE_AA
        )
    rng = np.random.default_rng([animal, 1])
    x, y = at
    body = np.zeros(image.shape[:2], np.uint8)
    cv2.ellipse(body, (x, y), (80, 45), 0, 0, 360, 1, -1)
    cv2.ellipse(body, (x + 95, y - 30), (28, 18), 20, 0, 360, 1, -1)
    for leg in (-55, -40, 40, 55):
        cv2.rectangle(body, (x + leg - 6, y + 30), (x + leg + 6, y + 95), 1, -1)
    coat = np.full_like(image, 235)
    for _ in range(25):
        spot = (x + int(rng.integers(-90, 120)), y + int(rng.integers(-50, 90)))
        axes = (int(rng.integers(4, 18)), int(rng.integers(4, 14)))
        cv2.ellipse(coat, spot, axes, int(rng.integers(180)), 0, 360, (45, 35, 30), -1, cv2.LINE_AA)
    return np.where(body[..., None] == 1, coat, image)


def recoded(image: np.ndarray, quality: int = 50) -> np.ndarray:
    _, coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].copy()


def captioned(image: np.ndarray) -> np.ndarray:
    bar = np.full((24, image.shape[1], 3), 250, np.uint8)
    cv2.putText(bar, "www.stock.example - 1234567", (90, 17), 0, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([image, bar])


COPIES = {
    "recoded": lambda image: recoded(image, 25),
    "smaller": lambda image: recoded(cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)),
    "stretched": lambda image: cv2.resize(image, None, fx=0.8, fy=0.92, interpolation=cv2.INTER_AREA),
    "cropped": lambda image: recoded(image[20:290, 35:413]),
    "cropped by half": lambda image: image[20:240, 100:400],
    "captioned": lambda image: recoded(captioned(image)),
    "brighter": lambda image: np.clip(image * 1.15 + 15, 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_a_photograph_are_the_same(name):
    for seed in range(3):
        image = scene(seed, seed)
        evidence = compare(find_features(image), find_features(COPIES[name](image)))
        assert evidence.same(), evidence
        back = compare(find_features(COPIES[name](image)), find_features(image))
        assert back.same(), back


def test_a_mirrored_copy_is_the_same_only_when_mirrored_back():
    image = scene(4)
    copy = find_features(recoded(image[:270, 30:][:, ::-1]))
    assert compare(find_features(image), mirrored(copy)).same()
    assert not compare(find_features(image), copy).same(SAME_SHOOT)


def test_mirrored_features_are_those_of_the_mirror_image():
    image = scene(5)
    given, found = mirrored(find_features(image)), find_features(np.ascontiguousarray(image[:, ::-1]))
    np.testing.assert_allclose(given.grey, found.grey, atol=1)
    a, b = match(given, found)
    assert len(a) > 0.8 * len(given.xy)
    assert np.median(np.linalg.norm(given.xy[a] - found.xy[b], axis=1)) < 0.1
    similarity = (given.descriptors[a].astype(np.float32) * found.descriptors[b]).sum(axis=1)
    assert np.median(similarity) > 0.999


def test_different_photos_are_not_the_same():
    pictures = [find_features(scene(seed, seed)) for seed in range(10)]
    for i in range(10):
        for j in range(10):
            assert compare(pictures[i], pictures[j]).same() == (i == j)


def test_other_shots_of_the_same_animal_or_place_are_not_the_same():
    here = find_features(scene(1, 7))
    elsewhere = compare(here, find_features(scene(2, 7, at=(180, 130))))
    assert not elsewhere.same(SAME_SHOOT), elsewhere
    walked_on = compare(here, find_features(scene(1, 7, at=(120, 170))))
    assert walked_on.inliers > 30  # the place is recognised
    assert not walked_on.same(), walked_on


def test_a_caption_shared_by_two_photos_is_not_enough():
    first, second = (find_features(captioned(scene(seed, seed))) for seed in (1, 2))
    assert not compare(first, second).same(SAME_SHOOT)


def test_a_copy_of_which_parts_are_blank_is_found():
    image = scene(3, 3)
    cut = image.copy()
    cut[:, :130] = 255
    cut[:60] = 255
    evidence = compare(find_features(image), find_features(recoded(cut)))
    assert evidence.same(SAME_SHOOT), evidence  # cells on the border of the blank disagree


def test_comparing_twice_gives_the_same():
    image, other = scene(6), recoded(scene(6)[10:, 10:])
    runs = [compare(find_features(image), find_features(other)) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


def test_flat_tiny_and_missing_pictures(tmp_path):
    flat, tiny = (
        find_features(np.full((90, 120, 3), 80, np.uint8)),
        find_features(np.zeros((1, 1), np.uint8)),
    )
    for other in (flat, tiny, find_features(scene(0))):
        assert not compare(flat, other).same()
        assert not compare(other, tiny).same()
    with pytest.raises(ImageError, match=r"none\.jpg"):
        read_features(tmp_path / "none.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        read_features(tmp_path / "bad.jpg")


def test_reading_reduces_a_large_file_and_turns_it(tmp_path):
    from PIL import Image

    image = Image.fromarray(cv2.resize(scene(8), (1680, 1200), interpolation=cv2.INTER_CUBIC))
    exif = image.getexif()
    exif[0x0112] = 6  # stored turned; shown 1200 x 1680
    image.save(tmp_path / "turned.jpg", exif=exif)
    read = read_features(tmp_path / "turned.jpg")
    assert read.grey.shape == (LONG_SIDE, round(LONG_SIDE * 1200 / 1680))
    shown = np.rot90(np.array(image), -1)
    assert compare(read, find_features(shown)).same()
    assert [field.name for field in fields(read)] == ["grey", "xy", "descriptors"]


@pytest.mark.parametrize(
    ("matrix", "good"),
    [
        ([[1, 0, 5], [0, 1, -3]], True),
        ([[0.5, 0, 0], [0, 0.6, 0]], True),
        ([[-1, 0, 0], [0, 1, 0]], False),
        ([[1, 0, 0], [0, 0.5, 0]], False),
        ([[0, -1, 0], [1, 0, 0]], False),
        ([[0.1, 0, 0], [0, 0.1, 0]], False),
        ([[np.nan, 0, 0], [0, 1, 0]], False),
    ],
)
def test_believable_maps(matrix, good):
    assert believable(np.array(matrix, float)) is good


def test_hash_of_the_mirror_image_without_the_image():
    for seed in range(10):
        image = scene(seed, seed)
        mirror = np.ascontiguousarray(image[:, ::-1])
        distance = hamming([mirrored_hash(phash(image))], [phash(mirror)])
        assert distance[0, 0] <= 10
        assert mirrored_hash(mirrored_hash(phash(image))) == phash(image)


def test_a_crop_is_near_one_of_the_crop_hashes():
    image = scene(9, 2)
    crop = phash(recoded(image[6:276, 30:408]))
    assert len(crop_hashes(image)) == 10
    assert hamming([crop], crop_hashes(image)).min() < hamming([crop], [phash(image)])[0, 0]
    assert len(crop_hashes(np.zeros((1, 1), np.uint8))) == 10


def test_close_pairs_equal_brute_force_and_keep_the_limit():
    rng = np.random.default_rng(2)
    values = [f"{int(v):016x}" for v in rng.integers(0, 2**63, 60, dtype=np.uint64)] + [None]
    near = [None if v is None else f"{int(v, 16) ^ (1 << i % 64):016x}" for i, v in enumerate(values)]
    for ordered in (False, True):
        distance = hamming(values, near)
        inside = np.triu(distance <= 24, 1) if ordered else distance <= 24
        pairs = close_pairs(values, near, 24, ordered=ordered)
        assert sorted(zip(pairs.first, pairs.second)) == sorted(zip(*np.nonzero(inside)))
        assert pairs.radius == 24
    counts = [(hamming(values, near) <= radius).sum() for radius in range(25)]
    limited = close_pairs(values, near, 24, limit=70)
    assert len(limited) == counts[limited.radius] <= 70 < counts[limited.radius + 1]
    assert len(close_pairs(values, near, 24, limit=0)) == 0
    assert len(close_pairs([], [], 8, limit=5)) == 0


def test_clusters_take_further_links():
    hashes = ["0" * 16, "f" * 16, "0" * 15 + "1", None, "0f" * 8]
    assert clusters(hashes, 3, np.array([[1, 3], [4, 1]])).tolist() == [0, 1, 0, 1, 1]
    assert clusters(hashes, 3, np.zeros((0, 2), np.int64)).tolist() == [0, 1, 0, 2, 3]


@pytest.mark.real_data
def test_copies_of_real_photos_are_found_and_no_others():
    root = os.environ.get("WILDSHAPE_REAL_DATA")
    if not root or not (Path(root) / "animal_pose" / "images").is_dir():
        pytest.skip("WILDSHAPE_REAL_DATA does not point to a folder with animal_pose/")
    files = sorted((Path(root) / "animal_pose" / "images").glob("co*"))[:40]
    images = [cv2.imread(str(file))[..., ::-1].copy() for file in files]
    pictures = [read_features(file) for file in files]
    copies = []
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        copy = recoded(image[height // 12 :, : width - width // 10])
        copies.append(mirrored(find_features(copy[:, ::-1].copy())) if number % 2 else find_features(copy))
    same = np.array([[compare(a, b).same(SAME_SHOOT) for b in copies] for a in pictures])
    known = np.array([[compare(a, b).same(SAME_SHOOT) for b in pictures] for a in pictures])
    assert np.diag(same).all()
    assert (same & ~known).sum() == 0
    assert known.sum() - len(files) <= 4  # the same photo under two names
