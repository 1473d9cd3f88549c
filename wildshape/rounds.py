"""Self-training: the rounds of `wildshape run --rounds N` after the first.

A later round trains both pose networks on labels and on the animals that the round before selected, each on
its own pseudo-labels of them so that the two still disagree where they doubt, and goes on from their
weights. It labels all animals anew, with the 3D model of the round before for CF-CM2, selects and trains
the 3D model from the same start, for the same steps. Every round is a run of its own and stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wildshape.cli import say
from wildshape.run import TOKENS, Pipeline, truth_keypoints
from wildshape.tables import write_table
from wildshape.training_data import labelled_name

if TYPE_CHECKING:
    from wildshape.run_config import Config
    from wildshape.workspace import Workspace


def round_name(name: str, number: int) -> str:
    """The run of a round, counted from 1: the run itself, then `<name>-round2`, ..."""
    return name if number == 1 else f"{name}-round{number}"


class LaterRound(Pipeline):
    """A round that starts from the selection of another run.

    Args:
        config: the run's settings.
        workspace: of this round.
        before: the round before, done.
    """

    def __init__(self, config: Config, workspace: Workspace, before: Pipeline) -> None:
        super().__init__(config, workspace)
        self.before, self.selected_before = before.workspace, before.selected

    def go_through(self, with_ceiling: bool) -> None:
        """Train, label, select, train and measure; images and boxes are those of the first round."""
        truth_keypoints(self.workspace)
        self.pose()
        self.tokens()
        self.acsm(with_ceiling)

    def tokens(self) -> None:
        """Keypoints by tokens stay as they are: neither the labels nor the crops have changed."""
        if self.config.tokens is None:
            return
        for name in (TOKENS, labelled_name(TOKENS)):
            write_table(self.before.load_keypoints(name), self.workspace.keypoints_path(name))

    def pose_web(self, is_aux: bool) -> dict[str, Any]:
        """The animals selected before, with the network's own keypoints, and its weights to go on from."""
        model = "pose_aux" if is_aux else "pose"
        return {
            "use_web_images": True,
            "web_run": self.before.name,
            "filter": self.config.filter,
            "web_images_num": self.selected_before,
            "pl_source": model,
            "init": self.before.checkpoint_dir(model) / "best.pt",
            "backbone": None,
            "head_channels": None,
        }

    def label_with_shapes(self) -> list[str]:
        """Label with the 3D model of the round before: labels alone would teach no other one."""
        self.call("label with the 3D model", "acsm.generate_pl", **self.shapes_by)
        return []

    @property
    def shapes_by(self) -> dict[str, Any]:
        """Settings that name the 3D model of the round before."""
        weights = self.before.checkpoint_dir(f"acsm/{self.config.filter}") / "best.pt"
        return {"arm": self.config.filter, "opts": ("MODEL.WEIGHTS", str(weights))}


def later_rounds(first: Pipeline, with_ceiling: bool) -> dict[str, float]:
    """Do rounds 2 to ``--rounds``, the first one done, and compare all of them.

    Returns:
        Seconds by step, the round before its title.
    """
    config, workspace = first.config, first.workspace
    timings: dict[str, float] = {}
    before, arms = first, [f"{workspace.name}/labels", f"{workspace.name}/{config.filter}"]
    for number in range(2, config.rounds + 1):
        place = workspace.sibling(name=round_name(workspace.name, number))
        say(f"== round {number} of {config.rounds}: run {place.name}")
        pipeline = LaterRound(config, place, before)
        pipeline.go_through(with_ceiling)
        pipeline.report()
        timings |= {f"round {number}: {title}": seconds for title, seconds in pipeline.timings.items()}
        arms.append(f"{place.name}/{config.filter}")
        before = pipeline
    first.call("compare rounds", "acsm.compare", runs=tuple(arms))
    return timings
