"""Whether the animals of a training have the masks that it is to learn from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from acsm.data import ShapeSamples
from acsm.mask_crops import tell_wrong_masks
from wildshape.cli import say
from wildshape.errors import UserError

if TYPE_CHECKING:
    from wildshape.records import AnimalRecords
    from wildshape.workspace import Workspace


def check_masks(
    supervise: str, workspace: Workspace, labels: ShapeSamples, web: ShapeSamples | None, val: ShapeSamples
) -> None:
    """Say how many animals have a mask that fits; on masks alone, leave out those that have none.

    Args:
        supervise: "masks" or "both".
        workspace: of the run.
        labels: labelled animals to train on.
        web: web animals, if any.
        val: labelled animals to validate on.

    Raises:
        UserError: no animal has one, or on masks alone none to validate on does.
    """
    run = f"python prepare_data/save_masks.py --category {workspace.category.name}"
    counts, total = [], 0
    groups = [("labelled", labels), ("validation", val), *([("web", web)] if web is not None else [])]
    for what, samples in groups:
        assert samples.masks is not None
        usable, records = samples.masks.usable(samples.records), samples.records
        tell_wrong_masks(samples.masks.wrong, what)
        counts.append(f"{int(usable.sum())} of {len(usable)} {what}")
        if what != "validation":
            total += int(usable.sum())
        elif supervise == "masks" and not usable.any():
            raise UserError(
                "--supervise masks: expected animals of the split val with masks; found none of "
                f"{len(usable) + len(records.skipped)}; run: {run} --labelled, or import labels with masks"
            )
        if supervise == "masks":
            samples.records = records.take(np.flatnonzero(usable))
    if not total:
        training = [samples.records for what, samples in groups if what != "validation"]
        seen = sum(len(records) + len(records.skipped) for records in training)
        flags = " --labelled" if web is None else ""
        raise UserError(
            f"--supervise {supervise}: expected animals with masks; found none of {seen}; run: "
            f"{run}{flags}, or import labels with masks"
        )
    say(f"masks: {', '.join(counts)} animals have one")


def masks_digest(records: AnimalRecords) -> str:
    """Hash of the masks of animals and their weights: tables may change them and stay the same table."""
    digest = hashlib.sha256()
    for name, text, weight in zip(records.instance_ids, records.mask_rle, np.asarray(records.mask_weight)):
        digest.update(f"{name} {text} {weight:.6f}\n".encode())
    return digest.hexdigest()[:24]
