"""Repeated images in the pool, from files to statuses."""

import cv2
import numpy as np
import pytest

import prepare_data.pool as pool
from benchmarks.real_near_duplicates import Pool, digest, draw, merged_pairs, smaller_than_left_out
from prepare_data.add_folder import Config, run
from prepare_data.pool import find_repetitions, make_pool, mark_repeated
from wildshape.crops import ImageError
from wildshape.near_duplicates import CANDIDATE_DISTANCE, MAX_DISTANCE, hamming, phash
from wildshape.stage import Provenance, publish
from wildshape.tables import Table, content_hash
from wildshape.workspace import Workspace


def picture(seed: int, height: int = 240, width: int = 320) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = cv2.resize(
        rng.integers(60, 190, (4, 5, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    for _ in range(220):
        spot = (int(rng.integers(width)), int(rng.integers(height)))
        axes = (int(rng.integers(3, 22)), int(rng.integers(3, 14)))
        colour = rng.integers(0, 256, 3).tolist()
        cv2.ellipse(image, spot, axes, int(rng.integers(180)), 0, 360, colour, -1, cv2.LINE_AA)
    return image


def save(path, image, quality=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])


def cropped(image):
    """A tenth of either side cut off."""
    height, width = image.shape[:2]
    return image[height // 10 :, : width - width // 10]


def captioned(image):
    return np.vstack([image, np.full((20, image.shape[1], 3), 255, np.uint8)])


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "root", "cow")


def label(workspace: Workspace, images: list[np.ndarray], *, with_files: bool = True) -> None:
    rows = []
    for number, image in enumerate(images):
        file = workspace.labelled_images_dir / f"{number}.png"
        save(file, image)
        rows.append({"record_id": f"l{number}", "image_id": f"label{number}", "source": "t", "status": "ok",
                     "path": workspace.relative(file) if with_files else None, "phash": phash(image),
                     "width": image.shape[1], "height": image.shape[0]})  # fmt: skip
    publish(Table.from_rows("images", rows), workspace.table_path("labelled_images"), Provenance("t"))


def statuses(workspace: Workspace) -> dict[str, tuple[str, str | None]]:
    images = workspace.load("images")
    return {row["source_id"]: (row["status"], row["error"]) for row in images.rows()}


def test_every_kind_of_copy_of_a_labelled_image_is_left_out(workspace, tmp_path):
    labelled = [picture(seed) for seed in range(5)]
    label(workspace, labelled)
    copies = {
        "recoded": labelled[0],
        "smaller": cv2.resize(labelled[1], None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA),
        "cropped": cropped(labelled[2]),
        "captioned": captioned(labelled[3]),
        "mirrored": labelled[4][:, ::-1],
        "mirrored_crop": cropped(labelled[0])[:, ::-1],
    }
    for name, image in copies.items():
        save(tmp_path / "web" / f"{name}.jpg", image)
    for seed in range(20, 32):
        save(tmp_path / "web" / f"other{seed}.jpg", picture(seed))
    assert hamming([phash(copies["cropped"])], [phash(labelled[2])])[0, 0] > MAX_DISTANCE
    metrics = run(Config(category="cow", folder=tmp_path / "web"), workspace)
    found = statuses(workspace)
    for name, number in zip(copies, (0, 1, 2, 3, 4, 0)):
        assert found[f"{name}.jpg"] == ("in_labels", f"repeats the labelled image label{number}")
    assert metrics["by_status"] == {"ok": 12, "in_labels": 6}
    facts = metrics["near_duplicates"]
    assert facts["pool_distance"] == CANDIDATE_DISTANCE
    assert facts["labelled_confirmed"] >= 1
    assert facts["labelled_mirrored_confirmed"] >= 2


def test_the_larger_labelled_image_contains_the_web_image_or_the_other_way_round(workspace, tmp_path):
    label(workspace, [cropped(picture(1)), picture(2)])
    save(tmp_path / "web" / "whole.jpg", picture(1))
    save(tmp_path / "web" / "part.jpg", cropped(picture(2)))
    save(tmp_path / "web" / "other.jpg", picture(3))
    run(Config(category="cow", folder=tmp_path / "web"), workspace)
    assert {name: status for name, (status, _) in statuses(workspace).items()} == {
        "other.jpg": "ok", "part.jpg": "in_labels", "whole.jpg": "in_labels",
    }  # fmt: skip


def test_labels_without_files_are_found_by_their_hashes(workspace, tmp_path):
    label(workspace, [picture(1), picture(2)], with_files=False)
    save(tmp_path / "web" / "copy.jpg", picture(1))
    save(tmp_path / "web" / "mirror.jpg", picture(2)[:, ::-1])
    run(Config(category="cow", folder=tmp_path / "web"), workspace)
    assert {name: status for name, (status, _) in statuses(workspace).items()} == {
        "copy.jpg": "in_labels", "mirror.jpg": "ok",
    }  # fmt: skip


def pool_table(workspace: Workspace, images: list[np.ndarray]) -> Table:
    rows = []
    for number, image in enumerate(images):
        file = workspace.images_dir / f"{number}.jpg"
        save(file, image)
        rows.append({"record_id": f"r{number}", "image_id": f"i{number}", "source": "t", "status": "ok",
                     "path": workspace.relative(file), "phash": phash(image), "width": image.shape[1],
                     "height": image.shape[0]})  # fmt: skip
    return Table.from_rows("images", rows)


def test_mirrored_copies_in_the_pool_are_duplicates_and_the_result_is_deterministic(workspace):
    images = [picture(seed) for seed in range(6)]
    images += [cv2.resize(images[2], (200, 150), interpolation=cv2.INTER_AREA)[:, ::-1]]
    table = pool_table(workspace, images)
    marked = make_pool(table, workspace)
    assert marked["status"].tolist() == ["ok"] * 6 + ["duplicate"]
    assert marked["error"][6] == "repeats r2"
    again = make_pool(table, workspace)
    assert content_hash(again) == content_hash(marked)
    assert again.meta == marked.meta


def test_rows_that_are_not_ok_are_not_read_and_lost_files_are_an_error(workspace):
    table = pool_table(workspace, [picture(1), picture(1)[:, ::-1]])
    status = np.array(["ok", "not_found"], dtype=object)
    (workspace.images_dir / "1.jpg").unlink()
    assert make_pool(table.with_columns(status=status), workspace)["status"].tolist() == ["ok", "not_found"]
    with pytest.raises(ImageError, match=r"1\.jpg"):
        make_pool(table, workspace)


def test_a_large_pool_is_compared_within_a_smaller_distance(workspace, monkeypatch):
    images = [picture(seed) for seed in range(6)]
    table = pool_table(workspace, [*images, images[0][:, ::-1]])
    monkeypatch.setattr(pool, "MAX_POOL_PAIRS", 0)
    found = find_repetitions(table, None, [], workspace)
    assert len(found.links) == 0
    assert found.facts["pool_distance"] < CANDIDATE_DISTANCE
    assert found.facts["pool_compared"] == found.facts["pool_mirrored_compared"] == 0


def test_links_join_clusters():
    rows = [
        {"record_id": f"r{i}", "image_id": f"i{i}", "source": "t", "width": 9, "height": 9, "phash": value,
         "status": "ok"}
        for i, value in enumerate(["0" * 16, "f" * 16, "0f" * 8, "f0" * 8])
    ]  # fmt: skip
    table = Table.from_rows("images", rows)
    links = np.array([[0, 2], [3, 4]])  # after one labelled image: it with r1, r2 with r3
    marked = mark_repeated(table, ["label"], ["3c" * 8], links=links)
    assert marked["status"].tolist() == ["ok", "in_labels", "ok", "duplicate"]
    assert marked["error"].tolist() == [None, "repeats the labelled image label", None, "repeats r2"]


def test_the_benchmark_on_real_photos_names_every_merged_pair(workspace, tmp_path):
    large = picture(1, 360, 480)
    images = [
        cv2.resize(large, (320, 240), interpolation=cv2.INTER_AREA),
        large,
        large[:, ::-1],
        picture(2),
    ]
    images += [picture(3), captioned(picture(4))]
    label(workspace, [picture(4), picture(5)])
    downloads = pool_table(workspace, images)
    publish(downloads, workspace.table_path("downloads"), Provenance("t"))
    marked = make_pool(downloads, workspace)
    assert marked["status"].tolist() == ["duplicate", "ok", "duplicate", "ok", "ok", "in_labels"]
    found = Pool(workspace, workspace.load("labelled_images"), marked)
    pairs = merged_pairs(found)
    names = {(pair.first.name, pair.second.name): pair.why for pair in pairs}
    assert names == {
        ("0.png", "5.jpg"): "hash",
        ("0.jpg", "1.jpg"): "hash",
        ("0.jpg", "2.jpg"): "pixels",
        ("1.jpg", "2.jpg"): "pixels",
    }
    assert smaller_than_left_out(marked) == 0
    swapped = np.where(marked["record_id"] == "r1", 10, marked["width"])
    assert smaller_than_left_out(marked.with_columns(width=swapped)) == 2
    assert draw(pairs, tmp_path / "sheets") == 1
    assert cv2.imread(str(tmp_path / "sheets" / "pairs_00.png")).std() > 10
    assert digest(pairs) == digest(merged_pairs(found)) != digest(pairs[1:])
