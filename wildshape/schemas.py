"""What columns each kind of table has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

STATUSES = (
    "pending", "ok", "not_found", "rate_limited", "http_error", "forbidden", "timeout", "connection",
    "truncated", "not_image", "placeholder", "too_small", "too_large", "duplicate", "in_labels",
)  # fmt: skip
TRANSFORMS = (
    "none", "scale_1.1", "scale_1.2", "rot_-20", "rot_-10", "rot_10", "rot_20",
)  # fmt: skip
SPLITS = ("train", "val", "test")
MASK_STATUSES = ("ok", "no_mask", "empty", "low_quality", "bad_box", "unreadable")


@dataclass(frozen=True)
class Column:
    """One column of a kind of table.

    Attributes:
        dtype: Type of its elements.
        shape: Of one cell; "K" and "P" vary by table.
        nullable: Whether a cell may be null.
        annotation: Whether a later stage fills it in. Such a column is no part of the table's content
            hash, so that what was made from the table does not go stale by it. Always nullable.
    """

    dtype: str
    shape: tuple[int | str, ...] = ()
    nullable: bool = False
    annotation: bool = False


def _text(nullable: bool = False, annotation: bool = False) -> Column:
    return Column("str", (), nullable, annotation)


_BOX = Column("float64", (4,))
_INSTANCE = {
    "instance_id": _text(),
    "image_id": _text(nullable=True),
    "category": _text(),
    "source_id": _text(nullable=True),
    "box_xyxy": _BOX,
    "score": Column("float64", nullable=True),
    "detector": _text(),
    "mask_rle": _text(nullable=True, annotation=True),
    "mask_quality": Column("float64", nullable=True, annotation=True),
    "flags": _text(),
}
SCHEMAS: Mapping[str, Mapping[str, Column]] = MappingProxyType(
    {
        "images": {
            "record_id": _text(),
            "image_id": _text(nullable=True),
            "path": _text(nullable=True),
            "url": _text(nullable=True),
            "fetched_url": _text(nullable=True),
            "source": _text(),
            "source_id": _text(nullable=True),
            "width": Column("int64", nullable=True),
            "height": Column("int64", nullable=True),
            "phash": _text(nullable=True),
            "license": _text(nullable=True),
            "author": _text(nullable=True),
            "page_url": _text(nullable=True),
            "taken": _text(nullable=True),
            "latitude": Column("float64", nullable=True),
            "longitude": Column("float64", nullable=True),
            "status": _text(),
            "error": _text(nullable=True),
        },
        "instances": _INSTANCE,
        "labels": {
            **_INSTANCE,
            "split": _text(),
            "skeleton": _text(),
            "xy": Column("float64", ("K", 2), nullable=True),
            "visible": Column("int64", ("K",)),
            "camera": Column("float64", (7,), nullable=True),
        },
        "masks": {
            "instance_id": _text(),
            "box_xyxy": _BOX,
            "mask_rle": _text(nullable=True),
            "quality": Column("float64", nullable=True),
            "segmenter": _text(),
            "status": _text(),
            "error": _text(nullable=True),
        },
        "keypoints": {
            "instance_id": _text(),
            "transform": _text(),
            "xy": Column("float64", ("K", 2)),
            "confidence": Column("float64", ("K",)),
        },
        "shapes": {
            "instance_id": _text(),
            "crop_affine": Column("float64", (6,)),
            "camera": Column("float64", (7,)),
            "part_transforms": Column("float64", ("P", 8)),
        },
        "selections": {
            "instance_id": _text(),
            "criterion": _text(),
            "value": Column("float64", nullable=True),
            "rank": Column("int64"),
        },
    }
)
KEYS = {
    "images": "record_id", "instances": "instance_id", "labels": "instance_id", "masks": "instance_id",
}  # fmt: skip
