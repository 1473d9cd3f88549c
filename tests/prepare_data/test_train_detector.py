"""Training the synthetic world's detector, in miniature, and the average precision that judges it."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from prepare_data import train_detector
from prepare_data.average_precision import average_precision, best_threshold
from prepare_data.detectors import DIORAMA_WEIGHTS, detect, find_detector
from prepare_data.train_detector import LABELS, SIDE, Config, Example, augment, make_examples, run
from wildshape.errors import UserError
from wildshape.geometry import box_iou


@pytest.fixture(scope="module")
def examples():
    return make_examples(train_detector._TRAIN, 12, 5, "pictures")


def test_pictures_hold_all_species_and_boxes_inside(examples):
    found = {LABELS[label] for example in examples for label in example.labels}
    assert found >= {"bear", "cow", "dog", "giraffe", "horse", "sheep"}
    for example in examples:
        assert (example.boxes[:, 2:] > example.boxes[:, :2]).all() and (example.boxes > -2).all()
    again = make_examples(train_detector._TRAIN, 3, 5, "pictures")
    assert [example.data for example in again] == [example.data for example in examples[:3]]


def test_augmented_boxes_follow_the_picture():
    """A white square on black stays where its box says, whatever the zoom, shift and mirror."""
    image = np.zeros((200, 260, 3), np.uint8)
    image[60:120, 90:170] = 255
    data = cv2.imencode(".png", image)[1].tobytes()
    example = Example(data, np.array([[90, 60, 170, 120]], np.float32), np.array([3]))
    checked = 0
    for seed in range(30):
        item = augment(example, np.random.default_rng(seed))
        x0, y0, x1, y1 = item["boxes"][0]
        if item["labels"][0] == 0 or min(x0, y0) <= 1 or max(x1, y1) >= SIDE - 1:
            continue
        grey = item["image"].astype(int).sum(-1)
        inside = grey[int(y0) + 3 : int(y1) - 3, int(x0) + 3 : int(x1) - 3]
        around = grey[int(y0) - 1 : int(y1) + 2, int(x0) - 1 : int(x1) + 2]
        assert inside.min() > around[0].max() and inside.min() > around[:, 0].max()
        checked += 1
    assert checked > 5


def test_average_precision_by_hand():
    box, other = [10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 80.0, 90.0]
    truth = [(np.array([box, other]), np.array([1, 2])), (np.array([box]), np.array([1]))]
    perfect = [
        (np.array([box, other]), np.array([0.9, 0.8]), np.array([1, 2])),
        (np.array([box]), np.array([0.7]), np.array([1])),
    ]
    assert average_precision(truth, perfect, 2) == pytest.approx({"ap": 100, "ap50": 100, "ap75": 100})
    # Class 2 missed: half of the classes are perfect.
    missed = [(np.array([box]), np.array([0.9]), np.array([1])), perfect[1]]
    assert average_precision(truth, missed, 2)["ap50"] == pytest.approx(50)
    # IoU of 2/3: right at .50 to .65, four of ten thresholds.
    half = [(np.array([[10.0, 10.0, 30.0, 40.0]]), np.array([0.9]), np.array([1]))]
    found = average_precision([(np.array([box]), np.array([1]))], half, 1)
    assert found == pytest.approx({"ap": 40, "ap50": 100, "ap75": 0})
    nothing = [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))] * 2
    assert average_precision(truth, nothing, 2) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}


def test_the_best_threshold_by_hand():
    """Of one class two true boxes score .9 and .6, a false one .7, two more false ones .3."""
    boxes = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10], [80, 0, 90, 10]])
    truth = [(boxes[:2], np.array([1, 1]))]
    found = [(boxes, np.array([0.9, 0.6, 0.7, 0.3, 0.3]), np.ones(5, int))]
    level, f1 = best_threshold(truth, found, 2)  # the second class is nowhere, and does not count
    # all three down to .6: precision 2/3, recall 1; only the first: precision 1, recall 1/2
    assert level == 0.6 and f1 == pytest.approx(0.8)
    found = [(boxes, np.array([0.9, 0.3, 0.7, 0.6, 0.6]), np.ones(5, int))]
    # precision 2/5 at recall 1 is F1 4/7; the first alone is 2/3
    level, f1 = best_threshold(truth, found, 2)
    assert level == 0.9 and f1 == pytest.approx(2 / 3)
    assert best_threshold(truth, [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))], 2) == (0.5, 0.0)


def test_a_training_leaves_weights_that_the_detector_reads(tmp_path, workspace, capsys):
    config = Config(
        out=tmp_path / "detector",
        pictures=6,
        val_pictures=2,
        small_steps=2,
        steps=2,
        batch_size=2,
        eval_every=1,
        device="cpu",
    )
    result = run(config)
    assert result["finished"] and set(result) == {"finished", "ap", "ap50", "ap75", "f1", "score_threshold"}
    weights = tmp_path / "detector" / "detector.pt"
    assert weights.stat().st_size < 10_000_000
    loaded = find_detector(
        f"torchvision:{train_detector.MODEL}", workspace, ("MODEL.WEIGHTS", str(weights)), "cpu"
    )
    state = torch.load(weights, weights_only=True)
    assert loaded.make().default_threshold == state["score_threshold"] == result["score_threshold"]
    ((boxes, scores, labels),) = detect(loaded.make(), loaded.name, [np.zeros((90, 120, 3), np.uint8)])
    assert boxes.shape == (len(scores), 4) and set(labels) <= set(LABELS)
    assert all(value.dtype != torch.float32 for value in state["model"].values())


def test_the_detector_that_comes_with_the_package_finds_animals_of_a_new_world(workspace):
    """Horses of another seed than that of its training; one that is told apart by chance finds a sixth."""
    examples = make_examples(13, 24, 41, "pictures")
    found = find_detector("diorama", type(workspace)(workspace.root, "horse"), device="cpu")
    assert found.settings["weights hash"] and DIORAMA_WEIGHTS.stat().st_size < 10_000_000
    detector = found.make()
    images = [cv2.imdecode(np.frombuffer(e.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for e in examples]
    true = right = 0
    for example, (boxes, scores, names) in zip(examples, detect(detector, "diorama", images)):
        sure = scores >= detector.default_threshold
        for box, label in zip(example.boxes, example.labels):
            same = sure & (np.array(names, dtype=object) == LABELS[label])
            true += 1
            right += bool(same.any()) and float(box_iou(box[None], boxes[same]).max()) > 0.5
    assert true > 15 and right > 0.5 * true


@pytest.mark.parametrize(
    ("category", "spec", "opts", "message"),
    [
        ("cow", "diorama:resnet", (), "expected no model and no --opts; found resnet"),
        ("cow", "diorama", ("miss", "0.1"), "expected no model and no --opts; found miss"),
        ("zebra", "diorama", (), "expected a category among bear, cow, .*found zebra.*simulated"),
    ],
)
def test_what_the_packages_detector_does_not_do(workspace, category, spec, opts, message):
    place = workspace
    if category == "zebra":
        spec_of_cow = workspace.category
        place = type(workspace)(workspace.root, dataclasses.replace(spec_of_cow, name="zebra"))
    with pytest.raises(UserError, match=message):
        find_detector(spec, place, opts, "cpu").make()
