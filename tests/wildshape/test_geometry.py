import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wildshape.geometry import (
    Affine2D,
    box_iou,
    box_side,
    camera_to_crop,
    camera_to_image,
    crop_affine,
    square_box,
    warp_crop,
    xy_crop_to_ndc,
    xy_ndc_to_crop,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

BOX = np.array([10.0, 20.0, 50.0, 40.0])  # 40 x 20 about (30, 30)


def rotation_matrix(q):
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def project(camera, points):
    return camera[0] * (points @ rotation_matrix(camera[3:]).T)[:, :2] + camera[1:3]


def random_camera(rng):
    quaternion = rng.normal(size=4)
    return np.r_[rng.uniform(20, 90), rng.uniform(0, 80, 2), quaternion / np.linalg.norm(quaternion)]


def test_affine_algebra_by_hand():
    turn = Affine2D(np.array([[0.0, -2.0, 1.0], [2.0, 0.0, 0.0]]))
    np.testing.assert_allclose(turn.apply([[1, 0], [0, 1]]), [[1, 2], [-1, 0]])
    assert turn.scale == pytest.approx(2)
    shift = Affine2D.translation(10, 0)
    np.testing.assert_allclose(turn.compose(shift).apply([1, 0]), [1, 22])
    np.testing.assert_allclose(shift.compose(turn).apply([1, 0]), [11, 2])
    np.testing.assert_allclose(turn.compose(turn.inverse()).matrix, Affine2D.identity().matrix, atol=1e-12)
    np.testing.assert_array_equal(Affine2D.from_vector(turn.vector).matrix, turn.matrix)
    assert turn.apply(np.zeros((3, 4, 2))).shape == (3, 4, 2)
    with pytest.raises(ValueError, match=r"expected a matrix \[2, 3\], found \[3, 3\]"):
        Affine2D(np.eye(3))


@given(
    st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    st.lists(st.floats(-5, 5), min_size=6, max_size=6),
)
def test_compose_is_apply_after_apply(a, b):
    first, second = Affine2D.from_vector(np.array(a)), Affine2D.from_vector(np.array(b))
    xy = np.array([[0.3, -2.0], [5.0, 1.0]])
    np.testing.assert_allclose(second.compose(first).apply(xy), second.apply(first.apply(xy)), atol=1e-9)


def test_boxes_by_hand():
    np.testing.assert_array_equal(xyxy_to_xywh(BOX), [10, 20, 40, 20])
    np.testing.assert_array_equal(xywh_to_xyxy(xyxy_to_xywh(BOX[None])), BOX[None])
    np.testing.assert_array_equal(square_box(BOX), [10, 10, 50, 50])
    assert box_side(BOX) == 40
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [1, 1, 1, 1]])
    np.testing.assert_allclose(box_iou(boxes[:1], boxes), [[1, 1 / 7, 0, 0]])
    assert box_iou(boxes[3:], boxes[3:]) == 0  # nothing shares nothing
    assert box_iou(np.zeros((0, 4)), boxes).shape == (0, 4)


def test_crop_edges_land_on_the_pixels_edges():
    crop = crop_affine(BOX, 64)
    square = square_box(BOX)
    np.testing.assert_allclose(crop.apply(square.reshape(2, 2)), [[-0.5, -0.5], [63.5, 63.5]])
    np.testing.assert_allclose(xy_crop_to_ndc(crop.apply(square.reshape(2, 2)), 64), [[-1, -1], [1, 1]])


def test_crop_scale_rotation_and_flip_directions():
    centre, right = [30, 30], [40, 30]
    for options in ({}, {"rotation_deg": 33}, {"flip": True}, {"scale": 1.7}):
        np.testing.assert_allclose(crop_affine(BOX, 40, **options).apply(centre), [19.5, 19.5])
    assert crop_affine(BOX, 40, scale=2).scale == pytest.approx(0.5)
    # +90 degrees takes right to down, that is clockwise as seen.
    np.testing.assert_allclose(crop_affine(BOX, 40, rotation_deg=90).apply(right), [19.5, 29.5])
    np.testing.assert_allclose(crop_affine(BOX, 40, flip=True).apply(right), [9.5, 19.5])
    # The mirror comes last: right, turned down, stays down.
    np.testing.assert_allclose(crop_affine(BOX, 40, rotation_deg=90, flip=True).apply(right), [19.5, 29.5])
    np.testing.assert_allclose(
        crop_affine(BOX, 40, rotation_deg=45, flip=True).apply(right)[0], 19.5 - 50**0.5
    )


@pytest.mark.parametrize("box", [[1, 1, 1, 1], [5, 5, 1, 1], [np.nan, 0, 1, 1]])
def test_a_box_without_extent_is_refused(box):
    with pytest.raises(ValueError, match="expected a box with an extent"):
        crop_affine(np.array(box, float), 64)


@given(st.integers(1, 512), st.floats(-3, 3))
def test_ndc_round_trip(size, value):
    xy = np.array([value, -value])
    np.testing.assert_allclose(xy_crop_to_ndc(xy_ndc_to_crop(xy, size), size), xy, atol=1e-12)


def test_ndc_by_hand():
    np.testing.assert_allclose(xy_crop_to_ndc([[-0.5, 1.5], [3.5, 0.0]], 4), [[-1, 0], [1, -0.75]])


def gradient_image(height, width):
    """Red is x * 250 / width, green y * 250 / height: a picture that tells where each pixel came from."""
    y, x = np.mgrid[:height, :width].astype(float)
    image = np.stack([x * 250 / width, y * 250 / height, np.zeros_like(x)], -1)
    return image, np.array([250 / width, 250 / height])


@pytest.mark.parametrize("size", [200, 100, 64, 40, 20])
@pytest.mark.parametrize(
    "options", [{}, {"rotation_deg": 20}, {"flip": True}, {"rotation_deg": -75, "flip": True}]
)
@pytest.mark.parametrize("shape", [(240, 300), (241, 307)])
def test_warp_crop_puts_pixels_where_crop_affine_says(size, options, shape):
    """Below 0.1 crop pixels on average, on the path that averages down too."""
    exact, slope = gradient_image(*shape)
    rng = np.random.default_rng(0)
    image = np.floor(exact + rng.random(exact.shape)).astype(np.uint8)  # dithered, against rounding bias
    affine = crop_affine(np.array([60, 50, 230, 200.0]), size, scale=0.85, **options)
    crop = warp_crop(image, affine, size)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    y, x = np.mgrid[:size, :size]
    expected = affine.inverse().apply(np.stack([x, y], -1).astype(float))
    inside = np.all((expected > 3) & (expected < np.array(shape[::-1]) - 4), axis=-1)
    assert inside.mean() > 0.8
    found = crop[..., :2] / slope
    error_image = (found - expected)[inside].mean(0)  # image pixels
    assert np.abs(error_image).max() * affine.scale < 0.1


def test_warp_crop_averages_when_it_shrinks():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the crop can show
    crop = warp_crop(stripes, crop_affine(np.array([-0.5, -0.5, 255.5, 255.5]), 32), 32)
    assert crop.std() < 20 and abs(crop.mean() - 127.5) < 2  # sampling alone would give 0 or 255: 128


def test_warp_crop_of_the_whole_image_is_the_image_and_fills_outside():
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    whole = np.array([-0.5, -0.5, 31.5, 31.5])
    np.testing.assert_array_equal(warp_crop(image, crop_affine(whole, 32), 32), image)
    np.testing.assert_array_equal(warp_crop(image, crop_affine(whole, 32, flip=True), 32), image[:, ::-1])
    np.testing.assert_array_equal(
        warp_crop(image, crop_affine(whole, 32, rotation_deg=90), 32), np.rot90(image, -1)
    )
    outside = warp_crop(image, crop_affine(whole + 100, 32), 32, fill=7)
    assert (outside == 7).all()
    assert warp_crop(image[..., 0], crop_affine(whole, 16), 16).shape == (16, 16)


@given(st.integers(0, 2**32 - 1), st.floats(-180, 180), st.booleans())
def test_cameras_follow_projected_points(seed, degrees, flip):
    """What the moved camera projects is what the image's camera projects, moved."""
    rng = np.random.default_rng(seed)
    camera, points = random_camera(rng), rng.normal(size=(6, 3))
    affine = crop_affine(rng.uniform(0, 40, 4) + [0, 0, 50, 50], 96, rotation_deg=degrees, flip=flip)
    moved = camera_to_crop(camera, affine, 96)
    assert np.linalg.norm(moved[3:]) == pytest.approx(1)
    mirrored = points * [-1, 1, 1] if flip else points  # a mirrored crop shows the mirrored animal
    expected = xy_crop_to_ndc(affine.apply(project(camera, points)), 96)
    np.testing.assert_allclose(project(moved, mirrored), expected, atol=1e-9)
    back = camera_to_image(moved, affine, 96)
    back[3:] *= np.sign(back[3:] @ camera[3:])  # q and -q are one turn
    np.testing.assert_allclose(back, camera, atol=1e-9)


def test_cameras_move_in_batches_and_are_not_changed_in_place():
    rng = np.random.default_rng(1)
    cameras = np.stack([random_camera(rng) for _ in range(6)])
    before = cameras.copy()
    affine = crop_affine(BOX, 50, rotation_deg=10)
    moved = camera_to_crop(cameras.reshape(2, 3, 7), affine, 50)
    np.testing.assert_allclose(moved[1, 2], camera_to_crop(cameras[5], affine, 50))
    camera_to_image(moved, affine, 50)
    np.testing.assert_array_equal(cameras, before)


def test_a_camera_by_hand():
    """A template one unit wide, seen from the front, filling a 40-pixel box."""
    camera = np.array([20.0, 30.0, 30.0, 1, 0, 0, 0])
    np.testing.assert_allclose(
        camera_to_crop(camera, crop_affine(BOX, 64), 64), [1, 0, 0, 1, 0, 0, 0], atol=1e-12
    )


@pytest.mark.parametrize("size", [40, 20])
def test_a_mirrored_picture_gives_the_mirrored_crop_where_it_is_averaged_down(size):
    y, x = np.mgrid[:240, :324]
    waves = 127.5 + 60 * np.sin(x / 4 + 1) + 60 * np.cos(y / 5)
    image = np.rint(waves).astype(np.uint8)[..., None].repeat(3, 2)
    affine = crop_affine(np.array([66.5, 24.5, 256.5, 214.5]), size)  # about the middle
    crop, mirrored = (warp_crop(picture, affine, size).astype(int) for picture in (image, image[:, ::-1]))
    assert np.abs(crop - mirrored[:, ::-1]).max() <= 2
