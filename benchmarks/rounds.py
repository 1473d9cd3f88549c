"""Does a second round of self-training help? Three seeds, on the synthetic world.

After round 1 (`wildshape run`), round 2 goes on training both pose networks with the animals that round 1
selected, labels and selects anew and trains the 3D model from scratch for the same steps. The control does
the same without the selected animals: what it gains comes from training the pose networks for longer.
Worlds and first rounds of `benchmarks.pseudo_labels` under the same root are used again. Run it again to
continue.

    python -m benchmarks.rounds --root bench [--seeds 3] [--filter cf_cm]
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import save
from benchmarks.pseudo_labels import FIRST_SEED, STEPS, of_world, pose_pck, spread, without_animals
from wildshape.cli import say
from wildshape.files import read_json
from wildshape.metrics import paired_change
from wildshape.report.quality import selection_quality
from wildshape.rounds import LaterRound, round_name
from wildshape.run import Config, Pipeline, truth_keypoints
from wildshape.workspace import Workspace

FIGURES = {
    "auc": "AUC",
    "camera_error": "camera error",
    "pose_pck": "PCK of pose network",
    "selection_pck": "PCK of selection",
}


class MoreSteps(LaterRound):
    """The control: the pose networks train for as long as in a second round, on labels alone."""

    def pose_web(self, is_aux: bool) -> dict[str, Any]:
        """The weights to go on from, and nothing else."""
        settings = super().pose_web(is_aux)
        return {name: settings[name] for name in ("init", "backbone", "head_channels")}


def first_round(options: argparse.Namespace, seed: int) -> Pipeline:
    """World and first round of one seed; what was done before is not done again."""
    workspace = Workspace(options.root / f"seed_{seed}", options.category, "bench")
    workspace.mark()
    common = {"category": options.category, "name": "bench", "data_root": workspace.root}
    diorama = importlib.import_module("prepare_data.make_diorama")
    diorama.run(diorama.Config(**common, seed=seed), workspace)
    settings = Config(**common, labels="diorama", seed=seed, size="cpu", filter=options.filter, **STEPS)
    pipeline = Pipeline(settings, workspace)
    with importlib.import_module("prepare_data.diorama.server").serving(workspace):
        pipeline.images()
    pipeline.boxes("simulated")
    truth_keypoints(workspace)
    pipeline.pose()
    pipeline.acsm(with_ceiling=False)
    return pipeline


def second_round(kind: type[LaterRound], first: Pipeline, name: str) -> Pipeline:
    """A round after the first, as a run of its own."""
    place = first.workspace.sibling(name=name)
    pipeline = kind(first.config, place, first)
    truth_keypoints(place)
    pipeline.pose()
    pipeline.acsm(with_ceiling=False)
    return pipeline


def figures_of(pipeline: Pipeline, seed: int) -> dict[str, Any]:
    """What a round's networks and pseudo-labels are worth, in percent and degrees."""
    workspace, criterion = pipeline.workspace, pipeline.config.filter
    metrics = read_json(workspace.metrics_path(f"acsm_{criterion}_test"))
    return {
        "auc": metrics["auc"],
        "camera_error": metrics["camera_error_deg"],
        "pose_pck": pose_pck(pipeline, "measure pose network", flip_average=True),
        "selection_pck": selection_quality(workspace, criterion, pipeline.selected),
        "by_instance": of_world(metrics["by_instance"], seed),
    }


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Round 1, round 2 and the control of one seed."""
    first = first_round(options, seed)
    second = second_round(LaterRound, first, round_name(first.workspace.name, 2))
    control = second_round(MoreSteps, first, f"{first.workspace.name}-control")
    pipelines = {"round 1": first, "round 2": second, "control": control}
    return {"seed": seed, "arms": {name: figures_of(item, seed) for name, item in pipelines.items()}}


def summarise(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds; differences with intervals over the animals of all seeds."""
    arms = {
        arm: {key: spread([seed["arms"][arm][key] for seed in seeds]) for key in FIGURES}
        for arm in seeds[0]["arms"]
    }
    of = {arm: [seed["arms"][arm]["by_instance"] for seed in seeds] for arm in arms}
    pairs = (("round 2", "round 1"), ("round 2", "control"), ("control", "round 1"))
    changes = {
        f"{one} over {other}": {what: paired_change(of[one], of[other], what) for what in ("auc", "camera")}
        for one, other in pairs
    }
    return {"arms": arms, "changes": changes}


def table(summary: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'':<10}" + "".join(f"{title:>27}" for title in FIGURES.values())]
    for arm, row in summary["arms"].items():
        cells = [
            f"{row[key]['mean']:.1f}" + ("" if row[key]["std"] is None else f" +- {row[key]['std']:.1f}")
            for key in FIGURES
        ]
        lines.append(f"{arm:<10}" + "".join(f"{cell:>27}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("bench"), help="folder for worlds and runs")
    parser.add_argument("--category", default="horse")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=FIRST_SEED)
    parser.add_argument("--filter", default="cf_cm")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(argv)
    began, seeds = time.monotonic(), []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        say(f"== seed {seed}")
        seeds.append(run_seed(options, seed))
        summary = summarise(seeds)
        say(table(summary))
        results = {
            "category": options.category,
            "filter": options.filter,
            **summary,
            "seeds": [without_animals(row) for row in seeds],
            "minutes_in_this_call": (time.monotonic() - began) / 60,
        }
        save("rounds", results, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
