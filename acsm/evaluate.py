"""`wildshape acsm-evaluate`: AUC and camera error of a trained 3D model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acsm.arms import load_arm
from acsm.crops import published_affine, published_crop
from acsm.metrics import ShapeResult
from acsm.predict import ShapePredictor
from wildshape import training_data
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.geometry import box_side, warp_crop, xyxy_to_xywh
from wildshape.records import AnimalRecords, tell_skipped
from wildshape.stage import progress

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Measure a trained 3D model on labelled animals."""

    arm: str = "labels"
    """Which of the run's models."""
    split: Literal["train", "val", "test", "all"] = "test"
    """Which labelled animals."""
    dataset: str = "labels"
    """labels, or truth: the ground truth of a synthetic world's web images. Published names mean labels."""
    opts: tuple[str, ...] = ()
    """MODEL.WEIGHTS FILE: measure this checkpoint in place of the arm's."""
    bootstrap: int = 2000
    """Draws of the 95 % intervals."""
    batch_size: int = 32
    """Animals in one forward pass."""
    device: str = "auto"
    """auto, cpu or cuda."""


def measure(
    predictor: ShapePredictor, records: AnimalRecords, *, published: bool = False
) -> tuple[ShapeResult, list[tuple[str, str]]]:
    """Predict and collect what the metrics need.

    Args:
        predictor: the model.
        records: animals with true keypoints.
        published: cut the unpadded, whole-pixel crops of the released evaluation and take errors
            relative to their side (max(w, h) + 1).

    Returns:
        Predictions beside the truth, and id and reason of each animal whose image cannot be read.
    """
    size = predictor.image_size
    crops, affines, kept, skipped = [], [], [], []
    for index in progress(range(len(records)), "crop", unit="animal"):
        try:
            image = read_image(records.paths[index])
        except UserError as error:
            skipped.append((records.instance_ids[index], str(error)))
            continue
        box = records.box_xyxy[index]
        if published:
            box_xywh = xyxy_to_xywh(box)
            crop = np.rint(255 * published_crop(image, box_xywh, size)).astype(np.uint8)
            affine = published_affine(box_xywh, size)
        else:
            affine = predictor.crop_affine(box)
            crop = warp_crop(image, affine, size, 255)
        crops.append(crop)
        affines.append(affine.matrix)
        kept.append(index)
    records = records.take(kept)
    stacked = np.array(crops, np.uint8).reshape(-1, size, size, 3)
    matrices = np.array(affines, np.float64).reshape(-1, 2, 3)
    shapes = predictor.predict_crops(stacked, matrices)
    xy, side = shapes.xy_image, box_side(records.box_xyxy)
    if published:
        # Released NDC 2x / S - 1 lies half a crop pixel from ours: undo the shift in image pixels.
        pixel = 1 / matrices[:, 0, 0]
        xy = xy + 0.5 * pixel[:, None, None]
        side = size * pixel
    truth = records.camera
    ids = tuple(records.instance_ids)
    return ShapeResult(xy, records.xy, records.weight > 0, side, shapes.camera, truth, ids), skipped


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Measure, write metrics/acsm_<arm>_<split>.json, and show a table.

    Raises:
        UserError: the arm or the labels are missing, or nothing is labelled in the split.
    """
    if config.dataset not in ("labels", "truth", *training_data.PUBLISHED_DATASETS):
        raise UserError(f"--dataset: expected labels or truth; found {config.dataset}")
    predictor, path = load_arm(
        workspace, config.arm, config.opts, device=config.device, batch_size=config.batch_size
    )
    truth = config.dataset == "truth"
    split = "truth" if truth else config.split
    records, _ = training_data.labelled(
        workspace,
        None if split in ("all", "truth") else split,
        workspace.category.skeleton,
        "truth" if truth else "labels",
    )
    result, skipped = measure(predictor, records)
    tell_skipped([*records.skipped, *skipped], len(records) + len(records.skipped), f"{split} labels")
    if not len(result.xy):
        raise UserError(
            f"expected labelled animals in the {split} split of {workspace.category.name}; found "
            f"none; run: {workspace.made_by('labels')}"
        )
    names = workspace.category.skeleton.keypoints
    facts: dict[str, Any] = {
        "arm": config.arm,
        "split": split,
        "checkpoint": workspace.relative(path),
        **result.summary(names, config.bootstrap),
        "by_instance": result.by_instance(),
    }
    released = measure(predictor, records, published=True)[0].summary(names, config.bootstrap)
    facts["published"] = {
        "auc": released["auc"],
        "pck": released["pck"],
        "camera_error_deg": released["camera_error_deg_published"],
    }
    workspace.write_metrics(f"acsm_{config.arm}_{split}", facts)
    say(table(facts))
    return facts


def table(facts: dict[str, Any]) -> str:
    """The measures as a small table for the terminal."""

    def number(value: float | None, unit: str = "") -> str:
        return "-" if value is None or value != value else f"{value:.1f}{unit}"

    def interval(key: str) -> str:
        ends = facts.get(f"{key}_interval")
        return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""

    released = facts["published"]
    pck = "  ".join(f"@{t} {number(v)}" for t, v in facts["pck"].items())
    return "\n".join(
        (
            f"acsm {facts['arm']} on {facts['instances']} animals of {facts['split']}",
            f"  AUC           {number(facts['auc'])} {interval('auc')}"
            f"   (published crop: {number(released['auc'])})",
            f"  PCK           {pck}",
            f"  camera error  {number(facts['camera_error_deg'], ' deg')} "
            f"{interval('camera_error_deg')} of {facts['cameras']} cameras"
            f"   (published: {number(released['camera_error_deg'], ' deg')})",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape acsm-evaluate")


if __name__ == "__main__":
    sys.exit(main())
