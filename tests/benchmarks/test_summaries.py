"""What the long benchmarks conclude from their figures, computed by hand."""

import pytest

from benchmarks import pseudo_labels, real_cows


def animals(ids, right, count):
    return {"instance_id": ids, "keypoints_right": right, "keypoints": count}


def test_gain_counts_an_animal_of_two_splits_once():
    old = [animals(["a", "b"], [1.0, 2.0], [4, 4]), animals(["b", "c"], [2.0, 0.0], [4, 8])]
    new = [animals(["a", "b"], [2.0, 2.0], [4, 4]), animals(["b", "c"], [3.0, 4.0], [4, 8])]
    found = real_cows.gain(new, old)
    assert found["animals"] == 3
    assert found["gain"] == pytest.approx(100 * (1 + 1 + 4) / 20)
    # The bootstrap draws a (1 of 4), b (1 of 8) and c (4 of 8): no draw leaves these ratios.
    assert 12.5 <= found["interval"][0] <= found["gain"] <= found["interval"][1] <= 50
    assert real_cows.gain(old, old)["interval"] == [0, 0]
    with pytest.raises(ValueError, match="the same animals"):
        real_cows.gain(new[:1], old[1:])


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
    def seed(shift):
        arms = {
            name: {"auc": 50.0, "camera_error": 40.0, "encoder_pck": 70.0} for name in pseudo_labels.ARMS
        }
        arms["cf_cm"] = {"auc": 53.0 + shift, "camera_error": 38.0, "encoder_pck": 72.0}
        arms["ceiling"]["auc"] = 62.0
        pck = dict.fromkeys(pseudo_labels.SELECTIONS, 60.0) | {"cf_cm": 75.0}
        return {"arms": arms, "pck": pck}

    found = pseudo_labels.summarise([seed(0.0), seed(2.0)])
    assert found["claims"]["cf_cm"] == {
        "auc_over_labels": 4.0,
        "camera_error_under_labels": 2.0,
        "pck_over_random": 15.0,
    }
    assert found["claims"]["kpconf"]["auc_over_labels"] == 0
    assert found["arms"]["cf_cm"]["auc"]["std"] == pytest.approx(2**0.5)
    assert found["auc_of_true_labels_over_labels"] == 12.0
    table = pseudo_labels.table(found)
    assert "cf_cm" in table and "54.0 +- 1.4" in table and "75.0 +- 0.0" in table
