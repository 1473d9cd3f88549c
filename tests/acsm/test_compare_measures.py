"""Comparisons: which animals count, and what the measures are."""

import numpy as np
import pytest
from test_acsm_compare import some_animals

from acsm.compare import MEASURES, compare
from acsm.metrics import ShapeResult


def test_an_animal_is_in_the_references_view_for_all():
    old, new = some_animals(1), some_animals(2)
    new.view[:] = "front"  # as by a predicted camera
    cells = compare({"old": old, "new": new}, samples=20, draws=20).cells["auc_side"]
    assert cells["new"]["animals"] == cells["old"]["animals"] == 20
    change = 100 * (new.right() - old.right())[::2].sum() / old.keypoints[::2].sum()
    assert cells["new"]["difference"] == pytest.approx(change)


def test_the_measures_are_what_they_are_called():
    animals = some_animals(1)
    cells = compare({"a": animals, "b": some_animals(2)}, ("Nose",), samples=20, draws=20).cells
    assert cells["pck_0.10"]["a"]["value"] == pytest.approx(100 * (animals.error < 0.1).mean())
    thresholds = np.array([0.06, 0.07, 0.08, 0.09, 0.1])
    nose = (animals.error[:, :1] < thresholds).mean()
    assert cells["auc_Nose"]["a"]["value"] == pytest.approx(100 * nose)
    lower = {m.key for m in MEASURES if not m.higher_is_better}
    assert lower == {
        "camera_error_deg", "camera_error_deg_side", "camera_error_deg_front_back", "flipped"
    }  # fmt: skip


def test_the_median_error_is_that_of_visible_keypoints():
    xy = np.zeros((1, 5, 2))
    xy[0, :, 0] = [1, 2, 3, 40, 50]
    visible = np.array([[2, 2, 2, 0, 0]])
    nan = np.full((1, 7), np.nan)
    result = ShapeResult(xy, np.zeros((1, 5, 2)), visible, np.array([100.0]), nan, nan)
    assert result.summary("abcde", samples=10)["median_error_percent"] == pytest.approx(2)
