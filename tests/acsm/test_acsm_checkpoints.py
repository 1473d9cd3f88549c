"""Which checkpoint a model starts from, is measured by, or draws with."""

from dataclasses import asdict, replace
from pathlib import Path

import acsm_toy
import acsm_world
import pytest
import torch

from acsm import evaluate, train, visualize
from acsm.checkpoint_init import start_from
from acsm.model import ACSM, ACSMArchitecture
from acsm.predict import pack_template
from acsm.template import template_for
from wildshape.files import read_json
from wildshape.tables import write_table
from wildshape.training import save_checkpoint


def save(path, model, template):
    extra = {
        "kind": "acsm", "category": "stick", "skeleton": "quadruped16", "keypoints": list(acsm_toy.NAMES),
        "arch": asdict(model.arch), "padding": 0.2, "template": pack_template(template),
    }  # fmt: skip
    save_checkpoint(path, {"model": model.state_dict(), "extra": extra})
    return path


@pytest.fixture
def workspace(tmp_path):
    """A world whose arm ``labels`` is an untrained model."""
    workspace = acsm_world.build(tmp_path)
    torch.manual_seed(0)
    template = template_for(workspace.category)
    model = ACSM(template, ACSMArchitecture(image_size=64))
    save(workspace.checkpoint_dir("acsm/labels") / "best.pt", model, template)
    return workspace


@pytest.mark.parametrize(
    ("camera", "ranges", "taken"),
    [
        ("angles", (30.0, 60.0, 60.0), True),
        ("angles", (90.0, 60.0, 60.0), False),
        ("turntable", (90.0, 60.0, 60.0), True),  # its azimuth has no range
        ("turntable", (30.0, 60.0, 30.0), False),
        ("quaternion", (90.0, 30.0, 30.0), True),
    ],
)
def test_cameras_are_taken_over_only_with_their_ranges(tmp_path, camera, ranges, taken):
    template = acsm_toy.template()
    old, new = (
        ACSM(template, ACSMArchitecture(64, camera=camera, num_cameras=2, angle_ranges_deg=given))
        for given in ((30.0, 60.0, 60.0), ranges)
    )
    said = start_from(new, save(tmp_path / "old.pt", old, template), template)
    same = torch.equal(new.camera_head.output.weight, old.camera_head.output.weight)
    assert same is taken and ("part_head" in said) is not taken


def test_a_checkpoint_in_a_folder_called_random_is_not_random(workspace, tmp_path, monkeypatch):
    best = workspace.checkpoint_dir("acsm/labels") / "best.pt"
    (tmp_path / "random").mkdir()
    best.rename(tmp_path / "random" / "best.pt")
    monkeypatch.chdir(tmp_path)
    config = train.Config(
        category="stick", image_size=64, steps=2, batch_size=3, eval_every=2, precision="float32",
        device="cpu", freeze=True, frozen_crops=1, init=Path("random/best.pt"),
    )  # fmt: skip
    assert train.run(config, workspace)["weights_from"] == "random/best.pt"


def test_another_checkpoint_is_measured_under_another_name(workspace, tmp_path):
    own = workspace.checkpoint_dir("acsm/labels") / "best.pt"
    torch.manual_seed(1)
    template = template_for(workspace.category)
    other = save(tmp_path / "other.pt", ACSM(template, ACSMArchitecture(image_size=64)), template)
    config = evaluate.Config(category="stick", bootstrap=20, device="cpu")
    plain = evaluate.run(config, workspace)
    again = evaluate.run(replace(config, opts=("MODEL.WEIGHTS", str(own))), workspace)
    assert again["arm"] == plain["arm"] == "labels" and again["auc"] == plain["auc"]
    found = evaluate.run(replace(config, opts=("MODEL.WEIGHTS", str(other))), workspace)
    assert found["checkpoint_hash"] != plain["checkpoint_hash"]
    name = f"labels-other-{found['checkpoint_hash'][:6]}"
    assert found["arm"] == name and found["of_arm"] == "labels" and "of_arm" not in plain
    assert workspace.animals_path(name, "test").is_file()
    last = own.with_name("last.pt")
    last.write_bytes(other.read_bytes())
    assert (
        evaluate.run(replace(config, opts=("MODEL.WEIGHTS", str(last))), workspace)["arm"] == "labels-last"
    )
    assert read_json(workspace.metrics_path("acsm_labels_test"))["auc"] == plain["auc"]


def test_web_animals_whose_box_has_no_area_are_not_drawn(workspace, capsys):
    table = workspace.load("instances")
    box = table["box_xyxy"].copy()
    box[0] = [10, 5, 10, 5]
    write_table(table.with_columns(box_xyxy=box), workspace.table_path("instances"))
    config = visualize.Config(category="stick", split="web", vis_num=9, device="cpu")
    facts = visualize.run(config, workspace)
    assert facts["animals"] == len(table) - 1 and facts["skipped"] == 1
    assert f"({table['instance_id'][0]}: a box of no area)" in capsys.readouterr().out
