"""Run-length masks: boxes, overlaps and points against plain NumPy."""

import numpy as np
import pytest

from wildshape.formats.masks import decode_mask, encode_mask, mask_area, mask_box, mask_iou, points_inside


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
