"""Shapes of animals in images: a trained model with its template, crop and skeleton."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from acsm.crops import WHITE, padded_box
from acsm.geometry import project_with_depth
from acsm.model import ACSM, architecture_from, best_camera
from wildshape.device import pick_device
from wildshape.errors import UserError
from wildshape.geometry import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Affine2D,
    camera_to_image,
    crop_affine,
    warp_crop,
    xy_ndc_to_crop,
)
from wildshape.training import load_checkpoint

if TYPE_CHECKING:
    from acsm.template import ArticulatedTemplate
    from wildshape.category import CategorySpec

_TEMPLATE_ARRAYS = (
    "vertices", "faces", "membership", "part_parents", "part_centres", "part_mirror",
    "keypoint_vertices", "keypoint_flip",
)  # fmt: skip


def normalise(crops: Tensor) -> Tensor:
    """RGB uint8 [B, S, S, 3] -> ImageNet-normalised float [B, 3, S, S], channels last in memory."""
    scale = torch.as_tensor(1 / (255 * IMAGENET_STD), device=crops.device)
    shift = torch.as_tensor(-IMAGENET_MEAN / IMAGENET_STD, device=crops.device)
    return torch.addcmul(shift, crops.to(scale.dtype), scale).permute(0, 3, 1, 2)


def pack_template(template: ArticulatedTemplate) -> dict[str, Any]:
    """A template as tensors and names, as a checkpoint keeps it."""
    packed: dict[str, Any] = {
        name: torch.as_tensor(np.asarray(getattr(template, name))) for name in _TEMPLATE_ARRAYS
    }
    packed["part_names"] = [str(name) for name in template.part_names]
    active = template.active_parts
    packed["active_parts"] = None if active is None else [bool(flag) for flag in active]
    return packed


def unpack_template(packed: Mapping[str, Any]) -> ArticulatedTemplate:
    """The template of a checkpoint."""
    from acsm.template import ArticulatedTemplate

    arrays: dict[str, Any] = {name: packed[name].numpy() for name in _TEMPLATE_ARRAYS}
    arrays["part_parents"] = tuple(arrays["part_parents"].tolist())
    active = packed["active_parts"]
    return ArticulatedTemplate(
        **arrays,
        part_names=tuple(packed["part_names"]),
        active_parts=None if active is None else np.array(active, bool),
    )


def template_hash(template: ArticulatedTemplate) -> str:
    """Hash of all that a trained model depends on in a template."""
    digest = hashlib.sha256("\n".join(str(name) for name in template.part_names).encode())
    for name in _TEMPLATE_ARRAYS:
        values = np.ascontiguousarray(getattr(template, name))
        values = values.astype(np.float32) if values.dtype.kind == "f" else values.astype(np.int64)
        digest.update(f"{name}{values.shape}".encode() + values.tobytes())
    active = template.active_parts
    digest.update(str(None if active is None else [bool(flag) for flag in active]).encode())
    return digest.hexdigest()[:24]


@dataclass(frozen=True)
class Shapes:
    """Predicted shapes of N animals, each with its most probable camera.

    Attributes:
        crop_affine: image to crop pixels [N, 2, 3].
        camera: [N, 7], in image pixels.
        camera_ndc: [N, 7], in the NDC of the crop.
        camera_prob: probabilities of all hypotheses [N, C].
        part_transforms: [N, P, 8].
        xy_image: reprojected keypoints [N, K, 2].
        vertices: articulated mesh [N, V, 3] in the template frame; None where not asked for.
    """

    crop_affine: np.ndarray
    camera: np.ndarray
    camera_ndc: np.ndarray
    camera_prob: np.ndarray
    part_transforms: np.ndarray
    xy_image: np.ndarray
    vertices: np.ndarray | None

    def __len__(self) -> int:
        return len(self.camera)

    @property
    def keypoints(self) -> np.ndarray:
        """Reprojected keypoints [N, K, 2] in image pixels."""
        return self.xy_image

    @property
    def vertices_image(self) -> np.ndarray:
        """Meshes [N, V, 3] in the image: x and y in pixels, z in pixels away from the viewer.

        Raises:
            ValueError: the meshes were not asked for.
        """
        if self.vertices is None:
            raise ValueError("expected shapes predicted with vertices=True")
        camera = torch.as_tensor(self.camera)
        return project_with_depth(torch.as_tensor(self.vertices), camera, offset=0.0).numpy()


class ShapePredictor:
    """A trained model that answers in image pixels.

    Args:
        model: the model.
        template: its template, for pictures; None where none are drawn.
        keypoints: names of its K keypoints.
        padding: widening of the boxes, as in training.
        category: what it was trained for.
        skeleton: the skeleton's name.
        device: "auto", "cpu" or "cuda".
        batch_size: crops in one forward pass.
    """

    def __init__(
        self,
        model: ACSM,
        template: ArticulatedTemplate | None,
        keypoints: Sequence[str],
        *,
        padding: float = 0.05,
        category: str = "",
        skeleton: str = "",
        device: str = "auto",
        batch_size: int = 32,
    ) -> None:
        self.device = torch.device(pick_device(device))
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.template = template
        self.keypoints = tuple(keypoints)
        self.padding = padding
        self.category = category
        self.skeleton = skeleton
        self.batch_size = batch_size

    @property
    def image_size(self) -> int:
        """S, side of the crops."""
        return self.model.arch.image_size

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        category: CategorySpec | None = None,
        *,
        device: str = "auto",
        batch_size: int = 32,
    ) -> ShapePredictor:
        """Load a checkpoint that `acsm/train.py` wrote; it carries its template.

        Args:
            path: ``best.pt`` or ``last.pt``.
            category: what it must be for, with its present template; None takes any.
            device: "auto", "cpu" or "cuda".
            batch_size: crops in one forward pass.

        Raises:
            UserError: the file is missing, of another kind, or does not fit ``category``.
        """
        state = load_checkpoint(path, kind="acsm")
        extra = state["extra"]
        template = unpack_template(extra["template"])
        model = ACSM(template, architecture_from(extra["arch"]))
        try:
            model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise UserError(f"the checkpoint {path} does not fit its own template: {error}") from None
        predictor = cls(
            model,
            template,
            extra["keypoints"],
            padding=extra["padding"],
            category=extra["category"],
            skeleton=extra["skeleton"],
            device=device,
            batch_size=batch_size,
        )
        if category is not None:
            predictor.check(category, path)
        return predictor

    def check(self, category: CategorySpec, path: str | Path) -> None:
        """Refuse to serve another category, skeleton or template.

        Raises:
            UserError: naming what differs.
        """
        from acsm.template import template_for

        mend = f"run: python acsm/train.py --category {category.name} --name NAME --arm ARM"
        if self.category != category.name:
            raise UserError(
                f"expected a 3D model of {category.name} in {path}; found one of {self.category}; {mend}"
            )
        if self.keypoints != category.skeleton.keypoints:
            raise UserError(
                f"expected a 3D model with the keypoints of {category.skeleton.name} in {path}; "
                f"found those of {self.skeleton}; {mend} --overwrite"
            )
        if template_hash(self.template) != template_hash(template_for(category)):
            raise UserError(
                f"expected a 3D model with the present template of {category.name} in {path}; "
                f"found one trained with another; {mend} --overwrite"
            )

    def crop_affine(self, box_xyxy: np.ndarray) -> Affine2D:
        """Image to crop pixels for one box [4]."""
        return crop_affine(padded_box(box_xyxy, self.padding), self.image_size)

    def predict(
        self, images: Sequence[np.ndarray], boxes_xyxy: np.ndarray, *, vertices: bool = True
    ) -> Shapes:
        """Shapes of one animal in each image.

        Args:
            images: N RGB images, uint8 [H, W, 3] each, of any size.
            boxes_xyxy: [N, 4] in image pixels.
            vertices: whether to give the articulated meshes.
        """
        boxes = np.asarray(boxes_xyxy, np.float64).reshape(len(images), 4)
        affines = [self.crop_affine(box) for box in boxes]
        size = self.image_size
        crops = [warp_crop(image, affine, size, WHITE) for image, affine in zip(images, affines)]
        matrices = np.array([affine.matrix for affine in affines]).reshape(-1, 2, 3)
        stacked = np.array(crops, np.uint8).reshape(-1, size, size, 3)
        return self.predict_crops(stacked, matrices, vertices=vertices)

    def predict_crops(self, crops: np.ndarray, affines: np.ndarray, *, vertices: bool = False) -> Shapes:
        """Shapes of animals in crops that are cut already.

        Args:
            crops: RGB uint8 [N, S, S, 3].
            affines: image to crop pixels [N, 2, 3].
            vertices: whether to give the articulated meshes.
        """
        pieces = [
            self._forward(torch.as_tensor(crops[i : i + self.batch_size]), vertices)
            for i in range(0, max(len(crops), 1), self.batch_size)
        ]
        joined = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
        return self._to_image(joined, np.asarray(affines, np.float64))

    @torch.inference_mode()
    def _forward(self, crops: Tensor, vertices: bool) -> dict[str, np.ndarray]:
        raw = self.model(normalise(crops.to(self.device)), vertices=vertices)
        best = best_camera(raw)
        best["camera_prob"] = raw["camera_prob"]
        return {name: value.double().cpu().numpy() for name, value in best.items()}

    def _to_image(self, result: dict[str, np.ndarray], affines: np.ndarray) -> Shapes:
        size = self.image_size
        linear = np.linalg.inv(affines[:, :, :2])
        xy_crop = xy_ndc_to_crop(result["keypoints_ndc"], size)
        xy_image = (xy_crop - affines[:, None, :, 2]) @ linear.transpose(0, 2, 1)
        camera = result["camera"].copy()
        for i, matrix in enumerate(affines):
            camera[i] = camera_to_image(camera[i], Affine2D(matrix), size)
        return Shapes(
            affines,
            camera,
            result["camera"],
            result["camera_prob"],
            result["part_transforms"],
            xy_image,
            result.get("vertices"),
        )

    def overlay(self, image: np.ndarray, shapes: Shapes, index: int) -> np.ndarray:
        """The mesh of one prediction drawn over its photo, uint8 RGB [H, W, 3]."""
        from acsm.drawing import overlay

        return overlay(image, shapes.vertices_image[index], self.template)
