"""CF-All: weights of sources from labelled animals of val, on cases made by hand."""

import numpy as np
import pytest

from pseudolabels.combined import DOUBTS, FEWEST, PULLS, calibrate, combine, equal_weights, ranks
from pseudolabels.criteria import CRITERIA, Candidates, find_criterion, rank
from wildshape.errors import UserError


def made(count, noise, seed=0):
    """Errors, and doubts of sources that see them through noise; None: noise alone."""
    rng = np.random.default_rng(seed)
    error = rng.gamma(2.0, 0.05, count)
    spread = error.std()
    doubts = {}
    for source, amount in noise.items():
        seen = rng.normal(size=count) * (1.0 if amount is None else amount * spread)
        doubts[source] = seen if amount is None else error + seen
    return doubts, error


def test_ranks_by_hand():
    np.testing.assert_allclose(ranks(np.array([30.0, 10.0, 20.0, 20.0])), [0.875, 0.125, 0.5, 0.5])
    doubts = {"pose": np.array([3.0, 1.0]), "acsm": np.array([5.0, 9.0]), "pose_mt": np.array([0.0, 1.0])}
    np.testing.assert_allclose(
        combine(doubts, {"pose": 0.75, "acsm": 0.25, "pose_mt": 0.0}), [0.625, 0.375]
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_source_of_noise_gets_no_weight(seed):
    doubts, error = made(120, {"pose": 0.4, "pose_aux": None, "acsm": 0.4}, seed)
    found = calibrate(doubts, error)
    assert found.weights["pose_aux"] < 0.08 and sum(found.weights.values()) == pytest.approx(1)
    assert min(found.weights.values()) >= 0 and found.animals == 120 and not found.note
    assert found.left_out_error < found.equal_error


@pytest.mark.parametrize("seed", range(3))
def test_the_ranking_is_nearer_to_the_truth_than_that_of_equal_weights(seed):
    noise = {"pose": 0.5, "pose_mt": None, "pose_aux": None, "acsm": 0.5, "zero123plus": None}
    found = calibrate(*made(60, noise, seed))
    doubts, error = made(1000, noise, seed + 100)

    def error_of_best(weights):
        return error[np.argsort(combine(doubts, weights))[:200]].mean()

    equal = equal_weights(tuple(noise)).weights
    assert error_of_best(found.weights) < error_of_best(equal) < error.mean()


def test_sources_that_are_alike_stay_nearly_equal_on_few_animals():
    noise = {"pose": 1.0, "pose_aux": 1.0, "acsm": 1.0, "zero123plus": 1.0}
    spread = [max(calibrate(*made(30, noise, seed)).weights.values()) for seed in range(10)]
    assert np.median(spread) < 0.3 and max(spread) < 0.6


def test_a_source_that_is_wrong_in_its_sense_does_not_count_backwards():
    doubts, error = made(80, {"pose": 0.3})
    found = calibrate({**doubts, "acsm": -doubts["pose"] + 0.001 * np.arange(80)}, error)
    assert 0 <= found.weights["acsm"] < 0.2  # the ridge leaves it a little


def test_units_and_curves_of_doubts_do_not_matter():
    doubts, error = made(40, {"pose": 0.5, "acsm": 1.5})
    bent = {"pose": np.exp(doubts["pose"]), "acsm": 1e6 * doubts["acsm"] - 4}
    assert calibrate(doubts, error) == calibrate(bent, error**3)


def test_too_few_animals_or_nothing_told_gives_equal_weights_said_aloud():
    doubts, error = made(FEWEST, {"pose": 0.1, "acsm": None})
    hidden = np.where(np.arange(FEWEST) < 2, np.nan, error)
    found = calibrate(doubts, hidden)
    assert found.weights == {"pose": 0.5, "acsm": 0.5} and found.animals == 0
    assert found.note == "equal weights: expected 10 labelled animals of val or more to fit them; found 8"
    assert found.facts()["left_out_error"] is None and found.facts()["pull_to_equal"] == "equal"
    assert calibrate(doubts, error).animals == FEWEST
    told = calibrate({"pose": -error, "acsm": -error}, error)
    assert told.weights == {"pose": 0.5, "acsm": 0.5} and "no source tells of errors" in told.note
    with pytest.raises(UserError, match="at least one source"):
        calibrate({}, error)
    assert np.isinf(PULLS[0]) and list(PULLS) == sorted(PULLS, reverse=True)


def test_without_a_workspace_all_sources_weigh_the_same():
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 64, (6, 16, 2))
    box = np.tile([0.0, 0, 64, 64], (6, 1))
    off = xy + np.arange(6.0)[:, None, None]
    confidence = {"pose": np.repeat(np.linspace(0.9, 0.1, 6)[:, None], 16, axis=1)}
    data = Candidates(np.array(list("abcdef")), box, {"pose": xy, "zero123plus": off}, confidence)
    criterion = find_criterion("CF-All")
    assert criterion is CRITERIA["cf_all"] and not criterion.descending
    assert rank(criterion.value(data), data.ids, criterion.descending).tolist() == list(range(6))
    assert set(DOUBTS) == {"pose", "pose_mt", "pose_aux", "acsm", "zero123plus"}
