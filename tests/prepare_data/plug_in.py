"""A detector plug-in: boxes read off the colours of a picture."""

from __future__ import annotations

import numpy as np


class Squares:
    """Finds the red square as a cow and the blue one as a dog; `score` is the cow's."""

    calls: list[int] = []
    default_threshold = 0.4

    def __init__(self, score: float = 0.6, shift: float = 0.0, fail_after: int = 10**9) -> None:
        self.score, self.shift, self.fail_after = score, shift, fail_after

    def __call__(self, images):
        Squares.calls.append(len(images))
        if len(Squares.calls) > self.fail_after:
            raise KeyboardInterrupt
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray):
        assert image.dtype == np.uint8 and image.shape[2] == 3
        boxes, scores, labels = [], [], []
        for channel, label, score in ((0, "cow", self.score), (2, "dog", 0.99)):
            y, x = np.nonzero((image[..., channel] > 180) & (image.sum(-1) < 350))
            if len(x):
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                scores.append(score)
                labels.append(label)
        return np.array(boxes, np.float32).reshape(-1, 4) + self.shift, np.array(scores), labels


def function(images):
    """A plug-in need not be a class."""
    return [(np.zeros((0, 4)), [], []) for _ in images]


def wrong(images):
    """Breaks the protocol."""
    return [(np.zeros((2, 4)), [0.5], ["cow"]) for _ in images]


not_callable = 3
