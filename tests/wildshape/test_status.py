"""What `wildshape status` says comes next."""

from wildshape import status
from wildshape.files import write_json
from wildshape.status import steps
from wildshape.workspace import Workspace


def said(workspace, capsys):
    status.run(status.Config(category="cow", name=workspace.name, data_root=workspace.root), workspace)
    return capsys.readouterr().out


def test_the_next_command(tmp_path, capsys):
    workspace = Workspace(tmp_path, "cow", "my run")
    assert "next: " in (out := said(workspace, capsys)) and "wildshape run" not in out
    # Steps of a whole run have settings that the commands by themselves would not have.
    write_json(workspace.metrics_path("timings"), {"detect": 1.0})
    assert "next: the same `wildshape run` (or demo) command again\n" in said(workspace, capsys)


def test_what_is_stale_is_done_again_by_its_own_command(tmp_path, capsys, monkeypatch):
    """Not by the whole run's, whose --overwrite would do every step anew."""
    workspace = Workspace(tmp_path, "cow")
    manifest = workspace.checkpoint_dir("acsm/mine") / "manifest.json"
    config = {"use_web_images": True, "filter": "cf_cm", "web_images_num": 300, "pl_source": "pose"}
    write_json(manifest, {"config": config, "inputs": {"gone.parquet": "0"}})
    write_json(workspace.metrics_path("timings"), {"detect": 1.0})
    monkeypatch.setattr(status, "steps", lambda w: [s for s in steps(w) if s.title.startswith("ACSM")])
    assert (
        "next: python acsm/train.py --category cow --arm mine --use_web_images --filter cf_cm "
        "--web_images_num 300 --pl_source pose --overwrite  "
        "(its settings are in runs/cow/checkpoints/acsm/mine/manifest.json)\n"
    ) in said(workspace, capsys)


def test_an_arm_on_other_labels(tmp_path):
    workspace = Workspace(tmp_path, "cow")
    config = {
        "use_web_images": False,
        "filter": None,
        "labels_from": ["horse", "sheep"],
        "label_share": 0.5,
    }
    write_json(workspace.checkpoint_dir("acsm/few") / "manifest.json", {"config": config})
    commands = {step.title: step.command for step in steps(workspace)}
    assert commands["ACSM, arm few"].endswith("--arm few --labels_from horse,sheep --label_share 0.5")


def test_commands_name_their_arm_and_quote_names(tmp_path):
    workspace = Workspace(tmp_path, "cow", "my run")
    for arm in ("labels", "cf_cm"):
        workspace.checkpoint_dir(f"acsm/{arm}").mkdir(parents=True)
    commands = {step.title: step.command for step in status.steps(workspace)}
    plain = "python acsm/train.py --category cow --name 'my run'"
    assert commands["ACSM, arm labels"] == plain
    assert commands["ACSM, arm cf_cm"] == f"{plain} --arm cf_cm"
    assert commands["pose network"].endswith("--name 'my run'")
