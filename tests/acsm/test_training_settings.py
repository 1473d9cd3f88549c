"""What the training of the 3D model makes of its settings, without a training."""

import threading
from dataclasses import asdict, replace
from types import SimpleNamespace

import acsm_toy
import acsm_world
import numpy as np
import pytest
import torch
from test_acsm_flip_consistency import batch_of, task_of

from acsm import evaluate, generate_pl, train
from acsm.crops import published_keypoints_ndc
from acsm.data import CropStyle, ShapeSamples
from acsm.model import ACSM, ACSMArchitecture
from acsm.predict import ShapePredictor, pack_template
from acsm.template import template_for
from wildshape import training_data
from wildshape.crops import read_image
from wildshape.geometry import crop_affine, xyxy_to_xywh
from wildshape.records import pseudo_label_records
from wildshape.training import save_checkpoint

WEIGHTS = {
    "camera_guide": "camera", "turn_weight": "turn", "upright_weight": "upright",
    "entropy_weight": "entropy", "spread_weight": "spread",
}  # fmt: skip


def four_cameras():
    torch.manual_seed(0)
    arch = ACSMArchitecture(image_size=64, num_cameras=4, camera="angles")
    model = ACSM(acsm_toy.template(), arch).eval()
    with torch.no_grad():
        model.camera_head.output.bias[:, 1] = 1.0  # elevation
        model.camera_head.output.bias[0, 3] = 2.0  # the first camera is likelier
        model.part_head.output.bias[:, 1] = 0.5
    return model


@pytest.mark.parametrize(("setting", "term"), WEIGHTS.items())
def test_every_setting_weighs_its_own_term(setting, term):
    model, batch = four_cameras(), batch_of()
    batch["guide"] = torch.tensor([0.6, 0, 0.8, 0, 1]).repeat(3, 1)
    none = dict.fromkeys(WEIGHTS, 0.0)
    without, _ = task_of(model, **none).loss(batch, 1)
    loss, terms = task_of(model, **none | {setting: 0.7}).loss(batch, 1)
    assert terms[term] > 0.01
    assert float((loss - without).detach()) == pytest.approx(0.7 * terms[term], rel=1e-3)


def test_a_web_animals_weight_is_on_its_keypoints():
    task, batch = task_of(four_cameras()), batch_of()
    plain = task.loss(batch, 1)[1]["keypoints"]
    quarter = task.loss({**batch, "emphasis": torch.full((3,), 0.25)}, 1)[1]["keypoints"]
    assert quarter == pytest.approx(plain / 4, rel=1e-5)


def test_parts_rest_during_the_warm_up():
    task = task_of(four_cameras())
    task._articulate_from = 2
    for step in (1, 2):
        task.model.zero_grad()
        task.loss(batch_of(), step)[0].backward()
        assert (task.model.part_head.axis.grad is None) == task.parameters_rest(step) == (step == 1)


def bare_task(kind=train.ShapeTask, **settings):
    task = kind.__new__(kind)
    task.config = train.Config(category="stick", **settings)
    return task


def test_labels_get_their_share():
    task, rng = bare_task(label_share=0.8), np.random.default_rng(0)
    task.samples, task.num_labels = range(10), 2
    drawn = np.array([task._choose(step % 10, rng) for step in range(500)])
    assert (drawn < 2).mean() == pytest.approx(0.8, abs=0.05) and set(drawn) == set(range(10))


def test_a_frozen_encoder_shows_all_crops_of_an_animal():
    task = bare_task(train.FrozenShapeTask, freeze=True, frozen_crops=4)
    task.samples, task._lock = range(3), threading.Lock()
    task.num_labels, task._variants = 3, [{"crop": number} for number in range(12)]
    seen = {task.sample(1, np.random.default_rng(seed))["crop"] for seed in range(40)}
    assert seen == {1, 4, 7, 10}


def test_hidden_keypoints_do_not_choose_the_best_checkpoint():
    task = bare_task()
    xy, weight = np.zeros((2, 4, 2)), np.array([[1, 1, 0, 0], [1, 0, 0, 1]])
    camera = np.full((2, 7), np.nan)
    task._val = SimpleNamespace(xy=xy, weight=weight, box_side=np.full(2, 50.0), camera=camera)
    found = np.where(weight[..., None] > 0, 0.0, 40.0) + xy
    assert task._keypoint_metrics(SimpleNamespace(xy_image=found, camera=camera)) == {"auc": 100.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return acsm_world.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def records(world):
    return training_data.labelled(world, "test", world.category.skeleton)[0]


@pytest.fixture
def predictor(world):
    torch.manual_seed(0)
    model = ACSM(template_for(world.category), ACSMArchitecture(image_size=64))
    return ShapePredictor(model, None, acsm_toy.NAMES, device="cpu")


def test_hidden_keypoints_are_not_measured(records, predictor):
    weight = records.weight * (np.arange(16) < 4)
    for published in (False, True):
        measured = evaluate.measure(predictor, replace(records, weight=weight), published=published)
        np.testing.assert_array_equal(measured.result.visible, weight > 0)


def test_released_keypoints_are_measured_in_the_released_frame(records, predictor, monkeypatch):
    """A model that answers with the released NDC of the true keypoints is right."""
    right = [published_keypoints_ndc(p, xyxy_to_xywh(b), 64) for p, b in zip(records.xy, records.box_xyxy)]
    forward = predictor._forward
    monkeypatch.setattr(
        predictor, "_forward", lambda *seen: {**forward(*seen), "keypoints_ndc": np.stack(right)}
    )
    result = evaluate.measure(predictor, records, published=True).result
    np.testing.assert_allclose(result.xy, records.xy, atol=1e-6)
    np.testing.assert_allclose(result.box_side, acsm_world.SIZE + 1)


def test_what_lies_beside_the_photo_is_white_for_all(records, predictor, monkeypatch):
    box = np.array([-30.0, 5, 42, 77])
    one = replace(records.take([0]), box_xyxy=box[None])
    samples = ShapeSamples(one, 64, acsm_toy.FLIP)
    expected = samples.crop(0, samples.evaluation_affine(0))
    assert (expected[:, :20] == 255).all() and (expected[:, 40:] < 255).any()
    seen, forward = [], predictor._forward
    monkeypatch.setattr(predictor, "_forward", lambda c, v: seen.append(c[0].numpy()) or forward(c, v))
    predictor.predict([read_image(one.paths[0])], box[None])
    evaluate.measure(predictor, one)
    row = {"instance_id": "a", "image_id": "m", "box_xyxy": box}
    seen.append(generate_pl.ShapePseudoLabels(predictor, {"m": one.paths[0]}).prepare(row)["crop"])
    for crop in seen:
        assert np.abs(crop.astype(int) - expected).max() <= 2


def test_keypoints_take_their_weights_to_the_other_side(records):
    weight = np.linspace(0.1, 1, 16) * np.ones((3, 1))
    samples = ShapeSamples(replace(records, weight=weight), 64, acsm_toy.FLIP, CropStyle(flip=1.0))
    made = samples.sample(0, np.random.default_rng(0))
    np.testing.assert_allclose(made["weight"], weight[0][acsm_toy.FLIP], rtol=1e-6)


def test_a_mirrored_batch_has_mirrored_guides(records):
    guide = records.camera, np.ones(3)
    made = {}
    for flip in (0.0, 1.0):
        samples = ShapeSamples(records, 64, acsm_toy.FLIP, CropStyle(flip=flip, colour=0.0), guide)
        made[flip] = samples.sample(1, np.random.default_rng(4))
    task = SimpleNamespace(model=SimpleNamespace(keypoint_flip=torch.tensor(acsm_toy.FLIP)))
    both = train.ShapeTask._with_mirror(task, {n: torch.tensor(v[None]) for n, v in made[0.0].items()})
    np.testing.assert_array_equal(both["crop"][1], made[0.0]["crop"][:, ::-1])
    turn = both["guide"][1, :4].numpy() @ made[1.0]["guide"][:4]
    assert abs(turn) == pytest.approx(1, abs=1e-5) and both["guide"][1, 4] == 1


def test_joined_samples_keep_their_guides(records):
    parts = []
    for index in (0, 1):
        one = records.take([index])
        parts.append(ShapeSamples(one, 64, acsm_toy.FLIP, guide=(one.camera, np.array([0.5]))))
    joined = parts[0].joined(parts[1])
    for index, part in enumerate(parts):
        own = part.sample(0, np.random.default_rng(2))["guide"]
        assert own[4] == 0.5
        np.testing.assert_array_equal(joined.sample(index, np.random.default_rng(2))["guide"], own)


def test_crops_vary_as_the_settings_say(world, records):
    template = template_for(world.category)
    for flip, share in (("random", 0.5), ("both", 0.0), ("none", 0.0)):
        settings = train.Config(
            category="stick", image_size=64, flip=flip, rotation=20.0, colour=0.1, camera_guide=0.0
        )
        samples = train._samples(records, settings, template, "animals")
        style = samples.style
        assert (style.flip, style.rotation_deg, style.colour) == (share, 20.0, 0.1)
    still = ShapeSamples(records, 64, acsm_toy.FLIP, CropStyle(flip=0.0, colour=0.0))
    size = [np.ptp(still.sample(0, np.random.default_rng(n))["target_ndc"][:, 0]) for n in range(30)]
    assert np.ptp(size) > 0.05 * np.mean(size)  # by the jitter of the box


@pytest.mark.parametrize(
    "change",
    [{"turn_weight": 0.5}, {"upright_weight": 0.5}, {"camera_guide": 0.5}, {"label_share": 0.5},
     {"web_weight": 0.5}, {"order": "published"}, {"translations": True}, {"flip_consistency": 1.0}],
)  # fmt: skip
def test_a_changed_setting_is_another_training(world, change):
    template = template_for(world.category)
    plain, other = (
        train._provenance(train.Config(category="stick", **settings), world, template, [], "")
        for settings in ({}, change)
    )
    assert plain.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "settings, names",
    [
        ({"rotation": 10.0}, {"upright"}),
        ({"rotation": 10.0, "upright_weight": 0.0}, set()),
        ({"use_web_images": True}, {"repeated_pictures"}),
        ({"use_web_images": True, "filter": "cf_cm"}, set()),
    ],
)
def test_what_older_trainings_did_otherwise_is_remembered(world, settings, names):
    template = template_for(world.category)
    config = train._provenance(train.Config(category="stick", **settings), world, template, [], "").config
    assert {"upright", "repeated_pictures"} & set(config) == names


def test_the_best_checkpoint_has_the_highest_auc(tmp_path, monkeypatch):
    answers = iter([60.0, 40.0])
    monkeypatch.setattr(train.ShapeTask, "evaluate", lambda task: {"auc": next(answers)})
    workspace = acsm_world.build(tmp_path)
    short = {"image_size": 64, "steps": 2, "batch_size": 3, "eval_every": 1, "imagenet": False}
    metrics = train.run(
        train.Config(category="stick", device="cpu", precision="float32", **short), workspace
    )
    best = torch.load(workspace.checkpoint_dir("acsm/labels") / "best.pt", weights_only=True)
    assert best["step"] == 1 and metrics["val"]["auc"] == 60


def test_who_has_no_pseudo_label_is_left_out(world):
    instances, keypoints = world.load("instances"), world.load_keypoints("pose")
    paths = {f"m{number}": world.images_dir / f"{number}.png" for number in range(12, 17)}
    skeleton = world.category.skeleton
    records = pseudo_label_records(instances, keypoints.take(np.arange(1, 5)), paths, skeleton)
    ids = tuple(instances["instance_id"])
    assert records.instance_ids == ids[1:] and records.skipped == ((ids[0], "no keypoint to learn from"),)


def test_web_animals_at_random_follow_the_seed(world):
    chosen = [training_data.web(world, "pose", None, 2, seed)[0].instance_ids for seed in range(6)]
    assert len(set(chosen)) > 1
    assert training_data.web(world, "pose", None, 2, 3)[0].instance_ids == chosen[3]


def test_hidden_keypoints_do_not_guide_cameras(world, records):
    """Their places are 0 in the tables."""
    template = template_for(world.category)
    hidden = np.ones((3, 16))
    hidden[:, ::5] = 0
    some = replace(records, weight=hidden, xy=np.where(hidden[..., None] > 0, records.xy, 0.0))
    spoilt = replace(some, xy=np.where(hidden[..., None] > 0, records.xy, 999.0))
    for found, expected in zip(train._guide(template, some), train._guide(template, spoilt)):
        np.testing.assert_allclose(found, expected)


def test_a_checkpoint_brings_its_padding(world, tmp_path):
    torch.manual_seed(0)
    template = template_for(world.category)
    model = ACSM(template, ACSMArchitecture(image_size=64))
    extra = {
        "kind": "acsm", "category": "stick", "skeleton": "quadruped16", "keypoints": list(acsm_toy.NAMES),
        "arch": asdict(model.arch), "padding": 0.2, "template": pack_template(template),
    }  # fmt: skip
    save_checkpoint(tmp_path / "a.pt", {"model": model.state_dict(), "extra": extra})
    predictor = ShapePredictor.from_checkpoint(tmp_path / "a.pt", device="cpu")
    box = np.array([0.0, 0, 100, 100])
    np.testing.assert_allclose(
        predictor.crop_affine(box).matrix, crop_affine([-20, -20, 120, 120], 64).matrix
    )
