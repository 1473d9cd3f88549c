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


@dataclass(frozen=True)
class Column:
    """One column: its element type and the shape of one cell ("K" and "P" vary by table)."""

    dtype: str
    shape: tuple[int | str, ...] = ()
    nullable: bool = False


def _text(nullable: bool = False) -> Column:
    return Column("str", (), nullable)


_BOX = Column("float64", (4,))
_INSTANCE = {
    "instance_id": _text(),
    "image_id": _text(nullable=True),
    "category": _text(),
    "source_id": _text(nullable=True),
    "box_xyxy": _BOX,
    "score": Column("float64", nullable=True),
    "detector": _text(),
    "mask_rle": _text(nullable=True),
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
KEYS = {"images": "record_id", "instances": "instance_id", "labels": "instance_id"}
