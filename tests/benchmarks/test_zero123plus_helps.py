"""What the benchmark of a diffusion model's second opinion concludes, by hand."""

import numpy as np
import pytest

from benchmarks import zero123plus_helps as helps
from pseudolabels import criteria
from wildshape.files import write_json
from wildshape.tables import Table, write_table
from wildshape.workspace import Workspace


def test_a_criterion_that_is_not_there_is_left_out_with_a_reason(monkeypatch):
    known = dict(criteria.CRITERIA)
    known.pop("cf_all", None)
    monkeypatch.setattr(helps, "CRITERIA", known)
    there, left_out = helps.arms_there()
    assert [item.name for item in there] == ["random", "kpconf", "cf_cm", "cf_cm_zero123plus"]
    assert list(left_out) == ["cf_all"] and left_out["cf_all"].startswith("there is no criterion cf_all")
    monkeypatch.setattr(helps, "CRITERIA", {**known, "cf_all": None})
    assert helps.arms_there()[0][-1].name == "cf_all" and not helps.arms_there()[1]


def seed_of(number, auc_right, pck):
    def row(right, camera):
        animals = {
            "instance_id": [f"{number}/a", f"{number}/b"], "keypoints": [4, 4], "keypoints_right": right,
            "camera_error_deg": camera,
        }  # fmt: skip
        return {
            "auc": 100 * sum(right) / 8, "camera_error": sum(camera) / 2, "encoder_pck": 60.0,
            "by_instance": animals,
        }  # fmt: skip

    arms = {name: row([2.0, 2.0], [30.0, 50.0]) for name in ("labels", "random", "kpconf", "cf_cm")}
    arms["cf_cm_zero123plus"] = row(auc_right, [20.0, 44.0])
    quality = {"random": 60.0, "kpconf": 65.0, "cf_cm": 70.0, "cf_cm_zero123plus": pck}
    sources = {"pose_aux": {"pck": 80.0, "tells": 0.5}, "zero123plus": {"pck": 40.0, "tells": 0.25}}
    return {"arms": arms, "pck": quality, "sources": sources}


def test_what_the_second_opinion_brings():
    found = helps.summarise([seed_of(0, [3.0, 2.0], 73.0), seed_of(1, [2.0, 2.0], 69.0)])
    change = found["changes"]["cf_cm_zero123plus over cf_cm"]
    assert change["auc"]["gain"] == pytest.approx(100 / 16) and change["auc"]["animals"] == 4
    assert change["camera"]["gain"] == -8 and change["pck_of_selection"] == [3.0, -1.0]
    assert "pck_of_selection" not in found["changes"]["cf_cm_zero123plus over labels"]
    assert not any(name.startswith("cf_all") for name in found["changes"])
    text = helps.table(found)
    assert "cf_cm_zero123plus over cf_cm: AUC +6.2 [" in text and "71.0 +- 2.8" in text
    assert "zero123plus: PCK 40.0 +- 0.0; tells 0.25" in text


def test_a_selection_by_all_sources_without_this_one_is_made_again(tmp_path):
    workspace = Workspace(tmp_path, "cow", "bench")
    manifest = workspace.selection_path("cf_all", 3).with_suffix(".manifest.json")
    assert not helps.lacks_source(workspace, 3)  # there is none
    for weights, lacks in (({"pose": 1.0}, True), ({"pose": 0.5, "zero123plus": 0.5}, False)):
        write_json(manifest, {"config": {"weights": weights}})
        assert helps.lacks_source(workspace, 3) is lacks


@pytest.fixture
def workspace(tmp_path):
    """Four animals in boxes of 100 pixels; the pose network errs by 0, 5, 20 and 40 pixels."""
    workspace = Workspace(tmp_path, "cow", "bench")
    count, joints = 4, workspace.category.skeleton.num_keypoints
    ids = np.array([f"i{n}" for n in range(count)], dtype=object)
    box = np.tile([0.0, 0, 100, 100], (count, 1))
    rows = [
        {
            "instance_id": name, "image_id": name, "category": "cow", "source_id": name, "box_xyxy": box[0],
            "score": 1.0, "detector": "x", "mask_rle": None, "flags": "",
        }
        for name in ids
    ]  # fmt: skip
    write_table(Table.from_rows("instances", rows), workspace.table_path("instances"))
    truth = np.full((count, joints, 2), 50.0)
    off = np.array([0.0, 5, 20, 40])[:, None, None] * [1.0, 0.0]
    sources = {
        "truth": truth,
        "pose": truth + off,
        "pose_aux": truth - off,
        "zero123plus": truth + 30 - off,
    }
    sources["constant"] = truth + off
    for name, xy in sources.items():
        columns = {
            "instance_id": ids, "transform": np.full(count, "none", object), "xy": xy,
            "confidence": np.ones((count, joints)),
        }  # fmt: skip
        meta = {"skeleton": workspace.category.skeleton.name}
        write_table(Table("keypoints", columns, meta), workspace.keypoints_path(name))
    return workspace


def test_what_a_second_opinion_tells(workspace):
    aux = helps.source_quality(workspace, "pose_aux")
    assert aux["pck"] == 50.0 and aux["tells"] == pytest.approx(1.0)  # two of four within 10 pixels
    # It errs by 30 down and 30, 25, 10, -10 across: from the pose network by 42, 36, 32 and 58 pixels.
    other = helps.source_quality(workspace, "zero123plus")
    assert other["pck"] == 0.0 and other["tells"] == pytest.approx(0.2)
    assert np.isnan(helps.source_quality(workspace, "constant")["tells"])  # it always agrees


def test_how_much_selections_share(workspace):
    for name, ids in (("cf_cm", ["i0", "i1"]), ("other", ["i1", "i3"])):
        columns = {
            "instance_id": np.array(ids, dtype=object), "criterion": np.full(2, name, object),
            "value": np.zeros(2), "rank": np.arange(2),
        }  # fmt: skip
        write_table(Table("selections", columns, {"category": "cow"}), workspace.selection_path(name, 2))
    assert helps.shared_share(workspace, "cf_cm", "other", 2) == 50.0
