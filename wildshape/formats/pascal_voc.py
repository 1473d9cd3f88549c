"""Pascal VOC with keypoints: the Berkeley annotations of VOC's photos, one XML file an animal.

They name pictures without a suffix (`2008_001208`); `--images` is VOC's `JPEGImages`. VOC's own XML
files, which hold boxes only, may lie in the same folder: they are counted and left out. See
`wildshape.formats.keypoint_xml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wildshape.errors import UserError
from wildshape.formats import keypoint_xml
from wildshape.formats.keypoint_xml import read_records

__all__ = ["SOURCE", "find_file", "image_folder", "input_files", "read_records"]

SOURCE = "pascal_voc"


def find_file(root: Path) -> Path:
    """The folder of XML files, or one file.

    Raises:
        UserError: there is none.
    """
    if not keypoint_xml.find_xml(root):
        raise UserError(f"expected XML files of Pascal VOC's keypoints under {root}; found none")
    return root


def input_files(path: Path) -> Sequence[Path]:
    """The XML files."""
    return keypoint_xml.find_xml(path)


def image_folder(path: Path) -> Path:
    """Where the pictures lie: `JPEGImages` in the folder or beside it, else the folder itself."""
    start = path if path.is_dir() else path.parent
    for folder in (start, *start.parents[:3]):
        for name in ("JPEGImages", "images"):
            if (folder / name).is_dir():
                return folder / name
    return start
