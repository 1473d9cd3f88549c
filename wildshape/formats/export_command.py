"""`wildshape export FORMAT`: write labels and pseudo-labels out for other programs.

wildshape export animals3d --category horse --out DIR
wildshape export coco --category cow --out DIR
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from wildshape.cli import CommonConfig, say, script_main
from wildshape.errors import UserError
from wildshape.formats import animals3d, animals3d_labels, coco, deeplabcut
from wildshape.tables import Table
from wildshape.workspace import Workspace

FORMATS = ("animals3d", "coco", "deeplabcut")


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Write labels and pseudo-labels in another format; files that are there are replaced."""

    format: tyro.conf.Positional[str]
    """animals3d (published label files and filelists), coco (keypoints, one file a split and one a
    selection) or deeplabcut (labelled photos)."""
    out: Path
    """Folder to write to."""


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
    has_labels = workspace.table_path("labels").exists()
    if name == "coco":
        written = coco.export_selections(workspace, out)
        if has_labels or not written:
            labels, images = _labels(workspace, "export coco")
            written = coco.export_labels(labels, images, workspace.category.skeleton, out) | written
    elif name == "deeplabcut":
        labels, images = _labels(workspace, "export deeplabcut")
        written = deeplabcut.export_labels(labels, images, workspace, out)
    else:
        has_instances = workspace.table_path("instances").exists()
        written = animals3d.export_published(workspace, out) if has_instances or not has_labels else {}
        if has_labels:
            labels, images = _labels(workspace, "export animals3d")
            written |= animals3d_labels.export_labels(labels, images, workspace.category.name, out)
    files = ", ".join(f"{name} ({count})" for name, count in written.items())
    say(f"export {name}: {len(written)} files in {config.out}: {files}")
    return written


def _labels(workspace: Workspace, needed_by: str) -> tuple[Table, Table]:
    return workspace.load("labels", needed_by), workspace.load("labelled_images", needed_by)


def main(argv: list[str] | None = None) -> int:
    """Entry point of `wildshape export`."""
    return script_main(Config, run, argv, prog="wildshape export")


if __name__ == "__main__":
    sys.exit(main())
