import numpy as np
import pytest

from wildshape.report.drawing import SIDE_COLOURS, contact_sheet, draw_box, draw_keypoints, instance_tile
from wildshape.skeleton import load_skeleton


def test_keypoints_are_drawn_where_they_are_and_nan_is_not():
    image = np.zeros((60, 100, 3), dtype=np.uint8)
    xy = np.full((16, 2), np.nan)
    xy[0], xy[1] = (20.0, 30.0), (80.0, 10.0)
    drawn = draw_keypoints(image, xy, skeleton=load_skeleton("quadruped16"))
    assert (image == 0).all()
    assert tuple(drawn[30, 20]) == SIDE_COLOURS["left"]
    assert tuple(drawn[10, 80]) == SIDE_COLOURS["right"]
    assert drawn[20, 50].any()  # the bone between the eyes
    assert not drawn[50:].any()


def test_confidence_fades_and_threshold_hides():
    image = np.zeros((50, 50, 3), dtype=np.uint8)
    xy = np.array([[10.0, 10.0], [40.0, 40.0]])
    drawn = draw_keypoints(image, xy, np.array([1.0, 0.3]))
    assert drawn[10, 10].sum() > drawn[40, 40].sum() > 0
    assert not draw_keypoints(image, xy, np.array([1.0, 0.3]), threshold=0.5)[30:, 30:].any()
    draw_keypoints(image, np.array([[1e12, 0.0], [0.0, -np.inf]]))


def test_contact_sheet_places_and_captions_tiles():
    tiles = [np.full((64, 64, 3), value, dtype=np.uint8) for value in (10, 90, 170)]
    sheet = contact_sheet(
        tiles, 2, ["a", "b", "a caption too long for its tile" * 3], tile_size=64, title="t"
    )
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 2 * 68 + 4
    for value in (10, 90, 170):
        assert (sheet == value).all(axis=2).sum() >= 64 * 64
    assert contact_sheet([], 4).shape[2] == 3
    with pytest.raises(ValueError, match="expected 1 captions; found 2"):
        contact_sheet(tiles[:1], 1, ["a", "b"])


def test_tile_and_box():
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    tile, affine = instance_tile(image, np.array([20.0, 10.0, 60.0, 50.0]), size=80, margin=1.0)
    np.testing.assert_allclose(affine.apply(np.array([40.0, 30.0])), [39.5, 39.5])
    assert tile.shape == (80, 80, 3)
    assert (instance_tile(None, np.array([0.0, 0.0, 5.0, 5.0]))[0] == 200).all()
    assert (draw_box(image, np.array([5.0, 5.0, 50.0, 50.0])) != image).any()
