"""What `wildshape.training.fit` trains here: the 3D model, all of it or what follows its encoder."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from acsm.data import ShapeSamples
from acsm.flip_consistency import flip_consistency_loss, mirrored_hypotheses
from acsm.losses import LossWeights, total_loss
from acsm.metrics import auc, camera_errors
from acsm.model import ACSM
from acsm.predict import ShapePredictor, Shapes, normalise
from wildshape.device import bfloat16_pays
from wildshape.errors import UserError
from wildshape.stage import progress

if TYPE_CHECKING:
    from acsm.template import ArticulatedTemplate
    from acsm.train import Config
    from wildshape.skeleton import Skeleton

LOOK_BATCH = 64
MOST_BYTES = 4 << 30
SHOWN = 8


def halves(prediction: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch's prediction as that of its first and that of its second half."""
    pairs = {name: value.chunk(2) for name, value in prediction.items()}
    first, second = ({name: pair[i] for name, pair in pairs.items()} for i in range(2))
    return first, second


class ShapeTask:
    """What `wildshape.training.fit` trains: model, samples, loss and validation.

    Args:
        model: the model, on its device.
        samples: training crops; the first ``num_labels`` are labelled by people.
        val: validation crops.
        config: settings of the training.
        num_labels: see ``samples``.

    Attributes:
        template: for pictures; None: there are none.
        skeleton: bones and sides of the keypoints, for pictures.
    """

    template: ArticulatedTemplate | None = None
    skeleton: Skeleton | None = None

    def __init__(
        self,
        model: ACSM,
        samples: ShapeSamples,
        val: ShapeSamples,
        config: Config,
        num_labels: int,
    ) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        self.samples, self.config, self.num_labels = samples, config, num_labels
        self.prepare()
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.lr, fused=True)
        self._articulate_from = round(config.warmup * config.steps)
        self._hypotheses: Tensor | None = None
        if config.flip_consistency:
            self._hypotheses = mirrored_hypotheses(model.camera_head.bias)
        self._val = val.records
        affines = [val.evaluation_affine(i) for i in range(len(val))]
        self._val_crops = np.stack([val.crop(i, affine) for i, affine in enumerate(affines)])
        self._val_affines = np.stack([affine.matrix for affine in affines])

    def prepare(self) -> None:
        """What comes before the optimiser; nothing here."""

    @property
    def compiled(self) -> torch.nn.Module:
        """What --compile compiles: the encoder, where the time goes."""
        return self.model.encoder

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One varied crop (see `acsm.data.ShapeSamples.sample`)."""
        index = self._choose(index, rng)
        return self._weighted(self.samples.sample(index, rng), index)

    def shown(self, index: int, rng: np.random.Generator) -> str:
        """The animal of which `sample` gives a crop."""
        return self.samples.records.instance_ids[self._choose(index, rng)]

    def _weighted(self, item: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        """A sample with the weight of its keypoints, where web animals have one of their own."""
        if self.config.web_weight == 1:
            return item
        weight = np.float32(1 if index < self.num_labels else self.config.web_weight)
        trust = np.array([1, 1, 1, 1, weight], np.float32)
        return {**item, "emphasis": weight, "guide": item["guide"] * trust}

    def _choose(self, index: int, rng: np.random.Generator) -> int:
        """The animal itself, or another one so that labels get their share."""
        share = self.config.label_share
        if share is None or not 0 < self.num_labels < len(self.samples):
            return index
        labelled = rng.random() < share
        low, high = (0, self.num_labels) if labelled else (self.num_labels, len(self.samples))
        return int(rng.integers(low, high))

    def parameters_rest(self, step: int) -> bool:
        """Whether some parameters have no gradient: those of the parts during the warm-up."""
        return step < self._articulate_from

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch, parts at rest during the warm-up."""
        if self.config.flip == "both":
            batch = self._with_mirror(batch)
        prediction, flip = self._predict_with_mirror(batch, step >= self._articulate_from)
        weights = LossWeights(
            camera=self.config.camera_guide,
            turn=self.config.turn_weight,
            upright=self.config.upright_weight,
            entropy=self.config.entropy_weight,
            spread=self.config.spread_weight,
        )
        target = batch["target_ndc"], batch["weight"], batch["guide"]
        loss, terms = total_loss(prediction, *target, weights, batch.get("emphasis"), batch.get("up"))
        if flip is not None:
            loss, terms = (
                loss + self.config.flip_consistency * flip,
                {**terms, "flip": float(flip.detach())},
            )
        return loss, terms

    def _predict_with_mirror(
        self, batch: dict[str, Tensor], articulated: bool
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The prediction to be held against targets, and its inconsistency with the mirrored images'."""
        if self._hypotheses is None:
            return self.predict(batch, articulated=articulated), None
        both = self.config.flip == "both"
        prediction = self.predict(batch if both else self.with_mirrored(batch), articulated=articulated)
        plain, mirrored = halves(prediction)
        flip = flip_consistency_loss(plain, mirrored, self.model.part_mirror, self._hypotheses)
        return (prediction if both else plain), flip

    def with_mirrored(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What is predicted from: the crops, and after them their mirror images."""
        return {"crop": torch.cat((batch["crop"], batch["crop"].flip(2)))}

    def predict(self, batch: dict[str, Tensor], articulated: bool) -> dict[str, Tensor]:
        """The model's prediction for a batch."""
        return self.model(normalise(batch["crop"]), articulated=articulated)

    def _with_mirror(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        flip = self.model.keypoint_flip
        signs = batch["target_ndc"].new_tensor((-1.0, 1.0))
        guide = batch["guide"].new_tensor((1.0, 1.0, -1.0, -1.0, 1.0))
        mirrored = {
            "crop": batch["crop"].flip(2),
            "target_ndc": batch["target_ndc"][:, flip] * signs,
            "weight": batch["weight"][:, flip],
            "guide": batch["guide"] * guide,
        }
        if "up" in batch:
            mirrored["up"] = batch["up"] * signs
        if "emphasis" in batch:
            mirrored["emphasis"] = batch["emphasis"]
        return {name: torch.cat((batch[name], value)) for name, value in mirrored.items()}

    def evaluate(self) -> dict[str, float]:
        """AUC (percent) and mean camera error (degrees) on the validation animals."""
        predictor = ShapePredictor(self.model, None, (), device=str(next(self.model.parameters()).device))
        return self._keypoint_metrics(predictor.predict_crops(self._val_crops, self._val_affines))

    def _keypoint_metrics(self, shapes: Shapes) -> dict[str, float]:
        val = self._val
        metrics = {"auc": auc(shapes.xy_image, val.xy, val.weight > 0, val.box_side)}
        errors = camera_errors(shapes.camera, val.camera)
        if np.isfinite(errors).any():
            metrics["camera_error_deg"] = float(np.nanmean(errors))
        return metrics

    def pictures(self) -> dict[str, np.ndarray]:
        """Validation animals: what is known, predicted keypoints, the shape; and every camera's shape."""
        from acsm.progress_pictures import validation_pictures

        if self.template is None:
            return {}
        device = str(next(self.model.parameters()).device)
        predictor = ShapePredictor(self.model, self.template, (), device=device)
        shown = slice(SHOWN)
        truth = np.where((self._val.weight > 0)[..., None], self._val.xy, np.nan)[shown]
        crops, affines = self._val_crops[shown], self._val_affines[shown]
        return validation_pictures(predictor, crops, affines, truth, self.skeleton, self._marked(crops))

    def _marked(self, crops: np.ndarray) -> np.ndarray:
        """The first validation crops, to draw true keypoints on."""
        return crops


class FrozenShapeTask(ShapeTask):
    """The 3D model behind an encoder that stays as it is.

    The encoder's feature maps of ``config.frozen_crops`` varied crops of each animal are computed once;
    a step then costs about a tenth of a full one. With few labels, features that another task has
    learnt are often better left alone.

    Raises:
        UserError: the feature maps would take more than 4 GiB.
    """

    def prepare(self) -> None:
        """Fix the encoder's ResNet."""
        self.model.encoder.backbone.requires_grad_(False)
        samples, config = self.samples, self.config
        self._sides = 2 if config.flip_consistency else 1
        each = 2 * 512 * math.ceil(config.image_size / 32) ** 2 * self._sides
        room = MOST_BYTES // (len(samples) * each)
        if config.frozen_crops > room:
            raise UserError(
                f"--frozen_crops: expected at most {room} for {len(samples)} animals at "
                f"{config.image_size} px, whose feature maps are kept in memory; "
                f"found {config.frozen_crops}"
            )
        self._lock = threading.Lock()
        self._variants: list[dict[str, np.ndarray]] = []

    @torch.no_grad()
    def _look(self) -> list[dict[str, np.ndarray]]:
        """The feature maps and targets of all animals, once for each of their varied crops."""
        device = next(self.model.parameters()).device
        config, total = self.config, len(self.samples)
        autocast = bfloat16_pays(config.precision, device)
        training, variants = self.model.training, []
        self.model.eval()
        bar = progress(title="features", total=config.frozen_crops * total, unit="crop")
        with bar, torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            for turn in range(config.frozen_crops):
                for first in range(0, total, LOOK_BATCH):
                    rows = range(first, min(first + LOOK_BATCH, total))
                    drawn = [self.samples.sample(i, self._rng(turn, i)) for i in rows]
                    crops = torch.from_numpy(np.stack([item.pop("crop") for item in drawn]))
                    for name, seen in (("features", crops), ("mirrored", crops.flip(2)))[: self._sides]:
                        maps = self.model.encoder.backbone(normalise(seen.to(device)))
                        for item, found in zip(drawn, maps.to("cpu", torch.float16).numpy()):
                            item[name] = found
                    variants += drawn
                    bar.update(len(rows))
        self.model.train(training)
        return variants

    def _rng(self, turn: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, 11, turn, index])

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One of the animal's crops as ``features`` float16 [512, s, s], with its targets.

        With --flip_consistency also ``mirrored``: the feature map of its mirror image.
        """
        index = self._choose(index, rng)
        turn = int(rng.integers(self.config.frozen_crops))
        with self._lock:  # of the threads that prepare samples the first one computes the feature maps
            self._variants = self._variants or self._look()
        return self._weighted(self._variants[turn * len(self.samples) + index], index)

    def predict(self, batch: dict[str, Tensor], articulated: bool) -> dict[str, Tensor]:
        """The model's prediction from feature maps."""
        return self.model.from_features(batch["features"].float(), articulated=articulated)

    def with_mirrored(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The feature maps of the crops, and after them those of their mirror images."""
        # In single precision: autocast on a CPU joins no half ones.
        return {"features": torch.cat((batch["features"].float(), batch["mirrored"].float()))}
