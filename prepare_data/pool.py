"""The pool of web images: of near-duplicates one is kept, and none that stands in the labelled set."""

from __future__ import annotations

import numpy as np

from wildshape.crops import ImageError, read_image
from wildshape.near_duplicates import MAX_DISTANCE, clusters, phash
from wildshape.tables import Table
from wildshape.workspace import Workspace


def labelled_hashes(labelled: Table, workspace: Workspace) -> list[str | None]:
    """Perceptual hash of every labelled image, computed where the table has none; None if unread."""
    hashes: list[str | None] = []
    for value, path in zip(labelled["phash"], labelled["path"]):
        if value is None and path is not None:
            try:
                value = phash(read_image(workspace.image_file(path)))
            except ImageError:  # label files can be used without their images
                value = None
        hashes.append(value)
    return hashes


def mark_repeated(
    images: Table,
    labelled_ids: list[str | None] | None = None,
    labelled_phash: list[str | None] | None = None,
    max_distance: int = MAX_DISTANCE,
) -> Table:
    """Set the status of web images that repeat others.

    Images linked by a chain of near-duplicates form a cluster. A cluster that holds a labelled image
    becomes `in_labels`; of any other the image with the most pixels stays `ok` (of equal ones the
    first) and the rest become `duplicate`. `error` names what is repeated.

    Args:
        images: Table of kind images; only rows with status `ok` are looked at.
        labelled_ids: Ids of the labelled images.
        labelled_phash: Their hashes, in the same order.
        max_distance: Bits by which near-duplicates may differ.
    """
    labelled_ids, labelled_phash = labelled_ids or [], labelled_phash or []
    ok = np.flatnonzero(images["status"] == "ok")
    cluster = clusters([*labelled_phash, *images["phash"][ok]], max_distance)
    in_labels = {
        int(number): str(name)
        for number, name, value in zip(cluster, labelled_ids, labelled_phash)
        if value is not None
    }
    known = {name for name in labelled_ids if name is not None}
    pixels = images["width"] * images["height"]
    status, error = images["status"].copy(), images["error"].copy()
    groups: dict[int, list[int]] = {}
    for row, number in zip(ok, cluster[len(labelled_phash) :]):
        groups.setdefault(int(number), []).append(int(row))
    for number, rows in groups.items():
        exact = next((images["image_id"][row] for row in rows if images["image_id"][row] in known), None)
        label = exact or in_labels.get(number)
        best = max(rows, key=lambda row: (pixels[row], -row))
        for row in rows:
            if label is not None:
                status[row], error[row] = "in_labels", f"repeats the labelled image {label}"
            elif row != best:
                status[row] = "duplicate"
                error[row] = f"repeats {images['record_id'][best]}"
    return images.with_columns(status=status, error=error)


def make_pool(downloads: Table, workspace: Workspace, max_distance: int = MAX_DISTANCE) -> Table:
    """`mark_repeated` against the category's labelled images, if it has any."""
    if not workspace.table_path("labelled_images").exists():
        return mark_repeated(downloads, max_distance=max_distance)
    labelled = workspace.load("labelled_images")
    hashes = labelled_hashes(labelled, workspace)
    return mark_repeated(downloads, list(labelled["image_id"]), hashes, max_distance)
