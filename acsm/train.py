"""`wildshape acsm-train`: train the 3D model on labels, and on web images with pseudo-labels."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from acsm.camera_fit import guiding_cameras
from acsm.checkpoint_init import initialise
from acsm.data import CropStyle, ShapeSamples
from acsm.mask_checks import check_masks, masks_digest
from acsm.mask_crops import STRIDE
from acsm.mask_options import MANY_CAMERAS, MaskOptions
from acsm.mask_task import MaskShapeTask
from acsm.model import ACSM, ACSMArchitecture
from acsm.predict import pack_template, template_hash
from acsm.sphere_map import sphere_vertices
from acsm.task import FrozenShapeTask, ShapeTask
from acsm.template import ArticulatedTemplate, template_for
from acsm.template_file import faults
from wildshape import training_data
from wildshape.cli import say, script_main
from wildshape.device import bfloat16_pays, pick_device
from wildshape.errors import UserError
from wildshape.monitor import MonitorOptions
from wildshape.records import AnimalRecords, Need, tell_skipped
from wildshape.stage import Provenance, input_hashes
from wildshape.training import FitConfig, fit, fit_config
from wildshape.training_data import TrainingDataConfig, web_settings

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(MaskOptions, MonitorOptions, TrainingDataConfig):
    """Train the 3D model on labels, with --use_web_images also on selected pseudo-labels."""

    dataset: str = "labels"
    """Accepted as published (pascal, animal_pose, ...): the labels table holds them all."""
    label_share: float | None = None
    """Share of labelled animals among the samples; by default that of the union, as published."""
    init: Path | None = None
    """Checkpoint to start from: a 3D model, or a pose network (resnet18) for the encoder."""
    imagenet: bool = True
    """Start the encoder from ImageNet weights where they can be had (unless --init is given)."""
    image_size: int = 256
    """Side of the square crops in pixels."""
    steps: int = 10_000
    """Optimiser steps (published: 70,000)."""
    batch_size: int = 12
    """Crops a step."""
    lr: float = 5e-4
    """Adam's learning rate (published: 1e-4)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over the steps (published: constant)."""
    flip: Literal["random", "both", "none"] = "random"
    """Mirror each sample with probability one half; or append the mirrored batch; or neither."""
    flip_consistency: float = 0.0
    """Weight that draws the prediction for a mirrored image and the mirrored prediction together
    (published: 0); doubles the encoder's work unless --flip both does already."""
    rotation: float = 0.0
    """Largest turn of the crops in degrees (published: 0)."""
    colour: float = 0.2
    """Strength of the colour augmentation (published: 0)."""
    camera_guide: float = 0.3
    """Weight of cameras fitted to the keypoints as a guide: without them, cameras settle on the wrong
    side, before or behind, where keypoints of a thin animal look alike (published: 0)."""
    turn_weight: float = 0.02
    """Weight that keeps parts which no keypoint sees, such as the tail, from turning (published: 0)."""
    upright_weight: float = 0.1
    """Weight that keeps cameras upright and level, as photographers hold them (published: 0)."""
    freeze: bool = False
    """Train only what follows the encoder's ResNet, on feature maps computed once."""
    frozen_crops: int = 8
    """With --freeze: varied crops of each animal."""
    warmup: float = 0.05
    """Share of the steps before parts turn."""
    num_cameras: int | None = None
    """Camera hypotheses; by default 1, or 8 on masks alone."""
    camera: Literal["auto", "turntable", "quaternion", "angles"] = "auto"
    """How a camera's rotation is predicted: azimuth all round with bounded elevation and roll; a free
    quaternion (published for one camera); bounded turns about fixed views (published for several).
    auto: turntable for one, angles for several."""
    angle_ranges: tuple[float, float, float] = (30.0, 60.0, 60.0)
    """How far cameras turn at most, in degrees: azimuth (about a fixed view), elevation, roll."""
    entropy_weight: float = 0.05
    """With several cameras, weight that keeps all of them in play."""
    spread_weight: float = 0.1
    """With several cameras, weight that keeps their rotations apart."""
    translations: bool = False
    """Let parts also move."""
    order: Literal["chain", "published"] = "chain"
    """How a part's turn composes with its ancestors'."""
    eval_every: int = 500
    """Steps between evaluations on val."""
    time_limit: float | None = None
    """Minutes after which to stop with the state saved; the same command continues."""
    num_workers: int = 1
    """Threads that prepare crops ahead."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the encoder; auto takes bfloat16 where the hardware has it."""
    compile: bool = False
    """Compile the encoder with torch.compile, which takes minutes at first."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        if not 64 <= self.image_size <= 1024:
            raise UserError(f"--image_size: expected 64 to 1024; found {self.image_size}")
        doubled = self.flip == "both" or self.flip_consistency > 0
        if self.batch_size == 1 and self.image_size <= 96 and not doubled:
            raise UserError(
                "--batch_size: expected 2 or more at up to 96 pixels, where an image alone leaves batch "
                "normalisation one value; found 1"
            )
        self.check_masks()
        if self.supervise != "keypoints" and self.image_size % STRIDE:
            raise UserError(
                f"--image_size: expected a multiple of {STRIDE} with masks; found {self.image_size}"
            )
        if self.cameras < 1:
            raise UserError(f"--num_cameras: expected at least 1; found {self.num_cameras}")
        for name in ("label_share", "warmup"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"--{name}: expected 0 to 1; found {value}")
        if not all(0 < angle <= 180 for angle in self.angle_ranges):
            raise UserError(f"--angle_ranges: expected angles over 0 up to 180; found {self.angle_ranges}")
        if self.frozen_crops < 1:
            raise UserError(f"--frozen_crops: expected at least 1; found {self.frozen_crops}")
        if self.freeze and self.supervise != "keypoints":
            raise UserError(
                "--freeze: expected --supervise keypoints, as the pixel map learns from maps that a frozen "
                f"encoder does not keep; found --supervise {self.supervise}"
            )
        if self.flip_consistency < 0:
            raise UserError(f"--flip_consistency: expected at least 0; found {self.flip_consistency}")
        if self.freeze and self.compile:
            raise UserError("--compile: expected an encoder to train; found --freeze")
        if self.freeze and self.flip == "both":
            raise UserError("--flip both: expected --flip random or none with --freeze")
        known = ("labels", *training_data.PUBLISHED_DATASETS)
        if self.dataset not in known:
            raise UserError(f"--dataset: expected one of {', '.join(known)}; found {self.dataset}")

    @property
    def arm_name(self) -> str:
        """The arm under checkpoints/acsm/, its default filled in."""
        return self.training_name or "labels"

    @property
    def cameras(self) -> int:
        """Camera hypotheses, the default filled in."""
        if self.num_cameras is not None:
            return self.num_cameras
        return MANY_CAMERAS if self.supervise == "masks" else 1

    @property
    def camera_kind(self) -> Literal["turntable", "quaternion", "angles"]:
        """How a camera's rotation is predicted, the default filled in."""
        if self.camera != "auto":
            return self.camera
        return "turntable" if self.cameras == 1 else "angles"


VALIDATION = "validation labels"
WANTED = {"keypoints": "visible keypoints", "masks": "masks", "either": "visible keypoints or masks"}
NEEDS: Mapping[str, Need] = {"keypoints": "keypoints", "masks": "masks", "both": "either"}


def _guide(template: ArticulatedTemplate, records: AnimalRecords) -> tuple[np.ndarray, np.ndarray]:
    points = template.vertices[template.keypoint_vertices]
    return guiding_cameras(points, records.xy, records.weight, records.box_xyxy)


def _samples(
    records: AnimalRecords, config: Config, template: ArticulatedTemplate, what: str
) -> ShapeSamples:
    style = CropStyle(
        flip=0.5 if config.flip == "random" else 0.0,
        rotation_deg=config.rotation,
        colour=config.colour,
    )
    if config.supervise == "masks" and what != VALIDATION:
        records = dataclasses.replace(records, weight=np.zeros_like(records.weight))
    guided = config.camera_guide and config.supervise != "masks" and len(records)
    guide = _guide(template, records) if guided else None
    masks = config.supervise != "keypoints"
    flip = template.keypoint_flip
    samples = ShapeSamples(records, config.image_size, flip, style, guide, masks=masks)
    unreadable = samples.drop_unreadable()
    total = len(records) + len(records.skipped)
    tell_skipped([*records.skipped, *unreadable], total, what)
    return samples


def _joined(labels: ShapeSamples, web: ShapeSamples | None) -> ShapeSamples:
    return labels if web is None else labels.joined(web)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Train one arm and give the validation metrics of its best checkpoint.

    Raises:
        UserError: tables are missing or do not fit, there are fewer animals than a batch, the loss
            stops being a number, or another training of this name is there.
    """
    spec, arm = workspace.category, config.arm_name
    template = template_for(spec)
    if "file" in spec.template:
        for fault in faults(template, spec.skeleton):
            say(f"template of {spec.name}: {fault}")
    masked, need = config.supervise != "keypoints", NEEDS[config.supervise]
    sphere = sphere_vertices(template) if masked else None
    label_records, web_records, inputs = training_data.training_records(config, workspace, need)
    val_records, _ = training_data.labelled(workspace, "val", spec.skeleton, need=need)
    labels = _samples(label_records, config, template, "training labels")
    web = None
    if web_records is not None:
        web = _samples(web_records, config, template, "web animals")
    val = _samples(val_records, config, template, VALIDATION)
    if masked:
        check_masks(config.supervise, workspace, labels, web, val)
    for samples, split in ((labels, "train"), (val, "val")):
        if not len(samples):
            raise UserError(
                f"expected {split} labels with images and {WANTED[need]} for {spec.name}; found "
                f"none; run: {workspace.made_by('labels')}"
            )
    device = pick_device(config.device)
    arch = ACSMArchitecture(
        image_size=config.image_size,
        num_cameras=config.cameras,
        camera=config.camera_kind,
        order=config.order,
        translations=config.translations,
        angle_ranges_deg=config.angle_ranges,
        pixel_map=masked,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ACSM(template, arch)
    origin = initialise(model, config.init, config.imagenet, template)
    if sphere is not None:
        model.sphere.copy_(torch.from_numpy(sphere))
    if config.freeze and config.init is None and origin.startswith("random"):
        raise UserError(
            "--freeze: expected weights worth keeping; found random ones; add --init with a checkpoint of "
            "pose-train or acsm-train"
        )
    samples = _joined(labels, web)
    say(
        f"acsm {arm}: {origin}; {len(labels)} labelled and {0 if web is None else len(web)} web "
        f"animals, {len(val)} to validate; {config.steps} steps of {config.batch_size} at "
        f"{config.image_size} px on {device.type}"
    )
    kind = MaskShapeTask if masked else FrozenShapeTask if config.freeze else ShapeTask
    task = kind(model.to(device), samples, val, config, len(labels))
    task.template, task.skeleton = template, spec.skeleton
    result = fit(
        task,
        _fit_config(config, arm, device, "auc" if val.records.counts.any() else "miou"),
        workspace.checkpoint_dir(f"acsm/{arm}"),
        _provenance(config, workspace, template, inputs, masks_digest(samples.records)),
        {
            "kind": "acsm",
            "category": spec.name,
            "skeleton": spec.skeleton.name,
            "keypoints": list(spec.skeleton.keypoints),
            "arch": dataclasses.asdict(arch),
            "padding": samples.style.padding,
            "template": pack_template(template),
            "weights_from": origin,
            "supervise": config.supervise,
        },
        config.monitor(workspace.name, f"acsm {arm}", workspace.run_dir / "visdom"),
    )
    return _report(config, workspace, origin, (len(labels), 0 if web is None else len(web)), result)


def _fit_config(config: Config, arm: str, device: torch.device, metric: str) -> FitConfig:
    if config.supervise == "masks":
        metric = "miou"
    return fit_config(
        config,
        metric=metric,
        warmup=min(100, config.steps // 10),
        autocast=bfloat16_pays(config.precision, device),
        title=f"acsm {arm}",
    )


_SETTINGS = (
    "use_web_images", "web_images_num", "filter", "pl_source", "labels_from", "label_share",
    "image_size", "steps", "batch_size", "lr", "schedule", "seed", "flip", "rotation", "colour",
    "camera_guide", "turn_weight", "upright_weight", "freeze", "frozen_crops", "warmup", "num_cameras",
    "camera_kind", "angle_ranges", "entropy_weight", "spread_weight", "translations", "order",
    "eval_every", "precision", "imagenet",
)  # fmt: skip
_LATER_SETTINGS = ("flip_consistency", "compile")


def _provenance(
    config: Config,
    workspace: Workspace,
    template: ArticulatedTemplate,
    inputs: Sequence[Path],
    masks: str,
) -> Provenance:
    settings = {name: getattr(config, name) for name in _SETTINGS}
    settings["num_cameras"] = config.cameras
    settings |= config.mask_settings()
    if config.supervise != "keypoints":
        settings["masks"] = masks
    # What was not there before is remembered where it is asked for: older trainings stay as they are.
    settings |= {name: getattr(config, name) for name in _LATER_SETTINGS if getattr(config, name)}
    settings |= web_settings(config)
    if config.rotation and config.upright_weight:
        settings["upright"] = "turned with the crop"
    settings["template"] = template_hash(template)
    files = [*inputs, *([config.init] if config.init else [])]
    return Provenance("acsm-train", settings, input_hashes(workspace.root, *files))


def _report(
    config: Config, workspace: Workspace, origin: str, counts: tuple[int, int], result: Any
) -> dict[str, Any]:
    metrics: Mapping[str, Any] = {
        "model": f"acsm/{config.arm_name}",
        "arm_name": config.arm_name,
        "weights_from": origin,
        "labelled_animals": counts[0],
        "web_animals": counts[1],
        "steps": result.step,
        "finished": result.finished,
        "seconds": round(result.seconds, 2),
        "val": result.metrics,
    }
    workspace.write_metrics(f"acsm_train_{config.arm_name}", metrics)
    scores = ", ".join(f"{name} {value:.2f}" for name, value in result.metrics.items())
    state = "" if result.finished else " (stopped by --time_limit: run again to continue)"
    say(
        f"acsm {config.arm_name}: {result.step} of {config.steps} steps{state}; best on val: "
        f"{scores or 'none yet'}"
    )
    return dict(metrics)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape acsm-train")


if __name__ == "__main__":
    sys.exit(main())
