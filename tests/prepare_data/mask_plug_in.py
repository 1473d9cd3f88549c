"""A segmenter plug-in: masks read off the colours of a picture."""

from __future__ import annotations

import numpy as np


class Red:
    """The red pixels in the box; the quality is their share of it."""

    calls: list[tuple[int, ...]] = []

    def __init__(self, shrink: int = 0, quality: float | None = None) -> None:
        self.shrink, self.quality = shrink, quality

    def __call__(self, images, boxes_xyxy):
        Red.calls.append(tuple(len(boxes) for boxes in boxes_xyxy))
        return [[self._one(image, box) for box in boxes] for image, boxes in zip(images, boxes_xyxy)]

    def _one(self, image, box):
        assert image.dtype == np.uint8 and box.dtype == np.float32 and box.shape == (4,)
        mask = (image[..., 0] > 180) & (image.sum(-1) < 350)
        x0, y0, x1, y1 = np.round(box).astype(int)
        inside = np.zeros_like(mask)
        inside[y0 + self.shrink : y1 - self.shrink, x0 + self.shrink : x1 - self.shrink] = True
        mask &= inside
        if not mask.any() and not self.shrink:
            return "nothing red"
        quality = mask.sum() / (box[2:] - box[:2]).prod() if self.quality is None else self.quality
        return mask, float(quality)


def probabilities(images, boxes_xyxy):
    """Masks may be of floats: over .5 is inside."""
    masks = [np.full(image.shape[:2], 0.5) for image in images]
    for mask in masks:
        mask[:2, :3] = 0.6
    return [[(mask, 1.0)] * len(boxes) for mask, boxes in zip(masks, boxes_xyxy)]


def too_few(images, boxes_xyxy):
    """Breaks the protocol: nothing for an image."""
    return []


def too_few_boxes(images, boxes_xyxy):
    """Breaks the protocol: nothing for a box."""
    return [[] for _ in images]


def small_mask(images, boxes_xyxy):
    """Breaks the protocol: a mask of another size."""
    return [[(np.ones((3, 4), bool), 1.0) for _ in boxes] for boxes in boxes_xyxy]


def sure(images, boxes_xyxy):
    """Breaks the protocol: a quality over 1."""
    return [[(np.ones(im.shape[:2], bool), 1.5)] * len(b) for im, b in zip(images, boxes_xyxy)]


def bare(images, boxes_xyxy):
    """Breaks the protocol: no quality."""
    return [[7 for _ in boxes] for boxes in boxes_xyxy]
