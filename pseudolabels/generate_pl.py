"""`wildshape tokens-generate-pl`: unsupervised points of every detected animal, and keypoints from them.

    python pseudolabels/generate_pl.py --category cow

writes keypoints/zero123plus_points, and with labelled photos keypoints/zero123plus.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pseudolabels.zero123plus import naming
from pseudolabels.zero123plus.crops import count_matted, mattes_note, mattes_of
from pseudolabels.zero123plus.maps import POWER
from pseudolabels.zero123plus.points import PointFinder, PointPseudoLabels
from pseudolabels.zero123plus.regressor import LEAST_SPREAD, spread
from pseudolabels.zero123plus.sheet import save_sheet
from pseudolabels.zero123plus.token_file import FILE, TokenFile, load_model_of
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import image_paths
from wildshape.device import pick_device
from wildshape.engine import EngineOptions
from wildshape.files import write_json
from wildshape.stage import MapOptions, Provenance, input_hashes, run_map, run_reduce, withdraw
from wildshape.tables import Table
from wildshape.training_data import labelled, labelled_name

if TYPE_CHECKING:
    from wildshape.workspace import Workspace

SOURCE = "zero123plus"
POINTS = f"{SOURCE}_points"
LABELLED, LABELLED_POINTS = labelled_name(SOURCE), labelled_name(POINTS)


@dataclass(frozen=True, kw_only=True)
class Config(EngineOptions, CommonConfig):
    """Find the unsupervised points of every detected animal, and its named keypoints from them."""

    model: str | None = None
    """Where the diffusion model of the tokens is now; default where it was then."""
    views: int = 10
    """Random views over which attention is averaged; 0: the crop alone."""
    power: float = POWER
    """A point is the mean place of its map to this power; 0: about its highest of 512
    pixels a side, as published."""
    frame: naming.FrameChoice = "auto"
    """Frame of the regressor: box (knows up from down), points (turns with the animal), or the better; or
    published: the box's, by least squares without bias or ridge."""
    batch_size: int = 2
    """Animals in one forward pass."""
    workers: int | None = None
    """Processes that read and crop ahead; by default none, and with --engine ray chosen by its machines."""
    vis_num: int = 16
    """Animals that are drawn into the run's pictures."""
    seed: int = 0
    """Seed of the views and of the noise."""
    device: str = "auto"
    """auto, cpu or cuda."""


def _train_command(workspace: Workspace) -> str:
    name = f" --name {workspace.name}" if workspace.name != workspace.category.name else ""
    return f"python pseudolabels/train_tokens.py --category {workspace.category.name}{name}"


def token_path(workspace: Workspace) -> Path:
    """The run's token file.

    Raises:
        UserError: there is none; says what makes it.
    """
    path = workspace.checkpoint_dir(SOURCE) / FILE
    return workspace.require(path, _train_command(workspace), f"keypoints/{SOURCE}")


def make_stage(workspace: Workspace, config: Config, images: str = "images") -> PointPseudoLabels:
    """The stage, its model loaded; called once on every worker.

    Raises:
        UserError: tokens, model or images are missing, or the model is another one.
    """
    tokens = TokenFile.load(token_path(workspace))
    command = f"{_train_command(workspace)} --model {config.model} --overwrite"
    model = load_model_of(tokens, pick_device(config.device), config.model, command)
    paths = image_paths(workspace.load(images, f"keypoints/{SOURCE}"), workspace)
    return PointPseudoLabels(PointFinder(model, tokens, config.views, config.seed, config.power), paths)


def _find_points(
    config: Config, workspace: Workspace, stage: PointPseudoLabels, rows: Table, source: str
) -> Table:
    """The points of a table's animals as `keypoints/<source>`."""
    local, from_labels = config.engine == "local", source == LABELLED_POINTS
    images = "labelled_images" if from_labels else "images"
    inputs = [workspace.table_path("labels" if from_labels else "instances"), token_path(workspace)]
    return run_map(
        (lambda: stage) if local else partial(make_stage, workspace, config, images),
        rows,
        workspace.keypoints_path(source),
        "keypoints",
        Provenance(
            "tokens-generate-pl",
            {
                **{name: getattr(config, name) for name in ("views", "seed", "power")},
                "mattes": mattes_of(rows),
            },
            input_hashes(workspace.root, *inputs),
        ),
        options=MapOptions(
            batch_size=config.batch_size,
            workers=(config.loaders(config.workers or None) or 0) if local else config.workers,
            overwrite=config.overwrite,
            title=source,
            engine=config.engine_options,
            device=config.device,
        ),
        meta={"skeleton": f"points{len(stage.finder.kept)}"},
    )


def _tell_matted(workspace: Workspace, rows: Table, images: Table, labelled: bool = False) -> int:
    """How many of some animals are matted; says what to run where some are not."""
    matted = count_matted(rows, images)
    option = " --labelled" if labelled else ""
    command = f"python prepare_data/save_masks.py --category {workspace.category.name}{option}"
    note = mattes_note(matted, len(rows), command)
    if note:
        say(f"keypoints/{LABELLED_POINTS if labelled else POINTS}: {note}")
    return matted


def _measured(
    config: Config, workspace: Workspace, stage: PointPseudoLabels
) -> tuple[naming.Regressor | None, dict[str, Any]]:
    """The regressor, fitted on the labelled animals of train, and how good it is on those of val."""
    needed = ("labels", "labelled_images")
    if not all(workspace.table_path(name).exists() for name in needed):
        return None, {"why": f"no labelled photos; run: {workspace.made_by('labels')}"}
    labels, skeleton = workspace.load("labels"), workspace.category.skeleton
    paths = image_paths(workspace.load("labelled_images"), workspace)
    rows = labels.take(labels["split"] != "test")
    matted = _tell_matted(workspace, rows, workspace.load("labelled_images"), labelled=True)
    table = _find_points(config, workspace, PointPseudoLabels(stage.finder, paths), rows, LABELLED_POINTS)
    train, points = naming.points_of(table, labelled(workspace, "train", skeleton)[0])
    if len(train) < 2:
        return None, {"why": f"expected at least 2 labelled photos of train; found {len(train)}"}
    regressor, errors = naming.choose_regressor(points, train, config.frame)
    val, val_points = naming.points_of(table, labelled(workspace, "val", skeleton)[0])
    mean = naming.mean_position(train)
    return regressor, {
        "frame": regressor.frame,
        "left_out_error_of_crop": errors,
        "labelled": len(train),
        "labelled_matted": matted,
        "keypoints_without_labels": int((~np.isfinite(regressor.strength)).sum()),
        "val": naming.measure(regressor, val_points, val, mean),
    }


def _boxes(instances: Table, points: Table) -> np.ndarray:
    """The boxes [N, 4] of the animals that have points."""
    place = instances.lookup("instance_id")
    return instances["box_xyxy"][[place[name] for name in points["instance_id"]]]


def _name(
    config: Config, workspace: Workspace, points: Table, regressor: naming.Regressor, source: str = SOURCE
) -> Table:
    """The named keypoints of the animals of ``points`` as `keypoints/<source>`."""
    instances = workspace.load("labels" if source == LABELLED else "instances")

    def make() -> Table:
        boxes = _boxes(instances, points)
        xy, confidence = naming.named(regressor, points["xy"], points["confidence"], boxes)
        columns = {
            "instance_id": points["instance_id"],
            "transform": points["transform"],
            "xy": xy,
            "confidence": confidence,
        }
        return Table("keypoints", columns, {"skeleton": workspace.category.skeleton.name})

    inputs = [workspace.table_path(name) for name in ("instances", "labels")]
    inputs += [workspace.keypoints_path(name) for name in (POINTS, LABELLED_POINTS)]
    provenance = Provenance(
        "tokens-generate-pl", {"frame": config.frame}, input_hashes(workspace.root, *inputs)
    )
    out = workspace.keypoints_path(source)
    return run_reduce(make, out, provenance, overwrite=config.overwrite)


def _withdraw_named(config: Config, workspace: Workspace) -> None:
    """Named keypoints of an earlier call, which the points of this one no longer give."""
    for source in (SOURCE, LABELLED):
        path = workspace.keypoints_path(source)
        if path.exists() and config.overwrite:
            withdraw(path)
        elif path.exists():
            say(f"keypoints/{source}: those of an earlier call stay; to remove them, add --overwrite")


def _name_val(config: Config, workspace: Workspace, regressor: naming.Regressor) -> None:
    """The named keypoints of the labelled animals of val: the regressor was not fitted on them."""
    labels, points = workspace.load("labels"), workspace.load_keypoints(LABELLED_POINTS)
    val = set(labels["instance_id"][labels["split"] == "val"])
    points = points.take(np.array([name in val for name in points["instance_id"]], dtype=bool))
    _name(config, workspace, points, regressor, LABELLED)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Predict into keypoints/zero123plus_points and keypoints/zero123plus; gives counts and errors.

    Raises:
        UserError: tokens, model, instances or images are missing, the tokens are another model's, or the
            tables are there from other settings.
    """
    token_path(workspace)
    instances = workspace.load("instances", f"keypoints/{SOURCE}")
    # Where workers do the predicting, this machine may have no GPU: it only names the points.
    stage = make_stage(workspace, config if config.engine == "local" else replace(config, device="cpu"))
    matted = _tell_matted(workspace, instances, workspace.load("images"))
    points = _find_points(config, workspace, stage, instances, POINTS)
    done = set(points["instance_id"])
    problems = [
        f"{row['instance_id']}: {stage.problem(row) or 'readable by now'}"
        for row in instances.rows()
        if row["instance_id"] not in done
    ]
    count = len(stage.finder.kept)
    mass = float(points["confidence"].mean()) if len(points) else float("nan")
    left = f"; left out {len(problems)} ({'; '.join(problems[:3])})" if problems else ""
    say(
        f"keypoints/{POINTS}: {count} points of {len(points)} of {len(instances)} animals, mean peak mass "
        f"{mass:.3f}{left}"
    )
    apart = float(spread(naming.to_unit(points["xy"], _boxes(instances, points))).mean()) if done else 0.0
    if done and apart < LEAST_SPREAD:
        say(
            f"keypoints/{POINTS}: the points of an animal lie on one spot (spread {apart:.3f} of the "
            "crop's side) and tell little of its keypoints; learn the tokens for longer, or otherwise"
        )
    metrics: dict[str, Any] = {
        "points": count,
        "spread_of_crop": apart,
        "instances": len(instances),
        "predicted": len(points),
        "matted": matted,
        "skipped": len(problems),
        "skipped_first": problems[:5],
        "mean_peak_mass": mass,
    }
    regressor, facts = _measured(config, workspace, stage)
    metrics |= facts
    table: Table | None = None
    if regressor is None:
        say(f"keypoints/{SOURCE}: not made, the points have no names: {facts['why']}")
        _withdraw_named(config, workspace)
    else:
        table = _name(config, workspace, points, regressor)
        _name_val(config, workspace, regressor)
        write_json(workspace.checkpoint_dir(SOURCE) / "regressor.json", regressor.as_dict())
        metrics["mean_confidence"] = float(table["confidence"].mean()) if len(table) else float("nan")
        say(f"keypoints/{SOURCE}: {_quality(regressor, facts)}")
    picture = workspace.pictures_dir / f"{SOURCE}_points.png"
    first = instances.take(slice(0, config.vis_num))
    if save_sheet(picture, first, points, table, stage.reader.paths, workspace.category.skeleton):
        metrics["picture"] = workspace.relative(picture)
    workspace.write_metrics(f"keypoints_{SOURCE}", metrics)
    return metrics


def _quality(regressor: naming.Regressor, facts: dict[str, Any]) -> str:
    val = facts["val"]
    text = f"named by {facts['labelled']} labelled animals in the frame of the {regressor.frame}; "
    if not val["animals"]:
        return text + "no labelled animals of val to measure on"
    return text + (
        f"on {val['animals']} of val PCK@.1 {val['pck@0.1']:.3f} (mean positions: "
        f"{val['pck@0.1_of_mean_position']:.3f}), error {val['error_percent']:.1f} % of the box"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape tokens-generate-pl")


if __name__ == "__main__":
    sys.exit(main())
