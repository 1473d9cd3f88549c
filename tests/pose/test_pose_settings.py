"""What training and labelling with the 2D network make of their settings."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pose_world import KEYPOINTS, SKELETON, SMALL, make_world
from test_generate import predicted, save_model
from test_train_on_web import Blank

import pose.train as train
from pose import evaluate, generate_pl, generate_pl_mt
from pose.data import Augmentation, PoseSamples
from pose.predict import PosePredictor
from pose.train import PoseTask
from wildshape import training_data
from wildshape.crops import vary_colour
from wildshape.tables import Table, read_table, write_table


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    workspace = make_world(tmp_path_factory.mktemp("world"))
    save_model(workspace)
    return workspace


@pytest.fixture
def records(world):
    return training_data.labelled(world, "train", SKELETON)[0]


def test_keypoints_take_their_weights_to_the_other_side(records):
    weight = np.linspace(0.1, 1, KEYPOINTS) * np.ones((len(records), 1))
    samples = PoseSamples(replace(records, weight=weight), 64, SKELETON.flip, Augmentation(flip=1.0))
    made = samples.sample(0, np.random.default_rng(0))
    np.testing.assert_allclose(made["weight"], weight[0][list(SKELETON.flip)], rtol=1e-6)


def test_crops_are_turned_and_scaled_as_far_as_asked(records):
    def drawn(**settings):
        samples = PoseSamples(records, 64, SKELETON.flip, Augmentation(flip=0.0, colour=0.0, **settings))
        made = np.stack([samples.sample(0, np.random.default_rng(n))["xy_crop"] for n in range(60)])
        sides = made[:, 4] - made[:, 5]
        return sides @ [1, 1j]

    plain = drawn(rotation_deg=0.0, scale=(1.0, 1.0))[0]
    turns = np.degrees(np.angle(drawn(rotation_deg=30.0, scale=(1.0, 1.0)) / plain))
    assert 27 < turns.max() <= 30.01 and -30.01 <= turns.min() < -27
    sizes = np.abs(drawn(rotation_deg=0.0, scale=(0.75, 1.25)) / plain)
    assert 1 / 1.26 < sizes.min() < 0.83 and 1.28 < sizes.max() < 1.34


def test_hidden_keypoints_do_not_choose_the_best_checkpoint():
    counts = np.arange(KEYPOINTS) < np.array([[3], [5]])
    xy = np.zeros((2, KEYPOINTS, 2))
    found = np.where(counts[..., None], xy, 40.0), np.where(counts, 0.75, 0.1)
    task = PoseTask.__new__(PoseTask)
    task._val = SimpleNamespace(xy=xy, counts=counts, box_side=np.full(2, 50.0))
    task._val_crops = task._val_affines = None
    task.thresholds = (0.1,)
    task._predictor = lambda: SimpleNamespace(predict_crops=lambda *_: found)
    assert task.evaluate() == {"pck@0.1": 1.0, "confidence": 0.75}


def test_heat_of_hidden_keypoints_has_its_weight():
    batch = {
        "crop": torch.zeros(1, 64, 64, 3, dtype=torch.uint8),
        "xy_crop": torch.full((1, KEYPOINTS, 2), 29.5),
        "weight": torch.tensor([[1.0] * 4 + [0.0] * (KEYPOINTS - 4)]),
    }
    task = PoseTask.__new__(PoseTask)
    task.model, task.published = Blank(), False
    task.model.level.data += 0.5
    task.hidden = 0.0
    plain = task.loss(batch, 0)[0].item()
    task.hidden = 2.0
    loss, terms = task.loss(batch, 0)
    assert terms["empty"] > 1 and loss.item() == pytest.approx(plain + 2 * terms["empty"])


def test_the_best_checkpoint_has_the_highest_pck(tmp_path, monkeypatch):
    answers = iter([0.6, 0.4])
    monkeypatch.setattr(PoseTask, "evaluate", lambda task: {"pck@0.1": next(answers)})
    workspace = make_world(tmp_path)
    metrics = train.run(train.Config(**SMALL | {"steps": 2, "eval_every": 1}), workspace)
    best = torch.load(workspace.checkpoint_dir("pose") / "best.pt", weights_only=True)
    assert best["step"] == 1 and metrics["val"]["pck@0.1"] == 0.6


@pytest.mark.parametrize("published", [True, False])
def test_the_rate_is_warmed_up_but_as_published(world, monkeypatch, published):
    asked = []
    monkeypatch.setattr(train, "fit", lambda task, config, *rest: asked.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.run(train.Config(**SMALL | {"steps": 500, "published": published, "overwrite": True}), world)
    assert asked[0].warmup == (0 if published else 50)


def test_averaging_with_the_mirror_is_asked_for_by_flag(world, monkeypatch):
    asked, original = [], PosePredictor.from_checkpoint.__func__

    def spy(cls, path, **options):
        asked.append(options["flip_average"])
        return original(cls, path, **options)

    monkeypatch.setattr(PosePredictor, "from_checkpoint", classmethod(spy))
    for flip_average in (True, False):
        evaluate.run(evaluate.Config(category="cow", device="cpu", flip_average=flip_average), world)
    assert asked == [True, False]


def test_pseudo_labels_are_averaged_with_the_mirror_where_asked_for(world):
    options = {"category": "cow", "device": "cpu", "num_workers": 0}
    for flip_average in (False, True):
        expected = predicted(world, flip_average=flip_average)
        for module, source in ((generate_pl, "pose"), (generate_pl_mt, "pose_mt")):
            module.run(module.Config(**options, flip_average=flip_average, overwrite=True), world)
            table = read_table(world.keypoints_path(source), "keypoints")
            plain = table["transform"] == "none"
            np.testing.assert_allclose(table["xy"][plain], expected[0], atol=1e-3)
            # This network's confidences are some 1e-5.
            np.testing.assert_allclose(table["confidence"][plain], expected[1], rtol=1e-3)


def test_only_visible_keypoints_are_measured(records):
    samples = PoseSamples(records, 64, SKELETON.flip)
    right = np.where(records.counts[..., None], records.xy, -500.0)
    predictor = SimpleNamespace(predict=lambda images, boxes: (right, None), keypoints=SKELETON.keypoints)
    metrics = evaluate.measure(predictor, samples)
    assert not records.counts.all() and metrics["keypoints"] == records.counts.sum()
    assert metrics["pck"] == [1.0] * 9


def test_colours_vary_by_the_reach(records):
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert vary_colour(grey, 0.0, np.random.default_rng(0)) is grey
    means = np.array([vary_colour(grey, 0.2, np.random.default_rng(n))[0, 0] for n in range(50)])
    assert (means.std(0) > 5).all() and (np.ptp(means, axis=1) > 2).any()  # each channel on its own, too


def test_web_animals_may_be_another_runs(world, records):
    """A later round learns from the pseudo-labels of the round before."""
    instances, first = world.load("instances"), world.sibling(name="first")
    for place, shift in ((world, 0.0), (first, 7.0)):
        xy = np.tile(instances["box_xyxy"][:, None, :2] + 5 + shift, (1, KEYPOINTS, 1))
        columns = {"instance_id": instances["instance_id"], "transform": ["none"] * len(xy), "xy": xy}
        table = Table(
            "keypoints", {**columns, "confidence": np.ones(xy.shape[:2])}, {"skeleton": SKELETON.name}
        )
        write_table(table, place.keypoints_path("pose"))
    web = {"category": "cow", "use_web_images": True}
    own, other = (
        training_data.training_records(train.Config(**web, **settings), world)
        for settings in ({}, {"web_run": "first"})
    )
    np.testing.assert_allclose(other[1].xy, own[1].xy + 7)
    assert first.keypoints_path("pose") in other[2] and world.keypoints_path("pose") in own[2]
