import csv
import json

import numpy as np
import pytest
from scipy import stats
from test_acsm_breakdown import toy_result

from acsm import compare as command
from acsm.compare import compare, sign_flip_p
from acsm.per_animal import per_animal
from wildshape.cli import main
from wildshape.errors import UserError
from wildshape.files import file_hash
from wildshape.metrics import paired_change
from wildshape.workspace import Workspace


def some_animals(seed, count=40, shift=0.0):
    """Animals with 16 keypoints whose errors share a part that is the animal's own."""
    own = np.random.default_rng(0).uniform(0.02, 0.1, (count, 1))
    rng = np.random.default_rng(seed)
    result = toy_result()
    base = per_animal(result, np.array([1, 0])).take(np.zeros(count, int))
    error = np.abs(own + rng.normal(0, 0.02, (count, 16)) + shift)
    return type(base)(
        **{
            **vars(base),
            "instance_id": np.array([f"i{n}" for n in range(count)], dtype=object),
            "error": error,
            "error_swapped": error + 0.1,
            "camera_error_deg": 100 * own[:, 0] + rng.normal(0, 1, count),
            "view": np.array(["left", "front"] * (count // 2), dtype=object),
        }
    )


def test_the_p_value_agrees_with_scipy():
    for shift in (0.0, 0.3, 0.8):
        differences = np.random.default_rng(3).normal(shift, 1, 12)
        exact = stats.permutation_test(
            (differences, np.zeros(12)), lambda a, b, axis: (a - b).mean(axis=axis),
            permutation_type="samples", vectorized=True, n_resamples=np.inf,
        ).pvalue  # fmt: skip
        assert sign_flip_p(differences, 40000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p(np.zeros(5), 100) == 1
    assert sign_flip_p(np.ones(30), 999) == pytest.approx(1 / 1000)
    assert np.isnan(sign_flip_p(np.zeros(0)))


def test_runs_are_compared_animal_by_animal():
    old, new, worse = some_animals(1), some_animals(2), some_animals(3, shift=0.02)
    found = compare({"r/old": old, "r/new": new, "r/worse": worse}, samples=500, draws=500)
    auc = found.cells["auc"]
    assert "difference" not in auc["r/old"] and found.animals == 40
    assert auc["r/worse"]["difference_interval"][1] < 0 and auc["r/worse"]["p"] < 0.01
    low, high = auc["r/new"]["difference_interval"]
    assert low < 0 < high and auc["r/new"]["p"] > 0.05
    # The animals share most of their error: paired, differences are far surer than the values are.
    assert high - low < 0.5 * np.diff(auc["r/old"]["interval"])[0]
    # The report's paired interval is the same one.
    by_instance = [
        {"instance_id": list(a.instance_id), "keypoints_right": a.right(), "keypoints": a.keypoints}
        for a in (worse, old)
    ]
    expected = paired_change([by_instance[0]], [by_instance[1]], samples=500)
    assert auc["r/worse"]["difference"] == pytest.approx(expected["gain"])
    assert auc["r/worse"]["difference_interval"] == pytest.approx(expected["interval"])
    side = found.cells["auc_side"]["r/old"]
    assert side["animals"] == 20 and side["value"] == pytest.approx(
        100 * old.right()[::2].sum() / old.keypoints[::2].sum()
    )
    assert found.cells["miou"]["r/new"] == {
        "value": None, "interval": None, "animals": 0,
        "difference": None, "difference_interval": None, "p": None,
    }  # fmt: skip


def test_only_like_is_compared_with_like():
    old, new = some_animals(1), some_animals(2)
    backwards = new.take(np.arange(len(new))[::-1][:30])
    found = compare({"a": old, "b": backwards}, samples=20, draws=20)
    assert found.animals == 30 and found.left_out == {"a": 10, "b": 0}
    straight = compare({"a": old.take(np.arange(10, 40)), "b": new.take(np.arange(10, 40))}, samples=20)
    assert found.cells["auc"]["b"]["difference"] == straight.cells["auc"]["b"]["difference"]
    new.truth[3] = "other"
    with pytest.raises(
        UserError, match="those of 1 of 40 animals changed between the evaluations of a and b"
    ):
        compare({"a": old, "b": new})
    new.instance_id[:] = [f"other{n}" for n in range(40)]
    with pytest.raises(UserError, match="expected evaluations of the same animals; found none in common"):
        compare({"a": old, "b": new})


def test_the_command_writes_what_it_shows(tmp_path, capsys):
    workspace = Workspace(tmp_path, "horse")
    some_animals(1).write(workspace.animals_path("labels", "test"))
    some_animals(2).write(workspace.animals_path("cf_cm", "test"))
    some_animals(3).take(np.arange(30)).write(workspace.sibling(name="two").animals_path("labels", "test"))
    some_animals(4).write(workspace.animals_path("labels", "my_test"))  # other labels, a like name
    workspace.write_metrics("acsm_labels_my_test", {"split": "my_test"})
    flags = ["--category", "horse", "--data-root", str(tmp_path), "--permutations", "200"]
    assert main(["compare", "horse", "two/labels", *flags]) == 0
    out = capsys.readouterr().out
    assert "30 animals of test, differences to horse/labels" in out
    assert "left out, as another has them not: 10 of horse/labels, 10 of horse/cf_cm" in out
    assert out.count(" p ") == 2 * 8 and "mIoU" not in out  # no masks, all else
    page = workspace.comparison_path("test")
    facts = json.loads(page.with_suffix(".json").read_text())
    assert facts["runs"] == ["horse/labels", "horse/cf_cm", "two/labels"]
    rows = list(csv.DictReader(page.with_suffix(".csv").open()))
    auc = [row for row in rows if row["measure"] == "auc"]
    assert [row["run"] for row in auc] == facts["runs"] and auc[0]["p"] == ""
    assert float(auc[1]["p"]) == pytest.approx(facts["measures"]["auc"]["horse/cf_cm"]["p"])
    assert f"{float(auc[1]['value']):.1f}" in out
    assert {row["measure"] for row in rows} >= {"auc_Nose", "pck_0.10", "camera_error_deg_side"}
    text = page.read_text()
    assert text.count("<svg") == 3 and "http" not in text.replace("http://www.w3.org", "")
    assert f"{float(auc[1]['value']):.1f}" in text

    best = workspace.checkpoint_dir("acsm/cf_cm") / "best.pt"
    best.parent.mkdir(parents=True)
    best.write_bytes(b"another model")
    said = "compare: horse/cf_cm was trained again after it was measured"
    for measured, stale in ((file_hash(best), False), ("other", True)):
        workspace.write_metrics("acsm_cf_cm_test", {"split": "test", "checkpoint_hash": measured})
        assert main(["compare", "horse", *flags]) == 0
        assert (said in capsys.readouterr().out) is stale

    out = tmp_path / "mine"
    config = command.Config(category="horse", runs=("horse",), bootstrap=20, permutations=20, out=out)
    command.run(config, workspace)
    with pytest.raises(UserError, match="comparison_test.html exists; add --overwrite"):
        command.run(config, workspace)
    capsys.readouterr()
    assert main(["compare", "horse/none", *flags]) == 2
    assert "acsm-evaluate --category horse --name horse --arm none --labels test" in capsys.readouterr().err
    assert main(["compare", "two", *flags]) == 2
    assert "expected at least two of RUN/ARM; found two/labels" in capsys.readouterr().err
