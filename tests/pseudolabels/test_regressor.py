"""From unsupervised points to keypoints, against the released code's numbers and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from pseudolabels.zero123plus.regressor import (
    STRENGTHS,
    Regressor,
    fit_published,
    fit_regressor,
    published_regressor,
    spread,
)
from wildshape.errors import UserError

GOLDEN = Path(__file__).parents[1] / "data/stable_keypoints/keypoint_maths.npz"


def world(animals=40, points=6, joints=4, noise=0.0, seed=0):
    """Points, keypoints that are linear in them, and weights."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0.2, 0.8, (animals, points, 2))
    mix = rng.normal(0, 0.3, (2 * points, joints * 2))
    keypoints = 0.4 + (xy.reshape(animals, -1) - 0.5) @ mix
    keypoints = keypoints.reshape(animals, joints, 2) + rng.normal(0, noise, (animals, joints, 2))
    return xy, keypoints, np.ones((animals, joints))


def test_the_released_regressors():
    with np.load(GOLDEN) as golden:
        x, y, visible = golden["reg_X"], golden["reg_Y"], golden["reg_visible"]
        np.testing.assert_allclose(fit_published(x, y), golden["reg_W"], atol=1e-10)
        np.testing.assert_allclose(fit_published(x, y, visible), golden["reg_W_visible"], atol=1e-8)


def test_a_linear_relation_is_found_with_its_bias():
    xy, keypoints, weight = world()
    regressor = fit_regressor(xy[:25], keypoints[:25], weight[:25])
    np.testing.assert_allclose(regressor(xy[25:]), keypoints[25:], atol=1e-4)
    assert (regressor.error < 1e-4).all() and (regressor.strength == STRENGTHS[0]).all()


def test_keypoints_that_are_hidden_do_not_count():
    xy, keypoints, weight = world(noise=0.01)
    clean = fit_regressor(xy[:30], keypoints[:30], weight[:30])(xy)
    spoilt = np.concatenate([keypoints[:30], np.full((10, 4, 2), np.nan)])
    weight[30:] = 0
    np.testing.assert_allclose(fit_regressor(xy, spoilt, weight)(xy)[:30], clean[:30], atol=2e-2)
    # Exactly the same where the inputs' mean is, too: rows of no weight have no say.
    one = fit_regressor(xy, spoilt, weight)
    spoilt[30:] = 1e6
    np.testing.assert_array_equal(one(xy), fit_regressor(xy, spoilt, weight)(xy))


def loo_by_hand(xy, keypoints, strength):
    """Leave-one-out errors of ridge with a free bias, one refit an animal."""
    x, y = xy.reshape(len(xy), -1), keypoints
    unit = ((x - x.mean(0)) ** 2).sum() / x.shape[1]
    errors = []
    for left_out in range(len(x)):
        rows = np.arange(len(x)) != left_out
        mean, target = x[rows].mean(0), y[rows].mean(0)
        a, b = x[rows] - mean, y[rows] - target
        solution = np.linalg.solve(a.T @ a + strength * unit * np.eye(x.shape[1]), a.T @ b)
        guess = (x[left_out] - mean) @ solution + target
        errors.append(np.linalg.norm(guess - y[left_out]))
    return float(np.mean(errors))


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_the_error_is_that_of_leaving_one_out(strength):
    xy, keypoints, weight = world(animals=15, joints=1, noise=0.05, seed=2)
    found = fit_regressor(xy, keypoints, weight, strengths=(strength,))
    assert found.error[0] == pytest.approx(loo_by_hand(xy, keypoints[:, 0], strength), rel=1e-6)


def test_few_noisy_labels_are_regularised():
    xy, keypoints, weight = world(animals=300, points=10, noise=0.05, seed=4)
    train = slice(0, 22)
    ridge = fit_regressor(xy[train], keypoints[train], weight[train])
    plain = fit_regressor(xy[train], keypoints[train], weight[train], strengths=(1e-9,))

    def error(regressor):
        return np.linalg.norm(regressor(xy[50:]) - keypoints[50:], axis=-1).mean()

    assert (ridge.strength > STRENGTHS[0]).all()
    assert error(ridge) < 0.7 * error(plain)
    assert ridge.error.mean() == pytest.approx(error(ridge), rel=0.35)


def turned(xy, degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (xy - 0.5) @ np.array([[c, s], [-s, c]]) + 0.5


def test_a_turned_picture_gives_turned_keypoints():
    rng = np.random.default_rng(1)
    shape = np.array([[0.2, 0.5], [0.4, 0.52], [0.6, 0.48], [0.8, 0.5], [0.3, 0.7], [0.75, 0.7]])
    xy = shape + rng.normal(0, 0.01, (30, 6, 2))
    keypoints = xy[:, [0, 4]] * 0.5 + xy[:, [3, 5]] * 0.5 + [0.0, 0.1]
    free = fit_regressor(xy, keypoints, np.ones((30, 2)), frame="points")
    box = fit_regressor(xy, keypoints, np.ones((30, 2)))
    for degrees in (30, 100, 180):
        np.testing.assert_allclose(free(turned(xy, degrees)), turned(free(xy), degrees), atol=1e-9)
    assert np.abs(free(turned(xy, 90)) - turned(keypoints, 90)).max() < 0.02
    assert np.abs(box(turned(xy, 90)) - turned(keypoints, 90)).max() > 0.02


def test_the_published_regressor_has_no_bias_and_tells_its_error_on_who_is_left_out():
    """The error in closed form is that of refits without each animal."""
    rng = np.random.default_rng(8)
    xy = rng.uniform(0, 1, (20, 3, 2))
    keypoints = rng.uniform(0, 1, (20, 2, 2))
    weight = np.ones((20, 2))
    weight[4:8, 1] = 0
    keypoints[weight == 0] = np.nan
    fitted = published_regressor(xy, keypoints, weight)
    expected = fit_published(xy.reshape(20, 6), keypoints.reshape(20, 4), np.repeat(weight, 2, 1))
    np.testing.assert_allclose(fitted(xy).reshape(20, 4), (xy.reshape(20, 6) - 0.5) @ expected + 0.5)
    np.testing.assert_allclose(fitted(np.full((1, 3, 2), 0.5)), 0.5)
    for joint in range(2):
        known = np.flatnonzero(weight[:, joint])
        errors = []
        for left in known:
            rest = known[known != left]
            alone = published_regressor(xy[rest], keypoints[rest], weight[rest])
            errors.append(np.linalg.norm(alone(xy[[left]])[0, joint] - keypoints[left, joint]))
        assert fitted.error[joint] == pytest.approx(np.mean(errors))
    none = published_regressor(xy, keypoints, weight * [1, 0])
    assert np.isnan(none.error[1]) and np.isnan(none.strength[1]) and none.strength[0] == 0
    np.testing.assert_allclose(none(xy)[:, 1], 0.5)
    with pytest.raises(UserError, match="at least 2 labelled animals; found"):
        published_regressor(xy[:1], keypoints[:1], weight[:1])


def test_points_on_one_spot_have_no_frame_and_do_not_rule_the_others():
    """An animal whose points coincide has no axis; in units of their spread it would lie far away."""
    rng = np.random.default_rng(6)
    shape = np.array([[0.2, 0.5], [0.4, 0.52], [0.6, 0.48], [0.8, 0.5], [0.3, 0.7], [0.75, 0.7]])
    xy = shape + rng.normal(0, 0.01, (30, 6, 2))
    keypoints = xy[:, [0, 4]] + [0.0, 0.05]
    xy[3] = 0.5 + rng.normal(0, 1e-7, (6, 2))
    np.testing.assert_allclose(spread(xy[:1]), np.sqrt((xy[0] - xy[0].mean(0)).var(0).sum()))
    assert spread(xy)[3] < 1e-6
    regressor = fit_regressor(xy, keypoints, np.ones((30, 2)), frame="points")
    others = np.arange(30) != 3
    error = np.linalg.norm(regressor(xy[others]) - keypoints[others], axis=-1)
    assert error.mean() < 0.05
    # What is said of that animal does not depend on how its points happen to be strewn.
    again = xy[3:4] + rng.normal(0, 1e-7, (1, 6, 2))
    np.testing.assert_allclose(regressor(again), regressor(xy[3:4]), atol=1e-4)
    same = np.full((30, 6, 2), 0.5)
    for frame in ("box", "points"):
        guess = fit_regressor(same, keypoints, np.ones((30, 2)), frame=frame)(same)
        np.testing.assert_allclose(guess, np.tile(keypoints.mean(0), (30, 1, 1)), atol=1e-9)


def test_it_is_written_and_read(tmp_path):
    xy, keypoints, weight = world()
    weight[:, 2] = 0
    regressor = fit_regressor(xy, keypoints, weight)
    assert np.isnan(regressor.error[2]) and np.isnan(regressor.strength[2])
    again = Regressor.from_dict(json.loads(json.dumps(regressor.as_dict())))
    np.testing.assert_array_equal(again(xy), regressor(xy))


def test_labels_that_do_not_do():
    xy, keypoints, weight = world()
    with pytest.raises(UserError, match="at least 2 labelled animals; found"):
        fit_regressor(xy[:1], keypoints[:1], weight[:1])
    with pytest.raises(UserError, match="expected points"):
        fit_regressor(xy, keypoints[:5], weight)
