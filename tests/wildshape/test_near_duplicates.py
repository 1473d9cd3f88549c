import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from wildshape import hash_index, near_duplicates
from wildshape.near_duplicates import (
    close_pairs,
    close_pairs_reference,
    clusters,
    hamming,
    nearest,
    phash,
    trim_caption_bars,
)
from wildshape.splits import assign_splits


def picture(seed: int, height: int = 180, width: int = 240) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def bits_apart(a: str, b: str) -> int:
    return bin(int(a, 16) ^ int(b, 16)).count("1")


def test_hash_survives_resizing_and_recompression():
    image = picture(0)
    ok, coded = cv2.imencode(".jpg", cv2.resize(image, (120, 90)), [cv2.IMWRITE_JPEG_QUALITY, 40])
    assert ok
    assert bits_apart(phash(image), phash(cv2.imdecode(coded, cv2.IMREAD_COLOR))) <= 4


def test_hash_survives_a_caption_bar():
    image = picture(1)
    bar = np.full((18, image.shape[1], 3), 255, dtype=np.uint8)
    cv2.putText(bar, "stock photo 123", (60, 13), 0, 0.4, (30, 30, 30), 1)
    for captioned in (np.vstack([image, bar]), np.vstack([bar, image])):
        assert bits_apart(phash(image), phash(captioned)) <= 4
    assert len(trim_caption_bars(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))) == len(image)


def test_different_pictures_are_far_apart():
    hashes = [phash(picture(seed)) for seed in range(40)]
    off_diagonal = hamming(hashes, hashes)[np.triu_indices(40, 1)]
    assert off_diagonal.min() > 8


def test_grey_flat_and_tiny_pictures_hash():
    assert len(phash(np.zeros((20, 20), dtype=np.uint8))) == 16
    assert phash(np.full((9, 9, 3), 7, np.uint8)) == phash(np.full((30, 50, 3), 200, np.uint8))
    phash(np.zeros((1, 1, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="expected an image"):
        phash(np.zeros((0, 4, 3), dtype=np.uint8))


def test_hamming_and_nearest_by_hand():
    zero, one, many = "0" * 16, "0" * 15 + "1", "f" * 16
    np.testing.assert_array_equal(hamming([zero, None], [one, many, None])[0], [1, 64, np.inf])
    index, distance = nearest([one, many, None], [zero, many])
    assert index.tolist() == [0, 1, -1]
    assert distance.tolist() == [1, 0, np.inf]
    assert nearest([one], [])[0].tolist() == [-1]
    with pytest.raises(ValueError, match="hexadecimal"):
        hamming(["xyz"], [zero])


def test_clusters_link_by_chains_and_keep_missing_apart():
    chain = [f"{(1 << n) - 1:016x}" for n in (0, 3, 6, 9)]
    far = "f" * 16
    assert clusters([far, *chain, None, None, chain[0]], 3).tolist() == [0, 1, 1, 1, 1, 2, 3, 1]
    assert clusters(chain, 2).tolist() == [0, 1, 2, 3]
    assert clusters([], 3).tolist() == []
    assert clusters([None], 3).tolist() == [0]


def crowded(seed: int, count: int) -> list[str | None]:
    """Random hashes, copies a few bits off, equal ones, and missing ones."""
    rng = np.random.default_rng(seed)
    numbers = [int(value) for value in rng.integers(0, 2**63, count, dtype=np.uint64)]
    for place in range(count // 2, count):
        flips = rng.choice(64, rng.integers(0, 22), replace=False)
        numbers[place] = numbers[int(rng.integers(0, count // 2))] ^ sum(1 << int(bit) for bit in flips)
    missing = set(rng.choice(count, count // 20, replace=False).tolist())
    return [None if place in missing else f"{number:016x}" for place, number in enumerate(numbers)]


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 7, 8, 11, 13, 18, 20])
@pytest.mark.parametrize("ordered", [True, False])
def test_the_index_finds_what_comparing_all_finds(monkeypatch, radius, ordered):
    first = crowded(radius, 600)
    second = first if ordered else [*crowded(100, 200), *first[:150], None]
    expected = close_pairs_reference(first, second, radius, ordered=ordered)
    monkeypatch.setattr(near_duplicates, "_INDEX_FROM", 0)
    found = close_pairs(first, second, radius, ordered=ordered)
    np.testing.assert_array_equal(found.first, expected.first)
    np.testing.assert_array_equal(found.second, expected.second)
    assert len(found) > 0


@pytest.mark.parametrize("limit", [0, 5, 60, 200, 10**6])
def test_the_index_keeps_the_limit(monkeypatch, limit):
    hashes = crowded(3, 600)
    expected = close_pairs_reference(hashes, hashes, 18, ordered=True, limit=limit)
    monkeypatch.setattr(near_duplicates, "_INDEX_FROM", 0)
    found = close_pairs(hashes, hashes, 18, ordered=True, limit=limit)
    assert found.radius == expected.radius and len(found) <= limit
    np.testing.assert_array_equal(found.first, expected.first)
    np.testing.assert_array_equal(found.second, expected.second)


def test_every_pair_within_the_distance_shares_a_part():
    """Parts' radii r + 1 sum to R + 1: were all parts farther apart, the pair would be too."""
    for distance in range(40):
        radii = hash_index.part_radii(distance)
        assert sum(radius + 1 for radius in radii) == distance + 1
        assert max(radii) - min(radii) <= 1
    assert [len(hash_index.masks(radius)) for radius in (0, 1, 2)] == [1, 17, 137]


def test_clusters_equal_brute_force():
    rng = np.random.default_rng(3)
    base = rng.integers(0, 2**63, 30, dtype=np.uint64)
    noisy = [int(b) ^ int(1 << int(rng.integers(64))) for b in base for _ in range(4)]
    hashes = [f"{value:016x}" for value in noisy]
    found = clusters(hashes, 6)
    distance = np.array([[bits_apart(a, b) for b in hashes] for a in hashes])
    expected = np.arange(len(hashes))
    for _ in range(len(hashes)):  # spread the smallest index along links until nothing changes
        spread = np.where(distance <= 6, expected[None], len(hashes)).min(axis=1)
        if (spread == expected).all():
            break
        expected = spread
    assert ((found[:, None] == found[None]) == (expected[:, None] == expected[None])).all()


def test_splits_keep_clusters_whole_and_sizes_near():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 90, 150)
    splits = assign_splits(ids, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=4)
    for cluster in np.unique(ids):
        assert len(set(splits[ids == cluster])) == 1
    counts = {name: int((splits == name).sum()) for name in ("train", "val", "test")}
    assert abs(counts["train"] - 105) <= 4
    assert abs(counts["val"] - 15) <= 4
    assert abs(counts["test"] - 30) <= 4
    assert (splits == assign_splits(ids, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=4)).all()
    assert (splits != assign_splits(ids, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=5)).any()


def test_split_fractions_of_zero_stay_empty_and_bad_ones_are_refused():
    assert set(assign_splits(np.arange(20), {"train": 0.5, "val": 0.0, "test": 0.5})) == {
        "train",
        "test",
    }
    assert assign_splits([], None).tolist() == []
    with pytest.raises(ValueError, match="fractions"):
        assign_splits([1], {"train": 0.0})


@pytest.mark.real_data
def test_recall_and_false_merges_on_real_cows():
    root = os.environ.get("WILDSHAPE_REAL_DATA")
    if not root or not (Path(root) / "web_cow").is_dir():
        pytest.skip("WILDSHAPE_REAL_DATA does not point to a folder with web_cow/")
    files = sorted((Path(root) / "web_cow").iterdir())
    images = [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]
    hashes = [phash(image) for image in images]
    # Against the same photos, made into what the web makes of them.
    changed = []
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        smaller = cv2.resize(image, (width * 2 // 3, height * 2 // 3), interpolation=cv2.INTER_AREA)
        if number % 2:
            bar = np.full((max(8, smaller.shape[0] // 14), smaller.shape[1], 3), 255, np.uint8)
            smaller = np.vstack([smaller, bar])
        _, coded = cv2.imencode(".jpg", smaller[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 50])
        changed.append(phash(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].copy()))
    distance = hamming(changed, hashes)
    recall = (distance[np.arange(len(files)), np.arange(len(files))] <= 8).mean()
    pairs = (hamming(hashes, hashes)[np.triu_indices(len(files), 1)] <= 8).sum()
    print(f"recall {recall:.3f} on {len(files)} photos; {pairs} pairs within the pool")
    assert recall > 0.95
    assert 40 < pairs < 120
