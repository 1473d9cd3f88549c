"""The 2D network trained on labels and pseudo-labels: the encoders of the 3D model's arms."""

import numpy as np
import pytest
import torch
from pose_world import KEYPOINTS, SKELETON, SMALL, make_world
from torch import nn

import pose.train as train
from pose import evaluate
from pose.pseudo_labels import model_name
from pose.train import PoseTask
from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.tables import Table, write_table

SHORT = SMALL | {"steps": 2, "eval_every": 1}
WEB = {"use_web_images": True, "backbone": None, "head_channels": None}


def config(**changes):
    return train.Config(**SHORT | changes)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = make_world(tmp_path_factory.mktemp("world"))
    train.run(config(), workspace)
    instances = workspace.load("instances")
    rng = np.random.default_rng(3)
    low, high = instances["box_xyxy"][:, None, :2], instances["box_xyxy"][:, None, 2:]
    table = {
        "instance_id": instances["instance_id"],
        "transform": np.array(["none"] * len(instances), dtype=object),
        "xy": low + (high - low) * rng.random((len(instances), KEYPOINTS, 2)),
        "confidence": rng.uniform(0.1, 0.9, (len(instances), KEYPOINTS)),
    }
    meta = {"skeleton": SKELETON.name}
    write_table(Table("keypoints", table, meta), workspace.keypoints_path("pose"))
    return workspace


class Blank(nn.Module):
    """Heatmaps of nothing."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return self.level.expand(len(images), KEYPOINTS, 16, 16)


def test_peaks_are_as_high_as_the_confidence():
    task = PoseTask.__new__(PoseTask)
    task.model, task.published, task.hidden = Blank(), False, 1.0
    batch = {
        "crop": torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
        "xy_crop": torch.full((1, KEYPOINTS, 2), 29.5),  # the middle of a cell
        "weight": torch.ones(1, KEYPOINTS),
    }
    whole, _ = task.loss(batch, 0)
    # A Gaussian of one cell: half the sum of its squares, pi sigma^2 / 2.
    assert whole.item() == pytest.approx(np.pi / 2, rel=1e-3)
    for confidence, height in ((0.5, 0.5), (0.2, 0.2), (1.7, 1.0)):
        loss, _ = task.loss(batch | {"weight": torch.full((1, KEYPOINTS), confidence)}, 0)
        assert loss.item() == pytest.approx(height**2 * whole.item())


def test_an_arm_learns_from_labels_and_web_animals(world):
    best = world.checkpoint_dir("pose") / "best.pt"
    before = best.read_bytes()
    made = train.run(config(**WEB, arm="cf", init=best), world)
    assert made["model"] == "pose_cf" and made["training_animals"] == 12 + 7
    assert best.read_bytes() == before, "the run's pose network is another one"
    manifest = read_json(world.checkpoint_dir("pose_cf") / "manifest.json")
    assert "runs/cow/keypoints/pose.parquet" in manifest["inputs"]
    assert manifest["config"]["repeated_pictures"] == "left out" and "warmup" not in manifest["config"]
    two = train.run(config(**WEB, init=best, web_images_num=2), world)
    assert two["model"] == "pose_all" and two["training_animals"] == 12 + 2
    with pytest.raises(UserError, match="other settings"):
        train.run(config(**WEB, arm="cf", init=best, web_images_num=2), world)
    metrics = evaluate.run(evaluate.Config(category="cow", arm="cf", device="cpu"), world)
    assert metrics["model"] == "pose_cf" and world.metrics_path("pose_cf_test").exists()


def test_arms_do_not_take_the_place_of_the_second_network(world):
    assert [model_name(False), model_name(True), model_name(False, "x"), model_name(True, "x")] == [
        "pose",
        "pose_aux",
        "pose_x",
        "pose_aux_x",
    ]
    for arm in ("aux", "aux_x"):
        with pytest.raises(UserError, match="--arm: expected a name that is not the second network's"):
            train.run(config(arm=arm), world)


def test_what_cannot_be_is_refused(world):
    with pytest.raises(UserError, match="--published: expected labels alone"):
        train.run(config(**WEB, published=True), world)
    for setting in ({"filter": "cf_cm"}, {"web_images_num": 3}, {"web_run": "other"}):
        with pytest.raises(UserError, match="--web_images_num and --web_run: expected --use_web_images"):
            train.run(config(**setting), world)
    with pytest.raises(UserError, match="run: python pose/train.py --category cow --is_aux --arm none"):
        evaluate.run(evaluate.Config(category="cow", is_aux=True, arm="none"), world)
    with pytest.raises(UserError, match="run: python pose/train.py --category cow --arm aux2"):
        evaluate.run(evaluate.Config(category="cow", arm="aux2"), world)
    for flag in ("lr", "best_by", "head_channels"):
        with pytest.raises(UserError, match=f"--{flag}: expected more than 0; found 0"):
            config(**{flag: 0})
