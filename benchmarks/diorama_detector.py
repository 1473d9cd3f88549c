"""How well and how fast the detector that comes with the package finds animals of worlds it never saw.

    python -m benchmarks diorama_detector
    python -m benchmarks.diorama_detector --pictures 600 --seeds 30 31 32

Average precision is COCO's, by pycocotools, over six species; the worlds' animals, coats, places and
pictures come from other seeds than those of its training. Animals of under 120 visible pixels do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.machine import save
from prepare_data.average_precision import average_precision
from prepare_data.detectors import find_detector
from prepare_data.train_detector import LABELS, Example, make_examples
from wildshape.geometry import box_iou
from wildshape.stage import progress
from wildshape.workspace import Workspace

STREAM = 13
BATCH = 8


def detections(detector: Any, examples: Sequence[Example]) -> tuple[list[Any], float]:
    """Boxes, scores and class numbers of every picture, and seconds a picture, decoding left out."""
    found, seconds = [], 0.0
    for first in progress(range(0, len(examples), BATCH), "pictures looked at", unit="batch"):
        batch = examples[first : first + BATCH]
        images = [
            np.ascontiguousarray(cv2.imdecode(np.frombuffer(e.data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
            for e in batch
        ]
        start = time.perf_counter()
        results = detector(images)
        seconds += time.perf_counter() - start
        for boxes, scores, names in results:
            found.append((boxes, scores, np.array([LABELS.index(name) for name in names], dtype=int)))
    return found, seconds / len(examples)


def at_threshold(
    truth: Sequence[Any], found: Sequence[Any], threshold: float, number: int
) -> dict[str, Any]:
    """Precision and recall of one class at IoU .5, the surest box first."""
    true = right = kept = 0
    for (boxes, labels), (guesses, scores, kinds) in zip(truth, found, strict=True):
        mine = boxes[labels == number]
        chosen = np.flatnonzero((kinds == number) & (scores >= threshold))
        true, kept = true + len(mine), kept + len(chosen)
        free = np.ones(len(mine), dtype=bool)
        for index in chosen[np.argsort(-scores[chosen])]:
            overlap = np.where(free, box_iou(guesses[[index]], mine)[0], 0) if len(mine) else np.zeros(1)
            if overlap.max() >= 0.5:
                free[overlap.argmax()] = False
                right += 1
    return {
        "animals": true,
        "precision": round(100 * right / max(kept, 1), 1),
        "recall": round(100 * right / max(true, 1), 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=600, help="of each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[30, 31, 32])
    parser.add_argument("--out", type=Path, default=None, help="JSON file to write")
    arguments = parser.parse_args(argv)
    detector: Any = find_detector("diorama", Workspace(Path.cwd(), "horse")).make()
    truth: list[Any] = []
    found: list[Any] = []
    worlds, times = [], []
    for seed in arguments.seeds:
        examples = make_examples(STREAM, arguments.pictures, seed, f"pictures of seed {seed}")
        mine = [(example.boxes, example.labels) for example in examples]
        boxes, seconds = detections(detector, examples)
        figures = average_precision(mine, boxes, len(LABELS) - 1)
        worlds.append({"seed": seed, **{name: round(value, 1) for name, value in figures.items()}})
        times.append(seconds)
        truth, found = truth + mine, found + boxes
    together = average_precision(truth, found, len(LABELS) - 1)
    species = {
        name: {
            "ap": round(average_precision(*_only(truth, found, number), 1)["ap"], 1),
            **at_threshold(truth, found, detector.default_threshold, number),
        }
        for number, name in enumerate(LABELS)
        if number
    }
    print(f"AP {together['ap']:.1f}, AP50 {together['ap50']:.1f}, AP75 {together['ap75']:.1f}")
    for name, row in species.items():
        print(f"{name:>8}: AP {row['ap']}, precision {row['precision']}, recall {row['recall']}")
    print(f"{1 / np.mean(times):.1f} pictures/s, {BATCH} at a time")
    results = {
        "pictures": len(truth),
        **{name: round(value, 1) for name, value in together.items()},
        "worlds": worlds,
        "score_threshold": detector.default_threshold,
        "species": species,
        "pictures_per_s": round(float(1 / np.mean(times)), 1),
    }
    print(save("diorama_detector", results, arguments.out))
    return 0


def _only(truth: Sequence[Any], found: Sequence[Any], number: int) -> tuple[list[Any], list[Any]]:
    """Truth and detections of one class, as class 1."""
    ours = [(boxes[labels == number], np.ones((labels == number).sum(), int)) for boxes, labels in truth]
    theirs = [
        (boxes[kinds == number], scores[kinds == number], np.ones((kinds == number).sum(), int))
        for boxes, scores, kinds in found
    ]
    return ours, theirs


if __name__ == "__main__":
    raise SystemExit(main())
