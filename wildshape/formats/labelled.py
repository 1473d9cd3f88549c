"""What all importers of labelled photos share: reading the pictures, checking boxes, splitting.

An importer turns its format into `LabelRecord`s; `build_labelled_set` turns those into the tables
labelled_images and labels.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.cli import say
from wildshape.crops import ImageError, decode_image
from wildshape.errors import UserError
from wildshape.files import atomic_path
from wildshape.near_duplicates import clusters, phash
from wildshape.skeleton import Skeleton
from wildshape.splits import assign_splits
from wildshape.stage import progress
from wildshape.tables import SPLITS, Table, make_image_id, make_instance_id, make_record_id
from wildshape.workspace import Workspace

_MARGIN = 0.1
OTHER_SIZE = "picture that has another size here (resized, or turned by its EXIF?)"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class LabelledOptions:
    """How labelled photos come in.

    Attributes:
        split_seed: Seed of the division into train, val and test.
        fractions: Shares of train, val and test.
        split: Puts everything into this one split instead.
        copy: Whether pictures are copied under the data root; else tables point to where they lie.
        require_images: Whether a label without a readable picture is dropped; else it stays, with
            the reason in the images table.
    """

    split_seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    split: str | None = None
    copy: bool = False
    require_images: bool = True

    def __post_init__(self) -> None:
        if self.split is not None and self.split not in SPLITS:
            raise UserError(f"expected --split among {', '.join(SPLITS)}; found {self.split}")
        if min(self.fractions) < 0 or not 0 < sum(self.fractions) < math.inf:
            raise UserError(f"expected --fractions >= 0 with a positive sum; found {self.fractions}")


@dataclass(frozen=True)
class LabelRecord:
    """One labelled animal.

    Attributes:
        image_name: Name of its picture in the source.
        source_id: Id of the animal in the source.
        box_xyxy: [4] in image pixels (centre of the first pixel is 0, 0).
        xy: Keypoints [K, 2] likewise; NaN where not labelled.
        visible: [K], 0 unlabelled, 1 occluded, 2 visible.
        mask_rle: See `wildshape.formats.masks`.
        camera: [7] in image pixels, if there is one.
        split: Given by the source; all records have one or none has.
        size: Width and height that the source states, if it does.
        flags: Comma list.
        instance_id: The animal's id here, where a file that was exported from here carries it.
        box_from_keypoints: Whether the source has no box, so that this one was made from the keypoints.
    """

    image_name: str
    source_id: str
    box_xyxy: np.ndarray
    xy: np.ndarray
    visible: np.ndarray
    mask_rle: str | None = None
    camera: np.ndarray | None = None
    split: str | None = None
    size: tuple[int, int] | None = None
    flags: str = ""
    instance_id: str | None = None
    box_from_keypoints: bool = False


@dataclass
class Picture:
    """One picture of a source: its images row, the id that labels refer to, and what is wrong."""

    row: dict[str, Any]
    key: str
    problem: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class LabelledSet:
    """What came in.

    Attributes:
        images: Table of kind images.
        labels: Table of kind labels.
        dropped: How many records were left out, by reason.
    """

    images: Table
    labels: Table
    dropped: Counter[str] = field(default_factory=Counter)


def one_file(root: Path, what: str, *patterns: str) -> Path:
    """The file itself, or the one file of a folder that the first pattern with any finds.

    Raises:
        UserError: there is not exactly one.
    """
    if root.is_file():
        return root
    found = next((files for pattern in patterns if (files := sorted(root.glob(pattern)))), [])
    if len(found) != 1:
        names = f"{len(found)}{': ' * bool(found)}{', '.join(path.name for path in found[:3])}"
        raise UserError(f"expected one {what} in {root}; found {names}; give the file, not the folder")
    return found[0]


def map_keypoints(
    xy: np.ndarray, visible: np.ndarray, mapping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Reorder keypoints [..., N, 2] and visibilities [..., N] by a mapping [K] of `Skeleton.map_from`.

    Keypoints that the source lacks become NaN and 0, and so do unlabelled ones.
    """
    there = mapping >= 0
    new_visible = np.where(there, visible[..., mapping], 0)
    new_xy = np.where((new_visible > 0)[..., None], xy[..., mapping, :], np.nan)
    return new_xy, new_visible


def map_names(
    skeleton: Skeleton, names: Sequence[str], origin: str, renames: Mapping[str, str] | None = None
) -> np.ndarray:
    """Index into `names` for each keypoint of the skeleton, -1 where there is none.

    Says which of the names have no place in the skeleton.

    Args:
        skeleton: The skeleton to map onto.
        names: The source's keypoints.
        origin: The source, for messages.
        renames: What a source's own names mean, where that differs from the skeletons' use of them.

    Raises:
        UserError: the names have nothing in common with the skeleton.
    """
    mapping = skeleton.map_from([(renames or {}).get(name, name) for name in names])
    if not (mapping >= 0).any():
        raise UserError(
            f"{origin}: expected keypoints of skeleton {skeleton.name} "
            f"({', '.join(skeleton.keypoints[:4])} ...); found {', '.join(names[:4]) or 'none'} ...; "
            "name them alike, or add aliases to the skeleton"
        )
    unused = [name for index, name in enumerate(names) if index not in mapping]
    if unused:
        say(f"{Path(origin).name}: no place in {skeleton.name} for {', '.join(unused)}")
    return mapping


def place_pictures(records: Sequence[LabelRecord], folder: Path) -> list[LabelRecord]:
    """Records whose pictures are named by their place under a folder, from names without folder or suffix.

    A name that fits no file, or several, stays as it is.
    """
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in PICTURE_SUFFIXES:
            place = file.relative_to(folder)
            for key in {place.name, place.stem}:
                found.setdefault(key, []).append(place.as_posix())
    placed = []
    for record in records:
        places = found.get(Path(record.image_name).name, [])
        alone = len(places) == 1 and not (folder / record.image_name).is_file()
        placed.append(replace(record, image_name=places[0]) if alone else record)
    return placed


def keypoints_box(xy: np.ndarray) -> np.ndarray:
    """The box [4] of keypoints [N, 2], a tenth of its longer side wider all round."""
    low, high = xy.min(0), xy.max(0)
    margin = _MARGIN * (high - low).max()
    return np.concatenate([low - margin, high + margin])


def box_problem(box_xyxy: np.ndarray, size: tuple[int, int] | None) -> str | None:
    """Why a box [4] cannot be used with an image of (width, height), or None."""
    x0, y0, x1, y1 = box_xyxy
    if not np.isfinite(box_xyxy).all():
        return "box with NaN"
    if x1 <= x0 or y1 <= y0:
        return "box of no area"
    outside = size is not None and (x1 <= -0.5 or y1 <= -0.5 or x0 >= size[0] - 0.5 or y0 >= size[1] - 0.5)
    return "box outside its image" if outside else None


def size_problem(stated: tuple[int, int] | None, size: tuple[int, int] | None) -> str | None:
    """Why coordinates in a picture of the stated (width, height) are not those of one of `size`, or None.

    What is not stated, or not known, is no problem.
    """
    return OTHER_SIZE if None not in (stated, size) and stated != size else None


def build_labelled_set(
    records: Sequence[LabelRecord],
    folder: Path | None,
    workspace: Workspace,
    options: LabelledOptions,
    source: str,
    left_out: Mapping[str, int] | None = None,
) -> LabelledSet:
    """Read the pictures, drop what cannot be used, and divide the rest.

    Splits go by near-duplicate cluster of the pictures, so that no photo stands in two of them,
    unless the source or `options.split` gives them.

    Args:
        records: The labels.
        folder: Where the pictures lie; None if there are none.
        workspace: Where the tables will lie.
        options: How.
        source: Name of the format.
        left_out: What the reader left out, by reason, to be counted with the rest.

    Raises:
        UserError: no record is left.
    """
    skeleton = workspace.category.skeleton
    pictures: dict[str, Picture] = {}
    dropped: Counter[str] = Counter(left_out or {})
    kept: list[LabelRecord] = []
    seen: set[str] = set()
    ids: list[str] = []
    for record in progress(records, "reading labelled photos", unit="label"):
        picture = pictures.get(record.image_name)
        if picture is None:
            picture = pictures[record.image_name] = read_picture(
                record.image_name, record.size, folder, workspace, options, source
            )
        problem = picture.problem if options.require_images else None
        problem = problem or size_problem(record.size, picture.size)
        problem = problem or box_problem(record.box_xyxy, picture.size or record.size)
        if problem is None and not (record.visible > 0).any() and record.camera is None:
            problem = "no labelled keypoint"
        instance_id = make_instance_id(picture.key, f"{source}:{record.source_id}", record.box_xyxy)
        if problem is None and instance_id in seen:
            problem = "the same label twice"
        if problem is not None:
            dropped[problem] += 1
            continue
        seen.add(instance_id)
        ids.append(instance_id)
        kept.append(record)
    if not kept:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        place = ""
        if dropped["image file not found"]:
            place = f"; pictures were looked for in {folder}, another folder is named by --images"
        raise UserError(
            f"expected labels of {workspace.category.name} in this {source} set; found none that can be "
            f"used ({why or 'it holds none; --source_category names other animals'}){place}"
        )
    used = {record.image_name for record in kept}
    rows = [picture.row for name, picture in pictures.items() if name in used]
    splits = _splits(kept, pictures, options)
    labels = [
        {
            "instance_id": instance_id,
            "image_id": pictures[record.image_name].key,
            "category": workspace.category.name,
            "source_id": record.source_id,
            "box_xyxy": record.box_xyxy,
            "score": math.nan,
            "detector": source,
            "mask_rle": record.mask_rle,
            "flags": record.flags,
            "split": split,
            "skeleton": skeleton.name,
            "xy": record.xy,
            "visible": record.visible,
            "camera": np.full(7, np.nan) if record.camera is None else record.camera,
        }
        for instance_id, record, split in zip(ids, kept, splits)
    ]
    facts = {"skeleton": skeleton.name, "source": source}
    return LabelledSet(
        Table.from_rows("images", rows),
        Table.from_rows("labels", labels, num_keypoints=skeleton.num_keypoints, **facts),
        dropped,
    )


def _splits(
    kept: Sequence[LabelRecord], pictures: dict[str, Picture], options: LabelledOptions
) -> Sequence[str]:
    if options.split is not None:
        return [options.split] * len(kept)
    if all(record.split is not None for record in kept):
        return [str(record.split) for record in kept]
    names = list(dict.fromkeys(record.image_name for record in kept))
    cluster = dict(zip(names, clusters([pictures[name].row["phash"] for name in names])))
    cluster_ids = np.array([cluster[record.image_name] for record in kept])
    return list(assign_splits(cluster_ids, dict(zip(SPLITS, options.fractions)), options.split_seed))


def read_picture(
    name: str,
    size: tuple[int, int] | None,
    folder: Path | None,
    workspace: Workspace,
    options: LabelledOptions,
    source: str,
) -> Picture:
    """Read one picture of a source, and copy it if the options say so.

    Args:
        name: Its name in the source, a path relative to `folder`.
        size: Width and height that the source states, if it does.
        folder: Where the pictures lie; None if there are none.
        workspace: Where tables lie.
        options: See `LabelledOptions`.
        source: Name of the format.
    """
    record_id = make_record_id(source, name)
    width, height = size or (-1, -1)
    row: dict[str, Any] = {
        "record_id": record_id,
        "image_id": record_id,
        "path": None,
        "url": None,
        "source": source,
        "source_id": name,
        "width": width,
        "height": height,
        "phash": None,
        "license": None,
        "author": None,
        "page_url": None,
        "status": "not_found",
        "error": "image file not found",
    }
    path = None if folder is None else folder / name
    try:
        data = b"" if path is None else path.read_bytes()
    except OSError:
        path = None
    if path is None:
        # Without bytes there is no image id: the record's id stands in, so that labels keep their picture.
        return Picture(row, record_id, "image file not found")
    try:
        if not data:
            raise ImageError("an empty file")
        image = decode_image(data, str(path))
    except ImageError as error:
        row.update(status="not_image", error=str(error))
        return Picture(row, record_id, "image file cannot be read")
    height, width = image.shape[:2]
    image_id = make_image_id(data)
    if options.copy:
        path = _copy(path, workspace.labelled_images_dir / f"{image_id}{path.suffix.lower()}")
    row.update(
        image_id=image_id,
        path=workspace.relative(path),
        width=width,
        height=height,
        phash=phash(image),
        status="ok",
        error=None,
    )
    return Picture(row, image_id, None, (width, height))


def _copy(path: Path, target: Path) -> Path:
    if not target.exists() or os.path.getsize(target) != os.path.getsize(path):
        with atomic_path(target) as temporary:
            shutil.copyfile(path, temporary)
    return target
