"""What the rounds of self-training ask of the commands; test_pipeline.py runs them."""

import pytest

from wildshape import rounds
from wildshape.errors import UserError
from wildshape.run import Pipeline
from wildshape.run_config import Config


@pytest.fixture
def calls(monkeypatch):
    """The commands that are called: run, module and settings."""
    made = []

    def call(self, title, module, **settings):
        made.append((self.workspace.name, module, settings))
        return {}

    monkeypatch.setattr(Pipeline, "call", call)
    monkeypatch.setattr(
        Pipeline, "select", lambda self: made.append((self.workspace.name, "select", {})) or 7
    )
    monkeypatch.setattr(
        Pipeline, "label_val", lambda self: made.append((self.workspace.name, "label_val", {}))
    )
    return made


def three_rounds(workspace, **settings):
    config = Config(category="cow", name="try", filter="cf_cm2", rounds=3, size="miniature", **settings)
    first = Pipeline(config, workspace.sibling(name="try"))
    first.selected = 5
    return rounds.later_rounds(first, with_ceiling=False)


def test_each_round_learns_from_the_one_before(workspace, calls):
    three_rounds(workspace)
    trained = [(run, s) for run, module, s in calls if module == "pose.train" and "arm" not in s]
    assert [
        (run, s["is_aux"], s["web_run"], s["web_images_num"], s["pl_source"]) for run, s in trained
    ] == [
        ("try-round2", False, "try", 5, "pose"),
        ("try-round2", True, "try", 5, "pose_aux"),
        ("try-round3", False, "try-round2", 7, "pose"),
        ("try-round3", True, "try-round2", 7, "pose_aux"),
    ]
    for run, settings in trained:
        before = workspace.sibling(name=settings["web_run"])
        assert settings["init"] == before.checkpoint_dir(settings["pl_source"]) / "best.pt"
        assert settings["use_web_images"] and settings["filter"] == "cf_cm2" and run != settings["web_run"]
        assert settings["backbone"] is None and settings["head_channels"] is None
    labelled = [(run, s["arm"], s["opts"]) for run, module, s in calls if module == "acsm.generate_pl"]
    best = workspace.sibling(name="try").checkpoint_dir("acsm/cf_cm2") / "best.pt"
    assert labelled[0] == ("try-round2", "cf_cm2", ("MODEL.WEIGHTS", str(best)))
    assert labelled[1][2][1].endswith("try-round2/checkpoints/acsm/cf_cm2/best.pt")
    shapes = [(run, s["arm"], s["web_images_num"]) for run, module, s in calls if module == "acsm.train"]
    assert shapes == [("try-round2", "cf_cm2", 7), ("try-round3", "cf_cm2", 7)]
    assert "web_run" not in next(s for _, module, s in calls if module == "acsm.train")


def test_rounds_are_compared_in_the_end(workspace, calls):
    three_rounds(workspace)
    arms = ("try/labels", "try/cf_cm2", "try-round2/cf_cm2", "try-round3/cf_cm2")
    assert calls[-1] == ("try", "acsm.compare", {"runs": arms})
    steps = [module for run, module, _ in calls if run == "try-round3"]
    order = ["pose.train", "pose.generate_pl", "acsm.generate_pl", "label_val", "select", "acsm.train"]
    order.append("acsm.evaluate")
    assert sorted(order, key=steps.index) == order and steps[-1] == "wildshape.report.command"


def test_every_round_has_the_same_3d_model(workspace, calls):
    three_rounds(workspace, num_cameras=8, translations=True)
    trained = [s for _, module, s in calls if module == "acsm.train"]
    assert [(s["num_cameras"], s["translations"]) for s in trained] == [(8, True), (8, True)]


def test_there_is_at_least_one_round():
    with pytest.raises(UserError, match="--rounds: expected at least 1; found 0"):
        Config(category="cow", rounds=0)
