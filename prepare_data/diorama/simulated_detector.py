"""A simulated detector for the synthetic world: the truth with stated errors, not a network."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from prepare_data.diorama.lookup import Lookup
from prepare_data.diorama.world import world_dir
from wildshape.category import list_categories, load_category
from wildshape.errors import UserError
from wildshape.tables import Table, read_table


@dataclass(frozen=True)
class DetectorErrors:
    """How the simulated detector errs.

    Attributes:
        miss: share of well-seen animals that it does not find.
        hidden_miss: share of occluded, truncated or small animals that it does not find.
        false_alarm: share of images with a box on nothing.
        confusion: share of other species' animals that it takes for the category of the world.
        jitter: standard deviation of each side of a box, relative to the box's side.
        unsure: share of found animals that score below .95, the published threshold.
        seed: of all draws.
    """

    miss: float = 0.04
    hidden_miss: float = 0.15
    false_alarm: float = 0.04
    confusion: float = 0.06
    jitter: float = 0.02
    unsure: float = 0.10
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name != "seed" and not 0 <= value <= 1:
                raise UserError(f"--opts {item.name}: expected 0 to 1; found {value}")


class SimulatedDetector:
    """Looks a picture up by its pixels and answers with its truth, misses, false alarms and jitter.

    Deterministic: a picture always gives the same boxes, in any batch and order. A picture that is
    not of this world gives none.

    Args:
        folder: the world, ``data/<category>/diorama``.
        truth: table of kind labels of the web pictures.
        category: the world's category.
        coco_labels: COCO class by category name; categories without one are reported by name.
        errors: how it errs.
    """

    name = "simulated (diorama truth with misses, false alarms and jitter)"

    def __init__(
        self, folder: Path, truth: Table, category: str, coco_labels: Mapping[str, str],
        errors: DetectorErrors = DetectorErrors(),
    ) -> None:  # fmt: skip
        self.errors = errors
        self._lookup = Lookup(folder)
        self._truth, self._category, self._labels = truth, category, dict(coco_labels)
        self._rows: dict[str, list[int]] = {}
        for row, image_id in enumerate(truth["image_id"]):
            self._rows.setdefault(image_id, []).append(row)

    def __call__(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """Boxes in pixels from the image's edge [N, 4], scores [N] and COCO class names."""
        return [self._detect(image) for image in images]

    def _label(self, category: str) -> str:
        return self._labels.get(category, category)

    def _detect(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        image_id = self._lookup.find(image)
        boxes: list[np.ndarray] = []
        scores: list[float] = []
        labels: list[str] = []
        if image_id is not None:
            rng = np.random.default_rng([self.errors.seed, zlib.crc32(image_id.encode())])
            for row in self._rows.get(image_id, []):
                self._see(row, image.shape[:2], rng, boxes, scores, labels)
            if rng.random() < self.errors.false_alarm:
                height, width = image.shape[:2]
                size = rng.uniform(0.15, 0.6, 2) * [width, height]
                corner = rng.uniform(0, 1, 2) * ([width, height] - size)
                boxes.append(np.concatenate([corner, corner + size]))
                scores.append(float(rng.uniform(0.5, 1.0)))
                labels.append(self._label(self._category))
        return (
            np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(scores, dtype=np.float32), labels
        )  # fmt: skip

    def _see(self, row, size, rng, boxes, scores, labels) -> None:
        """One true animal, perhaps; draws the same numbers whatever becomes of it."""
        box = self._truth["box_xyxy"][row] + 0.5
        category = str(self._truth["category"][row])
        missed, wrong, unsure = rng.random(3)
        noise = self.errors.jitter * np.clip(rng.normal(0, 1, 4), -3, 3)
        low, high = rng.uniform(0.5, 0.949), rng.uniform(0.952, 1.0)
        small = (box[2:] - box[:2]).max() < 0.15 * max(size)
        hard = small or bool(self._truth["flags"][row].replace("copy", "").strip(","))
        if missed < (self.errors.hidden_miss if hard else self.errors.miss):
            return
        if category != self._category and wrong < self.errors.confusion:
            category = self._category
        height, width = size
        box = box + noise * np.tile(box[2:] - box[:2], 2)
        boxes.append(np.clip(box, 0, [width, height, width, height]))
        scores.append(float(low if unsure < self.errors.unsure else high))
        labels.append(self._label(category))


def make(request: Any) -> SimulatedDetector:
    """The detector that ``--detector simulated`` names; ``--opts miss .1 ...`` sets its errors.

    Raises:
        UserError: if there is no world, or an option is unknown.
    """
    workspace = request.workspace
    known = {item.name for item in fields(DetectorErrors)}
    options: dict[str, Any] = {}
    for key, value in request.opts.items():
        if key not in known:
            raise UserError(f"--opts: expected one of {', '.join(sorted(known))}; found {key}")
        try:
            options[key] = int(value) if key == "seed" else float(value)
        except ValueError:
            raise UserError(f"--opts {key}: expected a number; found {value}") from None
    path = workspace.require(
        workspace.table_path("truth"), workspace.made_by("truth"), "the simulated detector"
    )
    names = list_categories(workspace.root)
    labels = {n: s.coco_label for n in names if (s := load_category(n, workspace.root)).coco_label}
    return SimulatedDetector(
        world_dir(workspace), read_table(path, "labels"), workspace.category.name, labels,
        DetectorErrors(**options),
    )  # fmt: skip
