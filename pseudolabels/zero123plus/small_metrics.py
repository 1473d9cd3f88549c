"""How good the small model's six views are: against the true ones, and beside what knows no geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pseudolabels.zero123plus.pipeline import split_grid
from pseudolabels.zero123plus.small_data import GREY, Rings, grid_places, over, ring_item
from wildshape.files import atomic_write
from wildshape.stage import progress

_FIGURE = 20  # difference from the grey ground, of 255, from which a pixel shows the animal


@dataclass(frozen=True)
class SamplingConfig:
    """How views are sampled.

    Attributes:
        animals: Of the validation rings, at most.
        steps: Of the sampling.
        guidance_scale: Beyond the unconditional prediction.
        seed: Of the noise.
    """

    animals: int = 48
    steps: int = 28
    guidance_scale: float = 2.0
    seed: int = 0


def silhouettes(views: np.ndarray) -> np.ndarray:
    """Where views uint8 [..., H, W, 3] over grey show something: bool [..., H, W]."""
    return np.abs(views.astype(np.int16) - GREY).max(-1) > _FIGURE


def mean_psnr(views: np.ndarray, true: np.ndarray) -> float:
    """Mean over views of the peak signal-to-noise ratio in decibels, uint8 [..., H, W, 3]."""
    error = ((views.astype(np.float64) - true) / 255) ** 2
    return float((-10 * np.log10(np.maximum(error.mean((-3, -2, -1)), 1e-10))).mean())


def mean_iou(found: np.ndarray, true: np.ndarray) -> float:
    """Mean intersection over union of silhouettes, bool [..., H, W]; 1 where both are empty."""
    union = (found | true).sum((-2, -1))
    shared = (found & true).sum((-2, -1))
    return float(np.where(union > 0, shared / np.maximum(union, 1), 1.0).mean())


def own_view(views: np.ndarray, true: np.ndarray) -> float:
    """Share of views that look, pixel by pixel, most like the true one at their own place of the six.

    Colours are the same all around, so this says whether an animal faces the right way; 1/6 is chance.

    Args:
        views: uint8 [N, 6, S, S, 3].
        true: The same.
    """
    flat, real = (
        pictures.reshape(*pictures.shape[:2], -1).astype(np.float64) for pictures in (views, true)
    )
    distances = np.square(flat[:, :, None] - real[:, None]).sum(-1)
    return float((distances.argmin(2) == np.arange(views.shape[1])).mean())


def truth(rings: Rings, animals: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs RGB [N, S, S, 3], their views RGB [N, 6, S, S, 3] and silhouettes bool [N, 6, S, S].

    Ring n is seen by its input n modulo 6, over grey.
    """
    pairs = [ring_item(rings, number, number % 6, GREY) for number in range(animals)]
    views = np.stack([views for _, views in pairs])
    return np.stack([image for image, _ in pairs]), views[..., :3], views[..., 3] > 127


def mean_views(rings: Rings) -> tuple[np.ndarray, np.ndarray]:
    """The best guess that does not look at its input: mean views uint8 [6, S, S, 3], and silhouettes."""
    every = np.stack([rings.targets[:, elevation].mean((0, 1), dtype=np.float64) for elevation in range(2)])
    # Azimuths are drawn evenly, so that only the elevation tells views apart.
    chosen = every[[elevation for elevation, _ in grid_places(0)]]
    return np.rint(chosen[..., :3]).astype(np.uint8), chosen[..., 3] > 127


def nearest_views(images: np.ndarray, rings: Rings) -> tuple[np.ndarray, np.ndarray]:
    """The views of the training input that looks most alike, pixel by pixel, with silhouettes.

    Args:
        images: RGB uint8 [N, S, S, 3], over grey.
        rings: Of the training.
    """
    known = over(rings.inputs, GREY)
    flat = known.reshape(-1, int(np.prod(images.shape[1:])))
    views, shapes = [], []
    for image in images:
        wanted = image.reshape(-1).astype(np.int32)
        distances = [
            np.square(flat[start : start + 512] - wanted).sum(1) for start in range(0, len(flat), 512)
        ]
        ring, first = divmod(int(np.concatenate(distances).argmin()), 6)
        _, found = ring_item(rings, ring, first, GREY)
        views.append(found[..., :3])
        shapes.append(found[..., 3] > 127)
    return np.stack(views), np.stack(shapes)


def sample_views(
    pipeline: Any, images: np.ndarray, config: SamplingConfig, folder: Path, late: Callable[[], bool]
) -> np.ndarray | None:
    """The model's views of inputs; what was sampled before is read.

    Args:
        pipeline: A `Zero123PlusPipeline`.
        images: RGB uint8 [N, S, S, 3].
        config: How to sample.
        folder: For the views, one file an animal.
        late: Says when to stop.

    Returns:
        uint8 [N, 6, S, S, 3], or None if it stopped before the end.
    """
    found = []
    for number, image in enumerate(progress(images, "sampling views", unit="animal")):
        path = folder / f"{number:04d}.npy"
        if not path.exists():
            if late():
                return None
            made = pipeline(
                Image.fromarray(image),
                num_inference_steps=config.steps,
                guidance_scale=config.guidance_scale,
                generator=torch.Generator().manual_seed(config.seed + number),
                output_type="np",
            ).images[0]
            with atomic_write(path) as handle:
                np.save(handle, np.rint(split_grid(made) * 255).astype(np.uint8))
        found.append(np.load(path))
    return np.stack(found)


def compare(views: np.ndarray, images: np.ndarray, val: Rings, train: Rings) -> dict[str, float]:
    """Figures of sampled views and of the two baselines.

    Args:
        views: uint8 [N, 6, S, S, 3], the model's.
        images: Inputs, RGB uint8 [N, S, S, 3].
        val: The rings that the inputs are of.
        train: The rings that the baselines know.
    """
    _, true, shapes = truth(val, len(views))
    mean, mean_shape = mean_views(train)
    nearest, nearest_shape = nearest_views(images, train)
    every = {
        "model": (views, silhouettes(views)),
        "mean": (np.broadcast_to(mean, true.shape), np.broadcast_to(mean_shape, shapes.shape)),
        "nearest": (nearest, nearest_shape),
    }
    # The model's silhouettes are found by colour; those of the truth so found say what that costs.
    figures = {"iou_of_truth_by_colour": mean_iou(silhouettes(true), shapes)}
    for name, (pictures, found) in every.items():
        figures[f"psnr_{name}"] = mean_psnr(pictures, true)
        figures[f"iou_{name}"] = mean_iou(found, shapes)
        figures[f"own_{name}"] = own_view(pictures, true)
    return figures


def sheet(images: np.ndarray, views: np.ndarray, true: np.ndarray, scale: int = 2) -> np.ndarray:
    """A picture to look at: each animal's input and, one over the other, its views and the true ones.

    Args:
        images: uint8 [N, S, S, 3].
        views: uint8 [N, 6, S, S, 3].
        true: The same.
        scale: Enlargement.
    """
    side = images.shape[1]
    rows = []
    for image, found, real in zip(images, views, true):
        first = np.full((2 * side, side + 4, 3), 255, np.uint8)
        first[side // 2 : side // 2 + side, :side] = image
        rows.append(np.hstack([first, np.vstack([np.hstack(list(found)), np.hstack(list(real))])]))
        rows.append(np.full((4, rows[-1].shape[1], 3), 255, np.uint8))
    return np.vstack(rows[:-1]).repeat(scale, 0).repeat(scale, 1)
