"""Keypoints of animals in images: a trained network with its crop, decoding and skeleton."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pose.heatmaps import decode, flip_heatmaps, xy_cell_to_crop
from pose.model import STRIDE, PoseNet
from wildshape.device import pick_device
from wildshape.errors import UserError
from wildshape.geometry import IMAGENET_MEAN, IMAGENET_STD, Affine2D, crop_affine, warp_crop
from wildshape.training import load_checkpoint


def normalise(images: Tensor) -> Tensor:
    """RGB crops uint8 [B,S,S,3] -> ImageNet-normalised float [B,3,S,S] in channels-last order."""
    scale = torch.as_tensor(1 / (255 * IMAGENET_STD), device=images.device)
    shift = torch.as_tensor(-IMAGENET_MEAN / IMAGENET_STD, device=images.device)
    # The permuted view is a channels-last tensor as it stands: no copy.
    return torch.addcmul(shift, images.to(scale.dtype), scale).permute(0, 3, 1, 2)


class PosePredictor:
    """A pose network that answers in image pixels.

    Args:
        model: the network.
        image_size: side S of its square input in pixels.
        keypoints: names of its K keypoints.
        flip: left-right permutation of the keypoints, for `flip_average`.
        device: "auto", "cpu" or "cuda".
        batch_size: crops in one forward pass.
        flip_average: average the heatmaps with those of the mirrored crops (twice the work).
        published: decode as the released code does (the maximal cell), for its checkpoints.
    """

    def __init__(
        self,
        model: PoseNet,
        image_size: int,
        keypoints: Sequence[str],
        *,
        flip: Sequence[int] | None = None,
        device: str = "auto",
        batch_size: int = 32,
        flip_average: bool = False,
        published: bool = False,
    ) -> None:
        if image_size % 32:
            raise UserError(f"expected an image size that is a multiple of 32; found {image_size}")
        self.device = pick_device(device)
        self.model = model.eval().to(self.device, memory_format=torch.channels_last)
        self.image_size = image_size
        self.keypoints = tuple(keypoints)
        self.batch_size = batch_size
        self.flip_average = flip_average
        self.published = published
        self.skeleton: str | None = None
        self._flip = None if flip is None else torch.as_tensor(list(flip), device=self.device)
        if flip_average and flip is None:
            raise ValueError("flip_average needs the skeleton's flip")

    @classmethod
    def from_checkpoint(cls, path: str | Path, **options: Any) -> "PosePredictor":
        """Load a checkpoint that `pose/train.py` wrote.

        Args:
            path: `best.pt` or `last.pt`.
            **options: `device`, `batch_size` and `flip_average` as for the class.

        Raises:
            UserError: the file is missing or of another kind.
        """
        checkpoint = load_checkpoint(path, kind="pose")
        extra = checkpoint["extra"]
        with torch.device("meta"):  # no time spent on random weights that are replaced
            model = PoseNet(**extra["arch"])
        model.load_state_dict(checkpoint["model"], assign=True)
        options = {"flip": extra["flip"], "published": extra["published"], **options}
        predictor = cls(model, extra["image_size"], extra["keypoints"], **options)
        predictor.skeleton = extra["skeleton"]
        return predictor

    def crop_affine(self, box_xyxy: np.ndarray, **transform: float) -> Affine2D:
        """Image -> crop for one box [4]; `rotation_deg` and `scale` as in `geometry.crop_affine`."""
        return crop_affine(box_xyxy, self.image_size, **transform)

    def predict(
        self, images: Sequence[np.ndarray], boxes_xyxy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints of one animal in each image.

        Args:
            images: N RGB images, uint8 [H,W,3] each, of any size.
            boxes_xyxy: [N,4] in image pixels.

        Returns:
            xy_image [N,K,2] and confidence [N,K], float64.
        """
        boxes = np.asarray(boxes_xyxy, float).reshape(len(images), 4)
        affines = [self.crop_affine(box) for box in boxes]
        size = self.image_size
        crops = [warp_crop(image, affine, size) for image, affine in zip(images, affines)]
        if not crops:
            return np.zeros((0, len(self.keypoints), 2)), np.zeros((0, len(self.keypoints)))
        return self.predict_crops(np.stack(crops), np.stack([a.matrix for a in affines]))

    def predict_crops(self, crops: np.ndarray, affines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints of crops, in the frame that the crops were cut from.

        Args:
            crops: RGB uint8 [N,S,S,3].
            affines: image -> crop, [N,2,3].

        Returns:
            xy_image [N,K,2] and confidence [N,K], float64.
        """
        pieces = [
            self._forward(torch.as_tensor(crops[i : i + self.batch_size]))
            for i in range(0, len(crops), self.batch_size)
        ]
        xy_crop = np.concatenate([xy for xy, _ in pieces])
        confidence = np.concatenate([value for _, value in pieces])
        linear = np.linalg.inv(affines[:, :, :2])
        xy_image = (xy_crop - affines[:, None, :, 2]) @ linear.transpose(0, 2, 1)
        return xy_image, confidence

    @torch.inference_mode()
    def _forward(self, crops: Tensor) -> tuple[np.ndarray, np.ndarray]:
        images = normalise(crops.to(self.device, non_blocking=True))
        heatmaps = self.model(images)
        if self.flip_average:
            assert self._flip is not None
            mirrored = flip_heatmaps(self.model(images.flip(-1)), self._flip)
            heatmaps = (heatmaps + mirrored) / 2
        xy_cell, confidence = decode(heatmaps.float(), self.published)
        xy_crop = xy_cell_to_crop(xy_cell, STRIDE, self.published)
        return xy_crop.double().cpu().numpy(), confidence.double().cpu().numpy()
