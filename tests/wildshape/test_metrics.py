import numpy as np
import pytest

from wildshape.metrics import bootstrap_interval, keypoint_errors, pck, pck_counts

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
