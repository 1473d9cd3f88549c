"""Masks of real animals: DeepLab as a plug-in, beside the whole box and an ellipse in it, in one run.

    WILDSHAPE_REAL_DATA=DIR python -m benchmarks masks
    python -m benchmarks.masks --data DIR [--limit 40] [--model FILE.tflite]

DIR holds animal_pose/ (boxes and keypoints of horses, cows, sheep and dogs), stanfordextra/ (dogs with true
masks) and weights/. Every way goes through save_masks. The dogs are segmented a second time in boxes
that are off as a detector's are. It needs ai-edge-litert.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save
from prepare_data import save_masks
from wildshape.errors import UserError
from wildshape.formats import import_command
from wildshape.tables import write_table
from wildshape.workspace import Workspace

ROOT = Path(__file__).parents[1]
SPECIES = ("horse", "cow", "sheep", "dog")
MOVED = 0.05  # standard deviation of the sides of boxes as a detector gives them, relative to the box
MODEL = "weights/deeplabv3_mnv2_pascal_quant.tflite"
NETWORK = f"{ROOT}/examples/deeplab_litert.py:DeepLab"
WAYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "whole box": (f"{__file__}:WholeBox", ()),
    "ellipse in the box": (f"{__file__}:Ellipse", ()),
    "DeepLab, whole picture": (NETWORK, ("margin=0",)),
    "DeepLab, crop 1.0": (NETWORK, ("margin=1.0",)),
    "DeepLab, crop 1.1": (NETWORK, ("margin=1.1",)),
    "DeepLab, crop 1.2": (NETWORK, ("margin=1.2",)),
    "DeepLab, crop 1.5": (NETWORK, ("margin=1.5",)),
    "DeepLab, crop 2.0": (NETWORK, ("margin=2.0",)),
    "DeepLab, crop 1.0, not cut at the box": (NETWORK, ("margin=1.0", "slack=1")),
    "DeepLab, crop 1.0, the species' class alone": (NETWORK, ("margin=1.0", "classes={species}")),
}


class WholeBox:
    """Every pixel whose centre lies in the box."""

    def __call__(self, images: list[np.ndarray], boxes: list[np.ndarray]) -> list[Any]:
        """See `prepare_data.segmenters.Segmenter`."""
        return [
            [(self.mask(image.shape[:2], box), 1.0) for box in of_image]
            for image, of_image in zip(images, boxes)
        ]

    def mask(self, size: tuple[int, int], box: np.ndarray) -> np.ndarray:
        """The mask bool [H, W] of a box [4] counted from the image's edge."""
        x, y = _normalised(size, box)
        return (np.abs(x) <= 1) & (np.abs(y) <= 1)


class Ellipse(WholeBox):
    """The ellipse that touches the box's sides."""

    def mask(self, size: tuple[int, int], box: np.ndarray) -> np.ndarray:
        """The mask bool [H, W] of a box [4] counted from the image's edge."""
        x, y = _normalised(size, box)
        return x**2 + y**2 <= 1


def _normalised(size: tuple[int, int], box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres, -1 and 1 being the sides of the box: [1, W] and [H, 1]."""
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    x = (np.arange(size[1]) + 0.5 - centre[0]) / half[0]
    y = (np.arange(size[0]) + 0.5 - centre[1]) / half[1]
    return x[None], y[:, None]


def _labels(root: Path, species: str, form: str, source: Path, limit: int | None) -> Workspace:
    workspace = Workspace(root / form, species)
    common = {"category": species, "data_root": workspace.root, "root": source}
    import_command.run(import_command.Config(format=form, **common), workspace)
    if limit is not None:
        labels = workspace.load("labels")
        write_table(labels.take(slice(limit)), workspace.table_path("labels"))
    return workspace


def _move_boxes(workspace: Workspace, seed: int = 0) -> Workspace:
    labels = workspace.load("labels")
    boxes, rng = labels["box_xyxy"], np.random.default_rng(seed)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + MOVED * sides * np.clip(rng.normal(size=boxes.shape), -3, 3)
    write_table(labels.with_columns(box_xyxy=moved), workspace.table_path("labels"))
    return workspace


def measure(way: str, model: Path, workspace: Workspace) -> dict[str, Any]:
    """Segment the labelled animals of a workspace in one way."""
    spec, opts = WAYS[way]
    opts = tuple(value.format(species=workspace.category.name) for value in opts)
    if spec == NETWORK:
        opts = (*opts, f"model={model}")
    config = save_masks.Config(
        category=workspace.category.name, segmenter=spec, opts=opts, labelled=True, overwrite=True
    )
    seen = int((workspace.load("labels")["visible"] == 2).sum())
    return {**save_masks.run(config, workspace), "seen": seen}


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One way's figures over sets; a box without a mask counts as IoU 0 and as no keypoint inside."""
    boxes = sum(sum(row["by_status"].values()) for row in rows)
    figures: dict[str, Any] = {
        "boxes": boxes,
        "masks": sum(row["masks"] for row in rows),
    }
    for key in ("box_iou", "true_iou"):
        if there := [row[key] for row in rows if row.get(key)]:
            figures[key] = round(sum(one["mean"] * one["n"] for one in there) / boxes, 4)
    if inside := [row["keypoints_inside"] for row in rows if row.get("keypoints_inside")]:
        count = sum(row["seen"] for row in rows)
        hits = sum(one["visible"] * one["visible_keypoints"] for one in inside)
        figures["visible_keypoints_inside"] = round(hits / count, 4)
        figures["visible_keypoints"] = count
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all ways; returns 1 if no way of the network beats both simple masks on true masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("WILDSHAPE_REAL_DATA"))
    parser.add_argument("--limit", type=int, default=None, help="animals of each species; by default all")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the figures")
    options = parser.parse_args(argv)
    if options.data is None or not Path(options.data).is_dir():
        raise UserError(f"expected a folder of real data; found {options.data}; set WILDSHAPE_REAL_DATA")
    data = Path(options.data)
    model = options.model or data / MODEL
    figures: dict[str, Any] = {
        "model": model.name,
        "animal_pose": {},
        "by_species": {},
        "stanford_extra": {},
        "stanford_extra_moved_boxes": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        sets = {
            species: _labels(Path(folder), species, "animal_pose", data / "animal_pose", options.limit)
            for species in SPECIES
        }
        dogs = _labels(Path(folder), "dog", "stanford_extra", data / "stanfordextra", options.limit)
        other = data / "stanfordextra"
        moved = _move_boxes(_labels(Path(folder) / "moved", "dog", "stanford_extra", other, options.limit))
        for way in WAYS:
            rows = {species: measure(way, model, workspace) for species, workspace in sets.items()}
            figures["animal_pose"][way] = summarise(list(rows.values()))
            figures["by_species"][way] = {species: summarise([row]) for species, row in rows.items()}
            figures["stanford_extra"][way] = summarise([measure(way, model, dogs)])
            figures["stanford_extra_moved_boxes"][way] = summarise([measure(way, model, moved)])
    print(table(figures))
    print(save("masks", figures, options.out))
    found = {way: row.get("true_iou", 0.0) for way, row in figures["stanford_extra"].items()}
    simple = max(found["whole box"], found["ellipse in the box"])
    return int(max(value for way, value in found.items() if way.startswith("DeepLab")) <= simple)


def table(figures: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    lines = [
        f"{'':44} box IoU  keypoints inside | dogs: true IoU  keypoints inside | boxes moved: true IoU"
    ]
    for way, pose in figures["animal_pose"].items():
        dogs, moved = figures["stanford_extra"][way], figures["stanford_extra_moved_boxes"][way]
        lines.append(
            f"{way:44} {pose['box_iou']:7.3f}  {pose['visible_keypoints_inside']:16.3f} | "
            f"{dogs['true_iou']:14.3f}  {dogs['visible_keypoints_inside']:16.3f} | "
            f"{moved['true_iou']:21.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
