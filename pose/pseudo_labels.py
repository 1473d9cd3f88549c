"""The Map stage that predicts the keypoints of every detected animal."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pose.predict import PosePredictor
from wildshape.cli import say
from wildshape.crops import ImageReader, image_paths, instance_problem
from wildshape.engine import EngineOptions
from wildshape.errors import UserError
from wildshape.geometry import warp_crop
from wildshape.stage import MapOptions, MapStage, Provenance, input_hashes, run_map
from wildshape.tables import Table
from wildshape.training_data import animals_to_predict, labelled_name

if TYPE_CHECKING:
    from wildshape.workspace import Workspace

# Names of the keypoints table's `transform` and what they do to the crop: the side of its square
# relative to the box, and the turn of its content in degrees.
TRANSFORMS: Mapping[str, Mapping[str, float]] = {
    "none": {},
    "scale_1.1": {"scale": 1.1},
    "scale_1.2": {"scale": 1.2},
    "rot_-20": {"rotation_deg": -20.0},
    "rot_-10": {"rotation_deg": -10.0},
    "rot_10": {"rotation_deg": 10.0},
    "rot_20": {"rotation_deg": 20.0},
}


def model_name(is_aux: bool, arm: str | None = None) -> str:
    """Name of a run's 2D network: ``pose`` or ``pose_aux``, followed by ``_<arm>`` if there is one.

    Raises:
        UserError: the arm would take the second network's name.
    """
    if arm is not None and not is_aux and (arm == "aux" or arm.startswith("aux_")):
        raise UserError(f"--arm: expected a name that is not the second network's; found {arm}")
    return "_".join(("pose", *(["aux"] if is_aux else []), *([arm] if arm else [])))


def load_predictor(workspace: "Workspace", model: str, **options: Any) -> PosePredictor:
    """The best checkpoint of one of a run's 2D networks.

    Args:
        workspace: of the run.
        model: as `model_name` names it.
        **options: as for `PosePredictor.from_checkpoint`.

    Raises:
        UserError: it is not trained yet, or for another skeleton than the category's.
    """
    path = workspace.checkpoint_dir(model) / "best.pt"
    is_aux = f"{model}_".startswith("pose_aux_")
    arm = model.removeprefix("pose_aux" if is_aux else "pose").removeprefix("_")
    flags = (" --is_aux" if is_aux else "") + (f" --arm {arm}" if arm else "")
    name = f" --name {workspace.name}" if workspace.name != workspace.category.name else ""
    command = f"python pose/train.py --category {workspace.category.name}{flags}{name}"
    workspace.require(path, command, "the pose network")
    predictor = PosePredictor.from_checkpoint(path, **options)
    wanted = workspace.category.skeleton.keypoints
    if predictor.keypoints != wanted:
        raise UserError(
            f"expected a checkpoint for the keypoints {', '.join(wanted)}; found "
            f"{', '.join(predictor.keypoints)} in {path}; run: {command} --overwrite"
        )
    return predictor


class PosePseudoLabels(MapStage):
    """Rows of instances in, one row of keypoints a transform out.

    A row's image is decoded once, whatever the number of transforms, and also once for neighbouring
    rows of one image. Rows without a readable image or with an empty box give nothing; `problem`
    says why.

    Args:
        predictor: the network.
        paths: file of each image_id.
        transforms: names in `TRANSFORMS`.
    """

    def __init__(
        self,
        predictor: PosePredictor,
        paths: Mapping[str, Path],
        transforms: Sequence[str] = ("none",),
    ) -> None:
        self.predictor = predictor
        self.paths = paths
        self.transforms = tuple(transforms)
        self._image = ImageReader()

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why a row gives nothing, or None if it does give keypoints."""
        return instance_problem(row, self.paths, self._image)

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """Crops uint8 [T,S,S,3] and their affines [T,2,3] for one instance."""
        cv2.setNumThreads(0)  # loader processes run side by side already
        size, count = self.predictor.image_size, len(self.transforms)
        usable = self.problem(row) is None
        crops = np.zeros((count, size, size, 3), np.uint8)
        affines = np.tile(np.eye(2, 3), (count, 1, 1))
        if usable:
            image = self._image(self.paths[row["image_id"]])
            for i, name in enumerate(self.transforms):
                affine = self.predictor.crop_affine(row["box_xyxy"], **TRANSFORMS[name])
                crops[i] = warp_crop(image, affine, size)
                affines[i] = affine.matrix
        return {
            "instance_id": row["instance_id"],
            "usable": usable,
            "crops": crops,
            "affines": affines,
        }

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns of the keypoints table, the transforms of an instance one after another."""
        usable = np.asarray(batch["usable"], bool)
        count = len(self.transforms)
        ids = np.repeat(np.asarray(batch["instance_id"], object)[usable], count)
        names = np.tile(np.array(self.transforms, object), int(usable.sum()))
        size, keypoints = self.predictor.image_size, len(self.predictor.keypoints)
        xy, confidence = np.zeros((0, keypoints, 2)), np.zeros((0, keypoints))
        if usable.any():
            crops, affines = batch["crops"], batch["affines"]
            if not usable.all():
                crops, affines = crops[usable], affines[usable]
            xy, confidence = self.predictor.predict_crops(
                crops.reshape(-1, size, size, 3), affines.reshape(-1, 2, 3)
            )
        return {"instance_id": ids, "transform": names, "xy": xy, "confidence": confidence}


@dataclass(frozen=True)
class LabelOptions:
    """How pseudo-labels are made.

    Attributes:
        model: "pose" or "pose_aux".
        source: name of the keypoints table to write, with labelled followed by "_labelled".
        labelled: whether the labelled animals of val are looked at in place of the detected ones.
        transforms: names in `TRANSFORMS`.
        flip_average: average with the mirrored crops.
        batch_size: instances in one call.
        workers: loader processes; None chooses by the number of cores.
        device: "auto", "cpu" or "cuda".
        overwrite: whether a table made with other settings may be replaced.
        engine: where the network runs.
    """

    model: str
    source: str
    labelled: bool = False
    transforms: tuple[str, ...] = ("none",)
    flip_average: bool = False
    batch_size: int = 32
    workers: int | None = None
    device: str = "auto"
    overwrite: bool = False
    engine: EngineOptions = EngineOptions()

    @property
    def table(self) -> str:
        """The keypoints table to write."""
        return labelled_name(self.source) if self.labelled else self.source


def loader_workers(rows: int, batch_size: int) -> int:
    """Loader processes for a table: none for a few rows, else all cores but one, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if rows <= 2 * batch_size else min(max(cores - 1, 1), 8)


def make_stage(workspace: "Workspace", options: LabelOptions) -> PosePseudoLabels:
    """The stage, its network loaded; called once on every worker.

    Raises:
        UserError: as `load_predictor`, or there is no images table.
    """
    predictor = load_predictor(
        workspace,
        options.model,
        device=options.device,
        batch_size=options.batch_size,
        flip_average=options.flip_average,
    )
    name = "labelled_images" if options.labelled else "images"
    images = workspace.load(name, "keypoints/" + options.table)
    return PosePseudoLabels(predictor, image_paths(images, workspace), options.transforms)


def label_instances(workspace: "Workspace", options: LabelOptions) -> dict[str, Any]:
    """Predict the keypoints of a workspace's animals into the keypoints table of the options.

    Returns:
        Counts: `instances`, `labelled`, and `skipped` with a reason for the first of them.

    Raises:
        UserError: tables or the checkpoint are missing, or the table exists with other settings.
    """
    instances, rows_from, _ = animals_to_predict(workspace, options.labelled, "keypoints/" + options.table)
    local = options.engine.engine == "local"
    # Where workers do the predicting, this machine may have no GPU: it only checks the checkpoint.
    stage = make_stage(workspace, options if local else replace(options, device="cpu"))
    workers = options.workers
    if workers is None and local:
        workers = loader_workers(len(instances), options.batch_size)
    table = run_map(
        (lambda: stage) if local else partial(make_stage, workspace, options),
        instances,
        workspace.keypoints_path(options.table),
        "keypoints",
        Provenance(
            "pose-generate-pl",
            {"transforms": list(options.transforms), "flip_average": options.flip_average},
            input_hashes(
                workspace.root,
                workspace.table_path(rows_from),
                workspace.checkpoint_dir(options.model) / "best.pt",
            ),
        ),
        options=MapOptions(
            batch_size=options.batch_size,
            workers=workers,
            overwrite=options.overwrite,
            title=options.table,
            engine=options.engine,
            device=options.device,
        ),
        meta={"skeleton": workspace.category.skeleton.name},
    )
    return _summary(workspace, options, stage, instances, table)


def _summary(
    workspace: "Workspace",
    options: LabelOptions,
    stage: PosePseudoLabels,
    instances: Table,
    table: Table,
) -> dict[str, Any]:
    done = set(table["instance_id"])
    missing = [i for i, name in enumerate(instances["instance_id"]) if name not in done]
    shown = []
    for i in missing[:5]:
        row = {name: column[i] for name, column in instances.columns.items()}
        shown.append(f"{row['instance_id']}: {stage.problem(row) or 'readable by now'}")
    confidence = table["confidence"].mean() if len(table) else float("nan")
    metrics = {
        "source": options.table,
        "instances": len(instances),
        "labelled": len(instances) - len(missing),
        "skipped": len(missing),
        "skipped_first": shown,
        "mean_confidence": float(confidence),
    }
    workspace.write_metrics(f"keypoints_{options.table}", metrics)
    say(
        f"keypoints/{options.table}: {metrics['labelled']} of {len(instances)} animals, "
        f"mean confidence {confidence:.3f}"
    )
    if missing:
        say(f"left out {len(missing)}: " + "; ".join(shown) + (" ..." if len(missing) > 5 else ""))
    return metrics
