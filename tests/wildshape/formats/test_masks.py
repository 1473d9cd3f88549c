"""Run-length masks: boxes, overlaps and points against plain NumPy."""

import json

import numpy as np
import pytest

from wildshape.formats.masks import (
    decode_mask,
    encode_mask,
    encode_segmentation,
    mask_area,
    mask_box,
    mask_iou,
    points_inside,
)


def blob(seed, height=13, width=9):
    return np.random.default_rng(seed).random((height, width)) < 0.2


@pytest.mark.parametrize("seed", range(8))
def test_against_numpy(seed):
    mask, other = blob(seed), blob(seed + 100)
    rle, other_rle = encode_mask(mask), encode_mask(other)
    np.testing.assert_array_equal(decode_mask(rle), mask)
    assert mask_area(rle) == mask.sum()
    rows, columns = np.nonzero(mask)
    expected = [columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5]
    assert mask_box(rle).tolist() == expected
    assert mask_iou(rle, other_rle) == pytest.approx((mask & other).sum() / (mask | other).sum())
    assert mask_iou(rle, rle) == 1


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_of_either_form_are_taken(seed):
    mask = blob(seed, 40 + seed, 31) if seed % 2 else np.indices((60, 50))[1] > 20 + seed
    rle = json.loads(encode_mask(mask))
    assert encode_segmentation(rle, *mask.shape) == encode_mask(mask)
    flat = np.concatenate([[0], mask.T.reshape(-1), [2]])  # by columns, and beginning with what is not
    edges = np.flatnonzero(np.diff(flat))
    runs = np.diff([0, *edges[edges > 0]])
    runs = [0, *runs.tolist()] if mask[0, 0] else runs.tolist()
    assert encode_segmentation({"size": rle["size"], "counts": runs}, *mask.shape) == encode_mask(mask)


@pytest.mark.parametrize("counts", ["05", "abc", "é", "0P", [10, 20], [30001, -1], [1.5, 2], None, ["a"]])
def test_run_lengths_that_do_not_fill_the_picture_are_refused(counts):
    with pytest.raises(ValueError, match="run lengths"):
        encode_segmentation({"size": [150, 200], "counts": counts}, 150, 200)


def test_empty_masks():
    empty = encode_mask(np.zeros((4, 5)))
    assert mask_box(empty) is None and mask_iou(empty, empty) == 0
    assert mask_iou(empty, encode_mask(np.ones((4, 5)))) == 0
    with pytest.raises(ValueError, match=r"expected masks of one size, found \[4, 5\] and \[5, 4\]"):
        mask_iou(empty, encode_mask(np.ones((5, 4))))


def test_points_fall_into_the_pixel_about_them():
    mask = np.zeros((3, 4), bool)
    mask[1, 2] = True
    points = [
        (2, 1),
        (1.5, 0.5),
        (2.49, 1.49),
        (2.5, 1),
        (2, 1.5),
        (1.4, 1),
        (-1, -1),
        (2, 3),
        (4, 1),
        (9, 9),
    ]
    assert points_inside(mask, points).tolist() == [True, True, True] + [False] * 7
    assert points_inside(np.ones((3, 4)), [(-0.5, -0.5), (-0.6, 0), (3.4, 2.4), (3.5, 2)]).tolist() == [
        True, False, True, False,
    ]  # fmt: skip
    assert points_inside(mask, np.zeros((0, 2))).shape == (0,)
