"""Do keypoints of a diffusion model help? Selections with their second opinion, on the synthetic worlds.

CF-CM with zero123plus in place of the second pose network, and the criterion that combines all, beside
CF-CM, KP-Conf, a random selection and labels alone: which pseudo-labels are selected, and what the 3D model
makes of them. Worlds, pose networks and trainings are those of `benchmarks.pseudo_labels`; under the same
root and with the same settings they are used again. A selection by all sources that was made before
there was this one is made again, so be done with other benchmarks there. Run it again to continue.

    python -m benchmarks.zero123plus_helps --root bench [--seeds 3] [--time_limit 50]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.acsm_arms import OutOfTime
from benchmarks.machine import save
from benchmarks.pseudo_labels import (
    FIGURES,
    FIRST_SEED,
    STEPS,
    measure_arm,
    number,
    spread,
    start_world,
    without_animals,
)
from benchmarks.zero123plus_baselines import model_folder
from pseudolabels.criteria import CRITERIA
from wildshape.cli import say
from wildshape.files import read_json
from wildshape.metrics import paired_change
from wildshape.report.quality import compare, selection_quality
from wildshape.run import Pipeline, StoppedByTimeLimit
from wildshape.sizes import eval_every
from wildshape.tables import read_table
from wildshape.workspace import Workspace

SOURCE = "zero123plus"
COMBINED = "cf_all"
SIZES = ("num_train", "num_val", "num_test", "num_web")


@dataclass(frozen=True)
class Selection:
    """One arm.

    Attributes:
        criterion: of `pseudolabels.criteria`.
        aux: whose keypoints CF-CM compares with; None: the second pose network's.
    """

    criterion: str
    aux: str | None = None

    @property
    def name(self) -> str:
        """Of the selection's files, and of the arm."""
        return f"{self.criterion}_{self.aux}" if self.aux else self.criterion


SELECTIONS = (
    Selection("random"),
    Selection("kpconf"),
    Selection("cf_cm"),
    Selection("cf_cm", SOURCE),
    Selection(COMBINED),
)
COMPARED = ("cf_cm_zero123plus", COMBINED)
AGAINST = ("cf_cm", "kpconf", "random", "labels")


def arms_there() -> tuple[tuple[Selection, ...], dict[str, str]]:
    """The selections whose criterion is registered, and why the others are left out."""
    there = tuple(item for item in SELECTIONS if item.criterion in CRITERIA)
    left_out = {
        item.name: f"there is no criterion {item.criterion}; registered are {', '.join(sorted(CRITERIA))}"
        for item in SELECTIONS
        if item not in there
    }
    return there, left_out


class Seed:
    """One seed's run, stage by stage, as long as there is time.

    Args:
        options: of the command.
        seed: of the world and of all trainings.
        until: of the monotonic clock.

    Raises:
        StoppedByTimeLimit: the time limit came in a pose network's training.
    """

    def __init__(self, options: argparse.Namespace, seed: int, until: float) -> None:
        self.options, self.seed, self.until = options, seed, until
        settings = {name: getattr(options, name) for name in STEPS}
        limits = {"time_limit": self.minutes_left(), "selection_num": options.selection_num}
        given = {name: getattr(options, name) for name in SIZES}
        size = {name: value for name, value in given.items() if value is not None}
        self.pipeline: Pipeline = start_world(
            options.root, options.category, seed, size, **settings, **limits
        )
        self.pipeline.pose()
        self.workspace: Workspace = self.pipeline.workspace

    def minutes_left(self) -> float:
        """Until the time limit.

        Raises:
            OutOfTime: it has come.
        """
        left = (self.until - time.monotonic()) / 60
        if left <= 0:
            raise OutOfTime
        return left

    def call(self, title: str, module: str, **settings: Any) -> Any:
        """Run one command with what time is left."""
        self.pipeline.config = replace(self.pipeline.config, time_limit=self.minutes_left())
        return self.pipeline.call(title, module, **settings)

    def train(self, arm: str, **web: Any) -> None:
        """Train one arm, encoder and 3D model, with what time is left."""
        self.pipeline.config = replace(self.pipeline.config, time_limit=self.minutes_left())
        self.pipeline.train_acsm(arm, **web)

    def second_opinion(self) -> None:
        """Learn tokens on the detected animals, and name their points, as keypoints/zero123plus."""
        options = self.options
        self.call("segment", "prepare_data.save_masks", segmenter="simulated")
        self.call(
            "learn tokens",
            "pseudolabels.train_tokens",
            model=options.model,
            steps=options.token_steps,
            num_tokens=options.num_tokens,
            eval_every=eval_every(options.token_steps, 5),
            side=options.side,
            seed=self.seed,
        )
        self.call("find points", "pseudolabels.generate_pl", views=options.views, seed=self.seed)

    def run(self) -> dict[str, Any]:
        """Select, train and measure; returns the seed's figures.

        Raises:
            OutOfTime: the time limit came between two stages.
            StoppedByTimeLimit: it came in a training.
        """
        selections, _ = arms_there()
        self.second_opinion()
        self.train("labels")
        self.call("label with the 3D model", "acsm.generate_pl", arm="labels")
        if any(item.criterion == COMBINED for item in selections):
            # It weighs all sources, the 3D model's too, by what they say of the labelled animals of val.
            self.pipeline.label_val()
        candidates = min(len(self.workspace.load_keypoints(name)) for name in ("pose", SOURCE))
        count = min(self.pipeline.sizes.selection_num, candidates)
        figures: dict[str, Any] = {
            "candidates": candidates, "selected": count, "arms": {}, "pck": {}
        }  # fmt: skip
        for item in selections:
            chosen = {"filter": item.criterion, "aux": item.aux, "selection_num": count, "seed": self.seed}
            if item.criterion == COMBINED and lacks_source(self.workspace, count):
                chosen["overwrite"] = True
            self.call(f"select {item.name}", "prepare_data.data_selection", **chosen)
            figures["pck"][item.name] = selection_quality(self.workspace, item.name, count)
        for item in selections:
            self.train(item.name, use_web_images=True, web_images_num=count, filter=item.name)
        for arm in ("labels", *(item.name for item in selections)):
            figures["arms"][arm] = measure_arm(self.pipeline, arm, self.seed)
        figures["sources"] = {name: source_quality(self.workspace, name) for name in ("pose_aux", SOURCE)}
        figures["shared"] = {
            name: shared_share(self.workspace, "cf_cm", name, count)
            for name in COMPARED
            if name in figures["pck"]
        }
        figures["seconds"] = dict(self.pipeline.timings)
        return figures


def lacks_source(workspace: Workspace, count: int) -> bool:
    """Whether there is a selection by all sources that was made without this one."""
    manifest = workspace.selection_path(COMBINED, count).with_suffix(".manifest.json")
    return manifest.is_file() and SOURCE not in read_json(manifest)["config"]["weights"]


def source_quality(workspace: Workspace, source: str) -> dict[str, float]:
    """What a second opinion is worth.

    Returns:
        ``pck`` of its own keypoints, in percent; ``tells``: rank correlation over animals between its mean
        distance from the pose network's keypoints and the true mean error of these. CF-CM selects by the
        first and hopes for the second.
    """
    truth, instances = workspace.load_keypoints("truth"), workspace.load("instances")
    second, pose = workspace.load_keypoints(source), workspace.load_keypoints("pose")
    own = compare(second, truth, instances)
    right, total = own.correct[:, -1].sum(), own.total.sum()
    error = compare(pose, truth, instances)
    row_pose, row_second = pose.lookup("instance_id"), second.lookup("instance_id")
    place = instances.lookup("instance_id")
    distances, errors = [], []
    for name, mistakes in zip(error.ids, error.error):
        if name in row_second and np.isfinite(mistakes).any():
            box = instances["box_xyxy"][place[name]]
            apart = pose["xy"][row_pose[name]] - second["xy"][row_second[name]]
            distances.append(np.linalg.norm(apart / (box[2:] - box[:2]), axis=1).mean())
            errors.append(np.nanmean(mistakes))
    varied = len(errors) > 2 and np.ptp(distances) > 0 and np.ptp(errors) > 0
    tells = float(spearmanr(distances, errors).statistic) if varied else float("nan")
    return {"pck": float(100 * right / total) if total else float("nan"), "tells": tells}


def shared_share(workspace: Workspace, one: str, other: str, count: int) -> float:
    """Percentage of one selection's animals that another one has, too."""
    paths = [workspace.selection_path(name, count) for name in (one, other)]
    first, second = (set(read_table(path, "selections")["instance_id"]) for path in paths)
    return 100 * len(first & second) / max(len(first), 1)


def summarise(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation over seeds; differences with intervals over the animals of all seeds."""
    arms = {
        arm: {key: spread([seed["arms"][arm][key] for seed in seeds]) for key in FIGURES}
        for arm in seeds[0]["arms"]
    }
    pck = {name: spread([seed["pck"][name] for seed in seeds]) for name in seeds[0]["pck"]}
    of = {arm: [seed["arms"][arm]["by_instance"] for seed in seeds] for arm in arms}
    changes: dict[str, Any] = {}
    for arm in COMPARED:
        for other in AGAINST if arm in arms else ():
            found: dict[str, Any] = {
                what: paired_change(of[arm], of[other], what) for what in ("auc", "camera")
            }
            if other in pck:
                found["pck_of_selection"] = [seed["pck"][arm] - seed["pck"][other] for seed in seeds]
            changes[f"{arm} over {other}"] = found
    sources = {
        name: {key: spread([seed["sources"][name][key] for seed in seeds]) for key in ("pck", "tells")}
        for name in seeds[0]["sources"]
    }
    return {"arms": arms, "pck": pck, "changes": changes, "sources": sources}


def table(summary: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'arm':<20} {'PCK of selection':>18} {'AUC':>14} {'camera error':>16}"]
    for arm, row in summary["arms"].items():
        quality = number(summary["pck"][arm]) if arm in summary["pck"] else ""
        auc, camera = number(row["auc"]), number(row["camera_error"])
        lines.append(f"{arm:<20} {quality:>18} {auc:>14} {camera:>16}")
    for name, found in summary["changes"].items():
        auc, camera = (_change(found[what]) for what in ("auc", "camera"))
        lines.append(f"{name}: AUC {auc}, camera error {camera}")
    for name, row in summary["sources"].items():
        lines.append(
            f"{name}: PCK {number(row['pck'])}; tells {row['tells']['mean']:.2f} of the pose error"
        )
    return "\n".join(lines)


def _change(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['gain']:+.1f} [{low:+.1f}, {high:+.1f}]"


def main(argv: list[str] | None = None) -> int:
    """Run the seeds that there is time for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--root", type=Path, default=Path("bench"), help="folder for worlds and runs")
    add("--category", default="horse")
    add("--model", default="small", help="small, or a folder in diffusers' layout")
    add("--seeds", type=int, default=3)
    add("--first_seed", type=int, default=FIRST_SEED)
    for name in SIZES:
        add(f"--{name}", type=int, default=None, help="photos of each world; default as of pseudo_labels")
    add("--selection_num", type=int, default=None, help="pseudo-labels that a criterion keeps")
    for name, steps in STEPS.items():
        add(f"--{name}", type=int, default=steps)
    add("--token_steps", type=int, default=200)
    add("--num_tokens", type=int, default=500)
    add("--side", type=int, default=None, help="of the attention maps; default as of train_tokens")
    add("--views", type=int, default=10)
    add("--time_limit", "--time-limit", type=float, default=50.0, help="minutes")
    add("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(argv)
    model_folder(options.model)
    until = time.monotonic() + 60 * options.time_limit
    left_out = arms_there()[1]
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    figures: list[dict[str, Any]] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        say(f"== seed {seed}")
        try:
            figures.append(Seed(options, seed, until).run())
        except (OutOfTime, StoppedByTimeLimit):
            say(f"out of time in seed {seed}: run it again to continue")
            break
        summary = summarise(figures)
        say(table(summary))
        kept = (
            "category",
            "model",
            "first_seed",
            "token_steps",
            "num_tokens",
            "side",
            "views",
            *SIZES,
            *STEPS,
        )
        settings = {name: getattr(options, name) for name in kept}
        rows = [without_animals(row) for row in figures]
        results = {"settings": settings, "left_out": left_out, **summary, "seeds": rows}
        save("zero123plus_helps", results, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
