"""`torchrun acsm/train.py` and `torchrun pose/train.py` beside the same commands in one process."""

import json

import acsm_mask_world
import acsm_world
import pose_world
import pytest
import torch
from shared_training import ROOT, torchrun

from acsm import train
from pose import train as pose_train

SMALL = {
    "image_size": 64, "steps": 4, "batch_size": 4, "eval_every": 4, "lr": 1e-4, "imagenet": False,
    "precision": "float32", "device": "cpu",
}  # fmt: skip


def flags(settings):
    for name, value in settings.items():
        yield from [f"--no-{name}"] if value is False else [f"--{name}", str(value)]


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if "loss" in line]


@pytest.mark.parametrize("which", ["acsm", "masks", "pose"])
@pytest.mark.slow
def test_two_processes_train_as_one_does(which, tmp_path, capsys):
    """Four steps; parts at rest and turning, halves of a batch with other numbers of visible keypoints."""
    if which == "acsm":
        workspace, module = acsm_world.build(tmp_path, train=8), train
        settings = {"category": "stick", "warmup": 0.5, **SMALL}
    elif which == "masks":
        workspace, module = acsm_mask_world.build(tmp_path, train=8), train
        settings = {"category": "beast", "warmup": 0.5, "supervise": "both", **SMALL}
    else:
        workspace, module = pose_world.make_world(tmp_path), pose_train
        settings = {"category": "cow", "backbone": "resnet18", "head_channels": 16, **SMALL}
    module.run(module.Config(arm="alone", **settings), workspace)
    script = ROOT / ("pose" if which == "pose" else "acsm") / "train.py"
    done = torchrun(script, *flags({**settings, "arm": "together", "data_root": tmp_path}))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(capsys.readouterr().out.splitlines()), "one speaks"
    place = "pose_" if which == "pose" else "acsm/"
    alone, together = (workspace.checkpoint_dir(f"{place}{arm}") for arm in ("alone", "together"))
    for a, b in zip(losses(alone), losses(together), strict=True):
        # The 3D model normalises four numbers a channel here, which magnifies rounding.
        rel = 1e-4 if which == "pose" else 0.03
        assert b["loss"] == pytest.approx(a["loss"], rel=rel)
    states = [torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (alone, together)]
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        if name.endswith("backbone.1.running_mean"):
            # Adam's first steps turn the rounding of gradients near zero into whole steps.
            torch.testing.assert_close(states[1][name], value, rtol=0, atol=3e-3)
