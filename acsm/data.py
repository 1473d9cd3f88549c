"""Training and evaluation samples of the 3D model, from labels and from pseudo-labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from acsm.crops import WHITE, Patch, cut_patch, padded_box
from wildshape.crops import read_image
from wildshape.errors import UserError
from wildshape.geometry import (
    Affine2D,
    box_side,
    camera_to_crop,
    crop_affine,
    warp_crop,
    xy_crop_to_ndc,
)
from wildshape.skeleton import Skeleton, load_skeleton
from wildshape.tables import Table


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


@dataclass(frozen=True)
class ShapeRecords:
    """Animals with target keypoints in one skeleton.

    Attributes:
        instance_ids: N ids.
        paths: N image files.
        box_xyxy: [N, 4] in image pixels.
        xy: [N, K, 2] in image pixels, 0 where the weight is 0.
        weight: [N, K], confidence; for labels 1 where visible.
        camera: [N, 7] in image pixels, NaN where unknown.
        skipped: id and reason of each row that was left out.
    """

    instance_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    box_xyxy: np.ndarray
    xy: np.ndarray
    weight: np.ndarray
    camera: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.instance_ids)

    @property
    def box_side(self) -> np.ndarray:
        """Longer side of each box, [N] pixels."""
        return box_side(self.box_xyxy)

    def take(self, index: Sequence[int] | np.ndarray) -> ShapeRecords:
        """The records at int positions."""
        index = np.asarray(index, int)
        return replace(
            self,
            instance_ids=tuple(self.instance_ids[i] for i in index),
            paths=tuple(self.paths[i] for i in index),
            box_xyxy=self.box_xyxy[index],
            xy=self.xy[index],
            weight=self.weight[index],
            camera=self.camera[index],
        )


def join_records(parts: Sequence[ShapeRecords]) -> ShapeRecords:
    """Records one after another."""
    return ShapeRecords(
        instance_ids=sum((p.instance_ids for p in parts), ()),
        paths=sum((p.paths for p in parts), ()),
        box_xyxy=np.concatenate([p.box_xyxy for p in parts]),
        xy=np.concatenate([p.xy for p in parts]),
        weight=np.concatenate([p.weight for p in parts]),
        camera=np.concatenate([p.camera for p in parts]),
        skipped=sum((p.skipped for p in parts), ()),
    )


def label_records(
    labels: Table, paths: Mapping[str, Path], skeleton: Skeleton, split: str | None
) -> ShapeRecords:
    """The labelled animals of one split, their keypoints mapped by name onto a skeleton.

    Only keypoints with visible == 2 get weight.

    Args:
        labels: a labels table; its rows name their own skeletons.
        paths: file of each image id.
        skeleton: the skeleton to map onto.
        split: "train", "val" or "test"; None: all.

    Raises:
        UserError: a label's skeleton shares no keypoint name with ``skeleton``.
    """
    table = labels if split is None else labels.take(labels["split"] == split)
    weight = np.zeros((len(table), skeleton.num_keypoints))
    xy = np.zeros((len(table), skeleton.num_keypoints, 2))
    for name in sorted(set(table["skeleton"])):
        rows = np.flatnonzero(table["skeleton"] == name)
        source = skeleton_map(str(name), skeleton)
        known = np.flatnonzero(source >= 0)
        counts = table["visible"][rows][:, source[known]] == 2
        found = table["xy"][rows][:, source[known]]
        weight[np.ix_(rows, known)] = counts
        xy[np.ix_(rows, known)] = np.where(counts[..., None], found, 0)
    return _usable(table, paths, xy, weight, table["camera"])


def pseudo_label_records(
    instances: Table, keypoints: Table, paths: Mapping[str, Path], skeleton: Skeleton
) -> ShapeRecords:
    """Animals with predicted keypoints, weighted by the predicted confidence.

    Args:
        instances: the animals, in the order to return them.
        keypoints: predictions; rows of other transforms than "none" are not read. Its meta names
            the skeleton.
        paths: file of each image id.
        skeleton: the skeleton to map onto.

    Raises:
        UserError: the table's keypoints are not of a skeleton that ``skeleton`` shares names with.
    """
    plain = keypoints.take(keypoints["transform"] == "none")
    source = skeleton_map(str(keypoints.meta.get("skeleton", "none")), skeleton)
    place = plain.lookup("instance_id")
    has = np.array([i in place for i in instances["instance_id"]], dtype=bool)
    rows = np.array([place.get(i, 0) for i in instances["instance_id"]], dtype=int)
    shape = (len(instances), skeleton.num_keypoints)
    xy, weight = np.zeros((*shape, 2)), np.zeros(shape)
    known = np.flatnonzero(source >= 0)
    if len(plain):
        xy[:, known] = plain["xy"][rows][:, source[known]]
        weight[:, known] = plain["confidence"][rows][:, source[known]].clip(min=0)
    weight[~has] = 0
    camera = np.full((len(instances), 7), np.nan)
    return _usable(instances, paths, xy, weight, camera)


def skeleton_map(name: str, skeleton: Skeleton) -> np.ndarray:
    """For each of the skeleton's K keypoints its index in skeleton ``name``, -1 where it lacks it.

    Raises:
        UserError: there is no such skeleton, or the two share no name.
    """
    if name == skeleton.name:
        return np.arange(skeleton.num_keypoints)
    names = load_skeleton(name).keypoints
    mapping = skeleton.map_from(names)
    if (mapping < 0).all():
        raise UserError(
            f"expected keypoints of {skeleton.name} ({', '.join(skeleton.keypoints)}); "
            f"found {name} ({', '.join(names)}); add aliases to the skeleton's file"
        )
    return mapping


def _usable(
    table: Table,
    paths: Mapping[str, Path],
    xy: np.ndarray,
    weight: np.ndarray,
    camera: np.ndarray,
) -> ShapeRecords:
    kept, files, skipped = [], [], []
    boxes = table["box_xyxy"]
    for i, (instance_id, image_id) in enumerate(zip(table["instance_id"], table["image_id"])):
        path = paths.get(image_id)
        if path is None or not path.is_file():
            skipped.append((instance_id, f"no image file {path or image_id}"))
        elif not (boxes[i, 2:] > boxes[i, :2]).all():
            skipped.append((instance_id, "a box of no area"))
        elif not weight[i].any():
            skipped.append((instance_id, "no keypoint to learn from"))
        else:
            kept.append(i)
            files.append(path)
    return ShapeRecords(
        tuple(table["instance_id"][kept]),
        tuple(files),
        boxes[kept],
        np.where(weight[kept][..., None] > 0, xy[kept], 0.0),
        weight[kept],
        np.asarray(camera)[kept],
        tuple(skipped),
    )


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
    """

    def __init__(
        self,
        records: ShapeRecords,
        image_size: int,
        keypoint_flip: Sequence[int],
        style: CropStyle | None = None,
        guide: tuple[np.ndarray, np.ndarray] | None = None,
        cache_bytes: int = 1 << 30,
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
        return both

    def drop_unreadable(self) -> list[tuple[str, str]]:
        """Leave out the records whose image cannot be read; gives their ids and the reasons."""
        kept, dropped = [], []
        for index, instance_id in enumerate(self.records.instance_ids):
            try:
                self.patch(index)
                kept.append(index)
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
            ``guide`` float32 [5]: quaternion of the guiding camera in the crop, and its trust.
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
        return {
            "crop": _vary_colour(crop, style.colour, rng),
            "target_ndc": target.astype(np.float32),
            "weight": weight.astype(np.float32),
            "guide": self._guide_in(records.instance_ids[index], affine),
        }

    def _guide_in(self, instance_id: str, affine: Affine2D) -> np.ndarray:
        found = self._guide.get(instance_id)
        if found is None or not found[1]:
            return np.array([1, 0, 0, 0, 0], np.float32)
        quaternion = camera_to_crop(found[0], affine, self.image_size)[3:]
        return np.append(quaternion, found[1]).astype(np.float32)


def _vary_colour(crop: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    if not reach:
        return crop
    gain = 1 + rng.uniform(-reach, reach) + rng.uniform(-reach, reach, 3) / 2
    bias = 127.5 * rng.uniform(-reach, reach) + 127.5 * (1 - gain)
    table = (np.arange(256)[:, None] * gain + bias).clip(0, 255).astype(np.uint8)
    return cv2.LUT(crop, table[:, None])
