"""What every kind of import shares: provenance, publishing labels, the summary line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wildshape.cli import say
from wildshape.files import sha256_bytes
from wildshape.formats import corrections
from wildshape.formats.labelled import LabelledSet
from wildshape.stage import Provenance, input_hashes, publish, up_to_date
from wildshape.tables import read_table
from wildshape.workspace import Workspace

if TYPE_CHECKING:
    from wildshape.formats.import_command import Config

_FEW = 20


def import_provenance(
    config: Config, workspace: Workspace, name: str, files: Sequence[Path], folder: Path | None
) -> Provenance:
    """What an import depends on.

    Args:
        config: The command's settings.
        workspace: Whose tables.
        name: The format.
        files: The files that are read.
        folder: Where the pictures lie.
    """
    settings: dict[str, Any] = {
        "format": name,
        "root": str(config.root),
        "images": None if folder is None else str(folder),
        "source_category": config.source_category,
        "split": config.split,
        "split_seed": config.split_seed,
        "fractions": list(config.fractions),
        "copy": config.copy,
    }
    inputs = input_hashes(workspace.root, *files)
    if len(inputs) > _FEW:  # one XML file an animal: a hash of all hashes
        lines = "".join(f"{file}\0{value}\n" for file, value in inputs.items())
        settings["files"] = f"{len(inputs)}, {sha256_bytes(lines.encode())[:16]}"
        inputs = {}
    return Provenance("import", settings, inputs)


def publish_labelled(
    config: Config, workspace: Workspace, provenance: Provenance, make: Callable[[], LabelledSet], name: str
) -> dict[str, Any]:
    """Publish a labelled set, with corrections that came in before; read it where it is up to date.

    Args:
        config: The command's settings.
        workspace: Where the tables lie.
        provenance: See `import_provenance`.
        make: Reads the set.
        name: The format.

    Returns:
        Facts for the caller: labels, images, splits, keypoints that no label has, dropped by reason.

    Raises:
        UserError: there is another labelled set, and no --overwrite.
    """
    paths = {what: workspace.table_path(what) for what in ("labelled_images", "labels")}
    # Both are looked at before either is written, so that a refusal leaves the old pair whole.
    overwrite = config.overwrite or corrections.alone(workspace)
    done = [up_to_date(path, provenance, overwrite=overwrite) for path in paths.values()]
    if all(done):
        labels = read_table(paths["labels"], "labels")
        images = read_table(paths["labelled_images"], "images")
    else:
        found = make()
        labels = found.labels.with_meta(dropped=dict(found.dropped))
        images, labels = corrections.merged(workspace, found.images, labels)
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
    return report(workspace, name, f"{len(labels)} labels ({counts})", facts, labels.meta["dropped"])


def report(
    workspace: Workspace, name: str, what: str, facts: dict[str, Any], dropped: Mapping[str, int]
) -> dict[str, Any]:
    """Say in a line what came in; returns the facts with the format and what was dropped."""
    left_out = "; ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    say(
        f"import {name}: {workspace.category.name}, {what}" + (f"; dropped: {left_out}" if left_out else "")
    )
    return {"format": name, **facts, "dropped": dict(dropped)}
