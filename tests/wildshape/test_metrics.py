import numpy as np
import pytest

from wildshape import metrics
from wildshape.metrics import bootstrap_interval, keypoint_errors, paired_change, pck, pck_counts

TRUTH = np.zeros((2, 3, 2))
XY = np.array([[[3.0, 4.0], [0, 1], [50, 0]], [[0, 0], [0, 20], [np.nan, 0]]])
VISIBLE = np.array([[2, 2, 1], [0, 2, 2]])


def test_pck_by_hand():
    """Counting errors are .05, .01 of box 100; .1 of box 200 and a NaN."""
    values = pck(XY, TRUTH, VISIBLE, np.array([100, 200]), [0.01, 0.05, 0.1, 0.5])
    np.testing.assert_allclose(values, [1 / 4, 2 / 4, 3 / 4, 3 / 4])


def test_thresholds_include_or_exclude_equality():
    counts = VISIBLE == 2
    loose = pck(XY, TRUTH, counts, np.array([100, 200]), [0.05])
    strict = pck(XY, TRUTH, counts, np.array([100, 200]), [0.05], strict=True)
    assert (float(loose[0]), float(strict[0])) == (0.5, 0.25)


def test_counts_sum_to_pck_and_scalars_broadcast():
    correct, total = pck_counts(XY, TRUTH, VISIBLE, 100, [0.02, 0.2])
    assert correct.shape == (2, 3, 2) and total.sum() == 4
    np.testing.assert_allclose(correct.sum((0, 1)) / total.sum(), pck(XY, TRUTH, VISIBLE, 100, [0.02, 0.2]))


def test_errors_in_box_sides():
    error = keypoint_errors(XY, TRUTH, np.array([10, 20]))
    np.testing.assert_allclose(error, [[0.5, 0.1, 5], [0, 1, np.nan]])


def test_nothing_to_count_is_nan():
    assert np.isnan(pck(XY, TRUTH, np.zeros((2, 3), bool), 100, [0.1])).all()
    assert np.isnan(pck(XY[:0], TRUTH[:0], VISIBLE[:0], np.zeros(0), [0.1])).all()
    low, high = bootstrap_interval(np.zeros((0, 2)), np.zeros(0))
    assert np.isnan(low).all() and np.isnan(high).all()


def test_bootstrap_interval_matches_the_binomial():
    rng = np.random.default_rng(0)
    correct = (rng.random((400, 1)) < 0.3).astype(int)
    low, high = bootstrap_interval(correct, np.ones(400))
    spread = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert low[0] == pytest.approx(correct.mean() - spread, abs=0.01)
    assert high[0] == pytest.approx(correct.mean() + spread, abs=0.01)
    again = bootstrap_interval(correct, np.ones(400))
    assert (again[0], again[1]) == (low, high)


def interval_one_draw_at_a_time(correct, total, samples, seed):
    """The same by a loop."""
    total = np.asarray(total, float)
    total = total.reshape(total.shape + (1,) * (correct.ndim - total.ndim))
    rng, ratios = np.random.default_rng(seed), []
    for _ in range(samples):
        rows = rng.integers(0, len(correct), len(correct))
        with np.errstate(invalid="ignore"):
            ratios.append(correct[rows].sum(0) / total[rows].sum(0))
    return np.nanquantile(ratios, [0.025, 0.975], axis=0)


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 3, 2)])
@pytest.mark.parametrize("block", [5, 1 << 20])
def test_draws_are_those_of_a_loop(shape, block, monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK", block)
    rng = np.random.default_rng(1)
    correct = rng.random(shape)
    for total in (rng.integers(0, 3, 7).astype(float), rng.random(shape) + 1):
        found = bootstrap_interval(correct, total, samples=60, seed=5)
        np.testing.assert_allclose(found, interval_one_draw_at_a_time(correct, total, 60, 5), rtol=1e-12)


def animals(ids, right, count, camera=None):
    angles = camera or [float("nan")] * len(ids)
    return {"instance_id": ids, "keypoints_right": right, "keypoints": count, "camera_error_deg": angles}


def test_paired_change_counts_an_animal_of_two_test_sets_once():
    old = [animals(["a", "b"], [1.0, 2.0], [4, 4]), animals(["b", "c"], [2.0, 0.0], [4, 8])]
    new = [animals(["a", "b"], [2.0, 2.0], [4, 4]), animals(["b", "c"], [3.0, 4.0], [4, 8])]
    found = paired_change(new, old)
    assert found["animals"] == 3
    assert found["gain"] == pytest.approx(100 * (1 + 1 + 4) / 20)
    # The bootstrap draws a (1 of 4), b (1 of 8) and c (4 of 8): no draw leaves these ratios.
    assert 12.5 <= found["interval"][0] <= found["gain"] <= found["interval"][1] <= 50
    assert paired_change(old, old)["interval"] == [0, 0]
    with pytest.raises(ValueError, match="the same animals"):
        paired_change(new[:1], old[1:])


def test_paired_change_of_cameras_leaves_out_those_not_known():
    ids, nan = ["a", "b", "c"], float("nan")
    old = animals(ids, [0.0] * 3, [1] * 3, [10.0, 20.0, nan])
    new = animals(ids, [0.0] * 3, [1] * 3, [4.0, 18.0, 7.0])
    assert paired_change([new], [old], "camera")["gain"] == pytest.approx(-4.0)
    unknown = animals(ids, [0.0] * 3, [1] * 3)
    assert np.isnan(paired_change([unknown], [old], "camera")["gain"])


def test_paired_change_of_mask_iou_is_in_points():
    old = {"instance_id": ["a", "b", "c"], "iou": [0.5, 0.6, float("nan")]}
    new = {"instance_id": ["a", "b", "c"], "iou": [0.6, 0.8, 0.9]}
    found = paired_change([new], [old], "iou")
    assert found["gain"] == pytest.approx(15) and found["animals"] == 2


def test_what_an_animal_gains_in_two_test_sets_adds_up():
    old = [animals(["a", "b"], [1.0, 2.0], [4, 4]), animals(["b", "c"], [2.0, 0.0], [4, 8])]
    new = [animals(["a", "b"], [2.0, 3.0], [4, 4]), animals(["b", "c"], [2.0, 4.0], [4, 8])]
    found = paired_change(new, old)
    assert found["animals"] == 3 and found["gain"] == pytest.approx(100 * (1 + 1 + 4) / 20)
