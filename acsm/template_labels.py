"""Where labels lie beside a template's keypoints: whether its proportions are those of the animals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from acsm.camera_fit import LEAST_KEYPOINTS, guiding_cameras
from acsm.template import ArticulatedTemplate
from acsm.viewpoint import looking_along
from wildshape.errors import UserError
from wildshape.records import AnimalRecords
from wildshape.skeleton import Skeleton

SIDE_ON = 0.9
LEAST_SEEN = 5


@dataclass(frozen=True)
class LabelShifts:
    """By how much labels lie beside the keypoints of the template at rest, seen from its side.

    Attributes:
        animals: How many were seen from the side.
        seen: Of how many labels each keypoint's figures are [K]; left and right ones are pooled.
        shift: Medians [K, 2], ahead and up, in template units (the largest distance is 2); NaN where fewer
            than five labels tell.
        spread: Half the distance between the quartiles [K, 2], which poses make.
    """

    animals: int
    seen: np.ndarray
    shift: np.ndarray
    spread: np.ndarray

    def places(self, template: ArticulatedTemplate) -> np.ndarray:
        """Where labels lie [K, 3], in the template's frame."""
        points = template.vertices[template.keypoint_vertices].copy()
        points[:, 1] -= self.shift[:, 0]
        points[:, 2] += self.shift[:, 1]
        return points

    @property
    def mean_distance(self) -> float:
        """Mean length of the medians, in template units."""
        return float(np.nanmean(np.linalg.norm(self.shift, axis=1)))

    def as_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """For a JSON file."""
        rows = zip(names, self.seen, self.shift, self.spread)
        return {
            "animals": self.animals,
            "mean_distance": self.mean_distance,
            "keypoints": [
                {"name": name, "seen": int(seen), "ahead": shift[0], "up": shift[1],
                 "spread_ahead": spread[0], "spread_up": spread[1]}
                for name, seen, shift, spread in rows
            ],
        }  # fmt: skip


def label_shifts(template: ArticulatedTemplate, skeleton: Skeleton, records: AnimalRecords) -> LabelShifts:
    """Compare labels of animals that are seen from the side with the template at rest.

    A camera fitted to an animal's labels tells whether it stands side on, within 26 degrees; the template's
    side view is then laid over the labels as well as moving, turning and scaling it in the picture can. A
    fitted camera itself would hide what is sought: it tilts until legs that are too long look short.

    Args:
        template: Whose keypoints are compared.
        skeleton: Of template and records.
        records: Labelled animals.

    Raises:
        UserError: fewer than five animals are seen from the side.
    """
    points = template.vertices[template.keypoint_vertices]
    cameras, _ = guiding_cameras(points, records.xy, records.weight, records.box_xyxy)
    side = looking_along(cameras)[:, 0]
    counts = (records.weight > 0).sum(1)
    chosen = np.flatnonzero((np.abs(side) > SIDE_ON) & (counts > LEAST_KEYPOINTS))
    if len(chosen) < LEAST_SEEN:
        raise UserError(
            f"expected at least {LEAST_SEEN} labelled animals seen from the side; found {len(chosen)}"
        )
    flat = np.stack([-points[:, 1], points[:, 2]], axis=-1)  # ahead and up
    beside = np.full((len(chosen), len(points), 2), np.nan)
    for row, index in enumerate(chosen):
        seen = records.weight[index] > 0
        # Seen from its left (the camera looks along -x) the animal's head is on the left.
        picture = records.xy[index, seen] * [np.sign(side[index]), -1]
        beside[row, seen] = _laid_over(flat[seen], picture) - flat[seen]
    pooled = np.concatenate([beside, beside[:, list(skeleton.flip)]])
    # A keypoint of the middle is its own partner.
    own = np.array(skeleton.flip) == np.arange(len(points))
    seen = np.isfinite(pooled[..., 0]).sum(0) // np.where(own, 2, 1)
    known = seen >= LEAST_SEEN
    shift, spread = np.full((2, len(points), 2), np.nan)
    low, shift[known], high = np.nanpercentile(pooled[:, known], [25, 50, 75], axis=0)
    spread[known] = (high - low) / 2
    return LabelShifts(len(chosen), seen, shift, spread)


def _laid_over(shape: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """Points of a picture [K, 2], moved, turned and scaled as near to a shape's [K, 2] as can be."""
    centre = picture.mean(0)
    # As complex numbers a turn and a scale are one factor.
    one = (picture - centre) @ [1, 1j]
    other = (shape - shape.mean(0)) @ [1, 1j]
    factor = np.vdot(one, other) / np.vdot(one, one).real.clip(min=1e-12)
    moved = factor * one
    return np.stack([moved.real, moved.imag], axis=-1) + shape.mean(0)
