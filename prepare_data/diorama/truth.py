"""The web pictures' ground truth, given to the instances that a detector found. For measuring only."""

from __future__ import annotations

import numpy as np

from wildshape.cli import say
from wildshape.geometry import box_iou
from wildshape.stage import Provenance, fingerprint, input_hashes, run_reduce
from wildshape.tables import Table, read_facts
from wildshape.workspace import Workspace


def match_truth(
    instances: Table, images: Table, truth: Table, truth_images: Table, min_iou: float = 0.5
) -> Table:
    """Keypoints of the true animals behind detected ones.

    A downloaded image is found among the true ones by its bytes, else by its photo id. In each image
    pairs of one category are matched by falling IoU, one to one.

    Args:
        instances: table of kind instances: the detected animals.
        images: table of kind images that the instances refer to.
        truth: table of kind labels.
        truth_images: table of kind images that the truth refers to.
        min_iou: least IoU of a match.

    Returns:
        Table of kind keypoints, transform "none", a row per matched instance in the instances'
        order; confidence 1 where the keypoint is seen, else 0. Instances without a match are left
        out.
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
    say(f"match_truth: {len(table)} of {len(tables['instances'])} detected animals are true ones")
    return table
