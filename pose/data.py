"""Training and evaluation samples of the pose network, from tables of labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from wildshape.cli import say
from wildshape.crops import image_paths, read_image
from wildshape.errors import UserError
from wildshape.geometry import box_side, crop_affine, warp_crop
from wildshape.skeleton import Skeleton, load_skeleton
from wildshape.tables import Table

if TYPE_CHECKING:
    from wildshape.workspace import Workspace


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


@dataclass(frozen=True)
class PoseRecords:
    """Labelled animals in one skeleton, ready to be cropped.

    Attributes:
        instance_ids: N ids.
        paths: N image files.
        box_xyxy: [N,4] in image pixels.
        xy: [N,K,2] in image pixels, 0 where nothing counts.
        counts: bool [N,K], the keypoints that train and are measured (visible == 2).
        skipped: id and reason of each label that was left out.
    """

    instance_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    box_xyxy: np.ndarray
    xy: np.ndarray
    counts: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.instance_ids)

    @property
    def box_side(self) -> np.ndarray:
        """Longer side of each box, [N] pixels."""
        return box_side(self.box_xyxy)

    def take(self, index: np.ndarray) -> "PoseRecords":
        """The records at int positions."""
        return replace(
            self,
            instance_ids=tuple(self.instance_ids[i] for i in index),
            paths=tuple(self.paths[i] for i in index),
            box_xyxy=self.box_xyxy[index],
            xy=self.xy[index],
            counts=self.counts[index],
        )


def select_records(labels: Table, paths: Mapping[str, Path], skeleton: Skeleton, split: str) -> PoseRecords:
    """The labels of one split, their keypoints mapped by name onto a skeleton.

    Args:
        labels: a labels table; its rows name their own skeletons.
        paths: file of each image_id.
        skeleton: the skeleton to map onto; what a label's skeleton lacks does not count.
        split: "train", "val" or "test".

    Returns:
        Records of the labels whose image file exists, whose box has an area and that show at least
        one keypoint; the others stand in `skipped`.

    Raises:
        UserError: a label's skeleton shares no keypoint name with `skeleton`.
    """
    table = labels.take(labels["split"] == split)
    mapping = {name: _mapping(str(name), skeleton) for name in sorted(set(table["skeleton"]))}
    source = np.array([mapping[name] for name in table["skeleton"]], int)
    source = source.reshape(len(table), skeleton.num_keypoints)
    rows = np.arange(len(table))[:, None]
    counts = (source >= 0) & (table["visible"][rows, source.clip(0)] == 2)
    xy = np.where(counts[..., None], table["xy"][rows, source.clip(0)], 0.0)

    kept, files, skipped = [], [], []
    for i, row in enumerate(table.rows()):
        path = paths.get(row["image_id"])
        if path is None or not path.is_file():
            skipped.append((row["instance_id"], f"no image file {path or row['image_id']}"))
        elif not (row["box_xyxy"][2:] > row["box_xyxy"][:2]).all():
            skipped.append((row["instance_id"], "a box of no area"))
        elif not counts[i].any():
            skipped.append((row["instance_id"], "no visible keypoint"))
        else:
            kept.append(i)
            files.append(path)
    return PoseRecords(
        instance_ids=tuple(table["instance_id"][kept]),
        paths=tuple(files),
        box_xyxy=table["box_xyxy"][kept],
        xy=xy[kept],
        counts=counts[kept],
        skipped=tuple(skipped),
    )


def _mapping(name: str, skeleton: Skeleton) -> np.ndarray:
    names = load_skeleton(name).keypoints
    mapping = skeleton.map_from(names)
    if (mapping < 0).all():
        raise UserError(
            f"expected labels with keypoints of {skeleton.name} ({', '.join(skeleton.keypoints)}); "
            f"found {name} ({', '.join(names)}); add aliases to the skeleton's file"
        )
    return mapping


def join_records(parts: Sequence[PoseRecords]) -> PoseRecords:
    """Records of several categories, one after another."""
    return PoseRecords(
        instance_ids=sum((p.instance_ids for p in parts), ()),
        paths=sum((p.paths for p in parts), ()),
        box_xyxy=np.concatenate([p.box_xyxy for p in parts]),
        xy=np.concatenate([p.xy for p in parts]),
        counts=np.concatenate([p.counts for p in parts]),
        skipped=sum((p.skipped for p in parts), ()),
    )


def load_records(workspace: "Workspace", split: str, category: str | None = None) -> PoseRecords:
    """Labels of one split on the workspace's skeleton.

    Args:
        workspace: whose skeleton is used.
        split: "train", "val" or "test".
        category: whose labels; by default the workspace's.

    Raises:
        UserError: the tables are missing, or no keypoint name fits.
    """
    source = workspace if category is None else workspace.sibling(category=category)
    labels = source.load("labels", "the pose network")
    images = source.load("labelled_images", "the pose network")
    return select_records(labels, image_paths(images, source), workspace.category.skeleton, split)


def tell_skipped(skipped: Sequence[tuple[str, str]], total: int, what: str) -> None:
    """Say which labels were left out, and why, if any."""
    if skipped:
        shown = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        say(f"left out {len(skipped)} of {total} {what} ({shown}{more})")


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
        records: PoseRecords,
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
            `crop` uint8 [S,S,3], `xy_crop` float32 [K,2], `counts` bool [K].
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
        xy, counts = affine.apply(records.xy[index]), records.counts[index]
        if mirrored:
            xy, counts = xy[self._flip], counts[self._flip]
        return {
            "crop": _change_look(crop, augmentation, rng),
            "xy_crop": xy.astype(np.float32),
            "counts": counts,
        }


def _change_look(crop: np.ndarray, augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < augmentation.grey:
        crop = cv2.cvtColor(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if augmentation.colour:
        reach = augmentation.colour
        gain = 1 + rng.uniform(-reach, reach) + rng.uniform(-reach, reach, 3) / 2
        bias = 127.5 * rng.uniform(-reach, reach) + 127.5 * (1 - gain)
        table = np.arange(256)[:, None] * gain + bias
        crop = cv2.LUT(crop, table.clip(0, 255).astype(np.uint8)[:, None])
    if rng.random() < augmentation.erase:
        crop = crop.copy()
        size = crop.shape[0]
        width, height = (rng.uniform(0.1, 0.4, 2) * size).astype(int)
        x, y = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        crop[y : y + height, x : x + width] = rng.integers(0, 256, 3)
    return crop
