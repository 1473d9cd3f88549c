"""Settings of a training that masks may take part in."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from acsm.mask_losses import MaskWeights
from wildshape.errors import UserError

_TERMS = tuple(field.name for field in fields(MaskWeights))
MANY_CAMERAS = 8
"""Hypotheses of a training on masks alone, as published: nothing else tells where the camera is."""


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """What the 3D model is supervised by, and how much each part of it counts."""

    supervise: Literal["keypoints", "masks", "both"] = "keypoints"
    """What is learnt from. With masks, the surface's places are also learnt for every pixel."""
    cycle_weight: float = MaskWeights.cycle
    """With masks: of pixels that come back elsewhere from the surface."""
    visibility_weight: float = MaskWeights.visibility
    """With masks: of pixels that are taken to a hidden place."""
    coverage_weight: float = MaskWeights.coverage
    """With masks: of contours that no projected vertex is near."""
    containment_weight: float = MaskWeights.containment
    """With masks: of silhouettes beyond the mask, the farther the more."""
    segmentation_weight: float = MaskWeights.segmentation
    """With masks: of the predicted foreground."""
    silhouette_weight: float = 1.0
    """With masks: of one minus the IoU of silhouette and mask (published: 0)."""
    renderer: Literal["exact", "neural_renderer"] = "exact"
    """With masks: what draws silhouettes and depth; neural_renderer as published."""
    web_weight: float = 1.0
    """Weight of a web animal's keypoints beside a labelled one's, on top of their confidences."""
    web_mask_weight: float = 1.0
    """With masks: weight of a web animal's mask beside a labelled one's, on top of its quality."""

    def check_masks(self) -> None:
        """Refuse weights that cannot work, naming the flag.

        Raises:
            UserError: a weight is negative, or all are zero.
        """
        names = [f"{term}_weight" for term in _TERMS]
        for name in (*names, "web_weight", "web_mask_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name}: expected at least 0; found {getattr(self, name)}")
        if self.supervise != "keypoints" and not any(getattr(self, name) for name in names):
            raise UserError(f"--supervise {self.supervise}: expected a weight above 0; found all 0")

    @property
    def mask_weights(self) -> MaskWeights:
        """Weights of the terms on masks."""
        return MaskWeights(**{name: getattr(self, f"{name}_weight") for name in _TERMS})

    def mask_settings(self) -> dict[str, object]:
        """The settings that differ from a training without masks, for its provenance."""
        found: dict[str, object] = {}
        if self.web_weight != 1:
            found["web_weight"] = self.web_weight
        if self.supervise != "keypoints":
            names = [*(f"{term}_weight" for term in _TERMS), "web_mask_weight"]
            found |= {name: getattr(self, name) for name in ("supervise", "renderer", *names)}
        return found
