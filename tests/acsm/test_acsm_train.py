import copy
import json
import shutil
from dataclasses import replace

import acsm_toy
import acsm_world
import numpy as np
import pytest
import torch
from PIL import Image

from acsm import evaluate, generate_pl, train, visualize
from acsm.data import CropStyle, ShapeSamples
from acsm.label_sets import find_labels
from acsm.per_animal import PerAnimal
from acsm.predict import ShapePredictor, normalise
from wildshape import training_data
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.formats.masks import encode_mask
from wildshape.geometry import camera_to_crop
from wildshape.skeleton import load_skeleton
from wildshape.tables import read_table, write_table


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A world with one short training; tests must not change it."""
    workspace = acsm_world.build(tmp_path_factory.mktemp("world"))
    metrics = train.run(config(), workspace)
    return workspace, metrics


def config(**settings):
    short = {
        "category": "stick", "image_size": 64, "steps": 4, "batch_size": 3, "eval_every": 2,
        "precision": "float32", "device": "cpu", "num_workers": 1,
    }  # fmt: skip
    return train.Config(**{**short, **settings})


def weights(workspace, arm, which="last"):
    path = workspace.checkpoint_dir(f"acsm/{arm}") / f"{which}.pt"
    return torch.load(path, weights_only=True)["model"]


def test_training_writes_what_the_other_commands_need(shared):
    workspace, metrics = shared
    assert metrics["finished"] and metrics["steps"] == 4 and metrics["labelled_animals"] == 6
    assert np.isfinite(metrics["val"]["auc"]) and metrics["val"]["camera_error_deg"] <= 180
    predictor = ShapePredictor.from_checkpoint(
        workspace.checkpoint_dir("acsm/labels") / "best.pt", workspace.category
    )
    assert predictor.category == "stick" and predictor.image_size == 64
    records, _ = training_data.labelled(workspace, "test", workspace.category.skeleton)
    images = [read_image(path) for path in records.paths]
    shapes = predictor.predict(images, records.box_xyxy)
    assert shapes.keypoints.shape == (3, 16, 2) and shapes.vertices_image.shape == (3, 16, 3)
    # Every vertex of the stick animal is a keypoint: both ways to the image agree.
    np.testing.assert_allclose(shapes.vertices_image[..., :2], shapes.keypoints, atol=1e-3)
    assert len(predictor.predict([], np.zeros((0, 4)))) == 0


def test_who_watches_sees_animals_and_every_camera(tmp_path, monkeypatch):
    shown = {}

    class Recorder:
        def scalars(self, step, values):
            shown.setdefault("names", set()).update(values)

        def pictures(self, step, pictures):
            shown[step] = pictures

        def close(self):
            shown["closed"] = True

    asked = []
    monkeypatch.setattr(train.Config, "monitor", lambda self, *where: asked.append(where) or Recorder())
    workspace = acsm_world.build(tmp_path)
    train.run(config(num_cameras=2, arm="two"), workspace)
    assert asked[0][:2] == ("stick", "acsm two") and shown["closed"]
    assert {"loss", "entropy", "spread", "val_auc"} <= shown["names"]
    animals, cameras = shown[4]["validation animals"], shown[4]["cameras"]
    # three animals, two side by side, three pictures each; a row of two cameras for each animal
    assert animals.shape == (2 * 166 + 6, 6 * 166 + 6, 3) and cameras.shape == (3 * 166 + 6, 2 * 166 + 6, 3)
    true, predicted = animals[6:166, 6:166], animals[6:166, 172:332]
    assert (true != predicted).any() and animals.dtype == np.uint8


def test_killed_and_resumed_training_ends_with_the_same_weights(shared, tmp_path, monkeypatch):
    workspace, _ = shared
    other = acsm_world.build(tmp_path)
    acsm_world.train_killed_once(train.ShapeTask, config(), other, monkeypatch)
    straight, resumed = weights(workspace, "labels"), weights(other, "labels")
    for name, value in straight.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_evaluate_label_and_draw(shared):
    workspace, _ = shared
    facts = evaluate.run(evaluate.Config(category="stick", bootstrap=20), workspace)
    assert facts["instances"] == 3 and facts["cameras"] == 3 and 0 <= facts["auc"] <= 100
    stored = json.loads(workspace.metrics_path("acsm_labels_test").read_text())
    assert stored["auc"] == pytest.approx(facts["auc"]) and "published" in stored
    assert set(facts["auc_by_keypoint"]) == set(acsm_toy.NAMES)

    counts = generate_pl.run(generate_pl.Config(category="stick", batch_size=2), workspace)
    assert counts == {"instances": 5, "predicted": 5, "skipped": 0}
    keypoints = read_table(workspace.keypoints_path("acsm"), "keypoints")
    shapes = read_table(workspace.shapes_path("acsm"), "shapes")
    assert (keypoints["confidence"] == 1).all() and keypoints.meta["skeleton"] == "quadruped16"
    predictor = ShapePredictor.from_checkpoint(
        workspace.checkpoint_dir("acsm/labels") / "best.pt", device="cpu"
    )
    images = [read_image(workspace.images_dir / f"{12 + i}.png") for i in range(5)]
    boxes = read_table(workspace.table_path("instances"), "instances")["box_xyxy"]
    direct = predictor.predict(images, boxes)
    np.testing.assert_allclose(keypoints["xy"], direct.keypoints, atol=1e-3)
    np.testing.assert_allclose(shapes["camera"], direct.camera, atol=1e-3)

    of_val = generate_pl.run(generate_pl.Config(category="stick", labelled=True), workspace)
    known = read_table(workspace.keypoints_path("acsm_labelled"), "keypoints")
    labels = workspace.load("labels")
    assert of_val["predicted"] == 3
    assert known["instance_id"].tolist() == labels["instance_id"][labels["split"] == "val"].tolist()

    drawn = visualize.run(visualize.Config(category="stick", vis_num=3, tile=48), workspace)
    picture = read_image(workspace.root / drawn["picture"])
    assert drawn["animals"] == 3 and picture.shape[0] > 2 * 48


def test_any_table_of_labels_is_measured_on(shared, tmp_path, capsys):
    workspace, _ = shared
    labels = workspace.load("labels")
    height, width = acsm_world.SIZE + 12, acsm_world.SIZE + 20
    masks = np.array([None] * len(labels), dtype=object)
    masks[9], masks[10] = encode_mask(np.ones((height, width))), encode_mask(np.zeros((height, width)))
    table = labels.with_columns(mask_rle=masks).take(np.arange(8, 12))
    # Elsewhere, on the workspace's images; and with its own images under another root.
    other = tmp_path / "other" / "data" / "stick"
    write_table(table, tmp_path / "mine.parquet")
    write_table(table, other / "labels.parquet")
    images = workspace.load("labelled_images")
    write_table(images, other / "labelled_images.parquet")
    folder = workspace.labelled_images_dir
    shutil.copytree(folder, tmp_path / "other" / workspace.relative(folder))
    found = []
    for file, place in (
        (tmp_path / "mine.parquet", workspace),
        (other / "labels.parquet", acsm_world.build(tmp_path / "fresh", train=1, val=1, test=1)),
    ):
        checkpoint = str(workspace.checkpoint_dir("acsm/labels") / "best.pt")
        settings = {"opts": ("MODEL.WEIGHTS", checkpoint), "bootstrap": 20, "device": "cpu"}
        found.append(evaluate.run(evaluate.Config(category="stick", labels=str(file), **settings), place))
        animals = PerAnimal.read(place.animals_path("labels", file.stem))
        assert list(animals.instance_id) == ["i8", "i9", "i10", "i11"]
        assert np.isnan(animals.iou[[0, 2, 3]]).all() and 0 <= animals.iou[1] <= 1
        stored = json.loads(place.metrics_path(f"acsm_labels_{file.stem}").read_text())
        assert stored["masks"] == 1 and stored["split"] == file.stem
    assert found[0]["auc"] == found[1]["auc"] and found[0]["miou"] == pytest.approx(100 * animals.iou[1])
    shutil.copy(tmp_path / "mine.parquet", tmp_path / "test.parquet")
    assert find_labels(workspace, str(tmp_path / "test.parquet")).name == "file_test"
    whole = evaluate.run(evaluate.Config(category="stick", labels="all", bootstrap=20), workspace)
    assert whole["instances"] == 12
    with pytest.raises(
        UserError, match="--labels: expected train, val, test, all, truth or a labels table"
    ):
        evaluate.run(evaluate.Config(category="stick", labels="nowhere.parquet"), workspace)
    with pytest.raises(UserError, match="--images: expected a table of images"):
        evaluate.run(
            evaluate.Config(category="stick", labels=str(tmp_path / "mine.parquet"), images=tmp_path / "x"),
            workspace,
        )
    assert "left-right" in capsys.readouterr().out


def test_turntables_and_glb(shared):
    workspace, _ = shared
    pytest.importorskip("trimesh", reason="the extra glb")
    few = {"vis_num": 2, "tile": 48, "frames": 3, "texture_size": 64, "device": "cpu"}
    facts = visualize.run(
        visualize.Config(category="stick", split="web", turntable=True, glb=True, **few), workspace
    )
    files = [workspace.root / name for name in facts["files"]]
    assert len(files) == 6 and {file.suffix for file in files} == {".glb", ".gif", ".mp4"}
    assert facts["codec"] and all(file.stat().st_size > 100 for file in files)
    assert {file.parent for file in files} == {workspace.pictures_dir / "acsm_labels_web"}
    assert {file.stem for file in files} < set(workspace.load("instances")["instance_id"])
    with Image.open(next(file for file in files if file.suffix == ".gif")) as gif:
        assert gif.n_frames == 3 and gif.size == (3 * 54 + 6, 60)
    with pytest.raises(UserError, match="--frames: expected at least 2; found 1"):
        visualize.Config(category="stick", frames=1)


def test_pseudo_labels_join_the_labels(shared):
    workspace, _ = shared
    web = {"use_web_images": True, "web_images_num": 3, "filter": "KPConf"}
    metrics = train.run(config(steps=1, arm="web", label_share=0.5, flip="both", **web), workspace)
    assert metrics["labelled_animals"] == 6 and metrics["web_animals"] == 3
    chosen, path = training_data.selection(workspace, "kpconf", 3)
    assert path.name == "kpconf_5.parquet" and list(chosen["rank"]) == [0, 1, 2]
    records, _ = training_data.web(workspace, "pose", "kpconf", 3)
    assert (records.weight == 0.5).all() and len(records) == 3
    everything, _ = training_data.web(workspace, "pose", None, None)
    some, _ = training_data.web(workspace, "pose", None, 2)
    assert len(everything) == 5 and len(some) == 2


def test_an_animal_that_is_drawn_in_place_of_another_is_named(shared, monkeypatch):
    """As --label_share does, in the same draws."""
    workspace, _ = shared
    named, taken = [], []
    of_task, of_samples = train.ShapeTask.sample, ShapeSamples.sample

    def naming(task, index, rng):
        named.append(task.shown(index, copy.deepcopy(rng)))
        return of_task(task, index, rng)

    def taking(samples, index, rng):
        taken.append(samples.records.instance_ids[index])
        return of_samples(samples, index, rng)

    monkeypatch.setattr(train.ShapeTask, "sample", naming)
    monkeypatch.setattr(ShapeSamples, "sample", taking)
    web = {"use_web_images": True, "web_images_num": 3, "filter": "kpconf"}
    train.run(config(arm="share", label_share=0.9, **web), workspace)
    assert named == taken and len(set(named)) > 2


def test_starting_from_checkpoints(shared, tmp_path):
    workspace, _ = shared
    best = workspace.checkpoint_dir("acsm/labels") / "best.pt"
    same = train.run(config(steps=1, arm="again", init=best, lr=0.0), workspace)
    assert same["weights_from"] == str(best)
    first, second = weights(workspace, "labels", "best"), weights(workspace, "again")
    torch.testing.assert_close(second["part_head.axis"], first["part_head.axis"])
    # A pose network gives its backbone.
    backbone = {k.removeprefix("encoder."): v for k, v in first.items() if "backbone" in k}
    pose = tmp_path / "pose.pt"
    torch.save({"model": {**backbone, "head.layers.3.bias": torch.zeros(16)}}, pose)
    other = train.run(config(steps=1, arm="pose", init=pose), workspace)
    assert other["weights_from"].startswith("encoder of")
    torch.save({"weight": torch.zeros(3)}, pose)
    with pytest.raises(UserError, match="--init: expected a 3D model or a pose network"):
        train.run(config(arm="bad", init=pose), workspace)
    with pytest.raises(UserError, match="--batch_size: expected 2 or more at up to 96 pixels"):
        config(batch_size=1)
    assert config(batch_size=1, flip="both").batch_size == 1


def test_a_frozen_encoder_is_looked_through_once(shared, tmp_path, monkeypatch):
    workspace, _ = shared
    best = workspace.checkpoint_dir("acsm/labels") / "best.pt"
    tasks = []
    original = train.FrozenShapeTask.__init__

    def remembered(self, *args):
        original(self, *args)
        tasks.append(self)

    monkeypatch.setattr(train.FrozenShapeTask, "__init__", remembered)
    frozen = {"init": best, "freeze": True, "frozen_crops": 2, "arm": "frozen", "lr": 0.01}
    assert train.run(config(**frozen), workspace)["finished"]
    before, after = weights(workspace, "labels", "best"), weights(workspace, "frozen")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(name.startswith("encoder.backbone") for name in changed)
    # What a step sees of a crop is what the whole model, which is its reference, sees of it.
    task = tasks[0]
    row, turn = 4, 1
    crop = task.samples.sample(row, task._rng(turn, row))
    kept = task._variants[turn * len(task) + row]
    np.testing.assert_array_equal(kept["target_ndc"], crop["target_ndc"])
    task.model.eval()
    image = torch.from_numpy(crop["crop"])[None]
    whole = task.model(normalise(image))["keypoints_ndc"]
    parts = task.predict({"features": torch.from_numpy(kept["features"])[None]}, True)["keypoints_ndc"]
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-3)
    gradients = []
    for keypoints in (whole, parts):
        task.model.zero_grad()
        keypoints.square().sum().backward()
        gradients.append(task.model.trunk.first.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=0.02, atol=2e-3)

    # With flip consistency it is looked at in the mirror too.
    assert train.run(config(**{**frozen, "arm": "mirrored", "flip_consistency": 1.0}), workspace)[
        "finished"
    ]
    image = torch.from_numpy(tasks[1].samples.sample(row, tasks[1]._rng(turn, row))["crop"])[None].flip(2)
    maps = tasks[1].model.eval().encoder.backbone(normalise(image))[0].detach()
    kept = torch.from_numpy(tasks[1]._variants[turn * len(task) + row]["mirrored"]).float()
    torch.testing.assert_close(kept, maps, rtol=0.05, atol=0.05)

    with pytest.raises(UserError, match="--freeze: expected weights worth keeping"):
        train.run(config(arm="blind", freeze=True, imagenet=False), workspace)
    with pytest.raises(UserError, match="--frozen_crops: expected at most 174762 for 6 animals at 64 px"):
        train.run(config(arm="wide", init=best, freeze=True, frozen_crops=1 << 20), workspace)
    with pytest.raises(UserError, match="--flip both: expected"):
        config(freeze=True, flip="both")
    with pytest.raises(UserError, match="--compile: expected an encoder to train; found --freeze"):
        config(freeze=True, compile=True)


def test_samples_are_consistent_under_the_mirror(shared):
    workspace, _ = shared
    records, _ = training_data.labelled(workspace, "train", workspace.category.skeleton)
    guide = (records.camera, np.ones(len(records)))
    made = {}
    for flip in (0.0, 1.0):
        style = CropStyle(flip=flip, colour=0.0)
        samples = ShapeSamples(records, 64, acsm_toy.FLIP, style, guide)
        made[flip] = samples.sample(1, np.random.default_rng(4))
    plain, mirrored = made[0.0], made[1.0]
    np.testing.assert_allclose(
        mirrored["target_ndc"], plain["target_ndc"][acsm_toy.FLIP] * [-1, 1], atol=1e-5
    )
    assert np.abs(mirrored["crop"][:, ::-1].astype(int) - plain["crop"]).mean() < 1
    np.testing.assert_allclose(np.abs(mirrored["guide"][:4]), np.abs(plain["guide"][:4]), atol=1e-6)
    turned = CropStyle(flip=1.0, rotation_deg=30.0)
    up = ShapeSamples(records, 64, acsm_toy.FLIP, turned, guide).sample(1, np.random.default_rng(4))["up"]
    assert np.linalg.norm(up) == pytest.approx(1) and up[1] < -0.8 and up[0] != 0 and "up" not in plain
    # The guiding camera sees the template where the targets are.
    expected = camera_to_crop(records.camera[1], samples.evaluation_affine(1), 64)[3:]
    assert abs(expected @ plain["guide"][:4]) == pytest.approx(1, abs=1e-5)
    both = train.ShapeTask._with_mirror(
        type("Task", (), {"model": type("M", (), {"keypoint_flip": torch.tensor(acsm_toy.FLIP)})}),
        {name: torch.tensor(value[None]) for name, value in plain.items()}
        | {"up": torch.tensor([[0.5, -1.0]])},
    )
    for name in ("target_ndc", "weight"):
        np.testing.assert_allclose(both[name][1].numpy(), mirrored[name], atol=1e-5)
    assert both["up"].tolist() == [[0.5, -1.0], [-0.5, -1.0]]


def test_other_categories_templates_and_missing_things_are_refused(shared, tmp_path):
    workspace, _ = shared
    best = workspace.checkpoint_dir("acsm/labels") / "best.pt"
    with pytest.raises(UserError, match="expected a 3D model of cow .* found one of stick"):
        ShapePredictor.from_checkpoint(best, workspace.sibling("cow").category)
    twenty = replace(workspace.category, skeleton=load_skeleton("quadruped20"))
    message = "keypoints of quadruped20 in .*best.pt; found those of quadruped16; run: .* --overwrite"
    with pytest.raises(UserError, match=message):
        ShapePredictor.from_checkpoint(best, twenty)
    other = acsm_world.build(tmp_path)
    acsm_toy.template(np.array([True] * 7 + [False])).save(tmp_path / "categories" / "stick.npz")
    with pytest.raises(UserError, match="present template of stick .* --overwrite"):
        ShapePredictor.from_checkpoint(best, other.category)
    with pytest.raises(UserError, match=r"train.py --category stick --arm labels( |;|$)"):
        evaluate.run(evaluate.Config(category="stick"), other)
    with pytest.raises(UserError, match="--filter cf_mt --selection_num 7"):
        train.run(config(use_web_images=True, filter="cf_mt", web_images_num=7), workspace)
    with pytest.raises(UserError, match="needs keypoints/truth"):
        train.run(config(use_web_images=True, pl_source="truth"), workspace)
    with pytest.raises(UserError, match="expected --use_web_images"):
        train.run(config(filter="kpconf"), workspace)
    with pytest.raises(UserError, match="at least a batch of 64 training items; found 6"):
        train.run(config(batch_size=64, arm="large"), workspace)
    for bad in ({"image_size": 32}, {"num_cameras": 0}, {"label_share": 2.0}, {"dataset": "x"}):
        with pytest.raises(UserError, match="--" + next(iter(bad))):
            config(**bad)


def test_training_says_what_is_wrong_with_a_template_file(shared, capsys):
    workspace, _ = shared
    with pytest.raises(UserError, match="at least a batch of 64"):
        train.run(config(batch_size=64, arm="large"), workspace)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("template of stick: ")]
    assert said == [
        "template of stick: open: expected every edge between two faces; found 13 edges that are not"
    ]


def test_a_loss_that_is_no_number_stops_and_names_the_items(tmp_path, monkeypatch):
    workspace = acsm_world.build(tmp_path)
    original = train.ShapeTask.loss

    def broken(self, batch, step):
        loss, terms = original(self, batch, step)
        return (loss * float("nan") if step == 3 else loss), terms

    monkeypatch.setattr(train.ShapeTask, "loss", broken)
    with pytest.raises(UserError, match=r"the loss became nan at step 3, of i\d, i\d"):
        train.run(config(), workspace)
    kept = torch.load(workspace.checkpoint_dir("acsm/labels") / "last.pt", weights_only=True)
    assert kept["step"] == 2 and all(v.isfinite().all() for v in kept["model"].values())


def test_an_unreadable_image_is_named_and_left_out(tmp_path, capsys):
    workspace = acsm_world.build(tmp_path)
    (workspace.labelled_images_dir / "2.png").write_bytes(b"")
    metrics = train.run(config(steps=1), workspace)
    assert metrics["labelled_animals"] == 5
    assert "left out 1 of 6 training labels (i2: " in capsys.readouterr().out
