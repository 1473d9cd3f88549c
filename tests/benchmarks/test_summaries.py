"""What the long benchmarks conclude from their figures, computed by hand."""

import json

import pytest

from benchmarks import acsm_arms, acsm_masks, pseudo_labels, real_cows, real_cows_settings
from wildshape.workspace import Workspace


def animals(ids, right, count):
    return {"instance_id": ids, "keypoints_right": right, "keypoints": count}


def test_real_cows_compare_like_with_like():
    def row(right):
        arms = {
            arm: {"auc": 25.0 * value, "by_instance": animals(["a"], [value], [4])}
            for arm, value in zip(("labels", "cf_cm"), right)
        }
        return {"acsm": arms, "pose": {"pose": {"pck": [0.1, right[0] / 4]}}}

    figures = {"pretrained": [row((2.0, 3.0)), row((2.0, 2.0))], "scratch": [row((1.0, 1.0))]}
    found = real_cows.summarise(figures)
    assert found["pck_10"]["pretrained"]["pose"] == {"mean": 50.0, "values": [50.0, 50.0]}
    assert found["auc"]["pretrained"]["cf_cm"]["mean"] == 62.5
    assert found["gain_by_pseudo_labels"]["pretrained"]["gain"] == pytest.approx(12.5)
    assert found["gain_by_pseudo_labels"]["scratch"]["gain"] == 0
    # Only the split that both kinds have counts.
    assert found["gain_by_pretraining"]["cf_cm"]["gain"] == pytest.approx(50.0)
    assert (
        real_cows.summarise({"pretrained": figures["pretrained"], "scratch": []})["gain_by_pretraining"]
        == {}
    )


def test_the_claims_of_the_pseudo_label_benchmark():
    def row(right, camera, auc):
        animals = {
            "instance_id": ["a", "b"],
            "keypoints_right": right,
            "keypoints": [4, 4],
            "camera_error_deg": camera,
        }
        figures = {"auc": auc, "camera_error": sum(camera) / 2, "encoder_pck": 70.0}
        return {**figures, "by_instance": animals}

    def seed(number, auc):
        arms = {name: row([2.0, 2.0], [30.0, 50.0], 50.0) for name in pseudo_labels.ARMS}
        arms["cf_cm"] = row([3.0, 3.0], [20.0, 40.0], auc)
        arms["ceiling"] = row([4.0, 4.0], [10.0, 10.0], 100.0)
        for arm in arms.values():
            arm["by_instance"] = pseudo_labels.of_world(arm["by_instance"], number)
        pck = dict.fromkeys(pseudo_labels.SELECTIONS, 60.0) | {"cf_cm": 75.0 + number}
        return {"arms": arms, "pck": pck}

    seeds = [seed(0, 74.0), seed(1, 76.0)]
    found = pseudo_labels.summarise(seeds)
    claim = found["claims"]["cf_cm"]
    assert claim["auc_over_labels"] == {"gain": 25.0, "interval": [25.0, 25.0], "animals": 4}
    assert claim["camera_error_over_labels"]["gain"] == -10
    assert claim["auc_over_ceiling"]["gain"] == -25
    assert claim["pck_over_random"] == [15.0, 16.0]
    assert found["claims"]["kpconf"]["auc_over_labels"]["gain"] == 0
    assert found["over_labels"]["ceiling"]["camera"]["gain"] == -30
    assert found["arms"]["cf_cm"]["auc"]["std"] == pytest.approx(2**0.5)
    table = pseudo_labels.table(found)
    assert "cf_cm" in table and "75.0 +- 1.4" in table and "75.5 +- 0.7" in table
    assert "by_instance" not in pseudo_labels.without_animals(seeds[0])["arms"]["cf_cm"]
    assert seeds[0]["arms"]["cf_cm"]["by_instance"]["instance_id"] == ["0/a", "0/b"]


def test_masks_are_compared_animal_by_animal():
    def row(auc_right, iou, names):
        listed = {**animals(names, auc_right, [4, 4]), "camera_error_deg": [10.0, 20.0]}
        return {
            "auc": 50.0, "miou": 100 * sum(iou.values()) / 2, "camera_error": 15.0, "seconds_a_step": 0.5,
            "by_instance": listed, "iou": iou,
        }  # fmt: skip

    seeds = []
    for seed in (1, 2):
        names = [f"{seed}/a", f"{seed}/b"]
        seeds.append({"arms": {
            "keypoints": row([1.0, 2.0], {"a": 0.5, "b": float("nan")}, names),
            "both": row([2.0, 2.0], {"a": 0.5 + 0.1 * seed, "b": float("nan")}, names),
        }})  # fmt: skip
    found = acsm_masks.summarise(seeds)
    over = found["over_keypoints"]["both"]
    assert over["miou"]["gain"] == pytest.approx(15) and over["miou"]["animals"] == 2
    assert over["miou"]["interval"][0] >= 10 - 1e-9 and over["miou"]["interval"][1] <= 20 + 1e-9
    assert over["auc"]["gain"] == pytest.approx(100 * 2 / 16) and over["camera"]["gain"] == 0
    assert found["arms"]["both"]["seconds_a_step"]["values"] == [0.5, 0.5]
    assert "keypoints" in acsm_masks.table(found) and "keypoints" not in found["over_keypoints"]
    assert set(acsm_masks.without_animals(seeds[0])["both"]) == {*acsm_masks.FIGURES, "seconds_a_step"}


def test_the_change_of_an_arm_and_its_speed(tmp_path):
    def row(right, camera):
        found = {**animals(["a", "b"], right, [4, 4]), "camera_error_deg": camera}
        shared = {"auc": 1.0, "camera_error_deg": 2.0, "steps_per_second": 3.0, "seconds": 4.0}
        return {**shared, "by_instance": found}

    seeds = [
        {"float32": row([2.0, 2.0], [10.0, 20.0]), "compile": row([3.0, 2.0], [10.0, 14.0])},
        {"float32": row([2.0, 2.0], [10.0, 20.0]), "compile": row([2.0, 2.0], [10.0, 18.0])},
    ]
    summary = acsm_arms.summarise(seeds, "float32")
    change = summary["compile"]["change"]
    # One keypoint of sixteen more; 8 degrees less over four animals, those of two worlds being told apart.
    assert change["auc"]["gain"] == pytest.approx(100 / 16) and change["auc"]["animals"] == 4
    assert change["camera"]["gain"] == pytest.approx(-2.0)
    assert "change" not in summary["float32"] and "+6.2 [" in acsm_arms.table(summary)

    workspace = Workspace(tmp_path, "cow", "bench")
    folder = workspace.checkpoint_dir("acsm/compile")
    folder.mkdir(parents=True)
    lines = [(50, 30.0, "loss"), (100, 40.0, "loss"), (150, 42.0, "loss"), (150, 50.0, "val_auc")]
    lines += [(200, 90.0, "loss"), (250, 92.0, "loss")]
    rows = [json.dumps({"step": step, "seconds": seconds, name: 1.0}) for step, seconds, name in lines]
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    assert acsm_arms.steps_per_second(workspace, "compile") == 25.0


def test_settings_that_help_in_most_divisions_are_combined():
    found = {
        "as_in_the_run": [{"auc": auc} for auc in (60.0, 62.0, 61.0)],
        "three_times_the_steps": [{"auc": auc} for auc in (61.0, 63.0, 60.5)],
        # A higher mean by one division alone is chance.
        "eight_cameras": [{"auc": auc} for auc in (70.0, 61.0, 60.0)],
        "parts_move": [{"auc": auc} for auc in (60.5, 62.5, 50.0)],
        "half_labels": [{"auc": auc} for auc in (60.1, 62.1, 61.1)],
    }
    assert real_cows_settings.combined(found) == {"steps": 7500, "label_share": 0.5}
