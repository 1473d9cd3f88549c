"""Pictures of a training's validation animals, for those who watch it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from acsm.drawing import contact_sheet, overlay
from acsm.geometry import project_with_depth
from acsm.pixel_picture import pixel_pictures
from acsm.predict import ShapePredictor, normalise
from wildshape.geometry import Affine2D, xy_ndc_to_crop
from wildshape.report.drawing import draw_keypoints

if TYPE_CHECKING:
    from wildshape.skeleton import Skeleton

TILE = 160
_MOST_CAMERAS = 8


@torch.inference_mode()
def validation_pictures(
    predictor: ShapePredictor,
    crops: np.ndarray,
    affines: np.ndarray,
    xy_image: np.ndarray,
    skeleton: Skeleton | None = None,
    marked: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Draw what a model predicts for some crops.

    Args:
        predictor: the model with its template.
        crops: RGB uint8 [N, S, S, 3].
        affines: image to crop pixels [N, 2, 3].
        xy_image: true keypoints [N, K, 2] in image pixels, NaN where not labelled.
        skeleton: for bones and sides.
        marked: the crops with their true masks drawn on them; None: without.

    Returns:
        Pictures by title: "validation animals" has true and predicted keypoints and the shape of each;
        a model with a pixel map also where it takes the pixels;
        with several camera hypotheses "cameras" has the shape of every one, by falling probability.
    """
    template, size = predictor.template, predictor.image_size
    assert template is not None
    images = normalise(torch.as_tensor(crops, device=predictor.device))
    raw = {name: value.double().cpu() for name, value in predictor.model(images, vertices=True).items()}
    order = raw["camera_prob"].argsort(dim=1, descending=True)
    in_ndc = project_with_depth(raw["vertices"], raw["camera"], offset=0.0).numpy()
    in_crop = np.concatenate([xy_ndc_to_crop(in_ndc[..., :2], size), in_ndc[..., 2:] * size / 2], axis=-1)
    keypoints = xy_ndc_to_crop(raw["keypoints_ndc"].numpy(), size)
    places = pixel_pictures(predictor, crops) if predictor.model.arch.pixel_map else None
    rows, hypotheses = [], []
    for i, crop in enumerate(crops):
        best = int(order[i, 0])
        true = Affine2D(affines[i]).apply(xy_image[i])
        rows.append(
            [
                draw_keypoints(crop if marked is None else marked[i], true, None, skeleton),
                draw_keypoints(crop, keypoints[i, best], None, skeleton),
                overlay(crop, in_crop[i, best], template),
            ]
        )
        if places is not None:
            rows[-1].append(places[i])
        chosen = order[i, :_MOST_CAMERAS].tolist()
        hypotheses.append([overlay(crop, in_crop[i, camera], template) for camera in chosen])
    paired = [sum(rows[i : i + 2], []) for i in range(0, len(rows), 2)]
    pictures = {"validation animals": contact_sheet(paired, TILE)}
    if raw["camera_prob"].shape[1] > 1:
        pictures["cameras"] = contact_sheet(hypotheses, TILE)
    return pictures
