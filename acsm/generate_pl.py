"""`wildshape acsm-generate-pl`: keypoints and shapes of every detected animal by the 3D model.

The keypoints are those of the articulated template seen by the predicted camera; CF-CM2 compares
them with the pose network's. Their confidence is 1: the model, as published, has none.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from acsm.arms import load_arm
from acsm.crops import WHITE
from acsm.predict import ShapePredictor
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import ImageReader, image_paths, instance_problem
from wildshape.engine import EngineOptions
from wildshape.geometry import warp_crop
from wildshape.stage import MapOptions, MapStage, Provenance, input_hashes, run_map, run_reduce
from wildshape.tables import Table
from wildshape.training_data import animals_to_predict, labelled_name

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(EngineOptions, CommonConfig):
    """Predict keypoints and shape of every detected animal."""

    arm: str = "labels"
    """Which of the run's models."""
    labelled: bool = False
    """Predict the labelled animals of val, into keypoints/acsm_labelled: data-selection --filter cf_all
    learns from them how far to trust each source."""
    opts: tuple[str, ...] = ()
    """MODEL.WEIGHTS FILE: predict with this checkpoint in place of the arm's."""
    batch_size: int = 32
    """Animals in one forward pass."""
    workers: int | None = None
    """Processes that read and crop ahead; by default none, and with --engine ray chosen by its machines."""
    device: str = "auto"
    """auto, cpu or cuda."""


class ShapePseudoLabels(MapStage):
    """Rows of instances in, one row of shapes out; rows without a readable image give nothing.

    Args:
        predictor: the model.
        paths: file of each image id.
    """

    def __init__(self, predictor: ShapePredictor, paths: Mapping[str, Path]) -> None:
        self.predictor = predictor
        self.paths = paths
        self._image = ImageReader()

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why a row gives nothing, or None."""
        return instance_problem(row, self.paths, self._image)

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """The crop uint8 [S, S, 3] of one instance and its affine [2, 3]."""
        cv2.setNumThreads(0)
        size = self.predictor.image_size
        crop, matrix = np.zeros((size, size, 3), np.uint8), np.eye(2, 3)
        usable = self.problem(row) is None
        if usable:
            affine = self.predictor.crop_affine(row["box_xyxy"])
            crop = warp_crop(self._image(self.paths[row["image_id"]]), affine, size, WHITE)
            matrix = affine.matrix
        return {
            "instance_id": row["instance_id"], "usable": usable, "crop": crop, "affine": matrix
        }  # fmt: skip

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of the shapes table."""
        usable = np.asarray(batch["usable"], bool)
        affines = batch["affine"][usable]
        shapes = self.predictor.predict_crops(batch["crop"][usable], affines)
        return {
            "instance_id": np.asarray(batch["instance_id"], object)[usable],
            "crop_affine": affines.reshape(-1, 6),
            "camera": shapes.camera,
            "part_transforms": shapes.part_transforms,
        }


def make_stage(workspace: Workspace, config: Config) -> tuple[ShapePseudoLabels, Path]:
    """The stage, its model loaded, and the checkpoint's file; called once on every worker.

    Raises:
        UserError: as `load_arm`, or there is no images table.
    """
    predictor, path = load_arm(
        workspace, config.arm, config.opts, device=config.device, batch_size=config.batch_size
    )
    images = workspace.load("labelled_images" if config.labelled else "images", "the 3D model")
    return ShapePseudoLabels(predictor, image_paths(images, workspace)), path


def _on_worker(workspace: Workspace, config: Config) -> ShapePseudoLabels:
    return make_stage(workspace, config)[0]


def reprojected(predictor: ShapePredictor, shapes: Table) -> np.ndarray:
    """Keypoints [N, K, 2] in image pixels of a shapes table."""
    import torch

    from acsm.geometry import project

    model = predictor.model
    transforms = torch.tensor(shapes["part_transforms"], dtype=torch.float32)
    points = model.articulate(transforms.to(predictor.device), model.keypoint_vertices)
    camera = torch.tensor(shapes["camera"])
    return project(points.double().cpu(), camera).numpy()


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Predict into shapes/acsm and keypoints/acsm (or acsm_labelled); gives the counts.

    Raises:
        UserError: the model, instances or images are missing, or the tables are there from other
            settings.
    """
    local = config.engine == "local"
    # Where workers do the predicting, this machine may have no GPU: it only projects the keypoints.
    stage, path = make_stage(workspace, config if local else replace(config, device="cpu"))
    instances, *names = animals_to_predict(workspace, config.labelled, "the 3D model")
    tables = [workspace.table_path(name) for name in names]
    source = labelled_name("acsm") if config.labelled else "acsm"
    provenance = Provenance(
        "acsm-generate-pl", {"arm": config.arm}, input_hashes(workspace.root, *tables, path)
    )
    category, predictor = workspace.category, stage.predictor
    shapes = run_map(
        (lambda: stage) if local else partial(_on_worker, workspace, config),
        instances,
        workspace.shapes_path(source),
        "shapes",
        provenance,
        options=MapOptions(
            batch_size=config.batch_size,
            workers=(config.loaders(config.workers or None) or 0) if local else config.workers,
            overwrite=config.overwrite,
            title=f"{source} shapes",
            engine=config.engine_options,
            device=config.device,
        ),
        meta={"category": category.name, "template": category.name},
    )

    def keypoints() -> Table:
        columns = {
            "instance_id": shapes["instance_id"],
            "transform": np.full(len(shapes), "none", dtype=object),
            "xy": reprojected(predictor, shapes),
            "confidence": np.ones((len(shapes), len(predictor.keypoints))),
        }
        return Table("keypoints", columns, {"skeleton": category.skeleton.name})

    run_reduce(keypoints, workspace.keypoints_path(source), provenance, overwrite=config.overwrite)
    done = set(shapes["instance_id"])
    problems = [
        f"{row['instance_id']}: {stage.problem(row)}"
        for row in instances.rows()
        if row["instance_id"] not in done
    ]
    left = f"; left out {len(problems)} ({'; '.join(problems[:3])})" if problems else ""
    say(f"acsm-generate-pl: {len(shapes)} of {len(instances)} animals by arm {config.arm}{left}")
    counts = {"instances": len(instances), "predicted": len(shapes), "skipped": len(problems)}
    facts = {"arm": config.arm, **counts, "skipped_first": problems[:5]}
    workspace.write_metrics(f"keypoints_{source}", facts)
    return counts


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape acsm-generate-pl")


if __name__ == "__main__":
    sys.exit(main())
