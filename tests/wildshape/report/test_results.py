import math

import pytest

from wildshape.report.inputs import Checkpoint, RunInputs
from wildshape.report.results import Arm, Measure, arm_role, change, difference, judge, read_arms


def arm(role: str, auc: float, half: float = 2.0, camera: float = 30.0, split: str = "test") -> Arm:
    interval = Measure(auc, auc - half, auc + half)
    return Arm(role, f"{role} arm", role, split, interval, Measure(camera, camera - 3, camera + 3))


def test_difference_adds_the_distances_to_the_ends_in_squares():
    found = difference(Measure(10, 7, 12), Measure(6, 5, 10))
    assert found.value == 4
    assert found.low == pytest.approx(4 - math.hypot(3, 4))
    assert found.high == pytest.approx(4 + math.hypot(2, 1))


def test_difference_without_intervals_has_none():
    assert not difference(Measure(10), Measure(6, 5, 7)).has_interval


def measured(role: str, right: list[float], degrees: list[float | None]) -> Arm:
    ids = [f"a{number}" for number in range(len(right))]
    facts = {
        "by_instance": {
            "instance_id": ids,
            "keypoints_right": right,
            "keypoints": [10] * len(right),
            "camera_error_deg": degrees,
        }
    }
    auc = Measure(10 * sum(right) / len(right), 0, 100)
    known = [value for value in degrees if value is not None]
    return Arm(role, role, role, "test", auc, Measure(sum(known) / len(known), 0, 90), facts)


def test_a_change_is_paired_by_animal():
    # Every animal gains one keypoint of ten: whichever animals are drawn, the gain is ten points.
    old = measured("labels", [2.0, 9.0, 5.0], [40.0, None, 10.0])
    new = measured("selected", [3.0, 10.0, 6.0], [30.0, None, 6.0])
    gain = change(new, old, "auc")
    assert (gain.value, gain.low, gain.high) == pytest.approx((10, 10, 10))
    turn = change(new, old, "camera")
    assert (
        turn.value == pytest.approx(-7)
        and turn.low == pytest.approx(-10)
        and turn.high == pytest.approx(-4)
    )


def test_a_change_between_other_animals_is_not_paired():
    old, new = measured("labels", [2.0], [40.0]), measured("selected", [3.0, 4.0], [30.0, 20.0])
    assert change(new, old, "auc") == difference(new.auc, old.auc)


def test_clear_gain():
    verdict = judge([arm("labels", 60), arm("selected", 66, camera=20), arm("ceiling", 72)])
    assert verdict.tone == "good"
    assert verdict.text.startswith("Pseudo-labels help: AUC rises from 60.0 to 66.0 (+6.0 points")
    assert "50 % of the 12.0 points to the ceiling" in verdict.text
    assert "from 30.0° to 20.0° (−10.0°; −14.2 to −5.8)" in verdict.text


def test_an_interval_that_includes_zero_is_no_gain():
    verdict = judge([arm("labels", 60), arm("selected", 61)])
    assert verdict.tone == "open"
    assert "No clear effect" in verdict.text and "the interval includes zero" in verdict.text
    assert "(0.0°; −4.2 to +4.2, which includes zero)" in verdict.text


def test_a_loss_is_called_one():
    verdict = judge([arm("labels", 60), arm("selected", 52)])
    assert verdict.tone == "bad" and "hurt" in verdict.text and "−8.0 points" in verdict.text


def test_a_ceiling_below_labels_is_said():
    verdict = judge([arm("labels", 60), arm("selected", 61), arm("ceiling", 59)])
    assert "even true labels of the same images change it by −1.0 points" in verdict.text


def test_missing_arms_give_no_verdict():
    assert "labels only has not" in judge([arm("selected", 60)]).text
    assert "selected pseudo-labels has not" in judge([arm("labels", 60)]).text
    assert judge([]).tone == "missing"


def test_different_splits_are_not_compared():
    verdict = judge([arm("labels", 60), arm("selected", 70, split="val")])
    assert verdict.tone == "missing" and "different splits" in verdict.text


def test_an_arm_of_another_split_is_left_out():
    arms = [arm("labels", 60), arm("selected", 66)]
    others = [arm("selected", 90, split="val"), arm("ceiling", 99, split="val")]
    assert judge([*arms, *others]) == judge(arms)


def test_validation_numbers_are_called_so():
    verdict = judge([arm("labels", 60, split="val"), arm("selected", 70, split="val")])
    assert "on the val split, not on test" in verdict.text


def test_the_best_of_several_is_called_so():
    verdict = judge([arm("labels", 60), arm("selected", 66), arm("selected", 70)])
    assert "to 70.0" in verdict.text and "best of 2" in verdict.text


@pytest.mark.parametrize(
    ("name", "config", "role"),
    [
        ("labels", {}, "labels"),
        ("anything", {"use_web_images": False}, "labels"),
        ("cf_cm", {"use_web_images": True, "pl_source": "pose"}, "selected"),
        ("anything", {"use_web_images": True, "pl_source": "truth"}, "ceiling"),
        ("ceiling", {}, "ceiling"),
    ],
)
def test_roles(name, config, role):
    assert arm_role(name, config) == role


def test_arms_are_read_from_metrics_and_titled_by_their_settings(workspace):
    inputs = RunInputs(workspace)
    inputs.metrics = {
        "acsm_ceiling_test": {"arm": "ceiling", "auc": 80.0, "split": "test"},
        "acsm_cf_mt_test": {
            "arm": "cf_mt", "auc": 70.0, "auc_interval": [68.0, 72.0], "camera_error_deg": 20.0,
            "split": "test",
        },
        "acsm_cf_mt_val": {"arm": "cf_mt", "auc": 99.0, "split": "val"},
        "acsm_labels_test": {"auc": 60.0, "split": "test"},
        "acsm_labels-last_test": {"arm": "labels-last", "of_arm": "labels", "auc": 99.0, "split": "test"},
        "acsm_train_labels": {"val": {"auc": 1.0}, "auc": 1.0},
        "pose_test": {"auc": 1.0},
    }  # fmt: skip
    settings = {"config": {"use_web_images": True, "filter": "cf_mt", "web_images_num": 300}}
    inputs.checkpoints = {"acsm/cf_mt": Checkpoint("acsm/cf_mt", settings, [])}
    labels, selected, ceiling = read_arms(inputs)
    assert (labels.name, selected.name, ceiling.name) == ("labels", "cf_mt", "ceiling")
    assert selected.title == "labels + 300 pseudo-labels (CF-MT)"
    assert selected.auc == Measure(70.0, 68.0, 72.0) and selected.camera.value == 20.0
    assert not labels.camera
