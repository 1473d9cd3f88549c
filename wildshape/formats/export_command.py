"""`wildshape export FORMAT`: write labels and pseudo-labels out for other programs.

wildshape export animals3d --category horse --out DIR
wildshape export coco --category cow --out DIR
wildshape export cvat --category cow --selection cf_cm_500 --out DIR
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.formats import animals3d, animals3d_labels, coco, cvat, deeplabcut, label_studio
from wildshape.formats.selected import selected_labels, selection_names
from wildshape.tables import Table
from wildshape.workspace import Workspace

FORMATS = ("animals3d", "coco", "deeplabcut", "cvat", "label_studio")


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Write labels and pseudo-labels in another format; files that are there are replaced."""

    format: tyro.conf.Positional[str]
    """animals3d (published label files and filelists), coco (keypoints, one file a split and one a
    selection), deeplabcut (labelled photos), cvat or label_studio (a folder to open there)."""
    out: Path
    """Folder to write to."""
    selection: str | None = None
    """Write the pseudo-labels of this selection, such as cf_cm_500, in place of labels; all: of every
    animal."""
    source: str = "pose"
    """Whose keypoints pseudo-labels have: pose, pose_aux or acsm."""


def run(config: Config, workspace: Workspace) -> dict[str, int]:
    """Export one category.

    Returns:
        Records written, by file relative to --out.

    Raises:
        UserError: an unknown format, or nothing to export.
    """
    name = config.format.lower().replace("-", "_")
    if name not in FORMATS:
        raise UserError(f"expected a format among {', '.join(FORMATS)}; found {config.format}")
    out = config.out.expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder at --out {config.out}; found a file")
    if name == "animals3d":
        written = _export_animals3d(config, workspace, out)
    elif name == "coco":
        written = _export_coco(config, workspace, out)
    else:
        labels, images, confidence = _chosen(config, workspace)
        if name == "deeplabcut":
            written = deeplabcut.export_labels(labels, images, workspace, out)
        elif name == "cvat":
            written = cvat.export_labels(labels, images, workspace, out)
        else:
            written = label_studio.export_labels(labels, images, workspace, out, confidence)
    files = ", ".join(f"{name} ({count})" for name, count in written.items())
    say(f"export {name}: {len(written)} files in {config.out}: {files}")
    return written


def _export_animals3d(config: Config, workspace: Workspace, out: Path) -> dict[str, int]:
    if config.selection:
        raise UserError("--selection: expected with another format than animals3d, which holds them all")
    has_labels = workspace.table_path("labels").exists()
    has_instances = workspace.table_path("instances").exists()
    written = animals3d.export_published(workspace, out) if has_instances or not has_labels else {}
    if has_labels:
        labels, images = _labels(workspace, "export animals3d")
        written |= animals3d_labels.export_labels(labels, images, workspace.category.name, out)
    return written


def _export_coco(config: Config, workspace: Workspace, out: Path) -> dict[str, int]:
    names = [config.selection] if config.selection else selection_names(workspace)
    written: dict[str, int] = {}
    for name in names:
        written |= coco.export_selected(workspace, out, name, config.source)
    if not config.selection and (workspace.table_path("labels").exists() or not written):
        labels, images = _labels(workspace, "export coco")
        written = coco.export_labels(labels, images, workspace.category.skeleton, out) | written
    return written


def _chosen(config: Config, workspace: Workspace) -> tuple[Table, Table, np.ndarray | None]:
    if config.selection:
        return selected_labels(workspace, config.selection, config.source)
    return *_labels(workspace, f"export {config.format}"), None


def _labels(workspace: Workspace, needed_by: str) -> tuple[Table, Table]:
    return workspace.load("labels", needed_by), workspace.load("labelled_images", needed_by)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `wildshape export`."""
    return script_main(Config, run, argv, prog="wildshape export")


if __name__ == "__main__":
    sys.exit(main())
