"""Boxes: frame, thresholds, flags, ids that survive a re-run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prepare_data.boxes import BoxRules, choose_boxes, keep_ids

RULES = BoxRules(labels=frozenset({"cow"}), score_threshold=0.5)


def test_boxes_move_to_the_pixel_centre_frame_and_are_clipped():
    boxes = np.array([[0, 0, 100, 50], [-7, 10, 40, 90.5], [10, 10, 20, 30]])
    chosen, dropped = choose_boxes(boxes, [0.9, 0.8, 0.7], ["cow", "Cow", "cow"], (60, 100), RULES)
    assert chosen.boxes.tolist() == [
        [-0.5, -0.5, 99.5, 49.5],
        [-0.5, 9.5, 39.5, 59.5],
        [9.5, 9.5, 19.5, 29.5],
    ]
    assert chosen.scores.tolist() == [0.9, 0.8, 0.7]
    assert set(dropped.values()) == {0}


def test_every_dropped_box_has_one_reason():
    nan = float("nan")
    boxes = [
        [1, 1, 9, 9], [1, 1, 9, 9], [1, 1, 9, 9], [5, 5, 5, 9], [30, 1, 40, 9], [9, 9, 1, 1],
        [nan, 1, 2, 3], [2, 2, 8, 8], [0, 0, 20, 20],
    ]  # fmt: skip
    scores = [0.9, 0.4, 0.9, 0.9, 0.9, 0.9, 0.9, 0.6, 0.5]
    labels = ["dog", "cow", "cow", "cow", "cow", "cow", "cow", "cow", "cow"]
    rules = BoxRules(RULES.labels, 0.5, max_per_image=2)
    chosen, dropped = choose_boxes(np.array(boxes), scores, labels, (20, 20), rules)
    assert dropped == {"other_label": 1, "low_score": 1, "no_area": 4, "over_limit": 1}
    assert chosen.boxes.tolist() == [[0.5, 0.5, 8.5, 8.5], [1.5, 1.5, 7.5, 7.5]]


def test_no_boxes():
    chosen, dropped = choose_boxes(np.zeros((0, 4)), [], [], (20, 20), RULES)
    assert chosen.boxes.shape == (0, 4) and chosen.flags == [] and sum(dropped.values()) == 0


def test_flags():
    boxes = np.array([[1, 50, 60, 90], [100, 50, 160, 90], [150, 45, 170, 60], [110, 110, 198, 190]])
    chosen, _ = choose_boxes(boxes, [0.9, 0.8, 0.7, 0.6], ["cow"] * 4, (200, 200), RULES)
    # shared by the second and third: 10 x 10 of 20 x 15
    assert chosen.flags == ["truncated", "crowd", "small,crowd", ""]
    boxes[2, 0] = 153.5  # 6.5 x 10 of 16.5 x 15 is more than a quarter; 4 x 10 of 14 x 15 is less
    assert choose_boxes(boxes, [0.9] * 4, ["cow"] * 4, (200, 200), RULES)[0].flags[1] == "crowd"
    boxes[2, 0] = 156
    assert choose_boxes(boxes, [0.9] * 4, ["cow"] * 4, (200, 200), RULES)[0].flags[1] == ""
    unsure = BoxRules(RULES.labels, 0.5, sure_score=0.75)
    chosen, _ = choose_boxes(boxes, [0.9, 0.8, 0.7, 0.75], ["cow"] * 4, (200, 200), unsure)
    assert chosen.flags == ["truncated", "", "", "small,low_score"]  # by falling score


@given(st.lists(st.tuples(*[st.floats(-50, 150)] * 4, st.floats(0, 1)), max_size=12))
def test_chosen_boxes_lie_in_the_image(items):
    boxes = np.array([item[:4] for item in items]).reshape(-1, 4)
    chosen, dropped = choose_boxes(boxes, [i[4] for i in items], ["cow"] * len(items), (80, 100), RULES)
    assert (chosen.boxes[:, :2] >= -0.5).all() and (chosen.boxes[:, 2:] <= [99.5, 79.5]).all()
    assert (chosen.boxes[:, 2:] > chosen.boxes[:, :2]).all()
    assert (np.diff(chosen.scores) <= 0).all()
    assert (
        len(chosen.boxes) + sum(dropped.values()) == len(items) == len(chosen.flags) + sum(dropped.values())
    )


def test_ids_are_kept_by_overlap():
    old = [("a", np.array([0.0, 0, 100, 100])), ("b", np.array([200.0, 0, 300, 100]))]
    new = np.array([[201.0, 0, 300, 100], [0, 0, 100, 50], [1, 1, 100, 100], [0, 0, 99, 100]])
    # the last has IoU .99 with a, the third .9801: the nearest takes the name
    assert keep_ids(new, ["n0", "n1", "n2", "n3"], old) == ["b", "n1", "n2", "a"]
    assert keep_ids(new, ["n0", "n1", "n2", "n3"], []) == ["n0", "n1", "n2", "n3"]
    assert keep_ids(np.zeros((0, 4)), [], old) == []


def test_ids_stay_distinct_when_a_box_takes_the_place_of_another():
    old = [("a", np.array([0.0, 0, 100, 100]))]
    new = np.array([[0.0, 0, 99, 100], [0, 0, 50, 50]])
    assert keep_ids(new, ["n0", "a"], old) == ["a", "a-1"]


@pytest.mark.parametrize("width", [90.0, 89.9])
def test_the_limit_is_an_iou_of_nine_tenths(width):
    old = [("a", np.array([0.0, 0, 100, 100]))]
    found = keep_ids(np.array([[0.0, 0, width, 100]]), ["n"], old)
    assert found == (["a"] if width == 90.0 else ["n"])
