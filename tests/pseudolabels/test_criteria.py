import json
from pathlib import Path

import numpy as np
import pytest
from criteria_reference import reference_cf_mt, reference_distance, reference_kp_conf
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabels import criteria
from pseudolabels.criteria import (
    CRITERIA,
    Candidates,
    Criterion,
    cf_mt,
    find_criterion,
    keypoint_distance,
    kp_conf,
    random_values,
    rank,
    register,
    select,
)
from wildshape.errors import UserError

# Outputs of the published animals3d code on seeded random inputs.
GOLDEN = Path(__file__).parents[1] / "data" / "criteria"


def golden_candidates() -> Candidates:
    read = {
        source: json.loads((GOLDEN / f"horse_{suffix}.json").read_text())
        for source, suffix in (("pose", "pl_2d"), ("pose_aux", "pl_2d_aux"), ("acsm", "pl_3d"))
    }
    ids = np.array([record["img_id"] for record in read["pose"]], dtype=object)
    box = np.array([record["img_bbox"] for record in read["pose"]], dtype=float)
    box[:, 2:] += box[:, :2]
    xy = {s: np.array([[j[:2] for j in r["joints"]] for r in v]) for s, v in read.items()}
    confidence = np.array([[j[2] for j in r["joints"]] for r in read["pose"]])
    lines = [np.loadtxt(GOLDEN / f"labels_0/horse/augm_{t}.txt") for t in range(7)]
    xy["pose_mt"] = np.stack([line[:, 2:4].reshape(-1, 16, 2) for line in lines], axis=1)
    return Candidates(ids, box, xy, {"pose": confidence})


@pytest.mark.parametrize("published", ["kpconf", "cf_mt", "cf_cm", "cf_cm_sq"])
def test_published_order(published):
    data = golden_candidates()
    criterion = find_criterion(published)
    order = rank(criterion.value(data), data.ids, criterion.descending)
    expected = json.loads((GOLDEN / "expected_order.json").read_text())[published]
    assert data.ids[order].tolist() == expected


def test_distance_by_hand():
    # Box 64 wide and 128 high: x counts 4 times, y twice. Distances 12 and 10, mean 11.
    a = np.array([[[1.0, 1.0], [5.0, 5.0]]])
    b = np.array([[[4.0, 1.0], [6.5, 1.0 + 8.0]]])
    value = keypoint_distance(a, b, np.array([[10.0, 20.0, 74.0, 148.0]]))
    np.testing.assert_allclose(value, [(12 + 10) / 2])
    np.testing.assert_allclose(kp_conf(np.array([[0.25, 0.5], [1.0, 2.0]])), [0.75, 3.0])


def random_instances(rng, count, keypoints=5, transforms=3, dtype=np.float64):
    corner = rng.uniform(0, 100, (count, 2))
    box = np.concatenate([corner, corner + rng.uniform(1, 300, (count, 2))], axis=1)
    xy = rng.normal(100, 50, (count, transforms + 1, keypoints, 2)).astype(dtype)
    return box, xy, rng.random((count, keypoints)).astype(dtype)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([np.float32, np.float64]))
def test_equal_to_the_reference(seed, count, dtype):
    box, xy, confidence = random_instances(np.random.default_rng(seed), count, dtype=dtype)
    np.testing.assert_allclose(kp_conf(confidence), reference_kp_conf(confidence), rtol=1e-6)
    np.testing.assert_allclose(
        keypoint_distance(xy[:, 0], xy[:, 1], box),
        reference_distance(xy[:, 0].tolist(), xy[:, 1].tolist(), box.tolist()),
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        cf_mt(xy[:, 0], xy[:, 1:], box),
        reference_cf_mt(xy[:, 0].tolist(), xy[:, 1:].tolist(), box.tolist()),
        rtol=1e-9,
    )


def test_chunks_do_not_change_values(monkeypatch):
    box, xy, _ = random_instances(np.random.default_rng(1), 37)
    whole = keypoint_distance(xy[:, 0], xy[:, 1], box), cf_mt(xy[:, 0], xy[:, 1:], box)
    monkeypatch.setattr(criteria, "_ROWS", 5)
    np.testing.assert_array_equal(whole[0], keypoint_distance(xy[:, 0], xy[:, 1], box))
    np.testing.assert_array_equal(whole[1], cf_mt(xy[:, 0], xy[:, 1:], box))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=30), st.booleans(), st.randoms())
def test_rank_breaks_ties_by_id(values, descending, shuffle):
    ids = [f"{number:03d}" for number in range(len(values))]
    shuffle.shuffle(ids)
    order = rank(np.array(values, dtype=float), np.array(ids, dtype=object), descending)
    sign = -1 if descending else 1
    expected = sorted(range(len(values)), key=lambda row: (sign * values[row], ids[row]))
    assert order.tolist() == expected


def test_equal_rows_have_equal_values_wherever_they_stand():
    """Otherwise rounding, not ids, would decide ties."""
    rng = np.random.default_rng(5)
    box, xy, confidence = random_instances(rng, 3, keypoints=16)
    pattern = rng.integers(0, 3, 70_001)
    for start in (0, 1):  # another alignment in memory
        rows = pattern[start:]
        values = (
            kp_conf(np.concatenate([confidence[:start], confidence[rows]])[start:]),
            keypoint_distance(xy[rows, 0], xy[rows, 1], box[rows]),
            cf_mt(xy[rows, 0], xy[rows, 1:], box[rows]),
        )
        for value in values:
            assert all(len(np.unique(value[rows == kind])) == 1 for kind in range(3))


def test_select_says_how_many_there_are():
    assert select(np.array([3.0, 1.0, 2.0]), np.array(["a", "b", "c"]), 2, False).tolist() == [1, 2]
    assert select(np.array([3.0, 1.0, 2.0]), np.array(["a", "b", "c"]), 2, True).tolist() == [0, 2]
    with pytest.raises(UserError, match="--selection_num 4 candidates; found 3"):
        select(np.zeros(3), np.array(["a", "b", "c"]), 4, False)


def test_nan_and_boxes_without_area_are_refused():
    box, xy, confidence = random_instances(np.random.default_rng(2), 4)
    confidence[1, 2] = np.nan
    with pytest.raises(UserError, match=r"finite confidences.*1 of 4.*row 1"):
        kp_conf(confidence)
    broken = xy.copy()
    broken[3, 2, 0, 1] = np.nan
    with pytest.raises(UserError, match=r"finite keypoints.*1 of 4.*row 3"):
        cf_mt(broken[:, 0], broken[:, 1:], box)
    box[2, 2] = box[2, 0]
    with pytest.raises(UserError, match=r"boxes of some area; found 1 .*row 2"):
        keypoint_distance(xy[:, 0], xy[:, 1], box)
    with pytest.raises(ValueError, match="expected keypoints"):
        keypoint_distance(xy[:, 0], xy[:, 1, :3], box)


def test_no_instances():
    nothing = np.zeros((0, 16, 2))
    assert keypoint_distance(nothing, nothing, np.zeros((0, 4))).shape == (0,)
    assert rank(np.zeros(0), np.zeros(0, dtype=object), True).shape == (0,)


def test_names_and_registration():
    assert find_criterion("KP-Conf") is find_criterion("kpconf") is CRITERIA["kpconf"]
    assert find_criterion("cf_cm_sq") is find_criterion("CF-CM2") is CRITERIA["cf_cm2"]
    with pytest.raises(UserError, match=r"--filter among kpconf, cf_mt.*found best"):
        find_criterion("best")
    with pytest.raises(ValueError, match="free names"):
        register(Criterion("new", "new", ("pose",), True, lambda data: data, aliases=("cf_cm",)))
    added = register(Criterion("least_x", "x", ("pose",), False, lambda d: d.xy["pose"][:, 0, 0]))
    try:
        assert find_criterion("Least-X") is added
    finally:
        del CRITERIA["least_x"]


def test_random_values_depend_on_seed_and_id_only():
    ids = [f"a{number}" for number in range(2000)]
    values = random_values(ids, 3)
    np.testing.assert_array_equal(values[::-1], random_values(ids[::-1], 3))
    assert (values != random_values(ids, 4)).all()
    assert abs(values.mean() - 0.5) < 0.03
    assert 0 <= values.min() < values.max() < 1
