"""Real cows: what pseudo-labels and pretraining bring on photos, over three splits.

Labels: the 150 cows of Animal-Pose, divided anew for each split by near-duplicate cluster. Web: a folder of
unlabelled photos. Every network is trained twice: from random weights, and from weights pretrained on the
synthetic world; the training labels of other species are added in both. Run it again to continue.

    python -m benchmarks.real_cows --data DIR --detector FILE.py:Class --root real [--splits 3]

DIR holds animal_pose/ and web_cow/.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acsm.predict import ShapePredictor
from benchmarks.machine import save
from wildshape.cli import say
from wildshape.crops import read_image
from wildshape.files import read_json
from wildshape.metrics import paired_change
from wildshape.run import Pipeline
from wildshape.run_config import Config
from wildshape.training_data import labelled
from wildshape.workspace import Workspace

OTHERS = ("horse", "sheep", "dog")
KINDS = ("pretrained", "scratch")
FRACTIONS = (0.6, 0.1, 0.3)
STEPS = {"pose_steps": 1000, "encoder_steps": 500, "acsm_steps": 2500}
LIMBS_SEEN = 12
SHAPE = {"num_cameras": 8, "translations": True}
"""Chosen by `benchmarks.real_cows_settings`, on val."""


@dataclass(frozen=True)
class Options:
    """What the command line says; see the module."""

    data: Path
    detector: str
    root: Path
    splits: int
    web_num: int
    kinds: Sequence[str]
    out: Path | None


def pretrain(options: Options) -> dict[str, Path]:
    """Pose networks trained on a large labelled synthetic world of cows; returns checkpoints by use.

    The 3D model's encoder is the pose network's, so it starts from there as well.
    """
    workspace = Workspace(options.root / "pretrained", "cow", "pretrained")
    workspace.mark()
    common = {"category": "cow", "name": "pretrained", "data_root": workspace.root}
    diorama = importlib.import_module("prepare_data.make_diorama")
    world = {"num_train": 2000, "num_val": 100, "num_test": 100, "num_web": 10}
    diorama.run(diorama.Config(**common, seed=100, **world), workspace)
    pipeline = Pipeline(Config(**common, size="cpu", seed=100), workspace)
    sizes = pipeline.sizes
    for is_aux, backbone in ((False, sizes.backbone), (True, sizes.aux_backbone)):
        pipeline.call(
            f"pretrain pose{'_aux' if is_aux else ''}",
            "pose.train",
            is_aux=is_aux,
            backbone=backbone,
            head_channels=sizes.head_channels,
            image_size=sizes.pose_image_size,
            steps=2 * STEPS["pose_steps"],
            batch_size=sizes.pose_batch_size,
            seed=100,
        )
    models = {"pose_init": "pose", "aux_init": "pose_aux"}
    return {use: workspace.checkpoint_dir(model) / "best.pt" for use, model in models.items()}


def run_split(options: Options, split: int, name: str, starts: dict[str, Path]) -> dict[str, Any]:
    """One split with one kind of initial weights; returns its figures."""
    root = options.root / f"split_{split}"
    workspace = Workspace(root, "cow", name)
    workspace.mark()
    importer = importlib.import_module("wildshape.formats.import_command")
    for category in ("cow", *OTHERS):
        # Other species only train: all of their labels may.
        division: dict[str, Any] = (
            {"split_seed": split, "fractions": FRACTIONS} if category == "cow" else {"split": "train"}
        )
        settings = importer.Config(
            format="animal_pose",
            root=options.data / "animal_pose",
            category=category,
            data_root=root,
            **division,
        )
        importer.run(settings, Workspace(root, category))
    config = Config(
        category="cow",
        name=name,
        data_root=root,
        web=options.data / "web_cow",
        detector=options.detector,
        score_threshold=0.5,
        size="cpu",
        selection_num=options.web_num,
        **STEPS,
        **SHAPE,
        labels_from=",".join(OTHERS),
        seed=split,
        **starts,
    )
    pipeline = Pipeline(config, workspace)
    pipeline.labels()
    pipeline.images()
    pipeline.boxes(options.detector)
    pipeline.pose()
    pipeline.acsm(with_ceiling=False)
    pipeline.report()
    facts = {name: read_json(workspace.metrics_path(f"{name}_test")) for name in ("pose", "pose_aux")}
    keys = ("thresholds", "pck", "pck_low", "pck_high", "instances", "keypoints")
    arms = {arm: read_json(workspace.metrics_path(f"acsm_{arm}_test")) for arm in ("labels", config.filter)}
    return {
        "pose": {name: {key: node[key] for key in keys} for name, node in facts.items()},
        "acsm": {
            arm: {
                **{key: node[key] for key in ("auc", "auc_interval", "by_instance")},
                "leg_turn_deg": leg_turn(workspace, arm),
            }
            for arm, node in arms.items()
        },
        "funnel": {
            stage: read_json(workspace.metrics_path(stage)) for stage in ("add_folder", "save_boxes")
        },
        "seconds": dict(pipeline.timings),
    }


def leg_turn(workspace: Workspace, arm: str) -> float:
    """Mean angle in degrees by which legs turn from the template, on the test animals that show all limbs.

    Legs of the wrong length can be fitted to keypoints by bending them; AUC does not tell.
    """
    records, _ = labelled(workspace, "test", workspace.category.skeleton)
    shown = np.flatnonzero((records.weight > 0).sum(1) >= LIMBS_SEEN)
    predictor = ShapePredictor.from_checkpoint(workspace.checkpoint_dir(f"acsm/{arm}") / "best.pt")
    images = [read_image(records.paths[index]) for index in shown]
    transforms = predictor.predict(images, records.box_xyxy[shown], vertices=False).part_transforms
    legs = [index for index, name in enumerate(predictor.template.part_names) if "leg" in name]
    angles = 2 * np.arccos(np.abs(transforms[:, legs, 4]).clip(0, 1))
    return float(np.degrees(angles).mean())


def summarise(figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means over splits, and gains by pseudo-labels and by pretraining."""
    found: dict[str, Any] = {
        "pck_10": {},
        "auc": {},
        "leg_turn_deg": {},
        "gain_by_pseudo_labels": {},
        "gain_by_pretraining": {},
    }

    def animals(kind: str, arm: str, count: int) -> list[Mapping[str, Any]]:
        return [row["acsm"][arm]["by_instance"] for row in figures[kind][:count]]

    for kind, rows in figures.items():
        if not rows:
            continue
        labels, other = rows[0]["acsm"]
        values = {name: [100 * row["pose"][name]["pck"][-1] for row in rows] for name in rows[0]["pose"]}
        found["pck_10"][kind] = {
            name: {"mean": float(np.mean(v)), "values": v} for name, v in values.items()
        }
        values = {arm: [row["acsm"][arm]["auc"] for row in rows] for arm in rows[0]["acsm"]}
        found["auc"][kind] = {arm: {"mean": float(np.mean(v)), "values": v} for arm, v in values.items()}
        found["leg_turn_deg"][kind] = {
            arm: float(np.mean([row["acsm"][arm]["leg_turn_deg"] for row in rows]))
            for arm in rows[0]["acsm"]
        }
        found["gain_by_pseudo_labels"][kind] = paired_change(
            animals(kind, other, len(rows)), animals(kind, labels, len(rows))
        )
    count = min(len(rows) for rows in figures.values())
    if count and len(figures) > 1:
        for arm in figures["scratch"][0]["acsm"]:
            found["gain_by_pretraining"][arm] = paired_change(
                animals("pretrained", arm, count), animals("scratch", arm, count)
            )
    return found


def without_animals(row: Mapping[str, Any]) -> dict[str, Any]:
    """A split's figures without its list of animals."""
    arms = {arm: {k: v for k, v in node.items() if k != "by_instance"} for arm, node in row["acsm"].items()}
    return {**row, "acsm": arms}


def main(argv: list[str] | None = None) -> int:
    """Run all splits and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with animal_pose/ and web_cow/")
    parser.add_argument("--detector", required=True, help="detector plug-in FILE.py:Class")
    parser.add_argument("--root", type=Path, default=Path("real"), help="folder for tables and runs")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--web_num", type=int, default=300, help="pseudo-labels to keep")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, help="weights that the networks start from"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = Options(**vars(parser.parse_args(argv)))
    began = time.monotonic()
    weights = pretrain(options) if "pretrained" in options.kinds else {}
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in options.kinds}
    for split in range(options.splits):
        for name in options.kinds:
            starts = weights if name == "pretrained" else {}
            say(f"== split {split}, {name}")
            figures[name].append(run_split(options, split, name, starts))
            summary = summarise(figures)
            say(json.dumps(summary, indent=1))
            splits = {kind: [without_animals(row) for row in rows] for kind, rows in figures.items()}
            minutes = (time.monotonic() - began) / 60
            save("real_cows", {**summary, "splits": splits, "minutes_in_this_call": minutes}, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
