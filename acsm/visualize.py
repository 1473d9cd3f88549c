"""`wildshape acsm-visualize`: predicted shapes over their photos, and turned."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from acsm.arms import load_arm
from acsm.drawing import contact_sheet, novel_view, overlay
from wildshape import training_data
from wildshape.cli import CommonConfig, say, script_main
from wildshape.crops import image_paths, read_image
from wildshape.errors import UserError
from wildshape.files import atomic_path
from wildshape.geometry import Affine2D, crop_affine, warp_crop
from wildshape.records import tell_skipped

if TYPE_CHECKING:
    from pathlib import Path

    from wildshape.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    """Draw predicted shapes over their photos and from other sides."""

    arm: str = "labels"
    """Which of the run's models."""
    opts: tuple[str, ...] = ()
    """MODEL.WEIGHTS FILE: draw with this checkpoint in place of the arm's."""
    vis_num: int = 12
    """How many animals."""
    split: Literal["train", "val", "test", "web"] = "test"
    """Which labelled animals, or web: the detected ones."""
    seed: int = 0
    """Seed of the choice of animals."""
    tile: int = 192
    """Side of each picture in pixels."""
    azimuths: tuple[float, ...] = (90.0, 0.0, 45.0)
    """Novel views, degrees: 0 from the front, 90 from the animal's left."""
    device: str = "auto"
    """auto, cpu or cuda."""


def _animals(config: Config, workspace: Workspace) -> tuple[list[Path], np.ndarray, list[str]]:
    if config.split == "web":
        instances = workspace.load("instances", "acsm-visualize")
        paths = image_paths(workspace.load("images", "acsm-visualize"), workspace)
        rows = [i for i, image in enumerate(instances["image_id"]) if image in paths]
        files = [paths[instances["image_id"][i]] for i in rows]
        return files, instances["box_xyxy"][rows], list(instances["instance_id"][rows])
    records, _ = training_data.labelled(workspace, config.split, workspace.category.skeleton)
    return list(records.paths), records.box_xyxy, list(records.instance_ids)


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    """Write pictures/acsm_<arm>_<split>.jpg; gives its path and the number of animals.

    Raises:
        UserError: the arm or the animals are missing, or --vis_num is below 1.
    """
    from PIL import Image

    if config.vis_num < 1:
        raise UserError(f"--vis_num: expected at least 1; found {config.vis_num}")
    predictor, _ = load_arm(workspace, config.arm, config.opts, device=config.device)
    assert predictor.template is not None
    files, boxes, ids = _animals(config, workspace)
    order = np.random.default_rng(config.seed).permutation(len(files))
    rows, skipped = [], []
    for index in order:
        if len(rows) == config.vis_num:
            break
        try:
            image = read_image(files[index])
        except UserError as error:
            skipped.append((ids[index], str(error)))
            continue
        shapes = predictor.predict([image], boxes[index][None])
        # Draw on the tile, not on the photo: a large photo would cost much and show no more.
        affine = crop_affine(boxes[index], config.tile, scale=1.25)
        tile = warp_crop(image, affine, config.tile, 255)
        vertices = _in_tile(shapes.vertices_image[0], affine)
        views = [
            novel_view(shapes.vertices[0], predictor.template, azimuth, config.tile)
            for azimuth in config.azimuths
        ]
        rows.append([tile, overlay(tile, vertices, predictor.template), *views])
    if not rows:
        raise UserError(
            f"expected {config.split} animals with images for {workspace.category.name}; found none"
        )
    tell_skipped(skipped, len(order), "animals")
    # Two animals side by side: pages are wider than five pictures.
    paired = [sum(rows[i : i + 2], []) for i in range(0, len(rows), 2)]
    out = workspace.pictures_dir / f"acsm_{config.arm}_{config.split}.jpg"
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        Image.fromarray(contact_sheet(paired, config.tile)).save(temporary, quality=90)
    say(f"acsm-visualize: {len(rows)} animals -> {workspace.relative(out)}")
    facts = {"picture": workspace.relative(out), "animals": len(rows), "skipped": len(skipped)}
    workspace.write_metrics(f"visualize_{config.arm}_{config.split}", facts)
    return facts


def _in_tile(vertices_image: np.ndarray, affine: Affine2D) -> np.ndarray:
    moved = np.array(vertices_image)
    moved[:, :2] = affine.apply(moved[:, :2])
    moved[:, 2] *= affine.scale
    return moved


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the script and the command."""
    return script_main(Config, run, argv, prog="wildshape acsm-visualize")


if __name__ == "__main__":
    sys.exit(main())
