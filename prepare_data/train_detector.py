"""Train the detector of the synthetic world: SSDlite with MobileNetV3 on its pictures, from random weights.

    python prepare_data/train_detector.py --out detector --time-limit 100

It writes checkpoints and `detector.pt`, half-precision weights that `--detector
torchvision:ssdlite320_mobilenet_v3_large --opts MODEL.WEIGHTS detector.pt` reads. Run it again to continue.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from prepare_data.average_precision import average_precision, best_threshold
from prepare_data.diorama.config import DioramaConfig
from prepare_data.diorama.scene import Picture, render_picture
from prepare_data.diorama.species import SPECIES
from prepare_data.diorama.zoo import Zoo
from wildshape.cli import guarded, say
from wildshape.device import pick_device
from wildshape.stage import Provenance, progress
from wildshape.training import FitResult, fit, fit_config, load_checkpoint, save_checkpoint

MODEL = "ssdlite320_mobilenet_v3_large"
LABELS = ("__background__", *sorted(SPECIES))
SIDE = 320
SMALL_SIDE = 192
_MOST_BOXES = 16
_LEAST_PIXELS = 120  # of an animal that counts
_LEAST_SEEN = 0.35  # share of a box that a crop must keep
_TRAIN, _VAL = 11, 12  # streams of pictures that no world uses


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train the synthetic world's detector."""

    out: Path = Path("detector")
    """Folder for checkpoints and weights."""
    pictures: int = 6000
    """Pictures to train on, of all species alike."""
    val_pictures: int = 480
    """Pictures to validate on."""
    small_steps: int = 4000
    """Optimiser steps on pictures of 192 pixels, which take a third of the time."""
    steps: int = 1800
    """Optimiser steps after them on pictures of 320 pixels."""
    batch_size: int = 16
    """Pictures a step."""
    lr: float = 2e-3
    """AdamW's learning rate, falling by a cosine to a hundredth; on the large pictures half of it."""
    eval_every: int = 500
    """Steps between evaluations."""
    seed: int = 9000
    """Seed of the pictures and of the training; worlds should have another."""
    time_limit: float | None = None
    """Minutes after which to stop with the state saved; the same command continues."""
    num_workers: int = 1
    """Threads that prepare pictures ahead."""
    device: str = "auto"
    """auto, cpu or cuda."""
    overwrite: bool = False
    """Replace a training with other settings."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Example:
    """An encoded picture and its animals: boxes [N, 4] from the picture's edge, labels [N]."""

    data: bytes
    boxes: np.ndarray
    labels: np.ndarray


def make_example(picture: Picture, rng: np.random.Generator) -> Example:
    """Encode a picture as a world would, with the animals that can be made out."""
    bgr = cv2.cvtColor(picture.image, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 96))])[1].tobytes()
    seen = [animal for animal in picture.animals if animal.mask.sum() >= _LEAST_PIXELS][:_MOST_BOXES]
    boxes = np.array([animal.box_xyxy + 0.5 for animal in seen], dtype=np.float32).reshape(-1, 4)
    return Example(data, boxes, np.array([LABELS.index(animal.species) for animal in seen], dtype=np.int64))


def make_examples(stream: int, count: int, seed: int, title: str) -> list[Example]:
    """Pictures about each species in turn, some of them without any animal."""
    config = DioramaConfig(seed=seed, several_share=0.3, distractor_share=0.3, difficulty=0.5)
    zoo = Zoo(seed, (), config.variety)
    species = sorted(SPECIES)

    def one(index: int) -> Example:
        rng = np.random.default_rng([seed, stream, index])
        cast = "empty" if rng.random() < config.empty_share else "animal"
        about = species[index % len(species)]
        return make_example(render_picture(zoo, config, about, stream, index, cast), rng)

    with ThreadPoolExecutor() as pool:
        return list(progress(pool.map(one, range(count)), title, total=count, unit="picture"))


def augment(example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A training item: the picture zoomed, moved, mirrored and tinted into a square, boxes likewise.

    Returns:
        image uint8 [S, S, 3], boxes float32 [M, 4] and labels int64 [M], label 0 where there is no box.
    """
    image = cv2.imdecode(np.frombuffer(example.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    height, width = image.shape[:2]
    zoom = np.exp(rng.uniform(np.log(0.5), np.log(1.8)))
    sx, sy = (zoom * SIDE / side * np.exp(rng.normal(0, 0.1)) for side in (width, height))
    room = (SIDE - sx * width, SIDE - sy * height)
    shift = [rng.uniform(min(0, space), max(0, space)) for space in room]
    matrix = np.array([[sx, 0, shift[0]], [0, sy, shift[1]]])
    boxes = example.boxes * [sx, sy, sx, sy] + [*shift, *shift]
    if rng.random() < 0.5:
        matrix[0] = [-sx, 0, SIDE - shift[0]]
        boxes[:, [0, 2]] = SIDE - boxes[:, [2, 0]]
    # warpAffine counts from pixel centres, boxes from the edge.
    matrix[:, 2] += 0.5 * (matrix[:, :2].sum(1) - 1)
    border = tuple(int(value) for value in rng.integers(0, 256, 3))
    image = cv2.warpAffine(image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=border)
    tint = rng.uniform(0.75, 1.25, 3) * rng.uniform(0.7, 1.3)
    image = np.clip(image * tint + rng.uniform(-20, 20), 0, 255).astype(np.uint8)
    clipped = np.clip(boxes, 0, SIDE)
    area, left = (np.prod(box[:, 2:] - box[:, :2], axis=1) for box in (boxes, clipped))
    kept = np.flatnonzero((left > _LEAST_SEEN * area) & (left > _LEAST_PIXELS))
    padded = np.zeros((_MOST_BOXES, 4), np.float32)
    labels = np.zeros(_MOST_BOXES, np.int64)
    padded[: len(kept)], labels[: len(kept)] = clipped[kept], example.labels[kept]
    return {"image": image, "boxes": padded, "labels": labels}


class DetectorTask:
    """What `wildshape.training.fit` trains.

    Args:
        train: Pictures to train on.
        val: Pictures to validate on.
        side: Of the model's input, in pixels.
        lr: Learning rate.
        seed: Of the weights to start with.
        device: Where to train.
    """

    def __init__(
        self,
        train: Sequence[Example],
        val: Sequence[Example],
        *,
        side: int = SIDE,
        lr: float = 2e-3,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = torchvision.models.get_model(
                MODEL, weights=None, weights_backbone=None, num_classes=len(LABELS)
            )
        # It resizes its input itself; its anchors are relative to the input's side.
        model.transform.min_size, model.transform.max_size = (side,), side
        model.transform.fixed_size = (side, side)
        self.model = model.to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
        self._train, self._val, self._side, self._device = train, val, side, device

    def __len__(self) -> int:
        return len(self._train)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One augmented picture."""
        return augment(self._train[index], rng)

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """SSD's losses of boxes and classes."""
        side = self._side
        images = batch["image"].permute(0, 3, 1, 2).float() / 255  # channels last in memory
        if side != SIDE:
            images = nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        targets = [
            {"boxes": boxes[labels > 0] * (side / SIDE), "labels": labels[labels > 0]}
            for boxes, labels in zip(batch["boxes"], batch["labels"])
        ]
        losses = self.model(list(images), targets)
        return sum(losses.values()), {name: float(value.detach()) for name, value in losses.items()}

    def evaluate(self) -> dict[str, float]:
        """COCO's average precision on the validation pictures, in percent."""
        return average_precision(*self.found())

    @torch.inference_mode()
    def found(self) -> tuple[list[Any], list[Any], int]:
        """Truth and detections of the validation pictures, as `average_precision` takes them."""
        self.model.eval()
        found = []
        for example in self._val:
            image = cv2.imdecode(np.frombuffer(example.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
            (result,) = self.model([tensor.to(self._device)])
            found.append(tuple(result[key].cpu().numpy() for key in ("boxes", "scores", "labels")))
        return [(example.boxes, example.labels) for example in self._val], found, len(LABELS) - 1


def run(config: Config) -> dict[str, Any]:
    """Train or continue, and write the weights; returns the validation metrics of the best state."""
    train = make_examples(_TRAIN, config.pictures, config.seed, "pictures to train on")
    val = make_examples(_VAL, config.val_pictures, config.seed, "pictures to validate on")
    common: dict[str, Any] = {"seed": config.seed, "device": pick_device(config.device)}
    task = DetectorTask(train, val, side=SMALL_SIDE, lr=config.lr, **common)
    small = _fit(task, config, config.out / "small", config.small_steps, SMALL_SIDE)
    limit = config.time_limit
    left = None if limit is None else limit - small.seconds / 60
    if not small.finished or (left is not None and left <= 0):
        say(f"train_detector: {small.step} of {config.small_steps} steps on small pictures; run again")
        return {"finished": False, **small.metrics}
    start = load_checkpoint(small.best_path, "detector")["model"]
    task = DetectorTask(train, val, lr=config.lr / 2, **common)
    task.model.load_state_dict(start)
    result = _fit(task, replace(config, time_limit=left), config.out, config.steps, SIDE)
    best = load_checkpoint(result.best_path, "detector")["model"]
    half = {name: value.half() if value.is_floating_point() else value for name, value in best.items()}
    task.model.load_state_dict(half)
    threshold, f1 = best_threshold(*task.found())
    metrics = {**result.metrics, "f1": 100 * f1, "score_threshold": threshold}
    facts = {"architecture": MODEL, "categories": list(LABELS), "score_threshold": threshold}
    weights = config.out / "detector.pt"
    save_checkpoint(weights, {"model": half, **facts, "metrics": metrics})
    figures = ", ".join(f"{name} {value:.1f}" for name, value in result.metrics.items())
    say(
        f"train_detector: {result.step} of {config.steps} steps; best on val: {figures}; "
        f"F1 {100 * f1:.1f} from score {threshold:.2f} on -> {weights}"
    )
    return {"finished": result.finished, **metrics}


def _fit(task: DetectorTask, config: Config, out: Path, steps: int, side: int) -> FitResult:
    kept = {"out", "time_limit", "num_workers", "device", "overwrite", "debug", "eval_every", "steps"}
    settings = {key: value for key, value in asdict(config).items() if key not in kept}
    if side == SMALL_SIDE:
        del settings["small_steps"]
    fitting = fit_config(
        config,
        steps=steps,
        metric="ap",
        schedule="cosine",
        warmup=min(500, steps // 10),
        title=f"detector, {side} px",
    )
    provenance = Provenance("train_detector", {**settings, "steps": steps, "side": side})
    return fit(
        task, fitting, out, provenance, {"kind": "detector", "model": MODEL, "categories": list(LABELS)}
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script."""
    import tyro

    arguments = list(sys.argv[1:] if argv is None else argv)

    def action() -> None:
        run(tyro.cli(Config, args=arguments, prog="train_detector.py", description=Config.__doc__))

    return guarded(action, debug="--debug" in arguments)


if __name__ == "__main__":
    sys.exit(main())
