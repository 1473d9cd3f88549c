"""Training and evaluation samples of the pose network, from tables of labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from wildshape.crops import read_image, vary_colour
from wildshape.errors import UserError
from wildshape.geometry import crop_affine, warp_crop
from wildshape.records import AnimalRecords


@dataclass(frozen=True)
class Augmentation:
    """How far training crops are changed, each drawn uniformly and anew.

    Attributes:
        rotation_deg: largest turn, either way.
        scale: range of the crop's side relative to the box.
        flip: probability of a left-right mirror, keypoints permuted with it.
        colour: largest relative change of brightness, contrast and each channel.
        grey: probability of a picture without colour.
        erase: probability of a patch (10 to 40 % of the side) filled with one colour.
    """

    rotation_deg: float = 30.0
    scale: tuple[float, float] = (0.75, 1.25)
    flip: float = 0.5
    colour: float = 0.2
    grey: float = 0.0
    erase: float = 0.0


AUGMENTATIONS: Mapping[str, Augmentation] = {
    "default": Augmentation(),
    "published": Augmentation(flip=0.0, colour=0.0),
    # A second network that is right for other reasons: it cannot lean on coat colour or on any
    # single region, so that its mistakes coincide less with the first network's.
    "aux": Augmentation(colour=0.4, grey=0.5, erase=0.5),
    "none": Augmentation(rotation_deg=0.0, scale=(1.0, 1.0), flip=0.0, colour=0.0),
}


class PoseSamples:
    """Crops of labelled animals with their keypoints.

    Args:
        records: the animals.
        image_size: side S of the crops.
        flip: left-right permutation of the keypoints.
        augmentation: how far the crops are changed.
        cache_bytes: decoded images are kept up to this size.
    """

    def __init__(
        self,
        records: AnimalRecords,
        image_size: int,
        flip: Sequence[int],
        augmentation: Augmentation = AUGMENTATIONS["default"],
        cache_bytes: int = 512 << 20,
    ) -> None:
        self.records = records
        self.image_size = image_size
        self.augmentation = augmentation
        self._flip = np.asarray(flip)
        self._cache: dict[Path, np.ndarray] = {}
        self._room = cache_bytes

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> np.ndarray:
        """RGB uint8 [H,W,3] of one record.

        Raises:
            UserError: naming the file, if it cannot be read.
        """
        path = self.records.paths[index]
        image = self._cache.get(path)
        if image is None:
            image = read_image(path)
            if image.nbytes <= self._room:
                self._cache[path] = image
                self._room -= image.nbytes
        return image

    def drop_unreadable(self) -> list[tuple[str, str]]:
        """Leave out the records whose image cannot be read; gives their ids and the reasons."""
        kept, dropped = [], []
        for index, instance_id in enumerate(self.records.instance_ids):
            try:
                self.image(index)
                kept.append(index)
            except UserError as error:
                dropped.append((instance_id, str(error)))
        if dropped:
            self.records = self.records.take(np.array(kept, int))
        return dropped

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One augmented crop.

        Args:
            index: of the record.
            rng: all randomness comes from it.

        Returns:
            `crop` uint8 [S,S,3], `xy_crop` float32 [K,2], `weight` float32 [K].
        """
        augmentation, records = self.augmentation, self.records
        mirrored = bool(rng.random() < augmentation.flip)
        affine = crop_affine(
            records.box_xyxy[index],
            self.image_size,
            rotation_deg=augmentation.rotation_deg * rng.uniform(-1, 1),
            scale=rng.uniform(*augmentation.scale),
            flip=mirrored,
        )
        crop = warp_crop(self.image(index), affine, self.image_size)
        xy, weight = affine.apply(records.xy[index]), records.weight[index]
        if mirrored:
            xy, weight = xy[self._flip], weight[self._flip]
        return {
            "crop": _change_look(crop, augmentation, rng),
            "xy_crop": xy.astype(np.float32),
            "weight": weight.astype(np.float32),
        }


def _change_look(crop: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < augmentation.grey:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    crop = vary_colour(crop, augmentation.colour, rng)
    if rng.random() < augmentation.erase:
        crop = crop.copy()
        size = crop.shape[0]
        width, height = (rng.uniform(0.1, 0.4, 2) * size).astype(int)
        x, y = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        crop[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return crop
