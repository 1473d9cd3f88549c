"""Trainings of the 3D model that differ in some settings, on synthetic worlds: what benchmarks share.

Every seed has a world of its own and an encoder to start from, a pose network trained on the world's
labels. All arms of a seed start from it, see the same crops for the same number of steps, and are measured
once on the test split.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acsm.per_animal import PerAnimal
from acsm.viewpoint import in_view
from benchmarks.machine import save
from benchmarks.pseudo_labels import number, of_world, spread
from wildshape.cli import say
from wildshape.metrics import paired_change
from wildshape.sizes import eval_every
from wildshape.workspace import Workspace

# Defaults were tuned while looking at worlds of lower seeds: their test splits may not decide.
FIRST_SEED = 50
FIGURES = {"auc": "AUC", "miou": "mIoU", "camera_error": "camera error", "seconds_a_step": "s a step"}
BY_VIEW = {"auc": "auc", "miou": "miou", "camera_error": "camera_error_deg"}
CHANGES = ("auc", "iou", "camera")
VIEWS = ("side", "front_back")


class OutOfTime(Exception):
    """The time limit stopped a training before its end, or came before it."""


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that such benchmarks share.

    Args:
        description: Shown by --help.
        **defaults: Other than those of most; ``name`` is that of the runs.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--root", type=Path, default=Path("bench_arms"), help="folder for worlds and runs")
    made.add_argument(
        "--worlds",
        type=Path,
        default=None,
        help="take worlds and pose networks of benchmarks.pseudo_labels",
    )
    made.add_argument("--category", default="horse")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--first_seed", type=int, default=FIRST_SEED)
    made.add_argument(
        "--encoder_steps", type=int, default=500, help="of the pose network they start from; 0: none"
    )
    made.add_argument("--init", type=Path, default=None, help="start from this checkpoint instead")
    made.add_argument("--steps", type=int, default=1000, help="of each arm")
    made.add_argument("--image_size", type=int, default=96)
    made.add_argument("--batch_size", type=int, default=12)
    made.add_argument("--num_train", type=int, default=120, help="labelled photos")
    made.add_argument("--num_test", type=int, default=300)
    made.add_argument(
        "--time_limit", "--time-limit", type=float, default=None,
        help="minutes after which to stop; the same command continues",
    )  # fmt: skip
    made.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    made.set_defaults(**{"name": "bench", **defaults})
    return made


class Seed:
    """One world with its run, whose commands are called in this process.

    Args:
        workspace: Of the run.
        seed: Of the world and of all trainings.
        until: Time of the monotonic clock at which trainings stop.
    """

    def __init__(self, workspace: Workspace, seed: int, until: float) -> None:
        self.workspace, self.seed, self.until = workspace, seed, until

    def call(self, module: str, **settings: Any) -> dict[str, Any]:
        """Run a command; what is done before is read."""
        command, workspace = importlib.import_module(module), self.workspace
        common = {
            "category": workspace.category.name,
            "name": workspace.name,
            "data_root": workspace.root,
        }
        return command.run(command.Config(**common, **settings), workspace)

    def train(self, module: str, **settings: Any) -> None:
        """Run a training to its end.

        Raises:
            OutOfTime: The time is over; the same call continues.
        """
        left = (self.until - time.monotonic()) / 60
        if left <= 0:
            raise OutOfTime
        limit = None if left == float("inf") else left
        if not self.call(module, **settings, seed=self.seed, time_limit=limit)["finished"]:
            raise OutOfTime

    def make_world(self, options: argparse.Namespace) -> None:
        """The pictures, and the pose network to start from."""
        self.workspace.mark()
        pictures = {"num_train": options.num_train, "num_test": options.num_test, "num_web": 0}
        self.call("prepare_data.make_diorama", seed=self.seed, **pictures)
        if options.init is None and options.encoder_steps:
            self.train(
                "pose.train", backbone="resnet18", head_channels=64, image_size=128, batch_size=16,
                steps=options.encoder_steps,
            )  # fmt: skip

    def start(self, options: argparse.Namespace) -> Path | None:
        """The checkpoint that all arms start from."""
        if options.init is None and (options.encoder_steps or options.worlds):
            return self.workspace.checkpoint_dir("pose") / "best.pt"
        return options.init

    def measure(self, arm: str) -> dict[str, Any]:
        """Figures of a trained arm on the test split, and of each animal in ``by_instance``."""
        found = self.call("acsm.evaluate", arm=arm)
        animals = PerAnimal.read(self.workspace.animals_path(arm, "test"))
        by_name = dict(zip(animals.instance_id, zip(animals.iou.tolist(), animals.view.tolist())))
        more = [by_name[name] for name in found["by_instance"]["instance_id"]]
        listed = {
            **found["by_instance"],
            "iou": [iou for iou, _ in more],
            "view": [view for _, view in more],
        }
        return {
            "auc": found["auc"],
            "miou": found["miou"],
            "camera_error": found["camera_error_deg"],
            "seconds_a_step": seconds_a_step(self.workspace, arm),
            "by_view": {
                view: {name: found["by_view"][view][key]["value"] for name, key in BY_VIEW.items()}
                for view in VIEWS
            },
            "by_instance": of_world(listed, self.seed),
        }


def seconds_a_step(workspace: Workspace, arm: str) -> float | None:
    """Median between lines of metrics.jsonl where nothing was evaluated; None if there are too few.

    The first such stretch, in which kernels are chosen or compiled, does not count.
    """
    path = workspace.checkpoint_dir(f"acsm/{arm}") / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    costs = [
        (after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
        for before, after in zip(lines, lines[1:])
        # Seconds start anew where a training was continued.
        if "loss" in before and "loss" in after and after["seconds"] > before["seconds"]
    ]
    return round(statistics.median(costs[1:] or costs), 4) if costs else None


def run_seed(
    options: argparse.Namespace, world: Seed, arms: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """A world, a pose network to start from, and every arm; figures by arm.

    Args:
        options: See `parser`.
        world: Of the seed.
        arms: Settings of `acsm-train` by arm, over those that all share.

    Raises:
        OutOfTime: The time is over; the same call continues.
    """
    if options.worlds is None:
        world.make_world(options)
    shared = {
        "init": world.start(options), "steps": options.steps, "eval_every": eval_every(options.steps, 5),
        "image_size": options.image_size, "batch_size": options.batch_size,
    }  # fmt: skip
    figures = {}
    for arm, settings in arms.items():
        world.train("acsm.train", arm=arm, **{**shared, **settings})
        figures[arm] = world.measure(arm)
    return figures


def seen_from(animals: Mapping[str, list[Any]], view: str) -> dict[str, list[Any]]:
    """The animals of a ``by_instance`` that are seen from a side of `acsm.viewpoint`."""
    rows = np.flatnonzero(in_view(np.array(animals["view"]), view))
    return {name: [values[row] for row in rows] for name, values in animals.items()}


def summarise(seeds: Sequence[Mapping[str, Mapping[str, Any]]], reference: str) -> dict[str, Any]:
    """Mean and deviation over seeds by arm; changes over the reference on the animals of all seeds.

    Args:
        seeds: Figures by arm, as `run_seed` gives them.
        reference: The arm that the others are compared with.

    Returns:
        ``arms``: by arm its figures (`benchmarks.pseudo_labels.spread`), and those ``by_view``;
        ``over_<reference>``: by arm the changes of AUC, IoU (points) and camera error (degrees), in all
        and ``by_view``, with 95 % intervals over animals.
    """

    def spreads(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
        return {name: spread([row[name] for row in rows]) for name in names if has(rows, name)}

    def has(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
        return all(row[name] is not None for row in rows)

    def change(arm: str, view: str | None = None) -> dict[str, Any]:
        pair = [[seed[name]["by_instance"] for seed in seeds] for name in (arm, reference)]
        if view:
            pair = [[seen_from(animals, view) for animals in side] for side in pair]
        return {what: paired_change(*pair, what) for what in CHANGES}

    arms: dict[str, Any] = {}
    for arm in seeds[0]:
        rows = [seed[arm] for seed in seeds]
        views = {view: spreads([row["by_view"][view] for row in rows], list(BY_VIEW)) for view in VIEWS}
        arms[arm] = {**spreads(rows, list(FIGURES)), "by_view": views}
    changes = {
        arm: {**change(arm), "by_view": {view: change(arm, view) for view in VIEWS}}
        for arm in arms
        if arm != reference
    }
    return {"arms": arms, f"over_{reference}": changes}


def table(summary: Mapping[str, Any]) -> str:
    """The figures as text, in all and by view."""
    changes = next(value for name, value in summary.items() if name.startswith("over_"))

    def cell(row: Mapping[str, Any], name: str, digits: int) -> str:
        return number(row[name], digits) if name in row else ""

    def line(title: str, row: Mapping[str, Any], change: Mapping[str, Any] | None) -> str:
        cells = "".join(f"{cell(row, name, 3 if 'second' in name else 1):>16}" for name in FIGURES)
        gains = [] if change is None else [change[what] for what in ("auc", "camera")]
        text = ", ".join(
            f"{c['gain']:+.1f} [{c['interval'][0]:.1f}, {c['interval'][1]:.1f}]" for c in gains
        )
        return f"{title:<24}{cells}   {text}".rstrip()

    head = "".join(f"{title:>16}" for title in FIGURES.values())
    lines = [f"{'':<24}{head}   change of AUC, of degrees"]
    for arm, row in summary["arms"].items():
        change = changes.get(arm)
        lines.append(line(arm, row, change))
        for view in VIEWS:
            part = change and change["by_view"][view]
            lines.append(line(f"  {view}", row["by_view"][view], part))
    return "\n".join(lines)


def without_animals(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of a seed, less those of every animal."""
    return {
        arm: {key: value for key, value in row.items() if key != "by_instance"}
        for arm, row in figures.items()
    }


def run_all(
    benchmark: str,
    options: argparse.Namespace,
    arms: Mapping[str, Mapping[str, Any]],
    reference: str,
) -> Path | None:
    """Every seed that there is time for: prints the table and saves the figures after each.

    Args:
        benchmark: Its name, of the JSON file.
        options: See `parser`.
        arms: Settings of `acsm-train` by arm, over those that all share.
        reference: The arm that the others are compared with.

    Returns:
        The file of the figures; None if there was no time for a seed.
    """
    until = time.monotonic() + 60 * (float("inf") if options.time_limit is None else options.time_limit)
    root, name = (options.worlds, "bench") if options.worlds else (options.root, options.name)
    made = {} if options.worlds else {key: getattr(options, key) for key in ("encoder_steps", "num_train")}
    kept = ("category", "first_seed", "steps", "image_size", "batch_size")
    settings = {
        **{key: getattr(options, key) for key in kept}, **made,
        "given_init": options.init is not None, "worlds_of_pseudo_labels": options.worlds is not None,
        "arms": {arm: dict(values) for arm, values in arms.items()}, "reference": reference,
    }  # fmt: skip
    figures: list[dict[str, dict[str, Any]]] = []
    path = None
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        say(f"== seed {seed}")
        world = Seed(Workspace(root / f"seed_{seed}", options.category, name), seed, until)
        try:
            figures.append(run_seed(options, world, arms))
        except OutOfTime:
            say(f"out of time in seed {seed}: run it again to continue")
            break
        summary = summarise(figures, reference)
        say(table(summary))
        rows = [without_animals(row) for row in figures]
        path = save(benchmark, {"settings": settings, **summary, "seeds": rows}, options.out)
    return path


def run_chosen(
    benchmark: str,
    options: argparse.ArgumentParser,
    arms: Mapping[str, Mapping[str, Any]],
    reference: str,
    argv: Sequence[str] | None,
) -> None:
    """Run the listed arms that --arms names, by default all, and the reference always.

    Args:
        benchmark: As of `run_all`.
        options: See `parser`; what it sets for ``arms`` is the default.
        arms: As of `run_all`.
        reference: As of `run_all`.
        argv: The command line.
    """
    options.add_argument(
        "--arms", nargs="+", choices=list(arms), default=options.get_default("arms") or list(arms)
    )
    chosen = options.parse_args(argv)
    wanted = {name: arms[name] for name in arms if name in {reference, *chosen.arms}}
    run_all(benchmark, chosen, wanted, reference)
