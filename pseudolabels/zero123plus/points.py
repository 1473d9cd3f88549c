"""Where an animal's points are: peaks of the kept tokens' attention, averaged over views of its crop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pseudolabels.zero123plus import maps as token_maps
from pseudolabels.zero123plus.crops import CropReader
from pseudolabels.zero123plus.features import AttentionModel
from pseudolabels.zero123plus.token_file import TokenFile
from pseudolabels.zero123plus.tokens import (
    FILL,
    PUBLISHED_FILL,
    PUBLISHED_SIDE,
    as_images,
    average_attention,
)
from pseudolabels.zero123plus.warps import WarpRanges, random_warp
from wildshape.errors import UserError
from wildshape.geometry import Affine2D
from wildshape.stage import MapStage

PEAK_SIDE = 512
"""Longer side of the maps in which peaks are looked for as published."""
AT_ONCE = 8
"""Pictures in one forward pass. More were no faster on a CPU, and take memory."""


class PointFinder:
    """Finds the K points of crops.

    Views and noise derive from the seed alone: every animal is looked at in the same way, whatever stands
    beside it in a batch.

    Args:
        model: that the tokens were learnt with.
        tokens: see `TokenFile`.
        views: random views whose attention is averaged (published: 10); 0: the crop as it is.
        seed: of the views and the noise.
        power: points are mean places of maps to this power (`maps.soft_peaks`); 0: as published, means
            about the highest pixel (`maps.weighted_peaks`) of maps upsampled to `PEAK_SIDE`.
        ranges: of the views; default as in training.
    """

    def __init__(
        self,
        model: AttentionModel,
        tokens: TokenFile,
        views: int = 10,
        seed: int = 0,
        power: float = token_maps.POWER,
        ranges: WarpRanges | None = None,
    ) -> None:
        for name, value in (("views", views), ("power", power)):
            if value < 0:
                raise UserError(f"--{name}: expected 0 or more; found {value}")
        self.power = power
        self.model, self.kept = model, tokens.kept.to(model.device)
        self.embedding = tokens.embedding.to(model.device)
        self.image_size = int(tokens.facts["image_size"])
        rng = np.random.default_rng([seed, 29])
        plain = torch.eye(2, 3)
        self.thetas = [random_warp(ranges or WarpRanges(), rng) for _ in range(views)] or [plain]
        shape = (len(self.thetas), 1, *model.noise_shape(self.image_size))
        self.noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(model.device)
        self.radius = max(1.0, token_maps.RADIUS * model.reading.side / PUBLISHED_SIDE)
        self.fill = PUBLISHED_FILL if model.reading.published else FILL

    def _attention(self, images: Tensor, embedding: Tensor, noise: Tensor) -> Tensor:
        return self.model.attention(images, embedding, noise, self.kept)

    @torch.no_grad()
    def maps(self, crops: np.ndarray) -> Tensor:
        """Averaged attention [B, K, h, w] of the kept tokens to crops uint8 [B, S, S, 3]."""
        images = as_images(torch.from_numpy(np.ascontiguousarray(crops)).to(self.model.device))
        noise = self.noise.expand(-1, len(images), -1, -1, -1)
        return average_attention(
            self._attention, images, self.embedding, noise, self.thetas, self.fill, at_once=AT_ONCE
        )

    def __call__(self, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of crops.

        Args:
            crops: uint8 [B, S, S, 3].

        Returns:
            xy [B, K, 2] in 0..1 of the crop from edge to edge; and the share [B, K] of each map that lies
            about its highest pixel.
        """
        found = self.maps(crops)
        height, width = found.shape[-2:]
        if self.power:
            xy = token_maps.soft_peaks(found, self.power)
        else:
            scale = PEAK_SIDE / max(height, width)
            size = (round(scale * height), round(scale * width))
            large = functional.interpolate(found, size, mode="bilinear", align_corners=False)
            xy = token_maps.weighted_peaks(large) / scale
        mass = token_maps.peak_mass(found, self.radius)
        xy = xy.double() / xy.new_tensor((width, height), dtype=torch.float64)
        return xy.cpu().numpy(), mass.double().cpu().numpy()


class PointPseudoLabels(MapStage):
    """Rows of instances or labels in, one row of points out; rows without a readable image give nothing.

    Args:
        finder: see `PointFinder`.
        paths: file of each image id.
    """

    def __init__(self, finder: PointFinder, paths: Mapping[str, Path]) -> None:
        self.finder = finder
        self.reader = CropReader(paths, finder.image_size)

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why a row gives nothing, or None."""
        return self.reader.problem(row)

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """The matted crop uint8 [S, S, 3] of one animal and its affine [2, 3]."""
        cv2.setNumThreads(0)
        size = self.finder.image_size
        crop, affine = np.zeros((size, size, 3), np.uint8), Affine2D.identity()
        usable = self.problem(row) is None
        if usable:
            crop, affine, _ = self.reader.read(row)
        return {
            "instance_id": row["instance_id"], "usable": usable, "crop": crop, "affine": affine.matrix
        }  # fmt: skip

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Columns of a keypoints table: the points in image pixels, the peaks' mass as confidence."""
        usable = np.asarray(batch["usable"], bool)
        ids = np.asarray(batch["instance_id"], object)[usable]
        points = len(self.finder.kept)
        xy, mass = np.zeros((len(ids), points, 2)), np.zeros((len(ids), points))
        if len(ids):
            unit, mass = self.finder(batch["crop"][usable])
            in_crop = unit * self.finder.image_size - 0.5
            for i, matrix in enumerate(batch["affine"][usable]):
                xy[i] = Affine2D(matrix).inverse().apply(in_crop[i])
        names = np.full(len(ids), "none", dtype=object)
        return {"instance_id": ids, "transform": names, "xy": xy, "confidence": mass}
