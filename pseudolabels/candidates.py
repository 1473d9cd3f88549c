"""From tables to the arrays that criteria look at: which instances can be chosen, row by row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pseudolabels.criteria import Candidates
from wildshape.errors import UserError
from wildshape.tables import TRANSFORMS, Table
from wildshape.training_data import repeated_image_ids


@dataclass(frozen=True)
class Dropped:
    """How many instances are no candidates, by reason; reasons that apply to none are left out."""

    counts: Mapping[str, int]

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.items())


def gather_candidates(
    instances: Table,
    keypoints: Mapping[str, Table],
    images: Table | None = None,
    seed: int = 0,
    labelled: Collection[str] = (),
) -> tuple[Candidates, np.ndarray, Dropped]:
    """The instances that all keypoint sources cover, with their keypoints aligned.

    Args:
        instances: Table of kind instances.
        keypoints: Table of kind keypoints by source; those of "pose_mt" have a row a transform.
        images: Table of kind images; instances whose image repeats another, or stands in the
            labelled set, are left out.
        seed: Passed on to criteria that draw at random.
        labelled: Ids of images that people have labelled; their instances are left out.

    Returns:
        The candidates, their instance ids [N], and what was dropped and why. Ties are broken by
        the id that an instance has in its source where all have one, else by instance id.

    Raises:
        UserError: sources with different numbers of keypoints, a transform without its rows.
    """
    rows = np.arange(len(instances))
    dropped: dict[str, int] = {}
    if labelled:
        kept = np.array([image not in labelled for image in instances["image_id"]], dtype=bool)
        dropped["in images that are labelled now"] = int((~kept).sum())
        rows = rows[kept]
    if images is not None:
        repeated = repeated_image_ids(images)
        kept = np.array([image not in repeated for image in instances["image_id"][rows]], dtype=bool)
        dropped["in images that repeat another or stand in the labelled set"] = int((~kept).sum())
        rows = rows[kept]
    ids = instances["instance_id"]
    aligned: dict[str, tuple[dict[str, int], np.ndarray, np.ndarray]] = {}
    for source, table in keypoints.items():
        if source == "pose_mt":
            aligned[source] = _index(*stack_transforms(table))
        else:
            plain = table if _all_plain(table) else table.take(table["transform"] == "none")
            aligned[source] = _index(plain["instance_id"], plain["xy"], plain["confidence"])
        known = aligned[source][0]
        kept = np.array([ids[row] in known for row in rows], dtype=bool)
        dropped[f"without keypoints/{source}"] = int((~kept).sum())
        rows = rows[kept]
    _same_keypoints(
        {
            source: (xy.shape[-2], keypoints[source].meta.get("skeleton"))
            for source, (_, xy, _) in aligned.items()
        }
    )
    chosen = ids[rows]
    xy, confidence = {}, {}
    for source, (known, source_xy, source_confidence) in aligned.items():
        index = np.array([known[value] for value in chosen], dtype=np.int64)
        in_place = len(index) == len(source_xy) and (index == np.arange(len(index))).all()
        xy[source] = source_xy if in_place else source_xy[index]
        confidence[source] = source_confidence if in_place else source_confidence[index]
    if "pose" in xy and "pose_mt" in xy and "none" not in keypoints["pose_mt"]["transform"]:
        xy["pose_mt"] = np.concatenate([xy["pose"][:, None], xy["pose_mt"]], axis=1)
    names = instances["source_id"][rows]
    tie_ids = names if all(name is not None for name in names) else chosen
    candidates = Candidates(tie_ids, instances["box_xyxy"][rows], xy, confidence, seed)
    return candidates, chosen, Dropped({reason: n for reason, n in dropped.items() if n})


def stack_transforms(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a multi-transform keypoint table, one instance a row.

    Returns:
        Instance ids [N] in order of first appearance, xy [N, T, K, 2] and confidence [N, T, K]
        with the transforms in their standard order, "none" first where it is there. Instances that
        lack a transform which others have are left out.

    Raises:
        UserError: an instance has a transform twice.
    """
    ids, transforms = table["instance_id"], table["transform"]
    present = [name for name in TRANSFORMS if name in set(transforms)]
    width = len(present)
    if width == 0:
        raise UserError(
            "expected keypoints/pose_mt with rows; found none; run: python pose/generate_pl_mt.py"
        )
    code = {name: position for position, name in enumerate(present)}
    column = np.array([code[name] for name in transforms], dtype=np.int64)
    row_of: dict[str, int] = {}
    row = np.array([row_of.setdefault(value, len(row_of)) for value in ids], dtype=np.int64)
    slot = row * width + column
    where = np.full(len(row_of) * width, -1, dtype=np.int64)
    where[slot] = np.arange(len(slot))
    if len(slot) != int((where >= 0).sum()):
        raise UserError("expected one row a transform and instance in keypoints/pose_mt; found two")
    complete = (where.reshape(-1, width) >= 0).all(axis=1)
    order = where.reshape(-1, width)[complete]
    names = np.array(list(row_of), dtype=object)[complete]
    return names, table["xy"][order], table["confidence"][order]


def _index(
    ids: Sequence[str], xy: np.ndarray, confidence: np.ndarray
) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    return {value: row for row, value in enumerate(ids)}, xy, confidence


def _all_plain(table: Table) -> bool:
    return bool((table["transform"] == "none").all())


def _same_keypoints(sources: Mapping[str, tuple[int, str | None]]) -> None:
    """Raise UserError unless number and skeleton, where it is stated, are the same for all sources."""
    counts = {count for count, _ in sources.values()}
    skeletons = {skeleton for _, skeleton in sources.values() if skeleton is not None}
    if len(counts) > 1 or len(skeletons) > 1:
        found = ", ".join(
            f"{source} {count}" + (f" of {skeleton}" if skeleton else "")
            for source, (count, skeleton) in sources.items()
        )
        raise UserError(f"expected keypoint tables of one skeleton; found keypoints: {found}")
