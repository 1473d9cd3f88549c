"""`wildshape acsm-evaluate`: AUC, camera error and mask IoU of a trained 3D model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acsm.arms import load_arm
from acsm.crops import published_affine, published_crop
from acsm.label_sets import find_labels
from acsm.mask_crops import mask_problem, tell_wrong_masks
from acsm.metrics import ShapeResult
from acsm.per_animal import breakdown, per_animal
from acsm.predict import ShapePredictor, Shapes
from acsm.silhouettes import mask_iou
from wildshape import training_data
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.files import file_hash
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
    labels: str | None = None
    """train, val, test, all, truth (of a synthetic world's web images), or the file of a labels table."""
    images: Path | None = None
    """The table of images that a file's labels are on, if it is neither the category's nor beside it."""
    split: Literal["train", "val", "test", "all"] = "test"
    """The split, where --labels does not say."""
    dataset: str = "labels"
    """labels, or truth: as --labels truth. Published names mean labels."""
    opts: tuple[str, ...] = ()
    """MODEL.WEIGHTS FILE: measure this checkpoint in place of the arm's."""
    bootstrap: int = 2000
    """Draws of the 95 % intervals."""
    batch_size: int = 32
    """Animals in one forward pass."""
    device: str = "auto"
    """auto, cpu or cuda."""

    @property
    def labels_name(self) -> str:
        """What --labels, --dataset and --split mean together."""
        return self.labels or ("truth" if self.dataset == "truth" else self.split)


@dataclass(frozen=True)
class Measured:
    """What `measure` found.

    Attributes:
        result: predictions beside the truth.
        iou: of silhouette and mask [N], NaN where there is no mask.
        skipped: id and reason of each animal whose image cannot be read.
    """

    result: ShapeResult
    iou: np.ndarray
    skipped: list[tuple[str, str]]


def measure(
    predictor: ShapePredictor,
    records: AnimalRecords,
    *,
    published: bool = False,
    masks: Mapping[str, str] | None = None,
) -> Measured:
    """Predict and collect what the metrics need.

    Args:
        predictor: the model.
        records: animals with true keypoints.
        published: cut the unpadded, whole-pixel crops of the released evaluation and take errors
            relative to their side (max(w, h) + 1).
        masks: run lengths by instance id, to compare silhouettes with.
    """
    size = predictor.image_size
    masks = dict(masks or {})
    wrong: dict[str, str] = {}
    crops, affines, kept, skipped = [], [], [], []
    for index in progress(range(len(records)), "crop", unit="animal"):
        try:
            image = read_image(records.paths[index])
        except UserError as error:
            skipped.append((records.instance_ids[index], str(error)))
            continue
        name = records.instance_ids[index]
        problem = mask_problem(masks[name], image.shape[1::-1]) if name in masks else None
        if problem is not None:
            wrong[name] = problem
            del masks[name]
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
    tell_wrong_masks(wrong, "labelled")
    shapes = predictor.predict_crops(stacked, matrices, vertices=bool(masks))
    xy, side = shapes.xy_image, box_side(records.box_xyxy)
    if published:
        # Released NDC 2x / S - 1 lies half a crop pixel from ours: undo the shift in image pixels.
        pixel = 1 / matrices[:, 0, 0]
        xy = xy + 0.5 * pixel[:, None, None]
        side = size * pixel
    ids = tuple(records.instance_ids)
    result = ShapeResult(xy, records.xy, records.weight > 0, side, shapes.camera, records.camera, ids)
    return Measured(result, _overlaps(predictor, shapes, ids, masks), skipped)


def _overlaps(
    predictor: ShapePredictor, shapes: Shapes, ids: Sequence[str], masks: Mapping[str, str]
) -> np.ndarray:
    iou = np.full(len(ids), np.nan)
    rows = [row for row, name in enumerate(ids) if name in masks]
    if rows and predictor.template is not None:
        vertices, faces = shapes.vertices_image, predictor.template.faces
        for row in progress(rows, "masks", unit="animal"):
            iou[row] = mask_iou(vertices[row], faces, masks[ids[row]])
    return iou


def _name_of(config: Config, workspace: Workspace, checkpoint: Path, digest: str) -> str:
    """The arm, or another name where ``--opts`` names another checkpoint than a trained arm has."""
    own = workspace.checkpoint_dir(f"acsm/{config.arm}") / "best.pt"
    if not own.is_file() or own.resolve() == checkpoint.resolve():
        return config.arm
    # Files of other folders often have one name: their content tells them apart.
    elsewhere = own.parent.resolve() != checkpoint.parent.resolve()
    return f"{config.arm}-{checkpoint.stem}" + (f"-{digest[:6]}" if elsewhere else "")


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Measure, write metrics/acsm_<arm>_<labels>.json and .parquet (by animal), and show a table.

    A checkpoint that ``--opts`` names, of an arm that has one of its own, is measured as
    <arm>-<the file's name>, of another folder with some of its hash; the report leaves it out.

    Raises:
        UserError: the arm or the labels are missing, or nothing is labelled in the split.
    """
    if config.dataset not in ("labels", "truth", *training_data.PUBLISHED_DATASETS):
        raise UserError(f"--dataset: expected labels or truth; found {config.dataset}")
    predictor, path = load_arm(
        workspace, config.arm, config.opts, device=config.device, batch_size=config.batch_size
    )
    digest = file_hash(path)
    arm = _name_of(config, workspace, path, digest)
    labels = find_labels(workspace, config.labels_name, config.images)
    records = labels.records
    measured = measure(predictor, records, masks=labels.masks)
    result = measured.result
    total = len(records) + len(records.skipped)
    tell_skipped([*records.skipped, *measured.skipped], total, f"{labels.name} labels")
    if not len(result.xy):
        raise UserError(
            f"expected labelled animals of {workspace.category.name} in {config.labels_name}; found "
            f"none; run: {workspace.made_by('labels')}"
        )
    skeleton = workspace.category.skeleton
    animals = per_animal(result, np.asarray(skeleton.flip), measured.iou)
    facts: dict[str, Any] = {
        "category": workspace.category.name,
        "arm": arm,
        **({"of_arm": config.arm} if arm != config.arm else {}),
        "split": labels.name,
        "labels": config.labels_name,
        "checkpoint": workspace.relative(path),
        "checkpoint_hash": digest,
        **result.summary(skeleton.keypoints, config.bootstrap),
        **breakdown(animals, skeleton.keypoints, config.bootstrap),
        "by_instance": result.by_instance(),
    }
    released = measure(predictor, records, published=True).result.summary(
        skeleton.keypoints, config.bootstrap
    )
    facts["published"] = {
        "auc": released["auc"],
        "pck": released["pck"],
        "camera_error_deg": released["camera_error_deg_published"],
    }
    animals.write(workspace.animals_path(arm, labels.name))
    workspace.write_metrics(f"acsm_{arm}_{labels.name}", facts)
    say(table(facts))
    return facts


def table(facts: dict[str, Any]) -> str:
    """The measures as a small table for the terminal."""

    def number(value: float | None, unit: str = "") -> str:
        return "-" if value is None or value != value else f"{value:.1f}{unit}"

    def interval(key: str) -> str:
        ends = facts.get(f"{key}_interval")
        return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""

    def ratio_of(node: dict[str, Any], unit: str = "") -> str:
        ends = node["interval"]
        shown = f" [{number(ends[0])}, {number(ends[1])}]" if ends else ""
        return f"{number(node['value'], unit)}{shown}"

    released, flip = facts["published"], facts["flip"]
    pck = "  ".join(f"@{t} {number(v)}" for t, v in facts["pck"].items())
    lines = [
        f"acsm {facts['arm']} on {facts['instances']} animals of {facts['split']}",
        f"  AUC           {number(facts['auc'])} {interval('auc')}"
        f"   (published crop: {number(released['auc'])})",
        f"  PCK           {pck}",
    ]
    if facts["cameras"]:
        lines.append(
            f"  camera error  {number(facts['camera_error_deg'], ' deg')} {interval('camera_error_deg')}, "
            f"median {number(facts['camera_error_deg_median'])}, of {facts['cameras']} cameras"
            f"   (published: {number(released['camera_error_deg'], ' deg')})"
        )
    if facts["masks"]:
        lines.append(
            f"  mIoU          {number(facts['miou'])} {interval('miou')} of {facts['masks']} masks"
        )
    guessed = facts["instances"] - facts["views_from_true_cameras"]
    for name in ("side", "front_back"):
        view = facts["by_view"][name]
        error = view["camera_error_deg"]
        camera_text = f", camera error {ratio_of(error)}" if error["animals"] else ""
        note = ", by the predicted camera" if guessed == facts["instances"] else ""
        lines.append(
            f"  {name:<13} AUC {ratio_of(view['auc'])}{camera_text} ({view['animals']} animals{note})"
        )
    points, camera = flip["keypoints"], flip["camera"]
    lines.append(
        f"  left-right    {number(points['share_percent']['value'])} % of animals fit better with left and "
        f"right swapped (AUC with these mended: {number(points['auc_mended']['value'])})"
    )
    if facts["cameras"]:
        lines.append(
            f"                {number(camera['share_percent']['value'])} % of cameras nearer when flipped "
            f"(error with these mended: {number(camera['error_deg_mended']['value'], ' deg')})"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape acsm-evaluate")


if __name__ == "__main__":
    sys.exit(main())
