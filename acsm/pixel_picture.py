"""Pictures of where pixels lie on the surface: a colour for every place, the same on both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from acsm.predict import ShapePredictor, normalise
from acsm.renderer import interpolate, rasterize

if TYPE_CHECKING:
    from acsm.template import ArticulatedTemplate

FADED = 0.35
"""What is left of a photo's contrast under the colours."""


def place_colours(sphere: np.ndarray) -> np.ndarray:
    """RGB uint8 [..., 3] of places on the sphere [..., 3]: left and right differ, as do front and back."""
    return np.rint(127.5 + 120 * np.clip(sphere, -1, 1)).astype(np.uint8)


@torch.inference_mode()
def pixel_places(predictor: ShapePredictor, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a model with a pixel map takes the cells of crops.

    Args:
        predictor: the model.
        crops: RGB uint8 [N, S, S, 3].

    Returns:
        Unit vectors float32 [N, s, s, 3] and the odds of being the animal, 0 to 1 [N, s, s].
    """
    images = normalise(torch.as_tensor(crops, device=predictor.device))
    found = predictor.model(images, pixels=True)
    return (
        found["pixel_sphere"].float().cpu().numpy(),
        found["pixel_logit"].float().sigmoid().cpu().numpy(),
    )


def pixel_pictures(predictor: ShapePredictor, crops: np.ndarray) -> np.ndarray:
    """Crops [N, S, S, 3], faded, with the colour of its place on every pixel taken for the animal."""
    size = crops.shape[1]
    pictures = []
    for crop, sphere, odds in zip(crops, *pixel_places(predictor, crops), strict=True):
        whole = cv2.resize(sphere, (size, size), interpolation=cv2.INTER_LINEAR)
        whole /= np.maximum(np.linalg.norm(whole, axis=2, keepdims=True), 1e-6)
        shown = cv2.resize(odds, (size, size), interpolation=cv2.INTER_LINEAR)[..., None] > 0.5
        faded = np.rint(255 + FADED * (crop.astype(np.float32) - 255)).astype(np.uint8)
        pictures.append(np.where(shown, place_colours(whole), faded))
    return np.stack(pictures)


def shape_picture(
    crop: np.ndarray, vertices_ndc: np.ndarray, sphere: np.ndarray, template: ArticulatedTemplate
) -> np.ndarray:
    """A crop [S, S, 3], faded, under a mesh [V, 3] in its NDC, in the colours of its places [V, 3]."""
    seen = rasterize(np.asarray(vertices_ndc, np.float64)[None], template.faces, crop.shape[0])
    colours = interpolate(place_colours(sphere).astype(np.float32), template.faces, seen)[0]
    faded = 255 + FADED * (crop.astype(np.float32) - 255)
    return np.rint(np.where(seen.mask[0][..., None], colours, faded)).astype(np.uint8)
