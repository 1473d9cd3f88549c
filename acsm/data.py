"""Training and evaluation samples of the 3D model, from labels and from pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from acsm.crops import WHITE, Patch, cut_patch, padded_box
from acsm.mask_crops import MaskCrops
from wildshape.crops import read_image, vary_colour
from wildshape.errors import UserError
from wildshape.geometry import (
    Affine2D,
    camera_to_crop,
    crop_affine,
    warp_crop,
    xy_crop_to_ndc,
)
from wildshape.records import AnimalRecords, join_records


@dataclass(frozen=True)
class CropStyle:
    """How animals are cropped in training. Evaluation pads alike and draws nothing.

    Attributes:
        padding: added on each side, relative to the box's width and height.
        jitter: largest move of each edge, relative likewise.
        flip: probability that a sample is mirrored, keypoints swapping sides.
        rotation_deg: largest turn in the image plane, either way.
        colour: largest relative change of brightness, contrast and each channel.
    """

    padding: float = 0.05
    jitter: float = 0.05
    flip: float = 0.5
    rotation_deg: float = 0.0
    colour: float = 0.2

    @property
    def reach(self) -> float:
        """Side of all that a crop may show, over the box's longer side."""
        turn = np.deg2rad(min(abs(self.rotation_deg), 45.0))
        return (1 + 2 * self.padding + 4 * self.jitter) * float(np.cos(turn) + np.sin(turn))


class ShapeSamples:
    """Crops of animals with their keypoints in NDC.

    Args:
        records: the animals.
        image_size: side S of the crops.
        keypoint_flip: left-right permutation of the keypoints.
        style: how training crops vary.
        guide: cameras in image pixels [N, 7] to start from, and how far to trust each [N]
            (see `acsm.camera_fit`); None: none.
        cache_bytes: patches cut from decoded images are kept up to this size in all.
        masks: give masks, too.
    """

    def __init__(
        self,
        records: AnimalRecords,
        image_size: int,
        keypoint_flip: Sequence[int],
        style: CropStyle | None = None,
        guide: tuple[np.ndarray, np.ndarray] | None = None,
        cache_bytes: int = 1 << 30,
        masks: bool = False,
    ) -> None:
        self.records = records
        self.image_size = image_size
        self.style = style or CropStyle()
        self._guide: Mapping[str, tuple[np.ndarray, float]] = {}
        if guide is not None:
            self._guide = {
                name: (camera, float(trust))
                for name, camera, trust in zip(records.instance_ids, *guide, strict=True)
            }
        self._flip = np.asarray(keypoint_flip, int)
        self._cache: dict[str, Patch] = {}
        self._room = cache_bytes
        self.masks = MaskCrops(image_size, self.style.reach) if masks else None

    def __len__(self) -> int:
        return len(self.records)

    def patch(self, index: int) -> Patch:
        """What the crops of one record are cut from.

        Raises:
            UserError: naming the file, if it cannot be read.
        """
        key = self.records.instance_ids[index]
        patch = self._cache.get(key)
        if patch is None:
            image = read_image(self.records.paths[index])
            box = self.records.box_xyxy[index]
            patch = cut_patch(image, box, self.image_size, self.style.reach)
            if patch.image.nbytes <= self._room:
                self._cache[key] = patch
                self._room -= patch.image.nbytes
        return patch

    def joined(self, other: ShapeSamples) -> ShapeSamples:
        """These animals followed by others, caches and guides shared."""
        both = ShapeSamples(
            join_records([self.records, other.records]), self.image_size, self._flip, self.style
        )
        both._guide = {**self._guide, **other._guide}
        both._cache = {**self._cache, **other._cache}
        both._room = min(self._room, other._room)
        both.masks = self.masks
        if both.masks is not None and other.masks is not None:
            both.masks.wrong |= other.masks.wrong
        return both

    def drop_unreadable(self) -> list[tuple[str, str]]:
        """Leave out the records whose image cannot be read; gives their ids and the reasons."""
        kept, dropped = [], []
        for index, instance_id in enumerate(self.records.instance_ids):
            try:
                patch = self.patch(index)
                kept.append(index)
                if self.masks is not None:
                    self.masks.check(self.records, index, patch.whole)
            except UserError as error:
                dropped.append((instance_id, str(error)))
        if dropped:
            self.records = self.records.take(kept)
        return dropped

    def crop(self, index: int, affine: Affine2D) -> np.ndarray:
        """RGB uint8 [S, S, 3] under a map from image to crop pixels, white outside the image."""
        patch = self.patch(index)
        return warp_crop(patch.image, affine.compose(patch.to_image), self.image_size, WHITE)

    def evaluation_affine(self, index: int) -> Affine2D:
        """Image to crop pixels of the padded, unmoved square."""
        box = padded_box(self.records.box_xyxy[index], self.style.padding)
        return crop_affine(box, self.image_size)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One varied crop.

        Args:
            index: of the record.
            rng: all randomness comes from it.

        Returns:
            ``crop`` uint8 [S, S, 3], ``target_ndc`` float32 [K, 2], ``weight`` float32 [K],
            ``guide`` float32 [5]: quaternion of the guiding camera in the crop, and its trust; where crops
            are turned ``up`` float32 [2], the image's up axis in the crop; with masks also what
            `acsm.mask_crops.MaskCrops.sample` gives.
        """
        style, records = self.style, self.records
        mirrored = bool(rng.random() < style.flip)
        box = padded_box(records.box_xyxy[index], style.padding, style.jitter, rng)
        affine = crop_affine(
            box,
            self.image_size,
            rotation_deg=style.rotation_deg * rng.uniform(-1, 1),
            flip=mirrored,
        )
        crop = self.crop(index, affine)
        target = xy_crop_to_ndc(affine.apply(records.xy[index]), self.image_size)
        weight = records.weight[index]
        if mirrored:
            target, weight = target[self._flip], weight[self._flip]
        made = {
            "crop": vary_colour(crop, style.colour, rng),
            "target_ndc": target.astype(np.float32),
            "weight": weight.astype(np.float32),
            "guide": self._guide_in(records.instance_ids[index], affine),
        }
        if style.rotation_deg:
            up = affine.matrix[:, :2] @ [0.0, -1.0]
            made["up"] = (up / np.linalg.norm(up)).astype(np.float32)
        if self.masks is not None:  # last, so that the crops are the same with and without masks
            made |= self.masks.sample(records, index, affine, rng)
        return made

    def _guide_in(self, instance_id: str, affine: Affine2D) -> np.ndarray:
        found = self._guide.get(instance_id)
        if found is None or not found[1]:
            return np.array([1, 0, 0, 0, 0], np.float32)
        quaternion = camera_to_crop(found[0], affine, self.image_size)[3:]
        return np.append(quaternion, found[1]).astype(np.float32)
