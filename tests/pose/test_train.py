import json

import numpy as np
import pytest
import torch
from pose_world import KEYPOINTS, SKELETON, SMALL, make_world

import pose.train as train
from pose import evaluate
from pose.data import PoseSamples
from pose.model import PoseNet
from pose.predict import PosePredictor
from pose.train import PoseTask
from wildshape import training, training_data
from wildshape.errors import UserError
from wildshape.files import read_json


def config(**changes):
    return train.Config(**SMALL | changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = make_world(tmp_path_factory.mktemp("world"))
    train.run(config(), workspace)
    return workspace


def weights(workspace, file="last.pt", model="pose"):
    return training.load_checkpoint(workspace.checkpoint_dir(model) / file, "pose")["model"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_training_killed_and_resumed_ends_with_the_same_weights(world, monkeypatch):
    other = world.sibling(name="killed")
    original, calls = PoseTask.loss, []

    def dies_at_third(self, batch, step):
        if step == 3:
            raise KeyboardInterrupt
        calls.append(step)
        return original(self, batch, step)

    monkeypatch.setattr(PoseTask, "loss", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        train.run(config(), other)
    assert calls == [0, 1, 2]
    monkeypatch.setattr(PoseTask, "loss", original)
    metrics = train.run(config(), other)
    assert metrics["finished"] and metrics["steps"] == 4
    assert same(weights(world), weights(other))
    assert same(weights(world, "best.pt"), weights(other, "best.pt"))


def test_aux_differs_in_every_draw(world):
    metrics = train.run(config(is_aux=True, backbone=None, steps=1, eval_every=1), world)
    state = training.load_checkpoint(world.checkpoint_dir("pose_aux") / "best.pt", "pose")
    assert metrics["model"] == "pose_aux"
    assert state["extra"]["arch"]["backbone"] == "resnet34"
    with_same_depth = train.build_model(config(is_aux=True), world)[0].state_dict()
    first = train.build_model(config(), world)[0].state_dict()
    assert not torch.equal(with_same_depth["backbone.0.weight"], first["backbone.0.weight"])
    assert train.build_model(config(is_aux=True), world)[1].augmentation == "aux"


def test_the_test_split_is_never_read(world, monkeypatch):
    read = []
    original = training_data.label_records
    monkeypatch.setattr(training_data, "label_records", lambda *a: read.append(a[-1]) or original(*a))
    train.run(config(steps=1), world.sibling(name="splits"))
    assert sorted(read) == ["train", "val"]


def test_other_settings_are_refused(world):
    with pytest.raises(UserError, match=r"steps=4 then, 6 now.*--overwrite"):
        train.run(config(steps=6), world)


def test_labels_from_adds_the_train_split_of_others(world, capsys):
    make_world(world.root, seed=1)  # the same tables again: cow keeps its labels
    horse = world.sibling(category="horse")
    for table in ("labels", "labelled_images"):
        horse.table_path(table).parent.mkdir(parents=True, exist_ok=True)
        horse.table_path(table).write_bytes(world.table_path(table).read_bytes())
    metrics = train.run(config(labels_from="horse", steps=1), world.sibling(name="both"))
    assert metrics["training_animals"] == 24 and "24 training and 4 validation" in capsys.readouterr().out
    with pytest.raises(UserError, match="needs data/sheep/labels.parquet for sheep; run: "):
        train.run(config(labels_from="sheep"), world.sibling(name="none"))
    with pytest.raises(UserError, match="labels_from: expected other categories than cow"):
        train.run(config(labels_from="cow"), world.sibling(name="none"))


def test_init_takes_weights_and_their_architecture(world):
    path = world.checkpoint_dir("pose") / "best.pt"
    model, settings, origin = train.build_model(config(init=path, backbone=None, head_channels=None), world)
    assert same(weights(world, "best.pt"), model.state_dict())
    assert (settings.backbone, settings.head_channels, origin) == ("resnet18", 16, str(path))
    with pytest.raises(UserError, match="--backbone: expected resnet18, as in --init; found resnet50"):
        train.build_model(config(init=path, backbone="resnet50"), world)
    torch.save(PoseNet(20, "resnet18", 16).state_dict(), world.root / "twenty.pth")
    model, _, origin = train.build_model(config(init=world.root / "twenty.pth"), world)
    assert model.num_keypoints == 16 and origin.endswith("but for the last layer")


def test_a_set_smaller_than_a_batch_and_a_wrong_size_say_so(world):
    with pytest.raises(UserError, match="at least a batch of 16 training items; found 12"):
        train.run(config(batch_size=16), world.sibling(name="few"))
    with pytest.raises(UserError, match="--image_size: expected a multiple of 32 from 64; found 100"):
        config(image_size=100)


def test_no_validation_labels_say_so(tmp_path):
    world = make_world(tmp_path, splits=(("train", 4),))
    with pytest.raises(UserError, match="expected val labels .* for cow; found none among 0; run: "):
        train.run(config(), world)


def test_scripts_exit_with_one_line_where_labels_are_missing(tmp_path, capsys):
    assert train.main(["--category", "cow", "--data_root", str(tmp_path), "--no-imagenet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "labels.parquet" in error


def test_a_network_learns_the_dots(tmp_path):
    """The loss falls and PCK on the training pictures rises."""
    world = make_world(tmp_path, splits=(("train", 4), ("val", 2)))
    records, _ = training_data.labelled(world, "train", SKELETON)
    torch.manual_seed(0)
    samples = PoseSamples(records, 64, SKELETON.flip, train.AUGMENTATIONS["none"])
    task = PoseTask(PoseNet(KEYPOINTS, "resnet18", 16), samples, samples, lr=2e-3)
    task.model.train()
    losses = []
    rng = np.random.default_rng(0)
    batch = [samples.sample(i, rng) for i in range(4)]
    batch = {name: torch.tensor(np.stack([s[name] for s in batch])) for name in batch[0]}
    for step in range(60):
        loss, _ = task.loss(batch, step)
        task.optimizer.zero_grad()
        loss.backward()
        task.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    task.model.eval()
    metrics = task.evaluate()
    assert metrics["pck@0.1"] > 0.5
    sheet = task.pictures()["validation animals"]  # four animals, true and predicted, eight tiles a row
    assert sheet.dtype == np.uint8 and sheet.shape[1] > 8 * 192 and sheet.shape[0] < 2 * 192 + 60


def test_published_mode_trains_and_is_remembered(world):
    other = world.sibling(name="published")
    train.run(config(published=True, steps=1), other)
    predictor = PosePredictor.from_checkpoint(other.checkpoint_dir("pose") / "best.pt")
    assert predictor.published
    settings = train.build_model(config(published=True), world)[1]
    assert (settings.lr, settings.schedule, settings.augmentation, settings.best_by) == (
        1e-4,
        "constant",
        "published",
        0.04,
    )


def test_evaluate_measures_a_split(world, capsys):
    metrics = evaluate.run(evaluate.Config(category="cow", device="cpu"), world)
    assert metrics["instances"] == 4 and metrics["thresholds"][0] == 0.02
    assert np.all(np.diff(metrics["pck"]) >= 0)
    low, value, high = (np.array(metrics[name]) for name in ("pck_low", "pck", "pck_high"))
    assert (low <= value + 1e-9).all() and (value <= high + 1e-9).all()
    counts = [row["count"] for row in metrics["per_keypoint"].values()]
    assert sum(counts) == metrics["keypoints"] and list(metrics["per_keypoint"]) == list(SKELETON.keypoints)
    assert read_json(world.metrics_path("pose_test"))["pck"] == pytest.approx(metrics["pck"])
    assert "PCK on test, 4 animals" in capsys.readouterr().out
    assert evaluate.run(evaluate.Config(category="cow", split="val"), world)["split"] == "val"


def test_evaluate_without_a_checkpoint_names_the_command(world, capsys):
    lost = world.sibling(name="lost")
    with pytest.raises(UserError, match=r"run: python pose/train.py --category cow --is_aux --name lost"):
        evaluate.run(evaluate.Config(category="cow", is_aux=True), lost)


def test_a_curve_is_logged(world):
    lines = (world.checkpoint_dir("pose") / "metrics.jsonl").read_text().splitlines()
    assert any("val_pck@0.1" in json.loads(line) for line in lines)
