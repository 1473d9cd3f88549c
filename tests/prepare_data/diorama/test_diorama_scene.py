"""Pictures: determinism, cameras, visibility, copies."""

from dataclasses import replace

import numpy as np
import pytest

from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.copies import copy_picture
from prepare_data.diorama.plan import plan_labelled, plan_web
from prepare_data.diorama.scene import WEB, render_picture
from prepare_data.diorama.viewpoint import (
    Viewpoint,
    fit_weak_perspective,
    look_at_rotation,
    quaternion,
    sample_azimuth,
)
from prepare_data.diorama.zoo import Zoo
from wildshape.errors import UserError
from wildshape.skeleton import load_skeleton

NAMES = load_skeleton("quadruped16").keypoints
CONFIG = DioramaConfig(seed=2, identities=2, image_size=128, aspect_jitter=False)


@pytest.fixture(scope="module")
def zoo():
    return Zoo(CONFIG.seed, NAMES, CONFIG.variety)


@pytest.fixture(scope="module")
def pictures(zoo):
    return [render_picture(zoo, CONFIG, "horse", WEB, n) for n in range(24)]


def test_the_same_index_gives_the_same_picture(zoo, pictures):
    again = render_picture(Zoo(CONFIG.seed, NAMES, CONFIG.variety), CONFIG, "horse", WEB, 3)
    np.testing.assert_array_equal(again.image, pictures[3].image)
    np.testing.assert_array_equal(again.animals[0].xy_image, pictures[3].animals[0].xy_image)
    other = render_picture(zoo, replace(CONFIG, seed=9), "horse", WEB, 3)
    assert (other.image != pictures[3].image).mean() > 0.5


def test_truth_is_consistent_within_each_picture(pictures):
    for picture in pictures:
        height, width = picture.image.shape[:2]
        assert picture.image.dtype == np.uint8 and picture.image.std() > 5
        for animal in picture.animals:
            x0, y0, x1, y1 = animal.box_xyxy
            assert -0.5 <= x0 < x1 <= width - 0.5 and -0.5 <= y0 < y1 <= height - 0.5
            inside = animal.visible > 0
            assert (animal.xy_image[inside] > [x0 - 1.5, y0 - 1.5]).all()
            assert (animal.xy_image[inside] < [x1 + 1.5, y1 + 1.5]).all()
            rows, columns = np.nonzero(animal.mask)
            if len(rows):
                assert columns.min() >= x0 and columns.max() <= x1
                assert rows.min() >= y0 and rows.max() <= y1
            for x, y in np.rint(animal.xy_image[animal.visible == 2]).astype(int):
                assert animal.mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()
        together = sum(animal.mask.astype(int) for animal in picture.animals)
        assert together.max() <= 1  # a pixel shows one animal


def test_unhidden_animals_fill_their_boxes(pictures):
    clear = [p.animals[0] for p in pictures if not p.animals[0].flags]
    assert len(clear) >= 4
    for animal in clear:
        rows, columns = np.nonzero(animal.mask)
        tight = [columns.min() - 0.5, rows.min() - 0.5, columns.max() + 0.5, rows.max() + 0.5]
        np.testing.assert_allclose(tight, animal.box_xyxy, atol=8)


def test_animals_face_both_ways_and_the_rotation_says_which(pictures):
    nose, tail = NAMES.index("Nose"), NAMES.index("Tail")
    facing = []
    for picture in pictures:
        animal = picture.animals[0]
        forward = animal.rotation @ [0.0, -1.0, 0.0]
        along = animal.xy_image[nose] - animal.xy_image[tail]
        if abs(forward[0]) > 0.7:
            assert np.sign(along[0]) == np.sign(forward[0])
            facing.append(np.sign(forward[0]))
        # upright: the animal's up is the picture's up
        assert (animal.rotation @ [0.0, 0.0, 1.0])[1] < -0.5 or animal.pose == "sit"
    assert {-1.0, 1.0} <= set(facing)


def test_the_side_towards_the_camera_is_the_visible_one(pictures):
    seen = {"near": 0, "far": 0}
    for picture in pictures:
        animal = picture.animals[0]
        left_is_near = (animal.rotation @ [1.0, 0.0, 0.0])[2] < -0.8
        right_is_near = (animal.rotation @ [1.0, 0.0, 0.0])[2] > 0.8
        if left_is_near or right_is_near:
            for name in ("F_elbow", "B_elbow"):
                for side, near in (("L", left_is_near), ("R", right_is_near)):
                    state = animal.visible[NAMES.index(f"{side}_{name}")]
                    seen["near" if near else "far"] += int(state == 2)
    assert seen["near"] > 8 and seen["near"] > 5 * seen["far"]


def test_casts(zoo):
    assert render_picture(zoo, CONFIG, "horse", WEB, 0, "empty").animals == ()
    strangers = render_picture(zoo, CONFIG, "horse", WEB, 1, "stranger").animals
    assert strangers and all(animal.species != "horse" for animal in strangers)


def test_views_look_as_documented():
    left = look_at_rotation(0, 0, 0)  # the animal's left side, its head (-y) at the image's left
    np.testing.assert_allclose(left @ [0, -1, 0], [-1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(left @ [0, 0, 1], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(left @ [1, 0, 0], [0, 0, -1], atol=1e-12)
    right = look_at_rotation(180, 0, 0)
    np.testing.assert_allclose(right @ [0, -1, 0], [1, 0, 0], atol=1e-12)
    above = look_at_rotation(30, 20, 0)
    assert (above @ [0, 0, 1])[2] < 0 and np.linalg.det(above) == pytest.approx(1)


def test_projection_horizon_and_lifting():
    rotation = look_at_rotation(25, 10, 3)
    view = Viewpoint(rotation, -12 * rotation[2], 600.0, np.array([64.0, 60.0]))
    np.testing.assert_allclose(view.project(np.zeros((1, 3))), [[64, 60, 12]], atol=1e-9)
    far = view.project(1e7 * np.array([[-np.cos(0.4), -np.sin(0.4), 0.0]]))[0]
    row, slope = view.horizon()
    assert far[1] == pytest.approx(row + slope * (far[0] - 64), abs=1e-2)
    low = look_at_rotation(25, -5, 0)
    low_view = Viewpoint(low, -12 * low[2], 600.0, np.array([64.0, 60.0]))
    lifted = low_view.raised(np.array([0.5, 0.2, 0.0]), 7.0)
    np.testing.assert_allclose(lifted.rotation @ lifted.rotation.T, np.eye(3), atol=1e-12)
    assert np.rad2deg(np.arcsin(-lifted.rotation[2, 2])) == pytest.approx(7.0)
    ground = np.array([[0.5, 0.2, 0.0]])
    np.testing.assert_allclose(lifted.project(ground), low_view.project(ground), atol=1e-9)
    assert view.raised(np.zeros(3), 7.0) is view


def test_weak_perspective_fit_recovers_a_camera():
    rng = np.random.default_rng(0)
    rotation = look_at_rotation(40, 12, -4)
    points = rng.normal(size=(16, 3))
    xy = 37.0 * (points @ rotation.T)[:, :2] + [80.0, 55.0]
    camera = fit_weak_perspective(points, xy, rotation)
    np.testing.assert_allclose(camera[:3], [37, 80, 55], atol=1e-9)
    assert np.linalg.norm(camera[3:]) == pytest.approx(1)
    np.testing.assert_allclose(quaternion(np.eye(3)), [1, 0, 0, 0])
    quarter = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # a quarter turn about x
    np.testing.assert_allclose(quaternion(quarter), [0.5**0.5, 0.5**0.5, 0, 0], atol=1e-12)


def test_copies_carry_the_truth_along(pictures):
    changed = 0
    for n, picture in enumerate(pictures):
        copy = copy_picture(picture, np.random.default_rng(n))
        old, new = picture.animals[0], copy.animals[0]
        height, width = copy.image.shape[:2]
        changed += copy.image.shape != picture.image.shape
        scale = width / picture.image.shape[1]
        assert np.abs(new.xy_image - (old.xy_image + 0.5) * scale + 0.5).max() < 0.05 * width
        assert new.mask.shape == (height, width)
        assert (new.box_xyxy[:2] >= -0.5).all() and (new.box_xyxy[2:] <= [width - 0.5, height - 0.5]).all()
        rows, columns = np.nonzero(new.mask)
        assert columns.min() >= new.box_xyxy[0] - 1 and columns.max() <= new.box_xyxy[2] + 1
    assert changed > len(pictures) / 3


def test_plans_keep_copies_with_their_originals():
    config = DioramaConfig(num_train=40, num_val=10, num_test=30, num_web=200, duplicate_share=0.2)
    labelled = plan_labelled(config)
    web = plan_web(config, labelled)
    counts = {s: sum(e.split == s for e in labelled) for s in ("train", "val", "test")}
    assert counts == {"train": 40, "val": 10, "test": 30}
    home = {}
    for entry in labelled:
        assert home.setdefault(entry.index, entry.split) == entry.split
    assert sum(e.copy > 0 for e in labelled) == 8
    assert len(web) == 200 == len({e.key for e in web})
    assert sum(e.leak for e in web) == 6
    assert sum(e.copy > 0 and not e.leak for e in web) == 40
    originals = [e for e in web if not e.copy]
    assert sum(e.cast == "empty" for e in originals) == round(0.06 * len(originals))
    assert plan_web(config, labelled) == web


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"difficulty": 1.5}, "--difficulty: expected 0 to 1; found 1.5"),
        ({"variety": -0.1}, "--variety: expected 0 to 1; found -0.1"),
        ({"num_web": -1}, "--num-web: expected a count of at least 0; found -1"),
        ({"image_size": 20}, "--image-size: expected at least 48 pixels; found 20"),
        ({"identities": 0}, "--identities: expected at least 1; found 0"),
        ({"empty_share": 0.6, "stranger_share": 0.5}, "expected a sum of at most 0.9"),
    ],
)
def test_bad_settings_name_their_flag(settings, message):
    with pytest.raises(UserError, match=message):
        DioramaConfig(**settings)


def test_views_come_from_all_round_as_variety_grows():
    rng = np.random.default_rng(0)
    shares = []
    for variety in (0.0, 1.0):
        views = np.array([sample_azimuth(rng, variety) for _ in range(4000)])
        # From the front or behind: nearer to +-90 degrees than to a side.
        shares.append(np.mean(np.abs(np.cos(np.deg2rad(views))) < 0.5**0.5))
    # A normal of 16 degrees lies within 45 but for .5 %; of anywhere views, half are from an end, and of
    # the others a normal of 42 degrees, cut at 75, leaves 28 %.
    assert shares[0] < 0.02 and abs(shares[1] - (0.6 * 0.5 + 0.4 * 0.28)) < 0.03
