"""The pool of web images: of near-duplicates one is kept, and none that stands in the labelled set.

Images whose hashes are at most `MAX_DISTANCE` bits apart are near-duplicates as they are. Pairs up to
`CANDIDATE_DISTANCE` bits apart, and pairs of one image with the other's mirror image, are compared by
their pixels. With the labelled set that is done for every such pair and for every image that looks
like a crop of the other, and another frame of the same animal in the same pose counts as a repetition
too: an image needlessly left out costs one of many, a labelled one that slips in spoils the figures.
Within the pool such pairs grow with the square of its
size, so that their distance is limited to what leaves at most `MAX_POOL_PAIRS` of each kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from wildshape.crops import ImageError, read_image
from wildshape.near_duplicates import (
    CANDIDATE_DISTANCE,
    CROP_DISTANCE,
    MAX_DISTANCE,
    close_pairs,
    clusters,
    crop_hashes,
    mirrored_hash,
    phash,
)
from wildshape.same_photo import (
    SAME_PHOTOGRAPH,
    SAME_SHOOT,
    Features,
    compare,
    mirrored,
    read_features,
)
from wildshape.stage import progress
from wildshape.tables import Table
from wildshape.workspace import Workspace

MAX_POOL_PAIRS = 20_000
PLACEHOLDER_ADDRESSES = 5
_CACHED = 3000


@dataclass(frozen=True)
class Repetitions:
    """Pairs of images that show the same photograph, as their pixels say.

    Attributes:
        links: Indices [M, 2] into the labelled images followed by all rows of the images table.
        facts: How many pairs were compared and confirmed, and up to which distance in the pool.
    """

    links: np.ndarray
    facts: dict[str, int]


class Pictures:
    """Features of labelled images and of web images, under one numbering: labelled ones first.

    Args:
        labelled: The labelled images, if there are any.
        images: The web images.
        workspace: Where their files lie.
    """

    def __init__(self, labelled: Table | None, images: Table, workspace: Workspace) -> None:
        self._labelled = 0 if labelled is None else len(labelled)
        self._paths = [*([] if labelled is None else labelled["path"]), *images["path"]]
        self._workspace = workspace
        self.features = lru_cache(maxsize=_CACHED)(self._read)

    def _read(self, index: int) -> Features | None:
        if self._paths[index] is None:
            return None
        try:
            return read_features(self._workspace.image_file(self._paths[index]))
        except ImageError:
            if index < self._labelled:  # label files can be used without their images
                return None
            raise

    def crops(self, indices: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Hashes of crops of the pictures, and for each the place of its picture in `indices`."""
        hashes: list[str] = []
        places: list[int] = []
        for place, index in enumerate(progress(indices.tolist(), "looking at crops", unit="image")):
            picture = self.features(index)
            found = [] if picture is None else crop_hashes(picture.grey)
            hashes += found
            places += [place] * len(found)
        return hashes, np.array(places, dtype=np.int64)

    def confirm(self, pairs: list[tuple[int, int]], flip: bool, least: float) -> list[tuple[int, int]]:
        """Of the pairs those that agree; with `flip` the first is mirrored before."""
        found = []
        for i, j in progress(pairs, "comparing similar images", unit="pair"):
            one, other = self.features(i), self.features(j)
            if one is None or other is None:
                continue
            if compare(other, mirrored(one) if flip else one).same(least):
                found.append((i, j))
        return found


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


def usable_hashes(images: Table) -> list[str | None]:
    """Perceptual hash of every row with status `ok`, else None."""
    return [value if status == "ok" else None for value, status in zip(images["phash"], images["status"])]


def find_repetitions(
    images: Table,
    labelled: Table | None,
    labelled_phash: Sequence[str | None],
    workspace: Workspace,
    max_distance: int = MAX_DISTANCE,
) -> Repetitions:
    """Compare by their pixels the images that hashes leave open.

    Args:
        images: Table of kind images; only rows with status `ok` are looked at.
        labelled: The labelled images, if there are any.
        labelled_phash: Their hashes, in the same order.
        workspace: Where their files lie.
        max_distance: Bits up to which hashes alone decide.

    Raises:
        ImageError: if the file of a web image has gone.
    """
    web = usable_hashes(images)
    pictures = Pictures(labelled, images, workspace)
    cluster = clusters([*labelled_phash, *web], max_distance)
    crops = _crops(pictures, labelled_phash, web)
    reach = max(CANDIDATE_DISTANCE, max_distance)
    links: list[tuple[int, int]] = []
    facts = {"pool_distance": reach}
    for name, flip in (("", False), ("_mirrored", True)):
        seen = [_mirrored(web), _mirrored(crops.web)] if flip else [web, crops.web]
        whole = close_pairs(seen[0], labelled_phash, reach)
        part = close_pairs(seen[0], crops.labelled, CROP_DISTANCE)
        parted = close_pairs(seen[1], labelled_phash, CROP_DISTANCE)
        first = np.concatenate([whole.first, part.first, crops.web_rows[parted.first]])
        second = np.concatenate([whole.second, crops.labelled_rows[part.second], parted.second])
        within = close_pairs(seen[0], web, reach, ordered=True, limit=MAX_POOL_PAIRS)
        facts["pool_distance"] = min(facts["pool_distance"], within.radius)
        shift = len(labelled_phash)
        for what, i, j, least in (
            ("labelled", first + shift, second, SAME_SHOOT),
            ("pool", within.first + shift, within.second + shift, SAME_PHOTOGRAPH),
        ):
            apart = cluster[i] != cluster[j]
            candidates = sorted(set(zip(i[apart].tolist(), j[apart].tolist())))
            found = pictures.confirm(candidates, flip, least)
            links += found
            facts |= {f"{what}{name}_compared": len(candidates), f"{what}{name}_confirmed": len(found)}
    return Repetitions(np.array(links, dtype=np.int64).reshape(-1, 2), facts)


@dataclass(frozen=True)
class _Crops:
    """Hashes of crops, and the rows of their pictures."""

    labelled: list[str]
    labelled_rows: np.ndarray
    web: list[str]
    web_rows: np.ndarray


def _crops(pictures: Pictures, labelled: Sequence[str | None], web: Sequence[str | None]) -> _Crops:
    known = np.flatnonzero([value is not None for value in labelled])
    # without labelled images there is nothing that a web image could be a crop of
    usable = np.flatnonzero([value is not None and len(known) > 0 for value in web])
    of_labelled, labelled_places = pictures.crops(known)
    of_web, web_places = pictures.crops(usable + len(labelled))
    return _Crops(of_labelled, known[labelled_places], of_web, usable[web_places])


def _mirrored(hashes: Sequence[str | None]) -> list[str | None]:
    return [None if value is None else mirrored_hash(value) for value in hashes]


def mark_repeated(
    images: Table,
    labelled_ids: list[str | None] | None = None,
    labelled_phash: list[str | None] | None = None,
    max_distance: int = MAX_DISTANCE,
    links: np.ndarray | None = None,
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
        links: Further near-duplicates, see `Repetitions`.
    """
    labelled_ids, labelled_phash = labelled_ids or [], labelled_phash or []
    ok = np.flatnonzero(images["status"] == "ok")
    cluster = clusters([*labelled_phash, *usable_hashes(images)], max_distance, links)
    in_labels = {
        int(number): str(name)
        for number, name, value in zip(cluster, labelled_ids, labelled_phash)
        if value is not None
    }
    known = {name for name in labelled_ids if name is not None}
    pixels = images["width"] * images["height"]
    status, error = images["status"].copy(), images["error"].copy()
    groups: dict[int, list[int]] = {}
    for row in ok:
        groups.setdefault(int(cluster[len(labelled_phash) + row]), []).append(int(row))
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


def mark_placeholders(images: Table, least: int = PLACEHOLDER_ADDRESSES) -> Table:
    """Set the status of files that many addresses gave byte for byte: they say that a photo is gone.

    Args:
        images: Table of kind images; only rows with status `ok` and an address are looked at.
        least: Addresses from which on the same bytes are no photo.
    """
    fetched = (images["status"] == "ok") & np.array([url is not None for url in images["url"]], dtype=bool)
    counts = Counter(images["image_id"][fetched])
    many = np.array([counts[name] >= least for name in images["image_id"]], dtype=bool) & fetched
    if not many.any():
        return images
    status, error = images["status"].copy(), images["error"].copy()
    for row in np.flatnonzero(many):
        status[row] = "placeholder"
        error[row] = f"the same bytes from {counts[images['image_id'][row]]} addresses"
    return images.with_columns(status=status, error=error)


def make_pool(downloads: Table, workspace: Workspace, max_distance: int = MAX_DISTANCE) -> Table:
    """Mark what repeats the category's labelled images, if it has any, or other images of the pool.

    What was compared for it stands in the table's facts as `near_duplicates`.
    """
    downloads = mark_placeholders(downloads)
    labelled, hashes, ids = None, [], []
    if workspace.table_path("labelled_images").exists():
        labelled = workspace.load("labelled_images")
        hashes, ids = labelled_hashes(labelled, workspace), list(labelled["image_id"])
    repetitions = find_repetitions(downloads, labelled, hashes, workspace, max_distance)
    pool = mark_repeated(downloads, ids, hashes, max_distance, repetitions.links)
    return pool.with_meta(near_duplicates=repetitions.facts)
