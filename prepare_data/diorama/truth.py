"""The web pictures' ground truth, given to the instances that a detector found. For measuring only."""

from __future__ import annotations

import numpy as np

from wildshape.cli import say
from wildshape.geometry import box_iou
from wildshape.stage import Provenance, fingerprint, input_hashes, run_reduce
from wildshape.tables import Table, read_facts
from wildshape.workspace import Workspace


def match_animals(
    instances: Table, images: Table, truth: Table, truth_images: Table, min_iou: float = 0.5
) -> tuple[dict[int, int], list[int]]:
    """Which detected animal is which true one.

    A downloaded image is found among the true ones by its bytes, else by its photo id. In each image
    pairs of one category are matched by falling IoU, one to one.

    Args:
        instances: table of kind instances: the detected animals.
        images: table of kind images that the instances refer to.
        truth: table of kind labels.
        truth_images: table of kind images that the truth refers to.
        min_iou: least IoU of a match.

    Returns:
        The row in truth by the row in instances; and the rows of all true animals in these images.
    """
    known = {str(value) for value in truth_images["image_id"]}
    by_source = dict(zip(truth_images["source_id"], truth_images["image_id"]))
    there: dict[str, str] = {}
    for image_id, source_id in zip(images["image_id"], images["source_id"]):
        if image_id is None:
            continue
        match = image_id if image_id in known else by_source.get(source_id)
        if match is not None:
            there[image_id] = match
    of_image: dict[tuple[str, str], list[int]] = {}
    for row, (image_id, category) in enumerate(zip(truth["image_id"], truth["category"])):
        of_image.setdefault((image_id, category), []).append(row)
    found_in: dict[tuple[str, str], list[int]] = {}
    for row, (image_id, category) in enumerate(zip(instances["image_id"], instances["category"])):
        if image_id in there:
            found_in.setdefault((image_id, category), []).append(row)

    pairs: dict[int, int] = {}
    for (image_id, category), rows in found_in.items():
        candidates = of_image.get((there[image_id], category), [])
        if not candidates:
            continue
        iou = box_iou(instances["box_xyxy"][rows], truth["box_xyxy"][candidates])
        while iou.size and iou.max() >= min_iou:
            i, j = np.unravel_index(int(iou.argmax()), iou.shape)
            pairs[rows[i]] = candidates[j]
            iou[i, :] = iou[:, j] = -1.0
    shown = set(there.values())
    return pairs, [row for (image_id, _), rows in of_image.items() if image_id in shown for row in rows]


def match_truth(
    instances: Table, images: Table, truth: Table, truth_images: Table, min_iou: float = 0.5
) -> Table:
    """Keypoints of the true animals behind detected ones.

    Args:
        instances: see `match_animals`, as the others.
        images: table of kind images.
        truth: table of kind labels.
        truth_images: table of kind images.
        min_iou: least IoU of a match.

    Returns:
        Table of kind keypoints, transform "none", a row per matched instance in the instances'
        order; confidence 1 where the keypoint is seen, else 0. Instances without a match are left
        out.
    """
    pairs, _ = match_animals(instances, images, truth, truth_images, min_iou)
    rows = sorted(pairs)
    true = [pairs[row] for row in rows]
    meta = {"skeleton": truth.meta.get("skeleton", "")}
    if not rows:
        return Table.empty("keypoints", num_keypoints=truth["xy"].shape[1], **meta)
    visible = truth["visible"][true]
    return Table(
        "keypoints",
        {
            "instance_id": instances["instance_id"][rows],
            "transform": np.array(["none"] * len(rows), dtype=object),
            "xy": np.where(visible[..., None] > 0, truth["xy"][true], 0.0),
            "confidence": (visible == 2).astype(np.float64),
        },
        meta,
    )


def detection_quality(
    instances: Table, images: Table, truth: Table, truth_images: Table, category: str
) -> dict[str, float | int]:
    """How well a category's animals were found, at IoU .5.

    Args:
        instances: see `match_animals`, as the others.
        images: those that were looked at.
        truth: table of kind labels.
        truth_images: table of kind images.
        category: whose animals count.

    Returns:
        detected, matched, true (animals in these images); precision and recall in 0..1; mean_iou of
        the matches.
    """
    pairs, rows = match_animals(instances, images, truth, truth_images)
    true = sum(truth["category"][row] == category for row in rows)
    overlaps = [
        box_iou(instances["box_xyxy"][[found]], truth["box_xyxy"][[row]])[0, 0]
        for found, row in pairs.items()
    ]
    return {
        "detected": len(instances),
        "matched": len(pairs),
        "true": int(true),
        "precision": round(len(pairs) / max(len(instances), 1), 4),
        "recall": round(len(pairs) / max(true, 1), 4),
        "mean_iou": round(float(np.mean(overlaps)), 4) if overlaps else 0.0,
    }


def save_truth_keypoints(workspace: Workspace, *, overwrite: bool = True) -> Table:
    """Writes ``keypoints/truth`` for the detected instances of a workspace.

    Args:
        workspace: with the tables instances, images, truth and truth_images.
        overwrite: replace a table that was made from other instances.
    """
    names = ("instances", "images", "truth", "truth_images")
    tables = {name: workspace.load(name, needed_by="keypoints/truth") for name in names}
    hashes = input_hashes(workspace.root, *(workspace.table_path(name) for name in names))
    provenance = Provenance("match_truth", {"min_iou": 0.5}, hashes)
    path = workspace.keypoints_path("truth")
    current = path.exists() and fingerprint(read_facts(path)["provenance"]) == provenance.fingerprint
    table = run_reduce(
        lambda: match_truth(*(tables[name] for name in names)),
        path,
        provenance,
        overwrite=overwrite and not current,
    )
    seen = tables["images"].take(tables["images"]["status"] == "ok")
    name = workspace.category.name
    found = detection_quality(tables["instances"], seen, tables["truth"], tables["truth_images"], name)
    workspace.write_metrics("match_truth", found)
    say(
        f"match_truth: {found['matched']} of {found['detected']} detected animals are true ones, of "
        f"{found['true']} {name}s in these images; mean IoU {found['mean_iou']:.2f}"
    )
    return table
