"""What the benchmark of unsupervised points computes, by hand."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import save_tiny

from benchmarks import zero123plus_baselines as baselines
from benchmarks import zero123plus_measures as measures
from pseudolabels.zero123plus.crops import unit_affine
from pseudolabels.zero123plus.naming import mean_position
from pseudolabels.zero123plus.warps import warp_points
from wildshape.errors import UserError
from wildshape.files import read_json, write_json
from wildshape.records import AnimalRecords


def flag(colours, left=8, top=12, height=8, width=4, side=32):
    """A crop with stripes of some colours side by side, on white."""
    crop = np.full((side, side, 3), 255, np.uint8)
    for i, colour in enumerate(colours):
        crop[top : top + height, left + i * width : left + (i + 1) * width] = colour
    return crop


RED, GREEN, BLUE = (200, 30, 30), (30, 180, 30), (30, 30, 200)


def records_of(keypoints, side=100.0, weight=None):
    """Animals whose crops show the photo from 10 to 110, with keypoints [N, J, 2] in 0..1 of the crop."""
    count, joints = keypoints.shape[:2]
    box = np.tile(
        [10.0 + side / 12, 10.0 + side / 12, 10.0 + side * 11 / 12, 10.0 + side * 11 / 12], (count, 1)
    )
    xy = np.stack([unit_affine(b).inverse().apply(k) for b, k in zip(box, keypoints)])
    return AnimalRecords(
        tuple(f"a{i}" for i in range(count)), (Path("x"),) * count, box, xy,
        np.ones((count, joints)) if weight is None else weight, np.full((count, 7), np.nan),
    )  # fmt: skip


# Clusters of pixels


def test_clusters_are_the_stripes_wherever_they_are():
    crops = np.stack([flag((RED, GREEN, BLUE), left=left, top=left) for left in (2, 6, 9, 14)])
    finder = baselines.KMeansPoints(crops, 3, place_weight=0.5, seed=1)
    found = finder(crops)
    # Of stripes 4 wide and 8 high, each at its middle, pixel edges being 0 and 1.
    for i, left in enumerate((2, 6, 9, 14)):
        middles = {((left + 4 * stripe + 2) / 32, (left + 4) / 32) for stripe in range(3)}
        assert {tuple(point) for point in found[i]} == middles
    # The same point is the same stripe in every crop.
    np.testing.assert_allclose(
        found - found[:, :1], np.tile(found[:1] - found[0, 0], (4, 1, 1)), atol=1e-12
    )
    again = baselines.KMeansPoints(crops, 3, place_weight=0.5, seed=1)
    np.testing.assert_array_equal(again(crops), found)


def test_a_cluster_that_a_crop_lacks_stands_where_it_would():
    crops = np.stack([flag((RED, GREEN, BLUE), left=left) for left in (2, 6, 9, 14)])
    finder = baselines.KMeansPoints(crops, 3, place_weight=0.5, seed=1)
    empty = np.full((1, 32, 32, 3), 255, np.uint8)
    assert np.isfinite(finder(empty)).all()
    one = finder(flag((RED,), left=12, width=12)[None])[0]
    assert np.isfinite(one).all() and (one > 0).all() and (one < 1).all()
    with pytest.raises(UserError, match="expected at least 900 pixels of animals; found 384"):
        baselines.KMeansPoints(crops, 900, 1.0)


def test_features_do_not_depend_on_place_size_and_brightness():
    light, dark = flag((RED, GREEN), left=4), flag((RED, GREEN), left=15, top=3)
    _, one = baselines.pixel_features(light, 2.0)
    xy, two = baselines.pixel_features(dark, 2.0)
    np.testing.assert_allclose(one, two, atol=1e-9)
    assert xy.shape == (64, 2) and two.shape == (64, 5)
    np.testing.assert_allclose(two[:, :2].mean(0), 0, atol=1e-12)
    assert np.sqrt(two[:, :2].var(0).sum()) == pytest.approx(2.0)
    assert np.sqrt(two[:, 2:].var(0).sum()) == pytest.approx(1.0)


def test_the_weight_of_the_place_is_chosen_by_what_is_left_out():
    rng = np.random.default_rng(0)
    left = rng.integers(2, 16, 12)
    crops = np.stack([flag(rng.permutation([RED, GREEN, BLUE]), left=x) for x in left])
    keypoints = np.stack([[(x + 6) / 32, 0.5] for x in left])[:, None]  # the middle, whatever its colour
    labelled = baselines.Labelled(crops, records_of(keypoints))
    chosen = baselines.choose_kmeans(crops, labelled, 3)
    errors = {}
    for weight in baselines.PLACE_WEIGHTS:
        finder = baselines.KMeansPoints(crops, 3, weight)
        errors[weight] = min(baselines.choose_regressor(finder(crops), labelled.records)[1].values())
    assert errors[chosen.place_weight] == min(errors.values())


def test_the_mean_pose_is_what_is_learnt_from_nothing():
    keypoints = np.random.default_rng(2).uniform(0.2, 0.8, (9, 3, 2))
    records = records_of(keypoints)
    crops = np.zeros((9, 8, 8, 3), np.uint8)
    points = baselines.mean_pose(crops)
    regressor, _ = baselines.choose_regressor(points, records)
    np.testing.assert_allclose(regressor(points)[0], mean_position(records), atol=1e-9)


def test_an_untrained_network_is_the_model_but_for_its_weights(tmp_path):
    pytest.importorskip("diffusers", reason="needs the extra diffusion")
    small_model = importlib.import_module("pseudolabels.zero123plus.small_model")
    folder = save_tiny(tmp_path / "model")
    out = baselines.untrained(folder, tmp_path / "random", seed=3)
    model, other = (small_model.load_small(path) for path in (Path(folder), out))
    assert list(other.unet.config.block_out_channels) == [16, 16]
    pairs = list(zip(model.unet.state_dict().items(), other.unet.state_dict().items()))
    assert [a[0] for a, _ in pairs] == [b[0] for _, b in pairs]
    assert any(not torch.equal(a[1], b[1]) for a, b in pairs)
    for name, value in model.vae.state_dict().items():
        torch.testing.assert_close(value, other.vae.state_dict()[name], rtol=0, atol=0)
    stamp = (out / "model_index.json").stat().st_mtime_ns
    assert baselines.untrained(str(tmp_path / "model"), out, seed=3) == out
    assert (out / "model_index.json").stat().st_mtime_ns == stamp
    with pytest.raises(
        UserError, match="--model: expected small or a folder in diffusers' layout; found none"
    ):
        baselines.model_folder(str(tmp_path / "nothing"))


# Parts


def test_points_stand_on_the_nearest_part():
    parts = np.zeros((20, 30), np.uint8)
    parts[5:10, 5:10], parts[5:10, 10:20] = 1, 3
    xy = np.array([[6.2, 7.0], [12.0, 9.4], [21.0, 7.0], [25.0, 7.0], [-3.0, 7.0]])
    assert measures.parts_under(xy, parts, reach=2.5).tolist() == [1, 3, 3, 0, 0]
    assert measures.parts_under(xy, parts * 0, reach=50).tolist() == [0] * 5


def test_the_share_that_stays_on_its_part():
    # Four animals, two points: the first on part 1 three times, the second always on part 4 or off.
    found = measures.part_consistency(np.array([[1, 4], [1, 4], [1, 4], [3, 0]]))
    assert found["same_part"] == pytest.approx(100 * 6 / 8)
    assert found["by_chance"] == pytest.approx(100 * 3 / 8)
    assert found["off"] == pytest.approx(100 / 8) and found["parts"] == 2
    # Shares: 3/8 part 1, 1/8 part 3 (first point), 3/8 part 4, 1/8 off (second): all are told apart.
    mutual = np.log(2)
    entropy = -(2 * 3 / 8 * np.log(3 / 8) + 2 / 8 * np.log(1 / 8))
    assert found["information"] == pytest.approx(100 * mutual / entropy)
    same = measures.part_consistency(np.full((5, 3), 2))
    assert same["same_part"] == same["by_chance"] == 100 and same["information"] == 0 and same["parts"] == 1


def test_parts_of_photos_that_are_rendered_again(tmp_path):
    """A world does not keep its meshes: the same photos are made again, keypoints where they were."""
    from prepare_data import make_diorama
    from prepare_data.diorama.subjects import PARTS
    from wildshape.workspace import Workspace

    workspace = Workspace(tmp_path, "horse", "bench")
    sizes = {"num_train": 1, "num_val": 0, "num_test": 3, "num_web": 0, "image_size": 192, "identities": 2}
    make_diorama.run(make_diorama.Config(category="horse", data_root=tmp_path, seed=7, **sizes), workspace)
    parts = measures.true_parts(workspace)
    labels = workspace.load("labels").take(workspace.load("labels")["split"] == "test")
    assert sorted(parts) == sorted(labels["instance_id"])
    names = workspace.category.skeleton.keypoints
    right = []
    for row in labels.rows():
        under = measures.parts_under(row["xy"], parts[row["instance_id"]], 3.0)
        for name, part, seen in zip(names, under, row["visible"]):
            wanted = {"_paw": "legs", "Nose": "head"}.get(name[-4:])
            if seen == 2 and wanted:
                right.append(part == PARTS.index(wanted) + 1)
    assert len(right) >= 5 and np.mean(right) > 0.85
    (workspace.data_dir / "diorama" / "world.json").unlink()
    assert sorted(measures.true_parts(workspace)) == sorted(parts)  # from its file


# Figures


def test_points_that_move_with_the_crop():
    crops = np.stack([flag((RED, GREEN, BLUE), left=8, top=9)] * 6)
    moved, thetas = measures.moved_crops(crops, seed=2)
    assert moved.shape == crops.shape and moved.dtype == np.uint8
    assert np.array_equal(moved, measures.moved_crops(crops, seed=2)[0])
    xy = np.tile([[0.4, 0.45], [0.6, 0.5]], (6, 1, 1))
    gone = warp_points(torch.from_numpy(xy).float() * 32, thetas, 32, 32).numpy() / 32
    found = measures.Found(xy, xy, gone + [3 / 32, 4 / 32])
    figures = measures.equivariance(found, thetas, 32)
    assert figures["mean_px"] == pytest.approx(5, abs=1e-3)
    assert figures["median_px"] == pytest.approx(5, abs=1e-3)
    still = measures.equivariance(measures.Found(xy, xy, xy), thetas, 32)
    assert still["mean_px"] > 1
    # Where red was, red is: the picture moves as the points do.
    red = np.argwhere((moved[0] == RED).all(-1)).mean(0)[::-1] + 0.5
    there = warp_points(torch.tensor([[[10.0, 13.0]]]), thetas[:1], 32, 32)[0, 0].numpy()
    assert np.linalg.norm(red - there) < 1.5


def test_keypoints_of_points_and_what_counts():
    rng = np.random.default_rng(5)
    points = rng.uniform(0.3, 0.7, (20, 3, 2))
    weight = np.ones((20, 2))
    weight[4, 1] = 0
    records = records_of(points[:, :2] + [0.05, 0.0], weight=weight)
    crops = np.zeros((20, 4, 4, 3), np.uint8)
    train = baselines.Labelled(crops[:15], records.take(range(15)))
    test = baselines.Labelled(crops[15:], records.take(range(15, 20)))
    wrong = points[15:].copy()
    wrong[0] += [0.2, 0.0]  # a fifth of the crop, .24 of the box
    found = measures.Found(points[:15], wrong, wrong[:0])
    figures, xy = measures.as_keypoints(found, train, test, seed=3, frame="box")
    assert figures["pck"] == pytest.approx(80, abs=1e-9) and figures["frame"] == "box"
    assert figures["error"] == pytest.approx(100 * 0.24 / 5, rel=1e-3)
    animals = figures["by_instance"]
    assert animals["instance_id"][0] == "3/a15" and animals["keypoints"] == [2] * 5
    assert animals["keypoints_right"] == [0, 2, 2, 2, 2]
    np.testing.assert_allclose(animals["error_sum"][0], 0.48, rtol=1e-3)
    np.testing.assert_allclose(xy[1], test.records.xy[1], atol=0.01)
    few = measures.with_few_labels(found, train, test, (5, 12, 400), draws=3)
    assert {count: len(rows) for count, rows in few.items()} == {"5": 3, "12": 3, "400": 1}
    assert few["400"][0]["error"] == pytest.approx(
        measures.as_keypoints(found, train, test, 0)[0]["error"], rel=0.1
    )
    assert few["5"] != few["12"]


# The conclusion


@pytest.fixture
def points():
    pytest.importorskip("diffusers", reason="needs the extra diffusion")
    return importlib.import_module("benchmarks.zero123plus_points")


def figures_of(right, error, seed=0):
    animals = {
        "instance_id": [f"{seed}/a", f"{seed}/b"], "keypoints": [4, 4], "keypoints_right": right,
        "error_sum": error,
    }  # fmt: skip
    plain = {"moved_px": 2.0, "same_part": 80.0, "by_chance": 40.0, "information": 30.0}
    return {"pck": 100 * sum(right) / 8, "error": 100 * sum(error) / 8, **plain, "by_instance": animals}


def test_what_ours_gains(points):
    seeds = []
    for seed in (1, 2):
        works = {
            "ours": figures_of([4, 2 + seed / 2], [0.2, 0.2], seed),
            "kmeans": figures_of([2, seed / 2], [0.4, 0.4], seed),
        }
        few = {arm: {"10": [{"pck": 50.0 + seed, "error": 5.0}] * 2} for arm in works}
        seeds.append({"seed": seed, "works": works, "labels": few})
    seeds[0]["sweep"] = {"ours": works["ours"], "20 points": works["kmeans"]}
    found = points.summarise(seeds)
    gain = found["works"]["ours_over"]["kmeans"]
    assert gain["pck"] == {"gain": 50.0, "interval": [50.0, 50.0], "animals": 4}
    assert gain["error"]["gain"] == pytest.approx(-5.0)
    assert found["works"]["arms"]["ours"]["pck"]["values"] == [81.25, 87.5]
    assert found["labels"]["ours"]["10"]["pck"]["mean"] == 51.5 and found["sweep"]["seeds"] == 1
    assert len(found["labels"]["ours"]["10"]["pck"]["values"]) == 4
    text = points.table(found)
    assert "+50.0 [+50.0, +50.0]" in text and "PCK by labels" in text and "20 points" in text
    bare = points.without_animals(seeds[0])
    assert "by_instance" not in bare["works"]["ours"] and bare["labels"] == few_of(seeds[0])
    assert bare["seed"] == 1


def few_of(seed):
    return seed["labels"]


def test_settings_are_tried_on_worlds_that_nothing_else_is_measured_on(points):
    options = SimpleNamespace(first_seed=60, seeds=2, sweep_seeds=1, parts=["works", "labels", "sweep"])
    assert points._seeds(options) == [
        (60, ["works", "labels"]), (61, ["works", "labels"]), (59, ["sweep"])
    ]  # fmt: skip
    options.parts = ["sweep"]
    assert points._seeds(options) == [(59, ["sweep"])]


def test_arms_share_trainings_where_they_can(points):
    sweep = points.ARMS["sweep"]
    assert {arm.training for name, arm in sweep.items() if "points" in name or "frame" in name} == {"ours"}
    assert points.ARMS["switches"]["guidance"] == points.ARMS["works"]["ours"]
    trainings = {}
    for arms in points.ARMS.values():
        for arm in arms.values():
            assert trainings.setdefault(arm.training, (arm.settings, arm.trained)) == (
                arm.settings,
                arm.trained,
            )


def test_a_world_finds_points_once(points, tmp_path, monkeypatch):
    """Tokens and points that are there are read; with other settings they are made anew."""
    world = object.__new__(points.World)
    calls = []

    def train(config, workspace):
        calls.append(config.steps)
        path = workspace.checkpoint_dir(points.train_tokens.MODEL) / points.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"tokens")
        return {"finished": config.steps != 7}

    from wildshape.workspace import Workspace

    monkeypatch.setattr(points.train_tokens, "run", train)
    world.options = SimpleNamespace(
        category="cow", model="m", steps=5, num_tokens=50, device="cpu", root=tmp_path, views=1
    )
    world.seed, world.side, world.unet, world._found = 0, 32, "hash", {}
    world.until, world.workspace = float("inf"), Workspace(tmp_path, "cow", "bench")
    world.options.steps = 5
    monkeypatch.setattr(world, "until", 1e12)
    path = world.tokens(points.OURS)
    assert world.tokens(points.OURS) == path and calls == [5]
    assert read_json(path.parents[2] / "benchmark.json")["unet"] == "hash"
    world.options.steps = 7
    with pytest.raises(points.OutOfTime):
        world.tokens(points.OURS)
    world.until = 0.0
    with pytest.raises(points.OutOfTime):
        world.tokens(points.SWITCHES["all_on"])
    assert calls == [5, 7]
    write_json(path.parents[2] / "benchmark.json", {})
    half = points.ARMS["sweep"]["side half"]
    assert world.training(half).side == 16 and world.training(half).name == "points_side_half"
    published = world.training(points.AS_PUBLISHED)
    assert published.side is None and published.for_model(96, 16).side == 128
