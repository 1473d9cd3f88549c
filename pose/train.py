"""`wildshape pose-train`: train the 2D keypoint network on the labelled animals."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pose.data import AUGMENTATIONS, PoseSamples
from pose.heatmaps import absent_mse, joints_mse, make_targets, xy_crop_to_cell
from pose.model import STRIDE, PoseNet, load_published
from pose.predict import PosePredictor, normalise
from pose.pseudo_labels import model_name
from wildshape.cli import say, script_main
from wildshape.device import bfloat16_pays, pick_device
from wildshape.errors import UserError
from wildshape.geometry import Affine2D, crop_affine, warp_crop
from wildshape.metrics import pck
from wildshape.monitor import MonitorOptions
from wildshape.pretrained import load_imagenet_backbone
from wildshape.records import AnimalRecords, join_records, tell_skipped
from wildshape.report.drawing import contact_sheet, draw_keypoints
from wildshape.stage import Provenance, input_hashes
from wildshape.training import fit, fit_config
from wildshape.training_data import TrainingDataConfig, labelled, training_records, web_settings

if TYPE_CHECKING:
    from wildshape.skeleton import Skeleton
    from wildshape.workspace import Workspace

# With one --seed the second network shares no draw with the first.
_AUX_SEED = 10_000
SHOWN = 8
_DEFAULT_BACKBONE = {False: "resnet50", True: "resnet34"}


@dataclass(frozen=True, kw_only=True)
class Config(MonitorOptions, TrainingDataConfig):
    """Train the 2D keypoint network on labelled animals, with --use_web_images also on selected
    pseudo-labels; choose on val, never read test."""

    is_aux: bool = False
    """Train the auxiliary network that CF-CM compares with: other draws, initialisation, augmentation
    and, unless --backbone says otherwise, depth."""
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] | None = None
    """Default: that of --init, else resnet50 (resnet34 with --is_aux)."""
    head_channels: int | None = None
    """Width of the upsampling head; default that of --init, else 256. 64 saves a third on a CPU."""
    image_size: int = 256
    """Side of the square crops in pixels, a multiple of 32."""
    steps: int = 5000
    """Optimiser steps (published: 50,000)."""
    batch_size: int = 32
    """Crops a step."""
    lr: float | None = None
    """Adam's learning rate; default 5e-4, or 1e-4 with --published."""
    schedule: Literal["cosine", "constant"] | None = None
    """Learning rate over the steps; default cosine, or constant with --published."""
    init: Path | None = None
    """Checkpoint to start from, ours or a published one."""
    imagenet: bool = True
    """Start from ImageNet weights where they can be had (unless --init is given)."""
    augmentation: Literal["default", "published", "aux", "none"] | None = None
    """Default: default, or aux with --is_aux, or published with --published."""
    published: bool = False
    """Targets on whole cells, augmentation, schedule and choice of checkpoint as released."""
    hidden: float | None = None
    """Weight with which heatmaps of keypoints that are not seen are drawn to zero, so that confidence tells
    visibility; default 1, or 0 with --published. Take 0 for labels that leave visible keypoints out."""
    best_by: float | None = None
    """PCK threshold that chooses the best checkpoint on val; default .1, or .04 with --published."""
    eval_every: int = 250
    """Steps between evaluations on val."""
    time_limit: float | None = None
    """Minutes after which to stop with the state saved; the same command continues."""
    num_workers: int = 1
    """Threads that prepare crops ahead."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the forward pass; auto takes bfloat16 where the hardware has it."""
    compile: bool = False
    """Compile the network with torch.compile, which takes minutes at first."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the flag."""
        if self.image_size < 64 or self.image_size % 32:
            raise UserError(f"--image_size: expected a multiple of 32 from 64; found {self.image_size}")
        if self.published and self.use_web_images:
            raise UserError("--published: expected labels alone; found --use_web_images with it")
        for flag in ("lr", "best_by", "head_channels"):
            given = getattr(self, flag)
            if given is not None and not given > 0:
                raise UserError(f"--{flag}: expected more than 0; found {given}")


@dataclass(frozen=True)
class _Resolved:
    """The settings with their defaults filled in: what the result depends on."""

    backbone: str
    head_channels: int
    lr: float
    schedule: str
    augmentation: str
    best_by: float
    hidden: float
    seed: int


def _resolve(config: Config, start: PoseNet | None) -> _Resolved:
    arch: Mapping[str, Any] = start.arch if start else {}
    for flag in ("backbone", "head_channels"):
        given = getattr(config, flag)
        if start and given not in (None, arch[flag]):
            raise UserError(f"--{flag}: expected {arch[flag]}, as in --init; found {given}")
    default = "published" if config.published else "aux" if config.is_aux else "default"
    return _Resolved(
        backbone=config.backbone or arch.get("backbone") or _DEFAULT_BACKBONE[config.is_aux],
        head_channels=config.head_channels or arch.get("head_channels") or 256,
        lr=config.lr or (1e-4 if config.published else 5e-4),
        schedule=config.schedule or ("constant" if config.published else "cosine"),
        augmentation=config.augmentation or default,
        best_by=config.best_by or (0.04 if config.published else 0.1),
        hidden=float(not config.published) if config.hidden is None else config.hidden,
        seed=config.seed + (_AUX_SEED if config.is_aux else 0),
    )


class PoseTask:
    """What `wildshape.training.fit` trains: network, samples, loss and validation.

    Args:
        model: the network, on its device.
        samples: training crops.
        val: records to validate on.
        lr: Adam's learning rate.
        thresholds: of the validation PCK.
        published: targets and decoding of the released code.
        hidden: weight of `absent_mse`.
        skeleton: bones and sides of the keypoints, for pictures.
    """

    def __init__(
        self,
        model: PoseNet,
        samples: PoseSamples,
        val: PoseSamples,
        *,
        lr: float,
        thresholds: Sequence[float] = (0.1,),
        published: bool = False,
        hidden: float = 0.0,
        skeleton: "Skeleton | None" = None,
    ) -> None:
        self.skeleton = skeleton
        self.model = model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
        self.samples = samples
        self.published, self.hidden = published, hidden
        self.thresholds = thresholds
        self._val = val.records
        size = samples.image_size
        affines = [crop_affine(box, size) for box in val.records.box_xyxy]
        self._val_crops = np.stack(
            [warp_crop(val.image(i), affine, size) for i, affine in enumerate(affines)]
        )
        self._val_affines = np.stack([affine.matrix for affine in affines])

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One augmented crop (see `PoseSamples.sample`)."""
        return self.samples.sample(index, rng)

    def shown(self, index: int, rng: np.random.Generator) -> str:
        """The animal of which `sample` gives a crop."""
        return self.samples.records.instance_ids[index]

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """The published loss of a batch, and that of keypoints that are not seen if asked for."""
        heatmaps = self.model(normalise(batch["crop"])).float()
        xy_cell = xy_crop_to_cell(batch["xy_crop"], STRIDE, self.published)
        size = (heatmaps.shape[-2], heatmaps.shape[-1])
        height = batch["weight"].clamp(max=1)
        targets, weight = make_targets(xy_cell, height > 0, size, published=self.published)
        # Peaks of pseudo-labels are as high as their network was sure: confidence keeps its meaning.
        loss = joints_mse(heatmaps, targets * height[..., None, None], weight)
        if self.hidden:
            empty = absent_mse(heatmaps, weight)
            return loss + self.hidden * empty, {"empty": float(empty.detach())}
        return loss, {}

    def evaluate(self) -> dict[str, float]:
        """PCK on the validation records, as `pck@<threshold>`."""
        xy, confidence = self._predictor().predict_crops(self._val_crops, self._val_affines)
        values = pck(xy, self._val.xy, self._val.counts, self._val.box_side, self.thresholds)
        metrics = {f"pck@{t:g}": float(value) for t, value in zip(self.thresholds, values)}
        return {**metrics, "confidence": float(confidence[self._val.counts].mean())}

    def _predictor(self) -> PosePredictor:
        return PosePredictor(
            self.model,
            self.samples.image_size,
            [""] * self.model.num_keypoints,
            device=str(next(self.model.parameters()).device),
            published=self.published,
        )

    def pictures(self) -> dict[str, np.ndarray]:
        """Validation animals with their true keypoints, and below each with the predicted ones."""
        crops, affines = self._val_crops[:SHOWN], self._val_affines[:SHOWN]
        xy, confidence = self._predictor().predict_crops(crops, affines)
        rows = []
        for i, (crop, matrix) in enumerate(zip(crops, affines)):
            affine, true = Affine2D(matrix), np.where(self._val.counts[i, :, None], self._val.xy[i], np.nan)
            rows.append(draw_keypoints(crop, affine.apply(true), None, self.skeleton))
            rows.append(draw_keypoints(crop, affine.apply(xy[i]), confidence[i], self.skeleton))
        names = [name for i in range(len(crops)) for name in ("true", "predicted")]
        return {"validation animals": contact_sheet(rows, columns=8, captions=names)}


def build_model(config: Config, workspace: "Workspace") -> tuple[PoseNet, _Resolved, str]:
    """The network before its first step, the resolved settings, and where its weights are from.

    Raises:
        UserError: `--init` cannot be read or contradicts another flag.
    """
    start = load_published(config.init) if config.init else None
    settings = _resolve(config, start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        keypoints = workspace.category.skeleton.num_keypoints
        model = PoseNet(keypoints, settings.backbone, settings.head_channels)
    if start is None:
        if config.imagenet and load_imagenet_backbone(model.backbone, str(model.arch["backbone"])):
            return model, settings, "ImageNet weights"
        unavailable = " (ImageNet weights cannot be had here)" if config.imagenet else ""
        return model, settings, f"random weights{unavailable}"
    state = start.state_dict()
    if start.num_keypoints != keypoints:
        state = {n: v for n, v in state.items() if not n.startswith("head.layers.3.")}
    model.load_state_dict(state, strict=False)
    fresh = "" if start.num_keypoints == keypoints else ", but for the last layer"
    return model, settings, f"{config.init}{fresh}"


def _samples(
    records: AnimalRecords, config: Config, workspace: "Workspace", augmentation: str, what: str
) -> PoseSamples:
    samples = PoseSamples(
        records, config.image_size, workspace.category.skeleton.flip, AUGMENTATIONS[augmentation]
    )
    unreadable = samples.drop_unreadable()
    skipped = [*records.skipped, *unreadable]
    total = len(records) + len(records.skipped)
    tell_skipped(skipped, total, what)
    if not len(samples):
        raise UserError(
            f"expected {what} with images and visible keypoints for "
            f"{workspace.category.name}; found none among {total}; run: {workspace.made_by('labels')}"
        )
    return samples


def _later_settings(config: Config) -> dict[str, Any]:
    """What is remembered only where it is asked for: trainings from before there was any stay."""
    found: dict[str, Any] = {"compile": True} if config.compile else {}
    if config.published:
        found["warmup"] = 0
    if config.use_web_images:
        names = ("use_web_images", "web_images_num", "filter", "pl_source")
        found |= {name: getattr(config, name) for name in names} | web_settings(config)
    return found


def run(config: Config, workspace: "Workspace") -> dict[str, Any]:
    """Train and give the validation metrics of the best checkpoint.

    Raises:
        UserError: labels are missing or do not fit, or a training with other settings is there.
    """
    # Trained on another run's pseudo-labels, a network is this run's own and takes no arm's name.
    arm = config.arm if config.web_run else config.training_name
    name = model_name(config.is_aux, arm)
    spec = workspace.category
    records, web_records, inputs = training_records(config, workspace)
    model, settings, origin = build_model(config, workspace)
    what = "train labels"
    if web_records is not None:
        records, what = join_records([records, web_records]), "train labels and web animals"
    samples = _samples(records, config, workspace, settings.augmentation, what)
    val_records, _ = labelled(workspace, "val", spec.skeleton)
    val = _samples(val_records, config, workspace, "none", "val labels")
    device = pick_device(config.device)
    say(
        f"{name}: {settings.backbone} from {origin}, {len(samples)} training and {len(val)} "
        f"validation animals, {config.steps} steps of {config.batch_size} on {device.type}"
    )
    thresholds = sorted({0.02, 0.05, 0.1, settings.best_by})
    task = PoseTask(
        model.to(device),
        samples,
        val,
        lr=settings.lr,
        thresholds=thresholds,
        published=config.published,
        hidden=settings.hidden,
        skeleton=spec.skeleton,
    )
    result = fit(
        task,
        fit_config(
            config,
            seed=settings.seed,
            metric=f"pck@{settings.best_by:g}",
            schedule=settings.schedule,
            warmup=0 if config.published else min(100, config.steps // 10),
            autocast=bfloat16_pays(config.precision, device),
            title=name,
        ),
        workspace.checkpoint_dir(name),
        Provenance(
            "pose-train",
            {
                **vars(settings),
                "is_aux": config.is_aux,
                "image_size": config.image_size,
                "steps": config.steps,
                "batch_size": config.batch_size,
                "eval_every": config.eval_every,
                "imagenet": config.imagenet,
                "published": config.published,
                "precision": config.precision,
                "labels_from": list(config.other_categories),
                **_later_settings(config),
            },
            input_hashes(workspace.root, *inputs, *([config.init] if config.init else [])),
        ),
        {
            "kind": "pose",
            "category": spec.name,
            "skeleton": spec.skeleton.name,
            "keypoints": list(spec.skeleton.keypoints),
            "flip": list(spec.skeleton.flip),
            "arch": model.arch,
            "image_size": config.image_size,
            "published": config.published,
            "weights_from": origin,
        },
        config.monitor(workspace.name, name, workspace.run_dir / "visdom"),
    )
    metrics = {
        "model": name,
        "weights_from": origin,
        "training_animals": len(samples),
        "steps": result.step,
        "finished": result.finished,
        "seconds": round(result.seconds, 2),
        "val": result.metrics,
    }
    workspace.write_metrics(f"{name}_train", metrics)
    scores = ", ".join(f"{k} {v:.3f}" for k, v in result.metrics.items())
    state = "" if result.finished else " (stopped by --time_limit: run again to continue)"
    say(f"{name}: {result.step} of {config.steps} steps{state}; best on val: {scores or 'none yet'}")
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape pose-train")


if __name__ == "__main__":
    sys.exit(main())
