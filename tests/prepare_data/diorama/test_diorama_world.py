"""A world on disk: tables, metadata, server, detector, truth."""

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from urllib.parse import urlsplit

import numpy as np
import pytest
from diorama_settings import SMALL
from pycocotools import mask as coco_mask

from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.listing import metadata_path, photo_of
from prepare_data.diorama.server import DioramaServer, serve, serving
from prepare_data.diorama.truth import detection_quality, match_truth, save_truth_keypoints
from prepare_data.diorama.world import build_world, world_dir
from prepare_data.metadata import ScanCounts, scan
from prepare_data.query import Query
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.near_duplicates import clusters, hamming
from wildshape.tables import Table, make_record_id
from wildshape.workspace import Workspace


def get(url: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_counts_and_files(world: Workspace) -> None:
    labels, images = world.load("labels"), world.load("labelled_images")
    assert Counter(labels["split"]) == {"train": 12, "val": 6, "test": 8}
    assert len(images) == 26 and set(labels["image_id"]) == set(images["image_id"])
    assert labels["xy"].shape == (26, 16, 2) and labels.meta["skeleton"] == "quadruped16"
    for row in images.rows():
        image = read_image(world.image_file(row["path"]))
        assert image.shape[:2] == (row["height"], row["width"])
    truth_images = world.load("truth_images")
    assert len(truth_images) == 40
    for row in truth_images.rows():
        assert world.image_file(row["path"]).is_file()
        assert row["record_id"] == make_record_id("yfcc100m", row["source_id"])
    truth = world.load("truth")
    assert set(truth["image_id"]) <= set(truth_images["image_id"])
    assert "horse" in set(truth["category"]) and len(set(truth["category"])) > 1
    per_image = Counter(truth["image_id"])
    assert max(per_image.values()) > 1 and len(per_image) < 40


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
def test_labels_are_consistent(world: Workspace) -> None:
    sizes = {r["image_id"]: (r["height"], r["width"]) for r in world.load("labelled_images").rows()}
    for row in world.load("labels").rows():
        height, width = sizes[row["image_id"]]
        x0, y0, x1, y1 = row["box_xyxy"]
        assert -0.5 <= x0 < x1 <= width - 0.5 and -0.5 <= y0 < y1 <= height - 0.5
        labelled = row["visible"] > 0
        assert (row["visible"] == 2).sum() >= 4
        assert (row["xy"][labelled] >= [x0 - 2, y0 - 2]).all()
        assert (row["xy"][labelled] <= [x1 + 2, y1 + 2]).all()
        assert (row["xy"][~labelled] == 0).all()
        rle = json.loads(row["mask_rle"])
        assert rle["size"] == [height, width]
        mask = np.asarray(coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()})) > 0
        rows, columns = np.nonzero(mask)
        assert columns.min() >= x0 - 1 and columns.max() <= x1 + 1
        assert rows.min() >= y0 - 1 and rows.max() <= y1 + 1


def test_cameras_put_the_template_roughly_onto_the_animal(world: Workspace) -> None:
    from scipy.spatial.transform import Rotation

    from acsm.template import template_for

    template = template_for(world.category)
    points = template.vertices[template.keypoint_vertices]
    gaps, swapped = [], []
    for row in world.load("labels").rows():
        scale, tx, ty, w, x, y, z = row["camera"]
        rotation = Rotation.from_quat([x, y, z, w]).as_matrix()
        labelled = row["visible"] > 0
        side = (row["box_xyxy"][2:] - row["box_xyxy"][:2]).max()

        def gap(points: np.ndarray) -> float:
            xy = scale * (points @ rotation.T)[:, :2] + [tx, ty]  # noqa: B023
            return float(np.linalg.norm(xy - row["xy"], axis=1)[labelled].mean() / side)  # noqa: B023

        gaps.append(gap(points))
        swapped.append(gap(points * [1, -1, 1]))  # facing the other way
    assert np.mean(gaps) < 0.13
    assert np.mean(np.array(gaps) < np.array(swapped)) > 0.95


def test_near_duplicates_stay_in_one_split_and_leaks_are_there(world: Workspace) -> None:
    images, labels = world.load("labelled_images"), world.load("labels")
    split = dict(zip(labels["image_id"], labels["split"]))
    home: dict[int, str] = {}
    ids = clusters(list(images["phash"]))
    for cluster, image_id in zip(ids, images["image_id"]):
        assert home.setdefault(int(cluster), split[image_id]) == split[image_id]
    assert len(set(ids)) < len(ids)
    web = world.load("truth_images")
    assert (hamming(list(web["phash"]), list(images["phash"])).min(1) <= 8).sum() >= 2
    assert len(set(clusters(list(web["phash"])))) <= 40 - 5


def test_a_world_is_made_once_and_again_the_same(world: Workspace, tmp_path) -> None:
    settings = {**SMALL, "num_train": 3, "num_val": 1, "num_test": 1, "num_web": 4}
    made = []
    for folder, threads in (("a", 1), ("b", 2)):
        workspace = Workspace(tmp_path / folder, "sheep")
        build_world(DioramaConfig(**settings), workspace, threads=threads)
        made.append([list(workspace.load(n)["image_id"]) for n in ("labelled_images", "truth_images")])
        np.testing.assert_array_equal(workspace.load("labels")["visible"].shape, (5, 16))
    assert made[0] == made[1]
    workspace = Workspace(tmp_path / "a", "sheep")
    before = (world_dir(workspace) / "world.json").stat().st_mtime_ns
    assert build_world(DioramaConfig(**settings), workspace)["done_before"]
    assert (world_dir(workspace) / "world.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"made with other settings \(.*seed.*\); add --overwrite"):
        build_world(DioramaConfig(**{**settings, "seed": 5}), workspace)
    build_world(DioramaConfig(**{**settings, "seed": 5}), workspace, overwrite=True, threads=1)
    assert list(workspace.load("labelled_images")["image_id"]) != made[0][0]


def test_foreign_labels_are_not_overwritten(tmp_path) -> None:
    from wildshape.tables import write_table

    workspace = Workspace(tmp_path, "horse")
    row = {"instance_id": "a1", "image_id": "i1", "category": "horse", "box_xyxy": np.arange(4.0),
           "score": 1.0, "detector": "animal_pose", "flags": "", "split": "train",
           "skeleton": "quadruped16", "xy": np.zeros((16, 2)), "visible": np.zeros(16, int)}  # fmt: skip
    write_table(Table.from_rows("labels", [row]), workspace.table_path("labels"))
    with pytest.raises(UserError, match="expected no labels for horse yet; .*not made by the diorama"):
        build_world(DioramaConfig(**SMALL), workspace)


def test_metadata_is_found_by_the_search_and_other_subjects_are_not(world: Workspace) -> None:
    counts = ScanCounts()
    photos = list(scan(metadata_path(world), Query.of(world.category), counts))
    made = read_json(world_dir(world) / "world.json")
    keys = set(world.load("truth_images")["source_id"])
    failing = sum(made["counts"][k] for k in ("not_found", "truncated", "cut", "page"))
    assert failing == 4 + 4 + 2
    assert keys <= {photo.source_id for photo in photos} and len(photos) == 40 + failing
    assert counts.malformed == 0 and counts.excluded == 3 and counts.videos == 3 and counts.no_word == 6
    assert all(photo.url == made["base_url"] + photo_of(photo.source_id).path for photo in photos)
    assert {photo.license for photo in photos} > {"Attribution License"}


def test_the_server_answers_as_the_world_says(world: Workspace) -> None:
    routes = read_json(world_dir(world) / "server.json")
    kinds = Counter(route["kind"] for route in routes.values())
    assert kinds == {"ok": 36, "rate_limited": 4, "truncated": 2, "cut": 2, "page": 2}
    with serve(world_dir(world)) as server:
        for path, route in routes.items():
            url, kind = server.base_url + path, route["kind"]
            if kind == "cut":
                with pytest.raises(http.client.IncompleteRead):
                    get(url)
                continue
            code, headers, body = get(url)
            if kind == "rate_limited":
                assert code == 429 and headers["Retry-After"] == "1"
                code, headers, body = get(url)
            assert code == 200
            if kind in ("ok", "rate_limited"):
                assert headers["Content-Type"] == "image/jpeg"
                assert body == (world_dir(world) / route["file"]).read_bytes()
            elif kind == "truncated":
                whole = (world_dir(world) / route["file"]).read_bytes()
                assert whole.startswith(body) and len(body) < len(whole) / 2
            else:
                assert body.startswith(b"<!DOCTYPE html>")
        assert get(server.base_url + "/1/2_3.jpg")[0] == 404
        assert server.statuses == {200: 46, 429: 4, 404: 1}
        assert server.requests["/1/2_3.jpg"] == 1


def test_latency_and_taken_ports(world: Workspace) -> None:
    path = next(p for p, r in read_json(world_dir(world) / "server.json").items() if r["kind"] == "ok")
    with serve(world_dir(world), latency=0.15) as server:
        start = time.monotonic()
        assert get(server.base_url + path)[0] == 200
        assert time.monotonic() - start >= 0.15
        port = urlsplit(server.base_url).port
        with pytest.raises(UserError, match=f"expected port {port} to be free"):
            DioramaServer(world_dir(world), port)
    with pytest.raises(UserError, match="expected a synthetic world in"):
        DioramaServer(world_dir(world).parent)


def test_serving_elsewhere_keeps_record_ids(tmp_path, capsys) -> None:
    workspace = Workspace(tmp_path, "dog")
    settings = {**SMALL, "num_train": 1, "num_val": 0, "num_test": 0, "num_web": 3}
    build_world(DioramaConfig(**settings), workspace, threads=1)
    query = Query.of(workspace.category)

    def records() -> list[str]:
        photos = scan(metadata_path(workspace), query, ScanCounts())
        return [make_record_id(photo.source, photo.source_id) for photo in photos]

    before = records()
    base = read_json(world_dir(workspace) / "world.json")["base_url"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", urlsplit(base).port))
        other.listen()
        with serving(workspace) as server:
            assert server.base_url != base
            assert "is taken" in capsys.readouterr().out
            urls = [photo.url for photo in scan(metadata_path(workspace), query, ScanCounts())]
            assert all(url.startswith(server.base_url + "/") for url in urls)
    assert records() == before
    with serving(workspace) as again:
        assert again.base_url == server.base_url


def instances_of(truth: Table, rows: list[int], shift: float = 0.0) -> Table:
    keep = ("instance_id", "image_id", "category", "source_id", "box_xyxy", "score", "detector",
            "mask_rle", "flags")  # fmt: skip
    columns = {name: truth[name][rows] for name in keep}
    columns["instance_id"] = np.array([f"a{n}" for n in range(len(rows))], dtype=object)
    columns["box_xyxy"] = columns["box_xyxy"] + shift
    return Table("instances", columns)


def test_detection_quality_by_hand(world: Workspace) -> None:
    """All horses but one are found a little aside, and one of another species is taken for a horse."""
    truth, images = world.load("truth"), world.load("truth_images")
    horses = np.flatnonzero(truth["category"] == "horse").tolist()
    stranger = int(np.flatnonzero(truth["category"] != "horse")[0])
    instances = instances_of(truth, [*horses[1:], stranger])
    moved = instances["box_xyxy"].copy()
    width = moved[0, 2] - moved[0, 0]
    moved[0, [0, 2]] += 0.2 * width  # IoU .8 / 1.2
    named = np.array(["horse"] * len(instances), dtype=object)
    found = detection_quality(
        instances.with_columns(box_xyxy=moved, category=named), images, truth, images, "horse"
    )
    count = len(horses)
    assert (found["detected"], found["matched"], found["true"]) == (count, count - 1, count)
    assert found["precision"] == found["recall"] == pytest.approx((count - 1) / count, abs=1e-4)
    assert found["mean_iou"] == pytest.approx((count - 2 + 2 / 3) / (count - 1), abs=1e-4)
    one_image = images.take(images["image_id"] == truth["image_id"][horses[0]])
    here = sum(truth["image_id"][row] == one_image["image_id"][0] for row in horses)
    assert detection_quality(instances, one_image, truth, images, "horse")["true"] == here


def test_truth_goes_to_the_instances_that_match(world: Workspace) -> None:
    truth, images = world.load("truth"), world.load("truth_images")
    horses = np.flatnonzero(truth["category"] == "horse").tolist()
    instances = instances_of(truth, horses, 0.7)
    matched = match_truth(instances, images, truth, images)
    assert list(matched["instance_id"]) == list(instances["instance_id"])
    np.testing.assert_allclose(matched["xy"], truth["xy"][horses])
    np.testing.assert_array_equal(matched["confidence"], truth["visible"][horses] == 2)
    assert matched.meta["skeleton"] == "quadruped16" and set(matched["transform"]) == {"none"}
    far = match_truth(instances_of(truth, horses, 500.0), images, truth, images)
    assert len(far) == 0 and far["xy"].shape == (0, 16, 2)
    # two boxes on one animal: the better one gets it
    twice = instances_of(truth, [horses[0], horses[0]])
    moved = twice["box_xyxy"].copy()
    moved[0] += 2.0
    best = match_truth(twice.with_columns(box_xyxy=moved), images, truth, images)
    assert list(best["instance_id"]) == ["a1"]
    # an animal of another species is not the category's
    others = np.flatnonzero(truth["category"] != "horse").tolist()
    strangers = instances_of(truth, others)
    as_horse = strangers.with_columns(category=np.array(["horse"] * len(others), dtype=object))
    found = match_truth(as_horse, images, truth, images)
    boxes = dict(zip(as_horse["instance_id"], as_horse["box_xyxy"]))
    assert all(not (truth["xy"][others] == row["xy"]).all((1, 2)).any() for row in found.rows())
    assert len(boxes) == len(others)


def test_truth_is_found_by_photo_id_when_bytes_differ(world: Workspace) -> None:
    truth, images = world.load("truth"), world.load("truth_images")
    horses = np.flatnonzero(truth["category"] == "horse").tolist()[:5]
    renamed = {image_id: f"i{n}" for n, image_id in enumerate(images["image_id"])}
    other_ids = np.array([renamed[i] for i in images["image_id"]], dtype=object)
    downloaded = images.with_columns(image_id=other_ids)
    instances = instances_of(truth, horses)
    theirs = np.array([renamed[i] for i in instances["image_id"]], dtype=object)
    matched = match_truth(instances.with_columns(image_id=theirs), downloaded, truth, images)
    np.testing.assert_allclose(matched["xy"], truth["xy"][horses])


def test_the_web_goes_through_search_download_and_detection(world: Workspace) -> None:
    from prepare_data import download_images, save_boxes, search_metadata

    common = {"category": "horse", "data_root": world.root}
    with serving(world) as server:
        search_metadata.run(search_metadata.Config(**common), world)
        download_images.run(download_images.Config(**common), world)
        assert server.statuses[429] == 4 and server.statuses[404] >= 4
    images = world.load("images")
    status = Counter(images["status"])
    assert status["not_found"] == 4 and status["not_image"] == 2 and status["truncated"] == 4
    assert status["in_labels"] >= 2 and status["duplicate"] >= 4
    assert sum(status[name] for name in ("ok", "duplicate", "in_labels")) == 40
    save_boxes.run(save_boxes.Config(**common, detector="simulated"), world)
    table = save_truth_keypoints(world)
    assert len(table) > 0.8 * len(world.load("instances"))
    assert len(table) == len(world.load_keypoints("truth"))


def test_the_command(tmp_path, capsys) -> None:
    from prepare_data import make_diorama

    flags = ["--category", "giraffe", "--data-root", str(tmp_path), "--num_train", "2", "--num-val", "1",
             "--num-test", "1", "--num-web", "3", "--identities", "1", "--image-size", "96"]  # fmt: skip
    assert make_diorama.main(flags) == 0
    out = capsys.readouterr().out
    assert "make_diorama: 4 labelled photos and 3 web pictures of a synthetic world about giraffe" in out
    assert make_diorama.main(flags) == 0
    assert "(done before)" in capsys.readouterr().out
    assert make_diorama.main([*flags, "--difficulty", "7"]) == 2
    assert "error: --difficulty: expected 0 to 1; found 7" in capsys.readouterr().err
