"""What `wildshape status` says comes next."""

from wildshape import status
from wildshape.files import write_json
from wildshape.workspace import Workspace


def said(workspace, capsys):
    status.run(status.Config(category="cow", name=workspace.name, data_root=workspace.root), workspace)
    return capsys.readouterr().out


def test_the_next_command(tmp_path, capsys):
    workspace = Workspace(tmp_path, "cow", "my run")
    assert "next: " in (out := said(workspace, capsys)) and "wildshape run" not in out
    # Steps of a whole run have settings that the commands by themselves would not have.
    write_json(workspace.metrics_path("timings"), {"detect": 1.0})
    assert "next: the same `wildshape run` command again\n" in said(workspace, capsys)


def test_commands_name_their_arm_and_quote_names(tmp_path):
    workspace = Workspace(tmp_path, "cow", "my run")
    for arm in ("labels", "cf_cm"):
        workspace.checkpoint_dir(f"acsm/{arm}").mkdir(parents=True)
    commands = {step.title: step.command for step in status.steps(workspace)}
    plain = "python acsm/train.py --category cow --name 'my run'"
    assert commands["ACSM, arm labels"] == plain
    assert commands["ACSM, arm cf_cm"] == f"{plain} --arm cf_cm"
    assert commands["pose network"].endswith("--name 'my run'")
