"""Training with masks: what is added to the training with keypoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from acsm.data import ShapeSamples
from acsm.geometry import project_with_depth
from acsm.mask_crops import STRIDE
from acsm.mask_losses import (
    MaskWeights,
    containment_loss,
    coverage_loss,
    cycle_loss,
    segmentation_loss,
    silhouette_loss,
    visibility_loss,
)
from acsm.model import ACSM
from acsm.pixel_map import cell_centres
from acsm.predict import ShapePredictor, normalise
from acsm.renderer.choice import Renderer, make_renderer
from acsm.renderer.neural import BACKGROUND_DEPTH
from acsm.silhouettes import mask_iou
from acsm.sphere_lookup import SphereLookup
from acsm.task import ShapeTask
from wildshape.geometry import Affine2D
from wildshape.report.drawing import draw_mask

if TYPE_CHECKING:
    from acsm.train import Config

MASK_ITEMS = ("mask", "known", "outside", "contour", "cells", "mask_weight")


class MaskObjective:
    """The losses on masks of a batch.

    Args:
        model: with a pixel map; its sphere is read when the first batch comes.
        renderer: draws at the crops' size.
        weights: of the terms; a term of weight 0 is not computed.
    """

    def __init__(self, model: ACSM, renderer: Renderer, weights: MaskWeights) -> None:
        self.model, self.renderer, self.weights = model, renderer, weights
        self._lookup: SphereLookup | None = None

    def lookup(self) -> SphereLookup:
        """From the sphere to the surface."""
        if self._lookup is None:
            sphere, faces = self.model.sphere.cpu().numpy(), self.model.faces.cpu().numpy()
            self._lookup = SphereLookup(sphere, faces, device=self.model.sphere.device)
        return self._lookup

    def __call__(
        self, prediction: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss and its terms for the log.

        Each image's terms are expected over its cameras, weighted by ``mask_weight`` and averaged over
        the batch.

        Args:
            prediction: of `acsm.model.ACSM` with vertices and pixels.
            batch: what `acsm.mask_crops.MaskCrops.sample` gives, stacked.
        """
        device = prediction["camera"].device
        weight = batch["mask_weight"].float()
        rows = weight.nonzero()[:, 0]
        total = prediction["camera"].new_zeros(())
        with torch.autocast(device.type, enabled=False):
            if not len(rows):  # the parameters of the pixel map keep a gradient
                return total + 0 * prediction["pixel_logit"].sum(), {}
            mine = {name: value[rows] for name, value in prediction.items()}
            truth = {name: batch[name][rows] for name in MASK_ITEMS}
            found = self._terms(mine, truth)
            logged = {}
            for name, value in found.items():
                expected = value if value.ndim == 1 else (value * mine["camera_prob"]).sum(1)
                mean = (expected * weight[rows]).sum() / len(weight)
                total = total + getattr(self.weights, name) * mean
                logged[name] = float(mean.detach())
        return total, logged

    def _terms(self, prediction: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights, size = self.weights, self.model.arch.image_size
        mask, known = truth["mask"].float() / 255, truth["known"].float()
        vertices = project_with_depth(prediction["vertices"], prediction["camera"])
        meshes = vertices.flatten(0, 1)
        terms = {}
        if weights.cycle or weights.visibility:
            points = self._surface_points(prediction, truth["cells"], vertices)
            if weights.cycle:
                side = prediction["pixel_logit"].shape[-1]
                centres = cell_centres(side, size, STRIDE).to(points)
                terms["cycle"] = cycle_loss(points[..., :2], centres[truth["cells"]])
            if weights.visibility:
                depth = rendered_depth(self.renderer, meshes, self.model.faces)
                terms["visibility"] = visibility_loss(points, depth.view(*vertices.shape[:2], size, size))
        if weights.coverage:
            terms["coverage"] = coverage_loss(vertices[..., :2], truth["contour"])
        if weights.containment or weights.silhouette:
            drawn = self.renderer.silhouette(meshes, self.model.faces)
            drawn = drawn.view(*vertices.shape[:2], size, size)
            if weights.containment:
                terms["containment"] = containment_loss(drawn, truth["outside"])
            if weights.silhouette:
                terms["silhouette"] = silhouette_loss(drawn, mask, known)
        if weights.segmentation:
            side = prediction["pixel_logit"].shape[-1]
            cover, seen = (
                functional.interpolate(part[:, None], size=(side, side), mode="area")[:, 0]
                for part in (mask, known)
            )
            terms["segmentation"] = segmentation_loss(prediction["pixel_logit"], cover, seen)
        return terms

    def _surface_points(self, prediction: Mapping[str, Tensor], cells: Tensor, vertices: Tensor) -> Tensor:
        """Where the cells' [B, P] places on the surface are projected to, with depth: [B, C, P, 3]."""
        batch, count = cells.shape
        sphere = prediction["pixel_sphere"].flatten(1, 2)
        chosen = sphere.gather(1, cells[..., None].expand(-1, -1, 3))
        corners, shares = self.lookup()(chosen.flatten(0, 1))
        corners, shares = corners.view(batch, count, 3), shares.view(batch, 1, count, 3, 1)
        index = corners.flatten(1)[:, None, :, None].expand(-1, vertices.shape[1], -1, 3)
        placed = vertices.gather(2, index).unflatten(2, (count, 3))
        return (placed * shares).sum(3)


def rendered_depth(renderer: Renderer, vertices_ndc: Tensor, faces: Tensor) -> Tensor:
    """Depth [B, S, S] as z of the surface, inf where nothing is seen, whatever renderer drew it."""
    depth = renderer.depth(vertices_ndc, faces)
    if not renderer.nearer:
        return depth
    # Depth that is averaged with the background at borders is no place on the surface.
    return torch.where(depth < BACKGROUND_DEPTH / 8, depth - renderer.nearer, torch.inf)


class MaskShapeTask(ShapeTask):
    """The 3D model trained with masks, beside keypoints or alone; see `acsm.task.ShapeTask`."""

    def __init__(
        self, model: ACSM, samples: ShapeSamples, val: ShapeSamples, config: Config, num_labels: int
    ) -> None:
        super().__init__(model, samples, val, config, num_labels)
        assert val.masks is not None
        self._val_masks = val.masks
        self._val_masked = np.flatnonzero(val.masks.usable(val.records))
        renderer = make_renderer(config.renderer, config.image_size)
        self.objective = MaskObjective(model, renderer, config.mask_weights)
        self._last: dict[str, Tensor] = {}

    def _weighted(self, item: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        item = super()._weighted(item, index)
        web = np.float32(1 if index < self.num_labels else self.config.web_mask_weight)
        return {**item, "mask_weight": item["mask_weight"] * web}

    def parameters_rest(self, step: int) -> bool:
        """Whether parameters may have no gradient: those of the pixel map, where terms have no weight."""
        return True

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss on keypoints, as far as there are any, and on masks."""
        loss, terms = super().loss(batch, step)
        masks = {name: batch[name] for name in MASK_ITEMS}
        if self.config.flip == "both":
            masks = with_mirrored_masks(masks, self.objective)
        count = len(masks["mask"])  # a prediction may go on with mirrored images that only it needs
        more, found = self.objective({name: value[:count] for name, value in self._last.items()}, masks)
        self._last = {}
        return loss + more, {**terms, **found}

    def predict(self, batch: dict[str, Tensor], articulated: bool) -> dict[str, Tensor]:
        """The model's prediction for a batch, meshes and pixels included."""
        crops = normalise(batch["crop"])
        self._last = self.model(crops, articulated=articulated, vertices=True, pixels=True)
        return {name: value for name, value in self._last.items() if not name.startswith("pixel_")}

    def evaluate(self) -> dict[str, float]:
        """As without masks, and the mean IoU (percent) of the validation animals that have a mask."""
        device = str(next(self.model.parameters()).device)
        predictor = ShapePredictor(self.model, None, (), device=device)
        shapes = predictor.predict_crops(self._val_crops, self._val_affines, vertices=True)
        metrics = self._keypoint_metrics(shapes) if self._val.counts.any() else {}
        faces, masks = self.model.faces.cpu().numpy(), self._val.mask_rle
        found = [mask_iou(shapes.vertices_image[row], faces, str(masks[row])) for row in self._val_masked]
        if np.isfinite(found).any():
            metrics["miou"] = 100 * float(np.nanmean(found))
        return metrics

    def _marked(self, crops: np.ndarray) -> np.ndarray:
        marked, rng = list(crops), np.random.default_rng(0)
        for row in self._val_masked[self._val_masked < len(crops)]:
            affine = Affine2D(self._val_affines[row])
            mask = self._val_masks.sample(self._val, int(row), affine, rng)["mask"]
            marked[row] = draw_mask(crops[row], mask > 127)
        return np.stack(marked)


def with_mirrored_masks(batch: dict[str, Tensor], objective: MaskObjective) -> dict[str, Tensor]:
    """Masks [B, ...] of crops, and after them those of their mirror images."""
    side = -(-objective.model.arch.image_size // STRIDE)
    cells = batch["cells"]
    mirrored = {
        "mask": batch["mask"].flip(2),
        "known": batch["known"].flip(2),
        "outside": batch["outside"].flip(2),
        "contour": batch["contour"] * batch["contour"].new_tensor((-1.0, 1.0)),
        "cells": cells - cells % side + side - 1 - cells % side,
        "mask_weight": batch["mask_weight"],
    }
    return {name: torch.cat((batch[name], value)) for name, value in mirrored.items()}
