"""Near-duplicates: the same picture re-encoded, resized or slightly cropped, truth carried along."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from prepare_data.diorama.scene import Animal, Picture


def copy_picture(picture: Picture, rng: np.random.Generator) -> Picture:
    """A copy as the web makes them: perhaps cropped by up to 2 % a side, resized, brightened."""
    height, width = picture.image.shape[:2]
    margins = np.zeros(4, int)
    if rng.random() < 0.4:
        margins = np.floor(rng.uniform(0, 0.02, 4) * [width, height, width, height]).astype(int)
    left, top, right, bottom = margins
    size = 1.0 if rng.random() < 0.35 else rng.uniform(0.7, 1.15)
    window = (slice(top, height - bottom), slice(left, width - right))
    new_width = max(round((width - left - right) * size), 16)
    new_height = max(round((height - top - bottom) * size), 16)
    scale = np.array([new_width / (width - left - right), new_height / (height - top - bottom)])
    way = cv2.INTER_AREA if size < 1 else cv2.INTER_LINEAR
    image = np.ascontiguousarray(picture.image[window])
    if (new_height, new_width) != image.shape[:2]:
        image = cv2.resize(image, (new_width, new_height), interpolation=way)
    image = cv2.convertScaleAbs(image, alpha=float(rng.uniform(0.93, 1.07)), beta=0)
    shift = np.array([left, top])
    animals = [_carry(a, window, shift, scale, (new_height, new_width)) for a in picture.animals]
    return replace(picture, image=image, animals=tuple(a for a in animals if a is not None))


def _carry(animal: Animal, window, shift, scale, size) -> Animal | None:
    """The truth of one animal in the copy; x' = (x - shift + .5) scale - .5."""
    height, width = size

    def move(xy: np.ndarray) -> np.ndarray:
        return (xy - shift + 0.5) * scale - 0.5

    mask = animal.mask[window].astype(np.uint8)
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)
    xy = move(animal.xy_image)
    column, row = np.rint(xy).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    box = np.concatenate([move(animal.box_xyxy[:2]), move(animal.box_xyxy[2:])])
    box = np.clip(box, -0.5, np.array([width, height, width, height]) - 0.5)
    if box[2] - box[0] < 1 or box[3] - box[1] < 1:
        return None
    visible = np.where(inside, animal.visible, 0)
    return replace(animal, xy_image=xy, visible=visible, mask=mask, box_xyxy=box)
