import numpy as np
import pytest

from wildshape.report.quality import (
    Compared,
    compare,
    curve,
    grid_of_counts,
    quality,
    quality_table,
    random_curves,
)
from wildshape.tables import Table


def instances(boxes: list[list[float]]) -> Table:
    rows = [
        {
            "instance_id": f"a{n}",
            "category": "cow",
            "box_xyxy": box,
            "score": 1.0,
            "detector": "d",
            "flags": "",
        }
        for n, box in enumerate(boxes)
    ]
    return Table.from_rows("instances", rows)


def keypoints(xy: list, confidence: list, ids: list[str] | None = None) -> Table:
    names = ids or [f"a{n}" for n in range(len(xy))]
    columns = {"instance_id": names, "transform": ["none"] * len(names), "xy": xy, "confidence": confidence}
    return Table("keypoints", columns)


@pytest.fixture
def compared() -> Compared:
    """Three animals with boxes 100 wide: errors 0 and 5, 9 and 50 (not visible), and a false alarm."""
    boxes = instances([[0, 0, 100, 40], [0, 0, 60, 100], [0, 0, 10, 10]])
    true = keypoints([[[10, 10], [20, 20]], [[30, 30], [0, 0]]], [[1, 1], [1, 0]])
    pseudo = keypoints(
        [[[10, 10], [20, 25]], [[39, 30], [50, 0]], [[1, 1], [2, 2]]], [[1, 1], [1, 1], [1, 1]]
    )
    return compare(pseudo, true, boxes)


def test_errors_are_in_box_sides_and_only_visible_keypoints_count(compared):
    np.testing.assert_allclose(compared.error, [[0, 0.05], [0.09, np.nan], [np.nan, np.nan]])
    assert compared.total.tolist() == [2, 1, 0]
    assert compared.known.tolist() == [True, True, False]


def test_quality_of_all(compared):
    found = quality(compared)
    assert (found["instances"], found["without_truth"], found["keypoints"]) == (3, 1, 3)
    expected = {"0.02": 1 / 3, "0.04": 1 / 3, "0.06": 2 / 3, "0.08": 2 / 3, "0.10": 1.0}
    assert found["pck"] == pytest.approx(expected)
    assert found["auc"] == pytest.approx((2 + 2 + 2 + 3 + 3) / 15)  # .06 ... .10
    assert found["median_error"] == pytest.approx(0.05)
    np.testing.assert_allclose(found["per_keypoint"], [1, 1])


def test_quality_of_a_part(compared):
    assert quality(compared, np.array([1]))["auc"] == pytest.approx(2 / 5)


def test_quality_of_false_alarms_alone_is_unknown(compared):
    found = quality(compared, np.array([2]))
    assert np.isnan(found["auc"]) and np.isnan(found["median_error"]) and found["keypoints"] == 0


def test_other_transforms_and_unknown_instances_are_left_out():
    boxes = instances([[0, 0, 10, 10]])
    columns = {
        "instance_id": ["a0", "a0", "elsewhere"],
        "transform": ["none", "rot_10", "none"],
        "xy": np.zeros((3, 1, 2)),
        "confidence": np.ones((3, 1)),
    }
    found = compare(Table("keypoints", columns), keypoints([[[0, 0]]], [[1]]), boxes)
    assert found.ids.tolist() == ["a0"]


def test_a_truth_of_another_skeleton_is_refused():
    with pytest.raises(ValueError, match="expected 1 keypoints in the truth, found 2"):
        compare(
            keypoints([[[0, 0]]], [[1]]), keypoints([[[0, 0], [1, 1]]], [[1, 1]]), instances([[0, 0, 1, 1]])
        )


def test_curve_is_the_quality_of_every_prefix(compared):
    order = np.array([1, 0, 2])
    values = curve(compared, order, np.array([1, 2, 3]))
    expected = [quality(compared, order[:n])["auc"] for n in (1, 2, 3)]
    np.testing.assert_allclose(values, expected)


def test_grid_of_counts():
    assert grid_of_counts(0).size == 0
    assert grid_of_counts(4).tolist() == [4]
    counts = grid_of_counts(600)
    assert counts[0] == 30 and counts[-1] == 600 and len(counts) == 60


def many(seed: int = 0, count: int = 200) -> Compared:
    """Animals of which the first half is right and the second wrong."""
    right = np.arange(count) < count // 2
    xy = np.where(right, 0.0, 50.0)[:, None, None] * np.ones((1, 4, 2))
    names = [f"a{n}" for n in range(count)]
    true = keypoints(np.zeros((count, 4, 2)), np.ones((count, 4)), names)
    return compare(keypoints(xy, np.ones((count, 4)), names), true, instances([[0, 0, 100, 100]] * count))


def test_random_draws_surround_the_mean_and_end_at_it():
    drawn = random_curves(many(), np.array([20, 200]))
    assert drawn[:, 0].mean() == pytest.approx(0.5, abs=0.03)
    assert drawn[:, 0].std() > 0.05
    np.testing.assert_allclose(drawn[:, 1], 0.5)


def test_selections_are_compared_with_random_draws():
    compared = many()
    table = quality_table(compared, {"good": compared.ids[:40], "mixed": compared.ids[80:120]})
    good, mixed = table["selections"]["good"], table["selections"]["mixed"]
    assert table["all"]["auc"] == pytest.approx(0.5)
    assert good["auc"] == 1 and good["beats_random"] and good["gain"] == pytest.approx(0.5, abs=0.03)
    assert mixed["auc"] == pytest.approx(0.5) and not mixed["beats_random"]
