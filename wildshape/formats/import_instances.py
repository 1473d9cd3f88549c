"""`wildshape import coco --as instances`: boxes and masks of animals, as a detector would find them.

The file's animals become the table instances, to be labelled by the pose networks. Their pictures are
those of the images table where there is one (`add_folder`, `download_images`); else they become that
table, with those marked that repeat one another or a labelled photo (by perceptual hash).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wildshape.errors import UserError
from wildshape.files import read_json
from wildshape.formats import coco
from wildshape.formats.import_parts import import_provenance, report
from wildshape.formats.labelled import LabelledOptions, Picture, box_problem, read_picture, size_problem
from wildshape.formats.masks import encode_segmentation
from wildshape.geometry import xywh_to_xyxy
from wildshape.near_duplicates import clusters
from wildshape.stage import progress, publish, up_to_date
from wildshape.tables import Table, make_instance_id, read_facts, read_table
from wildshape.workspace import Workspace

if TYPE_CHECKING:
    from wildshape.formats.import_command import Config

SOURCE = "coco"


def import_instances(
    config: Config, workspace: Workspace, root: Path, options: LabelledOptions
) -> dict[str, Any]:
    """Import animals without keypoints.

    Args:
        config: The command's settings.
        workspace: Whose tables.
        root: A COCO file, or the folder that holds one.
        options: Whether pictures are copied.

    Returns:
        Rows by table, and how many annotations were dropped by reason.

    Raises:
        UserError: it is no COCO file, nothing can be used, or the tables are there and differ.
    """
    path = coco.find_file(root)
    folder = config.images or coco.image_folder(path)
    provenance = import_provenance(config, workspace, SOURCE, [path], folder)
    targets = {what: workspace.table_path(what) for what in ("images", "instances")}
    pool = targets["images"]
    own_pool = not pool.exists() or read_facts(pool)["provenance"].get("stage") == "import"
    wanted = targets if own_pool else {"instances": targets["instances"]}
    done = [up_to_date(target, provenance, overwrite=config.overwrite) for target in wanted.values()]
    if all(done):
        instances, images = read_table(targets["instances"], "instances"), read_table(pool, "images")
    else:
        known = None if own_pool else read_table(pool, "images")
        images, instances = _read(path, folder, config, workspace, options, known)
        if own_pool:
            publish(images, pool, provenance)
        publish(instances, targets["instances"], provenance)
    masks = sum(mask is not None for mask in instances["mask_rle"])
    facts = {"instances": len(instances), "masks": masks, "images": len(images)}
    what = f"{len(instances)} instances, {masks} with a mask, in {len(images)} images"
    return report(workspace, SOURCE, what, facts, instances.meta["dropped"])


def _read(
    path: Path,
    folder: Path,
    config: Config,
    workspace: Workspace,
    options: LabelledOptions,
    pool: Table | None,
) -> tuple[Table, Table]:
    data = read_json(path)
    dropped: Counter[str] = Counter()
    pictures: dict[str, Picture] = {}
    rows: dict[str, dict[str, Any]] = {}
    known = None if pool is None else set(pool["image_id"]) - {None}
    try:
        categories = coco.find_categories(data["categories"], workspace, config.source_category, path)
        found = coco.annotations_of(data, {category["id"] for category in categories}, dropped)
        for annotation, image in progress(list(found), "reading photos", unit="animal"):
            name = str(image["file_name"])
            if name not in pictures:
                pictures[name] = read_picture(name, None, folder, workspace, options, SOURCE)
            if problem := size_problem(coco.stated_size(image), pictures[name].size):
                dropped[problem] += 1
                continue
            row, problem = _row(annotation, pictures[name], workspace, path)
            if problem is None and known is not None and pictures[name].key not in known:
                problem = "picture that is not in the images table"
            if problem is None and row["instance_id"] in rows:
                problem = "the same animal twice"
            if problem is not None:
                dropped[problem] += 1
            else:
                rows[row["instance_id"]] = row
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: expected COCO's images, annotations and categories; found a problem at {error!r}"
        ) from None
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it is empty"
        raise UserError(f"{path}: expected animals with boxes; found none that can be used ({reasons})")
    if pool is None:
        usable = {picture.row["record_id"]: picture.row for picture in pictures.values()}
        pool = _mark_repeated(Table.from_rows("images", list(usable.values())), workspace)
    return pool, Table.from_rows("instances", list(rows.values())).with_meta(dropped=dict(dropped))


def _row(
    annotation: Mapping[str, Any], picture: Picture, workspace: Workspace, path: Path
) -> tuple[dict[str, Any], str | None]:
    name = annotation.get("id", annotation["image_id"])
    box = xywh_to_xyxy(np.asarray(annotation["bbox"], dtype=np.float64).reshape(4)) - coco.SHIFT
    mask = None
    if annotation.get("segmentation") and picture.size is not None:
        try:
            mask = encode_segmentation(annotation["segmentation"], picture.size[1], picture.size[0])
        except ValueError as error:
            raise UserError(
                f"{path}: expected a segmentation; found {error} in annotation {name}"
            ) from None
    row = {
        "instance_id": make_instance_id(picture.key, SOURCE, box),
        "image_id": picture.key,
        "category": workspace.category.name,
        "source_id": str(name),
        "box_xyxy": box,
        "score": float(annotation.get("score", math.nan)),
        "detector": SOURCE,
        "mask_rle": mask,
        "flags": "",
    }
    return row, picture.problem or box_problem(box, picture.size)


def _mark_repeated(images: Table, workspace: Workspace) -> Table:
    """Images of which one has the same hash, but for a few bits, as an earlier one or a labelled photo."""
    labelled = workspace.table_path("labelled_images")
    hashes = list(read_table(labelled, "images")["phash"]) if labelled.exists() else []
    cluster = clusters([*hashes, *images["phash"]])
    first: dict[int, str] = {}
    status, error = images["status"].copy(), images["error"].copy()
    taken = {int(number) for number, value in zip(cluster, hashes) if value is not None}
    for row in np.flatnonzero(images["status"] == "ok"):
        number = int(cluster[len(hashes) + row])
        if number in taken:
            status[row], error[row] = "in_labels", "repeats a labelled image"
        elif number in first:
            status[row], error[row] = "duplicate", f"repeats {first[number]}"
        else:
            first[number] = images["record_id"][row]
    return images.with_columns(status=status, error=error)
