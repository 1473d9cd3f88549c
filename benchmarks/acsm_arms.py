"""Trainings of the 3D model that differ in one setting, on synthetic worlds: AUC, camera error, speed."""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wildshape.cli import say
from wildshape.metrics import paired_change
from wildshape.workspace import Workspace

FIRST_SEED = 50
PICTURES = {"num_train": 120, "num_val": 30, "num_test": 300, "num_web": 1}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that such benchmarks share."""
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
    made.add_argument("--pose_steps", type=int, default=900, help="steps of the network it starts from")
    made.add_argument("--steps", type=int, default=1000, help="steps of each arm")
    made.add_argument("--image_size", type=int, default=96)
    made.add_argument("--batch_size", type=int, default=12)
    made.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    return made


def call(module: str, workspace: Workspace, **settings: Any) -> Any:
    """Run a command in this process."""
    command = importlib.import_module(module)
    common = {"category": workspace.category.name, "name": workspace.name, "data_root": workspace.root}
    return command.run(command.Config(**common, **settings), workspace)


def make_world(options: argparse.Namespace, workspace: Workspace, seed: int) -> None:
    """A world, and a pose network to start from."""
    workspace.mark()
    call("prepare_data.make_diorama", workspace, seed=seed, **PICTURES)
    call(
        "pose.train", workspace, backbone="resnet18", head_channels=64, steps=options.pose_steps,
        image_size=options.image_size, seed=seed, batch_size=16, eval_every=max(1, options.pose_steps // 4),
    )  # fmt: skip


def run_seed(
    options: argparse.Namespace, seed: int, arms: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """A world, a pose network to start from, and every arm of one seed; figures by arm.

    Args:
        options: See `parser`.
        seed: Of the world and of all trainings.
        arms: Settings of `acsm-train` by arm, over those that all share.
    """
    root = options.worlds or options.root
    workspace = Workspace(root / f"seed_{seed}", options.category, "bench")
    if options.worlds is None:
        make_world(options, workspace, seed)
    shared = {"image_size": options.image_size, "seed": seed}
    figures = {}
    for arm, settings in arms.items():
        common = {
            **shared, "arm": arm, "init": workspace.checkpoint_dir("pose") / "best.pt",
            "steps": options.steps, "batch_size": options.batch_size,
            "eval_every": max(1, options.steps // 4),
        }  # fmt: skip
        began = time.monotonic()
        trained = call("acsm.train", workspace, **{**common, **settings})
        found = call("acsm.evaluate", workspace, arm=arm)
        figures[arm] = {
            "auc": found["auc"],
            "camera_error_deg": found["camera_error_deg"],
            "steps_per_second": steps_per_second(workspace, arm),
            "seconds": trained["seconds"] or time.monotonic() - began,
            "by_instance": found["by_instance"],
        }
    return figures


def steps_per_second(workspace: Workspace, arm: str) -> float:
    """Median over the lines of metrics.jsonl between which nothing was evaluated.

    The first such stretch, in which kernels are chosen or compiled, does not count.
    """
    path = workspace.checkpoint_dir(f"acsm/{arm}") / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rates = [
        (after["step"] - before["step"]) / max(after["seconds"] - before["seconds"], 1e-3)
        for before, after in zip(lines, lines[1:])
        if "loss" in before and "loss" in after
    ]
    return round(statistics.median(rates[1:] or rates or [float("nan")]), 3)


def summarise(seeds: Sequence[Mapping[str, Mapping[str, Any]]], reference: str) -> dict[str, Any]:
    """By arm: its figures in each seed, and its change over the reference on all seeds' animals."""
    summary: dict[str, Any] = {}
    for arm in seeds[0]:
        row: dict[str, Any] = {
            name: [seed[arm][name] for seed in seeds]
            for name in ("auc", "camera_error_deg", "steps_per_second", "seconds")
        }
        if arm != reference:
            pair = [[_of_world(i, seed[name]) for i, seed in enumerate(seeds)] for name in (arm, reference)]
            row["change"] = {what: paired_change(*pair, what) for what in ("auc", "camera")}
        summary[arm] = row
    return summary


def _of_world(index: int, figures: Mapping[str, Any]) -> dict[str, Any]:
    animals = figures["by_instance"]
    return {**animals, "instance_id": [f"{index}/{name}" for name in animals["instance_id"]]}


def table(summary: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'arm':<18} {'AUC':>7} {'camera':>7} {'steps/s':>8}  change of AUC, of degrees"]
    for arm, row in summary.items():
        auc, camera, rate = (
            statistics.mean(row[name]) for name in ("auc", "camera_error_deg", "steps_per_second")
        )
        change = ""
        if "change" in row:
            of = [row["change"][what] for what in ("auc", "camera")]
            change = ", ".join(
                f"{c['gain']:+.1f} [{c['interval'][0]:.1f}, {c['interval'][1]:.1f}]" for c in of
            )
        lines.append(f"{arm:<18} {auc:>7.1f} {camera:>7.1f} {rate:>8.2f}  {change}")
    return "\n".join(lines)


def run_all(
    options: argparse.Namespace, arms: Mapping[str, Mapping[str, Any]], reference: str
) -> dict[str, Any]:
    """Every seed; the figures to save."""
    seeds = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        say(f"== seed {seed}")
        seeds.append(run_seed(options, seed, arms))
        say(table(summarise(seeds, reference)))
    kept = ("category", "first_seed", "steps", "image_size", "batch_size")
    made = (
        {"worlds": "of pseudo_labels"} if options.worlds else {"pose_steps": options.pose_steps, **PICTURES}
    )
    return {**{name: getattr(options, name) for name in kept}, **made,
            "arms": {name: dict(settings) for name, settings in arms.items()},
            "reference": reference, "figures": summarise(seeds, reference)}  # fmt: skip
