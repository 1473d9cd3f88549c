"""Labelled and pseudo-labelled animals, read from tables: what every network here learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from wildshape.cli import say
from wildshape.errors import UserError
from wildshape.geometry import box_side
from wildshape.skeleton import Skeleton, load_skeleton
from wildshape.tables import Table

Need = Literal["keypoints", "masks", "either"]
"""What an animal must have to be learnt from."""


@dataclass(frozen=True)
class AnimalRecords:
    """Animals with target keypoints in one skeleton.

    Attributes:
        instance_ids: N ids.
        paths: N image files.
        box_xyxy: [N, 4] in image pixels.
        xy: [N, K, 2] in image pixels, 0 where the weight is 0.
        weight: [N, K], confidence; for labels 1 where visible.
        camera: [N, 7] in image pixels, NaN where unknown.
        skipped: id and reason of each row that was left out.
        mask_rle: N run lengths of masks of the whole image, None where there is no mask.
        mask_weight: [N], how far to trust each mask: 1 for those of people, the quality that a
            segmenter gave its own, 0 where there is none.
    """

    instance_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    box_xyxy: np.ndarray
    xy: np.ndarray
    weight: np.ndarray
    camera: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()
    mask_rle: tuple[str | None, ...] = ()
    mask_weight: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.mask_rle:
            object.__setattr__(self, "mask_rle", (None,) * len(self.instance_ids))
        if self.mask_weight is None:
            there = [float(text is not None) for text in self.mask_rle]
            object.__setattr__(self, "mask_weight", np.array(there))

    def __len__(self) -> int:
        return len(self.instance_ids)

    @property
    def counts(self) -> np.ndarray:
        """The keypoints that train and are measured, bool [N, K]."""
        return self.weight > 0

    @property
    def box_side(self) -> np.ndarray:
        """Longer side of each box, [N] pixels."""
        return box_side(self.box_xyxy)

    def take(self, index: Sequence[int] | np.ndarray) -> AnimalRecords:
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
            mask_rle=tuple(self.mask_rle[i] for i in index),
            mask_weight=np.asarray(self.mask_weight)[index],
        )


def join_records(parts: Sequence[AnimalRecords]) -> AnimalRecords:
    """Records one after another."""
    return AnimalRecords(
        instance_ids=sum((p.instance_ids for p in parts), ()),
        paths=sum((p.paths for p in parts), ()),
        box_xyxy=np.concatenate([p.box_xyxy for p in parts]),
        xy=np.concatenate([p.xy for p in parts]),
        weight=np.concatenate([p.weight for p in parts]),
        camera=np.concatenate([p.camera for p in parts]),
        skipped=sum((p.skipped for p in parts), ()),
        mask_rle=sum((p.mask_rle for p in parts), ()),
        mask_weight=np.concatenate([np.asarray(p.mask_weight) for p in parts]),
    )


def label_records(
    labels: Table,
    paths: Mapping[str, Path],
    skeleton: Skeleton,
    split: str | None,
    need: Need = "keypoints",
) -> AnimalRecords:
    """The labelled animals of one split, their keypoints mapped by name onto a skeleton.

    Only keypoints with visible == 2 get weight.

    Args:
        labels: a labels table; its rows name their own skeletons.
        paths: file of each image id.
        skeleton: the skeleton to map onto.
        split: "train", "val" or "test"; None: all.
        need: what a row must have, else it is skipped.

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
    return _usable(table, paths, (xy, weight, table["camera"]), need)


def pseudo_label_records(
    instances: Table,
    keypoints: Table | None,
    paths: Mapping[str, Path],
    skeleton: Skeleton,
    need: Need = "keypoints",
) -> AnimalRecords:
    """Animals with predicted keypoints, weighted by the predicted confidence.

    Args:
        instances: the animals, in the order to return them.
        keypoints: predictions; rows of other transforms than "none" are not read. Its meta names
            the skeleton. None: there are none, and masks are all there is to learn from.
        paths: file of each image id.
        skeleton: the skeleton to map onto.
        need: what a row must have, else it is skipped.

    Raises:
        UserError: the table's keypoints are not of a skeleton that ``skeleton`` shares names with.
    """
    camera = np.full((len(instances), 7), np.nan)
    if keypoints is None:
        xy = np.zeros((len(instances), skeleton.num_keypoints, 2))
        return _usable(instances, paths, (xy, xy[..., 0], camera), need)
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
    return _usable(instances, paths, (xy, weight, camera), need)


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
    truth: tuple[np.ndarray, np.ndarray, np.ndarray],
    need: Need,
) -> AnimalRecords:
    """The rows that have an image, a box and what is needed; ``truth`` is xy, weight and camera."""
    kept, files, skipped = [], [], []
    boxes, masks = table["box_xyxy"], table["mask_rle"]
    xy, weight, camera = truth
    for i, (instance_id, image_id) in enumerate(zip(table["instance_id"], table["image_id"])):
        path = paths.get(image_id)
        if path is None or not path.is_file():
            skipped.append((instance_id, f"no image file {path or image_id}"))
        elif not (boxes[i, 2:] > boxes[i, :2]).all():
            skipped.append((instance_id, "a box of no area"))
        elif need == "keypoints" and not weight[i].any():
            skipped.append((instance_id, "no keypoint to learn from"))
        elif need == "masks" and masks[i] is None:
            skipped.append((instance_id, "no mask to learn from"))
        elif need == "either" and masks[i] is None and not weight[i].any():
            skipped.append((instance_id, "no keypoint and no mask to learn from"))
        else:
            kept.append(i)
            files.append(path)
    return AnimalRecords(
        tuple(table["instance_id"][kept]),
        tuple(files),
        boxes[kept],
        np.where(weight[kept][..., None] > 0, xy[kept], 0.0),
        weight[kept],
        np.asarray(camera)[kept],
        tuple(skipped),
        tuple(masks[kept]),
        _mask_weights(table)[kept],
    )


def _mask_weights(table: Table) -> np.ndarray:
    quality = np.nan_to_num(np.asarray(table["mask_quality"], np.float64), nan=1.0).clip(0, 1)
    return np.where([text is not None for text in table["mask_rle"]], quality, 0.0)


def tell_skipped(skipped: Sequence[tuple[str, str]], total: int, what: str) -> None:
    """Say which animals were left out, and why, if any."""
    if skipped:
        shown = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        say(f"left out {len(skipped)} of {total} {what} ({shown}{more})")
