"""Naming points, and weighing opinions: cases by hand."""

import numpy as np
import torch
from test_regressor import world

from pseudolabels.candidates import gather_candidates
from pseudolabels.combined import _left_out, _strongest
from pseudolabels.combined_sources import val_doubts
from pseudolabels.zero123plus import naming, warps
from pseudolabels.zero123plus.regressor import fit_regressor
from pseudolabels.zero123plus.tokens import TokenSettings, strays
from wildshape.records import AnimalRecords
from wildshape.tables import TRANSFORMS, Table


def test_the_error_is_in_crop_sides_in_either_frame():
    """Choosing between the frames compares their errors."""
    xy, keypoints, weight = world(animals=20, noise=0.05)
    for frame in ("box", "points"):
        whole = fit_regressor(xy, keypoints, weight, frame)
        half = fit_regressor(0.25 + xy / 2, 0.25 + keypoints / 2, weight, frame)
        np.testing.assert_allclose(half.error, whole.error / 2, rtol=1e-6)


def test_a_weight_of_two_is_the_animal_twice():
    xy, keypoints, weight = world(animals=12, noise=0.05)
    times = np.arange(12) % 2 + 1
    heavy = fit_regressor(xy, keypoints, weight * times[:, None], strengths=(0.1,))
    twice = [np.repeat(value, times, axis=0) for value in (xy, keypoints, weight)]
    np.testing.assert_allclose(heavy(xy), fit_regressor(*twice, strengths=(0.1,))(xy), atol=1e-9)


def test_the_strongest_pull_within_one_standard_error_is_taken():
    best = np.array([1.0, 2.0, 3.0, 4.0])
    near = best + [0.5, -0.4, 0.5, -0.4]  # worse by .05, with a standard error of .26
    far = best + [1.0, 1.1, 0.9, 1.0]  # by 1, with one of .04
    assert _strongest(np.stack([far, near, best])) == 1
    assert _strongest(np.stack([far, best, near])) == 1


def test_doubts_and_errors_of_labelled_animals_by_hand():
    """The second keypoint is hidden, the third animal has no visible one; transforms have no plain row."""
    records = AnimalRecords(
        ("a", "b", "c"), (None,) * 3, np.tile([0.0, 0, 64, 64], (3, 1)), np.zeros((3, 2, 2)),
        np.array([[1.0, 0], [1, 0], [0, 0]]), np.full((3, 7), np.nan),
    )  # fmt: skip
    pose = np.array([[[6.4, 0], [50, 50]], [[0, 12.8], [9, 9]], [[1, 1], [1, 1]]])

    def table(xy, transforms):
        ids = [name for name in "abc" for _ in transforms]
        columns = {"instance_id": ids, "transform": list(transforms) * 3, "xy": xy}
        return Table("keypoints", {**columns, "confidence": np.full((len(ids), 2), 0.5)})

    moved = np.repeat(pose + [1.6, 0], len(TRANSFORMS) - 1, axis=0)
    doubts, error = val_doubts(
        records, {"pose": table(pose, ["none"]), "pose_mt": table(moved, TRANSFORMS[1:])}
    )
    np.testing.assert_allclose(error, [0.1, 0.2, np.nan])
    np.testing.assert_allclose(doubts["pose_mt"], 256 / 64 * 1.6)
    np.testing.assert_allclose(doubts["pose"], -1)


def test_peaks_that_leave_the_frame_do_not_stray():
    found, moved = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    found[0, 0, 4, 1] = found[0, 1, 4, 6] = 1.0
    moved[0, 0, 2, 0] = moved[0, 1, 2, 2] = 1.0
    theta = torch.tensor([[[1.0, 0, 1.0], [0, 1.0, 0]]])  # half a picture to the right is shown
    away = strays(found, moved, theta, TokenSettings(num_tokens=2, candidates=2, taught=2))[0]
    assert away.isnan().sum() == 1 and torch.nansum(away).item() == 2 / 8  # two pixels down


def test_an_animal_has_no_say_in_the_weights_that_judge_it():
    """Without the third the weight is 1; without either of the others it would be negative, and is 0."""
    x, y = np.array([[1.0], [1.0], [2.0]]), np.array([1.0, 1.0, -1.0])
    np.testing.assert_allclose(_left_out(x, y, 0.0), [1, 1, 9])


def test_who_sees_no_point_guesses_the_mean_of_visible_keypoints():
    xy = np.array([[[20.0, 30], [60, 60]], [[40.0, 30], [0, 0]]])
    records = AnimalRecords(
        ("a", "b"), (None,) * 2, np.tile([0.0, 0, 100, 100], (2, 1)), xy,
        np.array([[1.0, 1], [1, 0]]), np.full((2, 7), np.nan),
    )  # fmt: skip
    mean = naming.mean_position(records)
    expected = naming.to_unit(np.array([[[30.0, 30], [60, 60]]]), records.box_xyxy[:1])[0]
    np.testing.assert_allclose(mean, expected)
    unit = naming.to_unit(xy, records.box_xyxy)
    regressor = fit_regressor(unit, unit, np.ones((2, 2)))
    facts = naming.measure(regressor, unit, records, mean + [0.5, 0])
    assert facts["pck@0.1"] == 1 and facts["pck@0.1_of_mean_position"] == 0


def test_ties_go_by_the_sources_own_ids_where_all_have_one():
    ids, box = ["a", "b", "c"], np.array([0.0, 0, 10, 10])
    shared = {
        "image_id": "i",
        "category": "cow",
        "box_xyxy": box,
        "score": 1.0,
        "detector": "t",
        "flags": "",
    }
    for names, expected in ((["3", "2", "1"], ["3", "2", "1"]), (["3", None, "1"], ids)):
        rows = [{**shared, "instance_id": i, "source_id": n} for i, n in zip(ids, names)]
        columns = {"instance_id": ids, "transform": ["none"] * 3, "xy": np.zeros((3, 2, 2))}
        keypoints = Table("keypoints", {**columns, "confidence": np.ones((3, 2))})
        found, chosen, _ = gather_candidates(Table.from_rows("instances", rows), {"pose": keypoints})
        assert found.ids.tolist() == expected and chosen.tolist() == ids


def test_what_was_partly_out_of_the_frame_is_not_seen():
    """Warped back, a map of ones is one wherever the transformed picture showed the place."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        theta = warps.random_warp(warps.WarpRanges(), rng)[None]
        restored, seen = warps.restore(torch.ones(1, 2, 12, 16), theta)
        assert 0.3 < seen.float().mean() < 1
        torch.testing.assert_close(restored[0, :, seen[0]], torch.ones(2, int(seen.sum())))
