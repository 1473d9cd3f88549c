"""`wildshape import FORMAT --as labels`: labels that a person made or corrected join the labelled set.

Pseudo-labels, or labels, were exported, corrected in an annotation tool, and come back. Each is
recognised by the id that the export wrote beside it, else by its picture and the box it overlaps most;
it keeps its id. It replaces the label, or the earlier correction, of that id. What comes back is kept
in the tables corrections and corrected_images too, so that it survives another import of the labelled
set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wildshape.cli import say
from wildshape.errors import UserError
from wildshape.formats.labelled import (
    LabelledOptions,
    LabelRecord,
    box_problem,
    read_picture,
    size_problem,
)
from wildshape.geometry import box_iou
from wildshape.near_duplicates import nearest
from wildshape.stage import Provenance, publish
from wildshape.tables import Table, concat, make_instance_id, make_record_id, read_facts, read_table
from wildshape.workspace import TABLES, Workspace

_LEAST_IOU = 0.5
_SAME_PHOTO_BITS = 8
_SPAN = 1.0  # pixels by which a box may differ from the keypoints' span and count as made from it


def _load(workspace: Workspace, name: str) -> Table:
    path = workspace.table_path(name)
    skeleton = workspace.category.skeleton
    empty = Table.empty(TABLES[name], num_keypoints=skeleton.num_keypoints, skeleton=skeleton.name)
    return read_table(path, TABLES[name]) if path.exists() else empty


def alone(workspace: Workspace) -> bool:
    """Whether the labels are corrections only, so that a first labelled set may join them."""
    path = workspace.table_path("labels")
    return path.exists() and bool(read_facts(path)["meta"].get("corrections_only"))


def merged(workspace: Workspace, images: Table, labels: Table) -> tuple[Table, Table]:
    """A labelled set with the corrections that there are, which replace labels of the same ids.

    A correction in a picture of the set goes into that picture's split.

    Args:
        workspace: Holds the corrections.
        images: The set's images.
        labels: The set's labels.
    """
    corrections = _load(workspace, "corrections")
    if not len(corrections):
        return images, labels
    split_of = dict(zip(labels["image_id"], labels["split"]))
    splits = [split_of.get(i, split) for i, split in zip(corrections["image_id"], corrections["split"])]
    corrections = corrections.with_columns(split=np.array(splits, dtype=object))
    replaced = set(corrections["instance_id"])
    kept = labels.take(np.array([name not in replaced for name in labels["instance_id"]], dtype=bool))
    return _union(images, _load(workspace, "corrected_images")), concat([kept, corrections])


def _union(images: Table, more: Table) -> Table:
    ids, records = set(images["image_id"]), set(images["record_id"])
    rows = zip(more["image_id"], more["record_id"])
    new = np.array([i not in ids and r not in records for i, r in rows], dtype=bool)
    return concat([images, more.take(new)])


@dataclass
class _Known:
    """The pictures and animals that there are.

    Attributes:
        images: Images row by image id, of labelled photos first.
        names: Image ids by the names a tool may know the picture by.
        animals: Row of each animal by instance id.
        animals_in: Instance ids by image id.
        split_of: Split by labelled image id.
        labels: The labels, with earlier corrections.
        web: Ids of web images.
        records: Record ids of all images rows, of pictures that could not be used, too.
        placed: Ids, by name, of the images that a set's pictures turned out to be; empty if of none.
    """

    labels: Table
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    animals: dict[str, dict[str, Any]] = field(default_factory=dict)
    animals_in: dict[str, list[str]] = field(default_factory=dict)
    split_of: dict[str, str] = field(default_factory=dict)
    web: set[str] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    placed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, workspace: Workspace) -> _Known:
        known = cls(_load(workspace, "labels"))
        web = _load(workspace, "images")
        known.web = set(web["image_id"])
        for table in (_load(workspace, "labelled_images"), _load(workspace, "corrected_images"), web):
            known.records |= set(table["record_id"])
            for row in table.rows():
                if row["image_id"] is not None and row["path"] is not None:
                    known.add_image(row)
        for animals in (_load(workspace, "instances"), known.labels):
            for row in animals.rows():
                if row["image_id"] is not None:
                    known.animals[row["instance_id"]] = row
        for instance_id, animal in known.animals.items():
            known.animals_in.setdefault(animal["image_id"], []).append(instance_id)
        known.split_of = dict(zip(known.labels["image_id"], known.labels["split"]))
        return known

    def add_image(self, row: dict[str, Any]) -> None:
        image_id = row["image_id"]
        self.images.setdefault(image_id, row)
        path = Path(row["path"])
        for name in {image_id, path.name, path.stem, row["source_id"] or image_id}:
            self.names.setdefault(name, set()).add(image_id)

    def find_images(self, name: str) -> set[str]:
        """The images of a name: an id, a file name, a source's name, with or without folder and suffix."""
        path = Path(name)
        found = [self.names[key] for key in (name, path.name, path.stem) if key in self.names]
        return min(found, key=len, default=set())


@dataclass(frozen=True)
class Source:
    """What came back.

    Attributes:
        records: What a reader found.
        dropped: What it left out, by reason.
        folder: Where pictures lie that are not known yet.
        name: Name of the format.
    """

    records: Sequence[LabelRecord]
    dropped: Counter[str]
    folder: Path
    name: str


def import_corrections(source: Source, workspace: Workspace, options: LabelledOptions) -> dict[str, Any]:
    """Add labels to the labelled set, and publish it.

    Args:
        source: What came back.
        workspace: Whose labels.
        options: `split` is where new pictures go, by default train; `copy` as always.

    Returns:
        Facts: labels, how many replace labels, are of web images, and are new animals; dropped by reason.

    Raises:
        UserError: nothing can be used.
    """
    known = _Known.read(workspace)
    records, dropped, name = source.records, Counter(source.dropped), source.name
    rows: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    placed = [(record, _place(record, known, source, workspace, options)) for record in records]
    taken: set[str | None] = {record.instance_id for record in records}
    labelled_before = set(known.labels["instance_id"])
    target = options.split or "train"
    hashes = _other_hashes(known, target)
    for record, image_id in placed:
        problem = _problem(record, image_id, known, hashes)
        if problem is not None:
            dropped[problem] += 1
            continue
        # A skeleton that was copied in a tool may carry the id of the one it was copied from.
        own = record.instance_id if record.instance_id not in rows else None
        instance_id = own or _match(record, image_id, known, taken)
        if instance_id is None:
            instance_id = make_instance_id(image_id, f"{name}:{record.source_id}", record.box_xyxy)
        taken.add(instance_id)
        counts["new_animals"] += instance_id not in known.animals
        counts["replaced"] += instance_id in labelled_before
        split = known.split_of.get(image_id, target)
        counts["other_split"] += options.split is not None and split != target
        rows[instance_id] = _row(record, instance_id, image_id, known, workspace) | {
            "detector": name,
            "split": split,
        }
    if not rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items()) or "it is empty"
        raise UserError(f"expected labels in this {name} set; found none that can be used ({reasons})")
    images = [known.images[key] for key in dict.fromkeys(row["image_id"] for row in rows.values())]
    _publish(workspace, known, list(rows.values()), images, name)
    facts = {"labels": len(rows), "pictures": len(images), **{key: counts[key] for key in _COUNTED}}
    return _tell(workspace, name, facts, dropped, rows, known)


_COUNTED = ("replaced", "new_animals", "other_split")


def _place(
    record: LabelRecord, known: _Known, source: Source, workspace: Workspace, options: LabelledOptions
) -> str:
    """The id of a record's image, or an empty text if it is neither known nor found."""
    animal = known.animals.get(record.instance_id or "")
    if animal is not None and animal["image_id"] in known.images:
        return str(animal["image_id"])
    name = record.image_name
    if name not in known.placed:
        known.placed[name] = _find_picture(name, record.size, known, source, workspace, options)
    return known.placed[name]


def _find_picture(
    name: str,
    size: tuple[int, int] | None,
    known: _Known,
    source: Source,
    workspace: Workspace,
    options: LabelledOptions,
) -> str:
    images = known.find_images(name)
    same_name = next(iter(images)) if len(images) == 1 else None
    if same_name is not None and (source.folder is None or not (source.folder / name).is_file()):
        return same_name
    looking = replace(options, copy=False)
    picture = read_picture(name, size, source.folder, workspace, looking, source.name)
    if picture.problem is not None:
        return same_name or ""
    if same_name is not None and picture.key != same_name:
        # Cameras number photos from the start again and again: what the picture shows decides.
        pair = [picture.row["phash"]], [known.images[same_name]["phash"]]
        if None in (*pair[0], *pair[1]) or nearest(*pair)[1][0] <= _SAME_PHOTO_BITS:
            return same_name
    if picture.key not in known.images:
        if options.copy:
            picture = read_picture(name, size, source.folder, workspace, options, source.name)
        if picture.row["record_id"] in known.records:  # another photo had this name
            picture.row["record_id"] = make_record_id(source.name, f"{name}:{picture.key}")
        known.add_image(picture.row)
    return picture.key


def _other_hashes(known: _Known, target: str) -> list[str | None]:
    """Perceptual hashes of the labelled photos in other splits than the one that new pictures go into."""
    others = {image for image, split in known.split_of.items() if split != target}
    return [known.images[image]["phash"] for image in sorted(others) if image in known.images]


def _problem(record: LabelRecord, image_id: str, known: _Known, others: list[str | None]) -> str | None:
    if not image_id:
        several = len(known.find_images(record.image_name)) > 1
        return f"picture {'of a name that several have' if several else 'that is neither known nor found'}"
    row = known.images[image_id]
    if image_id not in known.split_of:
        repeats = nearest([row["phash"]], others)[1][0] <= _SAME_PHOTO_BITS
        if row["status"] == "in_labels" or repeats:
            return "picture that repeats one of the labelled set"
    if not (record.visible > 0).any():
        return "no labelled keypoint"
    size = (row["width"], row["height"]) if row["width"] > 0 else record.size
    return size_problem(record.size, size) or box_problem(record.box_xyxy, size)


def _match(record: LabelRecord, image_id: str, known: _Known, taken: set[str | None]) -> str | None:
    """The animal of this picture whose box overlaps the record's most, if it is no other record's."""
    best, found = _LEAST_IOU, None
    for instance_id in known.animals_in.get(image_id, ()):
        box = known.animals[instance_id]["box_xyxy"]
        overlap = float(box_iou(record.box_xyxy[None], box[None])[0, 0])
        if instance_id not in taken and overlap >= best:
            best, found = overlap, instance_id
    return found


def _row(
    record: LabelRecord, instance_id: str, image_id: str, known: _Known, workspace: Workspace
) -> dict[str, Any]:
    box, camera = record.box_xyxy, record.camera
    old = known.animals.get(instance_id)
    if old is None or old["image_id"] != image_id:
        old = {}
    elif record.box_from_keypoints or _spans(record, box):
        # Tools that keep skeletons without a box write the keypoints' span: the box is known better.
        box = old["box_xyxy"]
    if camera is None:
        camera = old.get("camera", np.full(7, np.nan))
    mask = record.mask_rle or old.get("mask_rle")
    # One that changed is a person's, which has no quality.
    quality = old["mask_quality"] if old and mask == old["mask_rle"] else np.nan
    return {
        "instance_id": instance_id,
        "image_id": image_id,
        "category": workspace.category.name,
        "source_id": record.source_id,
        "box_xyxy": box,
        "score": np.nan,
        "mask_rle": mask,
        "mask_quality": quality,
        "flags": record.flags or old.get("flags", ""),
        "skeleton": workspace.category.skeleton.name,
        "xy": record.xy,
        "visible": record.visible,
        "camera": camera,
    }


def _spans(record: LabelRecord, box_xyxy: np.ndarray) -> bool:
    xy = record.xy[record.visible > 0]
    return bool(np.abs(np.concatenate([xy.min(0), xy.max(0)]) - box_xyxy).max() <= _SPAN)


def _publish(
    workspace: Workspace, known: _Known, rows: list[dict[str, Any]], images: list[dict[str, Any]], name: str
) -> None:
    skeleton = workspace.category.skeleton
    new = Table.from_rows("labels", rows, num_keypoints=skeleton.num_keypoints, skeleton=skeleton.name)
    ids = set(new["instance_id"])
    earlier = _load(workspace, "corrections")
    earlier = earlier.take(np.array([i not in ids for i in earlier["instance_id"]], dtype=bool))
    provenance = Provenance("import", {"format": name, "as": "labels"})
    ok = [row | {"status": "ok", "error": None} for row in images]
    pictures = _union(Table.from_rows("images", ok), _load(workspace, "corrected_images"))
    # These first: if the command is killed in between, the same call completes the labels.
    publish(pictures, workspace.table_path("corrected_images"), provenance)
    publish(concat([new, earlier]), workspace.table_path("corrections"), provenance)
    there = workspace.table_path("labels").exists()
    only = alone(workspace) or not there
    facts = {} if not only else {"corrections_only": True, "dropped": {}}
    base = known.labels.with_meta(**{**known.labels.meta, **facts})
    all_images, labels = merged(workspace, _load(workspace, "labelled_images"), base)
    for what, table in (("labelled_images", all_images), ("labels", labels)):
        path = workspace.table_path(what)
        # Still the set that its own import made, as far as that command is concerned.
        publish(table, path, _provenance_of(path) if there and path.exists() else provenance)


def _provenance_of(path: Path) -> Provenance:
    stored = read_facts(path)["provenance"]
    return Provenance(stored.get("stage", ""), stored.get("config") or {}, stored.get("inputs") or {})


def _tell(
    workspace: Workspace,
    name: str,
    facts: dict[str, Any],
    dropped: Counter[str],
    rows: dict[str, dict[str, Any]],
    known: _Known,
) -> dict[str, Any]:
    pictures = {row["image_id"] for row in rows.values()}
    unlabelled = pictures - set(known.split_of)
    facts["web_pictures"] = len(unlabelled & known.web)
    facts["new_pictures"] = len(unlabelled) - facts["web_pictures"]
    labelled = {*rows, *known.labels["instance_id"]}
    facts["unlabelled_animals"] = sum(
        len(set(known.animals_in.get(image, ())) - labelled) for image in pictures
    )
    facts["splits"] = dict(Counter(row["split"] for row in rows.values()))
    splits = ", ".join(f"{n} {split}" for split, n in facts["splits"].items())
    line = (
        f"import {name} --as labels: {workspace.category.name}, {facts['labels']} labels in "
        f"{facts['pictures']} pictures ({splits}); {facts['replaced']} replace labels, "
        f"{facts['new_animals']} are of new animals; {facts['web_pictures']} pictures leave the "
        f"pseudo-labels, {facts['new_pictures']} are new"
    )
    if facts["unlabelled_animals"]:
        line += f", with {facts['unlabelled_animals']} animals that have no label"
    if facts["other_split"]:
        line += f"; {facts['other_split']} stay in the split of their picture"
    left_out = "; ".join(f"{n} {reason}" for reason, n in dropped.items() if n)
    say(line + (f"; dropped: {left_out}" if left_out else ""))
    result = {"format": name, **facts, "dropped": dict(dropped)}
    workspace.write_metrics("corrections", result)
    return result
