"""`wildshape import FORMAT`: bring labels in.

wildshape import animal_pose --root animal_pose/ --category cow
wildshape import coco --root annotations/train.json --images train2017/ --category cow
wildshape import animals3d --root yfcc100m/ --category horse
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.files import file_hash
from wildshape.formats import animals3d, animals3d_labels
from wildshape.formats.labelled import (
    LabelledOptions,
    LabelledSet,
    build_labelled_set,
    place_pictures,
)
from wildshape.formats.readers import READERS
from wildshape.stage import Provenance, publish, up_to_date
from wildshape.tables import Table, read_table
from wildshape.workspace import Workspace

FORMATS = ("animals3d", *READERS)


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Bring labels in from another format."""

    format: tyro.conf.Positional[str]
    """animals3d (published label files), coco (keypoints), animal_pose, stanford_extra or deeplabcut."""
    root: Path
    """The data set's folder, or its annotation file."""
    images: Path | None = None
    """Folder of the pictures; by default where the format has them beside the labels."""
    source_category: str | None = None
    """The category's name in the data set, if it is another than --category."""
    split: str | None = None
    """Put everything into this split: train, val or test."""
    split_seed: int = 0
    """Seed of the division into train, val and test, which keeps near-duplicates together."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of train, val and test."""
    copy: bool = False
    """Copy the pictures under the data root; else tables point to where they lie."""


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Import one data set.

    Returns:
        Rows by table, and how many records were dropped by reason.

    Raises:
        UserError: an unknown format, nothing of it under --root, labels that do not fit.
    """
    name = config.format.lower().replace("-", "_")
    if name not in FORMATS:
        raise UserError(f"expected a format among {', '.join(FORMATS)}; found {config.format}")
    root = config.root.expanduser().resolve()
    if not root.exists():
        raise UserError(f"expected the data set at --root {config.root}; found nothing there")
    if config.images is not None and not config.images.is_dir():
        raise UserError(f"expected a folder of pictures at --images {config.images}; found none")
    options = LabelledOptions(
        config.split_seed, config.fractions, config.split, config.copy, require_images=name != "animals3d"
    )
    if name == "animals3d":
        return _import_animals3d(config, workspace, root, options)
    reader = READERS[name]
    path = reader.find_file(root)
    folder = config.images or reader.image_folder(path)
    provenance = _provenance(config, name, reader.hashes(path), folder)

    def make() -> LabelledSet:
        records, dropped = reader.read_records(path, workspace, config.source_category)
        if reader.loose_names:
            records = place_pictures(records, folder)
        found = build_labelled_set(records, folder, workspace, options, name)
        return replace(found, dropped=found.dropped + dropped)

    return _labelled(config, workspace, provenance, make, name)


def _provenance(config: Config, name: str, inputs: Mapping[str, str], folder: Path | None) -> Provenance:
    settings = {
        "format": name,
        "root": str(config.root),
        "images": None if folder is None else str(folder),
        "source_category": config.source_category,
        "split": config.split,
        "split_seed": config.split_seed,
        "fractions": list(config.fractions),
        "copy": config.copy,
    }
    return Provenance("import", settings, inputs)


def _labelled(
    config: Config, workspace: Workspace, provenance: Provenance, make: Any, name: str
) -> dict[str, Any]:
    paths = {what: workspace.table_path(what) for what in ("labelled_images", "labels")}
    # Both are looked at before either is written, so that a refusal leaves the old pair whole.
    done = [up_to_date(path, provenance, overwrite=config.overwrite) for path in paths.values()]
    if all(done):
        labels = read_table(paths["labels"], "labels")
        images = read_table(paths["labelled_images"], "images")
    else:
        found = make()
        images, labels = found.images, found.labels.with_meta(dropped=dict(found.dropped))
        publish(images, paths["labelled_images"], provenance)
        publish(labels, paths["labels"], provenance)
    splits = Counter(labels["split"])
    counts = ", ".join(f"{splits[split]} {split}" for split in ("train", "val", "test") if splits[split])
    facts = {"labels": len(labels), "labelled_images": len(images), "splits": dict(splits)}
    seen = np.flatnonzero((labels["visible"] > 0).sum(axis=0))
    names = workspace.category.skeleton.keypoints
    unmapped = [keypoint for index, keypoint in enumerate(names) if index not in seen]
    if unmapped:
        facts["keypoints_never_labelled"] = unmapped
        say(f"import {name}: no label has the keypoints {', '.join(unmapped)}")
    return _report(workspace, name, f"{len(labels)} labels ({counts})", facts, labels.meta["dropped"])


def _report(
    workspace: Workspace, name: str, what: str, facts: dict[str, Any], dropped: Mapping[str, int]
) -> dict[str, Any]:
    left_out = "; ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    say(
        f"import {name}: {workspace.category.name}, {what}" + (f"; dropped: {left_out}" if left_out else "")
    )
    return {"format": name, **facts, "dropped": dict(dropped)}


def _import_animals3d(
    config: Config, workspace: Workspace, root: Path, options: LabelledOptions
) -> dict[str, Any]:
    category = config.source_category or workspace.category.name
    files = animals3d.find_files(root, category, workspace.name)
    labelled = animals3d_labels.find_files(root, category)
    has_web = bool(set(files) - {"names", "pose_mt"})
    if not has_web and not labelled["annotations"]:
        raise UserError(
            f"expected labels/{category}_pl_2d.json, labels_0/{category}_bbox.json or "
            f"annotations/{category}.json under {root}; found none of them"
        )
    result: dict[str, Any] = {}
    if has_web:
        folder = config.images or _first_folder(root / "images" / category, root / "images")
        result = _import_web(config, workspace, files, folder)
    if labelled["annotations"]:
        folder = config.images or _first_folder(root / "images")
        paths = {path.name: file_hash(path) for group in labelled.values() for path in group}

        def make() -> LabelledSet:
            records, dropped = animals3d_labels.read_records(labelled, workspace)
            found = build_labelled_set(records, folder, workspace, options, "animals3d")
            return replace(found, dropped=found.dropped + dropped)

        provenance = _provenance(config, "animals3d", paths, folder)
        result = {**result, **_labelled(config, workspace, provenance, make, "animals3d")}
    return result


def _first_folder(*folders: Path) -> Path | None:
    return next((folder for folder in folders if folder.is_dir()), None)


def _import_web(
    config: Config, workspace: Workspace, files: dict[str, Path], folder: Path | None
) -> dict[str, Any]:
    hashed = {path.name: file_hash(path) for what, path in files.items() if what != "pose_mt"}
    if "pose_mt" in files:
        hashed |= {path.name: file_hash(path) for path in sorted(files["pose_mt"].glob("augm_*.txt"))}
    provenance = _provenance(config, "animals3d", hashed, folder)
    targets = {"images": workspace.table_path("images"), "instances": workspace.table_path("instances")}
    targets.update(
        {
            source: workspace.keypoints_path(source)
            for source in ("pose", "pose_aux", "acsm", "pose_mt")
            if source in files
        }
    )
    done = [up_to_date(path, provenance, overwrite=config.overwrite) for path in targets.values()]
    tables: dict[str, Table]
    if all(done):
        kinds = {"images": "images", "instances": "instances"}
        tables = {what: read_table(path, kinds.get(what, "keypoints")) for what, path in targets.items()}
    else:
        found = animals3d.read_published(files, workspace, folder)
        instances = found.instances.with_meta(dropped=dict(found.dropped))
        tables = {"images": found.images, "instances": instances, **found.keypoints}
        for what, path in targets.items():
            publish(tables[what], path, provenance)
    facts = {what: len(table) for what, table in tables.items()}
    with_files = int(sum(path is not None for path in tables["images"]["path"]))
    facts["images_with_files"] = with_files
    sources = ", ".join(what for what in targets if what not in ("images", "instances")) or "no keypoints"
    what = (
        f"{facts['instances']} instances in {facts['images']} images ({with_files} with a file); {sources}"
    )
    return _report(workspace, "animals3d", what, facts, tables["instances"].meta["dropped"])


def main(argv: list[str] | None = None) -> int:
    """Entry point of `wildshape import`."""
    return script_main(Config, run, argv, prog="wildshape import")


if __name__ == "__main__":
    sys.exit(main())
