"""What the long benchmarks conclude from their figures, computed by hand."""

import json

import pytest

from benchmarks import acsm_arms, acsm_cameras, pseudo_labels, real_cows, real_cows_settings
from wildshape.workspace import Workspace


def animals(ids, right, count):
    return {"instance_id": ids, "keypoints_right": right, "keypoints": count}


def test_real_cows_compare_like_with_like():
    def row(right):
        arms = {
            arm: {
                "auc": 25.0 * value,
                "by_instance": animals(["a"], [value], [4]),
                "leg_turn_deg": 10.0 * value,
            }
            for arm, value in zip(("labels", "cf_cm"), right)
        }
        return {"acsm": arms, "pose": {"pose": {"pck": [0.1, right[0] / 4]}}}

    figures = {"pretrained": [row((2.0, 3.0)), row((2.0, 2.0))], "scratch": [row((1.0, 1.0))]}
    found = real_cows.summarise(figures)
    assert found["pck_10"]["pretrained"]["pose"] == {"mean": 50.0, "values": [50.0, 50.0]}
    assert found["auc"]["pretrained"]["cf_cm"]["mean"] == 62.5
    assert found["leg_turn_deg"]["pretrained"] == {"labels": 20.0, "cf_cm": 25.0}
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


def row_of_arm(right, camera, iou, views, **more):
    """What `acsm_arms.Seed.measure` gives of two animals with four keypoints each."""
    listed = {**animals(["a", "b"], right, [4, 4]), "camera_error_deg": camera, "iou": iou, "view": views}
    by_view = {name: {"auc": 40.0, "miou": None, "camera_error": 30.0} for name in acsm_arms.VIEWS}
    figures = {"auc": 50.0, "miou": 60.0, "camera_error": 20.0, "seconds_a_step": 0.5, "by_view": by_view}
    return {**figures, **more, "by_instance": listed}


def two_seeds():
    views, seeds = ["left", "back"], []
    for seed in (1, 2):
        arms = {
            "one": row_of_arm([1.0, 2.0], [10.0, 20.0], [0.5, float("nan")], views),
            "eight": row_of_arm(
                [2.0, 2.0], [10.0, 12.0 + 4 * seed], [0.5 + 0.1 * seed, float("nan")], views,
                auc=50.0 + 10 * seed, seconds_a_step=None,
            ),
        }  # fmt: skip
        for arm in arms.values():
            arm["by_instance"] = pseudo_labels.of_world(arm["by_instance"], seed)
        seeds.append(arms)
    return seeds


def test_arms_are_compared_animal_by_animal_and_by_view():
    found = acsm_arms.summarise(two_seeds(), "one")
    assert set(found) == {"arms", "over_one"} and set(found["over_one"]) == {"eight"}
    over = found["over_one"]["eight"]
    # One keypoint of eight more in each world, whose animals are told apart.
    assert over["auc"]["gain"] == pytest.approx(100 * 2 / 16) and over["auc"]["animals"] == 4
    # Only the animals with a mask: 10 and 20 points more.
    assert over["iou"]["gain"] == pytest.approx(15) and over["iou"]["animals"] == 2
    assert over["iou"]["interval"][0] >= 10 - 1e-9 and over["iou"]["interval"][1] <= 20 + 1e-9
    # 4 and 0 degrees less, both of animals seen from behind.
    assert over["camera"]["gain"] == pytest.approx(-1.0)
    side, front_back = (over["by_view"][view] for view in ("side", "front_back"))
    assert side["auc"]["gain"] == pytest.approx(25.0) and side["camera"]["gain"] == 0
    assert front_back["auc"]["gain"] == 0 and front_back["camera"]["gain"] == pytest.approx(-2.0)
    assert front_back["auc"]["animals"] == 2 and front_back["iou"]["animals"] == 0

    eight = found["arms"]["eight"]
    assert eight["auc"] == {"mean": 65.0, "std": pytest.approx(50**0.5), "values": [60.0, 70.0]}
    # What is not known of every seed has no spread.
    assert "seconds_a_step" not in eight and set(eight["by_view"]["side"]) == {"auc", "camera_error"}
    assert found["arms"]["one"]["seconds_a_step"]["values"] == [0.5, 0.5]


def test_the_table_of_arms_shows_spreads_views_and_changes():
    lines = acsm_arms.table(acsm_arms.summarise(two_seeds(), "one")).splitlines()
    assert [line[:12].strip() for line in lines[1:]] == [
        "one",
        "side",
        "front_back",
        "eight",
        "side",
        "front_back",
    ]
    assert "0.500 +- 0.000" in lines[1] and "[" not in lines[1]
    assert "65.0 +- 7.1" in lines[4] and "+12.5 [" in lines[4] and "-1.0 [" in lines[4]
    assert "+25.0 [25.0, 25.0], +0.0 [0.0, 0.0]" in lines[5]
    kept = acsm_arms.without_animals(two_seeds()[0])["eight"]
    assert "by_instance" not in kept and kept["auc"] == 60.0


def test_the_time_of_a_step_leaves_out_evaluations_and_restarts(tmp_path):
    workspace = Workspace(tmp_path, "cow", "bench")
    folder = workspace.checkpoint_dir("acsm/compile")
    folder.mkdir(parents=True)
    lines = [(50, 30.0, "loss"), (100, 40.0, "loss"), (150, 42.0, "loss"), (150, 50.0, "val_auc")]
    # Continued by another call after step 250.
    lines += [(200, 90.0, "loss"), (250, 92.0, "loss"), (300, 7.0, "loss"), (350, 10.0, "loss")]
    rows = [json.dumps({"step": step, "seconds": seconds, name: 1.0}) for step, seconds, name in lines]
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    assert acsm_arms.seconds_a_step(workspace, "compile") == 0.04
    (folder / "metrics.jsonl").write_text(rows[0])
    assert acsm_arms.seconds_a_step(workspace, "compile") is None


def test_arms_that_run_out_of_time_go_on(tmp_path, monkeypatch, capsys):
    done, calls = set(), []

    def train(self, module, **settings):
        arm = settings.get("arm", "pose")
        if (self.seed, arm) not in done and len(done) >= limit:
            raise acsm_arms.OutOfTime
        done.add((self.seed, arm))
        calls.append((self.seed, arm, settings.get("num_cameras"), settings.get("init")))

    def measure(self, arm):
        return two_seeds()[self.seed - 50][arm]

    monkeypatch.setattr(acsm_arms.Seed, "train", train)
    monkeypatch.setattr(acsm_arms.Seed, "call", lambda self, module, **settings: {})
    monkeypatch.setattr(acsm_arms.Seed, "measure", measure)
    out = tmp_path / "cameras.json"
    command = ["--root", str(tmp_path), "--seeds", "2", "--arms", "eight", "--out", str(out)]
    limit = 4
    assert acsm_cameras.main(command) == 0
    start = tmp_path / "seed_50/runs/bench/checkpoints/pose/best.pt"
    assert calls[1:3] == [(50, "one", 1, start), (50, "eight", 8, start)]
    assert len(json.loads(out.read_text())["seeds"]) == 1
    assert "out of time in seed 51: run it again to continue" in capsys.readouterr().out
    limit = 9
    assert acsm_cameras.main(command) == 0
    found = json.loads(out.read_text())
    assert [seed["eight"]["auc"] for seed in found["seeds"]] == [60.0, 70.0]
    assert found["settings"]["reference"] == "one" and "one_unguided" not in found["arms"]


def test_settings_that_help_in_most_divisions_are_combined():
    found = {
        "plain": [{"auc": auc} for auc in (60.0, 62.0, 61.0)],
        "three_times_the_steps": [{"auc": auc} for auc in (61.0, 63.0, 60.5)],
        # A higher mean by one division alone is chance.
        "eight_cameras": [{"auc": auc} for auc in (70.0, 61.0, 60.0)],
        "parts_move": [{"auc": auc} for auc in (60.5, 62.5, 50.0)],
        "half_labels": [{"auc": auc} for auc in (60.1, 62.1, 61.1)],
    }
    assert real_cows_settings.combined(found) == {"steps": 7500, "label_share": 0.5}
